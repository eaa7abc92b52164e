package trace

import (
	"cmp"
	"fmt"
	"slices"
)

// Request is one whose KV lies with others, over the steps that were seen.
type Request struct {
	ID    string  `json:"id,omitempty"` // where it is known
	Tag   string  `json:"tag"`          // of its id
	Home  string  `json:"home"`
	Slot  uint64  `json:"slot"`
	From  uint64  `json:"from"` // position of its first row
	To    uint64  `json:"to"`   // behind its last
	Steps Times   `json:"steps"`
	Away  Times   `json:"away"` // of each step: while a message of it was out
	Each  []AStep `json:"each"`
}

// AStep is a step of a request's.
type AStep struct {
	Step     uint64 `json:"step"`
	At       uint64 `json:"at_ns"` // CLOCK_MONOTONIC
	Took     uint64 `json:"took_ns"`
	Away     uint64 `json:"away_ns"`
	Pos0     uint64 `json:"pos0"`
	Tokens   uint64 `json:"tokens"`
	Requests uint64 `json:"requests"` // in this step
	Messages int    `json:"messages"`
}

// away is how long at least one of the step's messages was out: posted and not back.
func (s *Step) away() uint64 {
	var sum, until uint64
	for _, m := range s.Messages { // in the order of Posted
		from, to := m.at[Posted], m.at[Back]
		if to <= from {
			continue
		}
		if from = max(from, until); to > from {
			sum, until = sum+to-from, to
		}
	}
	return sum
}

func requests(steps []*Step, src Source, opt Options) []Request {
	type key struct {
		process   uint32
		tag, slot uint64
	}
	all := map[key]*Request{}
	for _, s := range steps {
		if !s.whole() {
			continue
		}
		for _, sh := range s.Shares {
			if opt.Requests != nil && !opt.Requests[sh.Tag] {
				continue
			}
			k := key{s.process, sh.Tag, sh.Slot}
			r := all[k]
			if r == nil {
				r = &Request{ID: src.Names[sh.Tag], Tag: tagText(sh.Tag), Home: src.Processes[s.process].Name(), Slot: sh.Slot, From: sh.Pos0}
				all[k] = r
			}
			r.To = max(r.To, sh.Pos0+sh.Tokens)
			r.Each = append(r.Each, AStep{
				Step: s.ID, At: s.begun, Took: s.ended - s.begun, Away: s.away(), Pos0: sh.Pos0, Tokens: sh.Tokens,
				Requests: s.Seqs, Messages: len(s.Messages),
			})
		}
	}
	out := make([]Request, 0, len(all))
	for _, r := range all {
		var took, away []uint64
		for _, e := range r.Each {
			took, away = append(took, e.Took), append(away, e.Away)
		}
		r.Steps, r.Away = timesOf(took), timesOf(away)
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Request) int { return cmp.Compare(a.Each[0].At, b.Each[0].At) })
	return out
}

func tagText(tag uint64) string { return fmt.Sprintf("%08x", tag) }

// Timeline is one step, message by message.
type Timeline struct {
	Home     string         `json:"home"`
	Step     uint64         `json:"step"`
	Took     uint64         `json:"took_ns"`
	Away     uint64         `json:"away_ns"`
	Requests uint64         `json:"requests"`
	Tokens   uint64         `json:"tokens"`
	Shares   []NamedShare   `json:"shares"` // of requests whose KV lies with others
	Messages []TimedMessage `json:"messages"`
}

// NamedShare is a share and the request's id, where it is known.
type NamedShare struct {
	ID string `json:"id,omitempty"`
	Share
}

// TimedMessage is a message with its stages in ns after the step's beginning.
type TimedMessage struct {
	Layer    uint64           `json:"layer"`
	Half     uint64           `json:"half"` // of the step's rows: 0, also of steps that are not in halves, or 1
	Peer     int64            `json:"peer"`
	Creditor string           `json:"creditor"`
	Rows     uint64           `json:"rows"`
	Bytes    uint64           `json:"bytes"`
	At       map[string]int64 `json:"at_ns"`
}

// pick finds the step to show: the one that was asked for, or the slowest that was seen whole.
func pick(steps []*Step, opt Options) *Step {
	var best *Step
	for _, s := range steps {
		if !s.whole() || len(s.Messages) == 0 || opt.Step != 0 && s.ID != opt.Step || !s.has(opt.Requests) || !s.asks(opt.Peer) {
			continue
		}
		if best == nil || s.ended-s.begun > best.ended-best.begun {
			best = s
		}
	}
	return best
}

func (s *Step) has(tags map[uint64]bool) bool {
	return tags == nil || slices.ContainsFunc(s.Shares, func(sh Share) bool { return tags[sh.Tag] })
}

func (s *Step) asks(peer int) bool {
	return peer < 0 || slices.ContainsFunc(s.Messages, func(m *Message) bool { return m.home.is(peer) })
}

func (t *Trace) timeline(s *Step, src Source) *Timeline {
	if s == nil {
		return nil
	}
	out := &Timeline{
		Home: src.Processes[s.process].Name(), Step: s.ID, Took: s.ended - s.begun, Away: s.away(), Requests: s.Seqs, Tokens: s.Tokens,
	}
	for _, sh := range s.Shares {
		out.Shares = append(out.Shares, NamedShare{src.Names[sh.Tag], sh})
	}
	for _, m := range s.Messages {
		creditor := t.lanes[m.Lane].creditor.named(src.Processes)
		tm := TimedMessage{
			Layer: m.Layer(), Half: m.Half(), Peer: int64(m.home.peer), Creditor: creditor.Process, Rows: m.Rows, Bytes: m.Bytes, At: map[string]int64{},
		}
		for stage, at := range m.at {
			if at != 0 {
				tm.At[Stage(stage).String()] = int64(at - s.begun)
			}
		}
		out.Messages = append(out.Messages, tm)
	}
	return out
}
