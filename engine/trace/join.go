package trace

import (
	"cmp"
	"slices"
)

// end is one side of a message.
type end struct {
	seen    bool
	process uint32
	peer    uint64 // this side's index of the other
}

// Message is a query or a move, as far as it was seen. A query is named by its lane, step, layer and half, a move
// by its lane, ticket and first block.
type Message struct {
	Kind     Kind
	Lane     uint64
	ID       uint64 // step or ticket
	Part     uint64 // layer and, from bit 16 on, half of the step's rows; or first block
	Rows     uint64 // or blocks
	Bytes    uint64 // of what the home sent
	Answer   uint64 // bytes of what came back
	home     end
	creditor end
	at       [stages]uint64 // 0: not seen
}

// last is the message's last stage at its home.
func (m *Message) last() Stage {
	if m.Kind == Move {
		return Back
	}
	return Merged
}

// Layer of a query.
func (m *Message) Layer() uint64 { return m.Part & 0xffff }

// Half says which half of its step's rows a query is of: 0 also where the step was not computed in halves.
func (m *Message) Half() uint64 { return m.Part >> 16 }

// Whole says whether the home was seen from the beginning to the end.
func (m *Message) Whole() bool { return m.at[Posted] != 0 && m.at[m.last()] != 0 }

// inOrder says whether the stages follow each other. What is marked after a link took a message races with
// the other end, which may be quicker: Wire with Arrived, and Returned with Back.
func (m *Message) inOrder() bool {
	before := func(s ...Stage) bool {
		t := uint64(0)
		for _, x := range s {
			if m.at[x] == 0 {
				continue
			}
			if m.at[x] < t {
				return false
			}
			t = m.at[x]
		}
		return true
	}
	return before(Posted, Wire, Back, Merged) && before(Arrived, Computed, Returned) && before(Posted, Arrived, Computed, Back)
}

// Share is a request's part of a step.
type Share struct {
	Tag       uint64 `json:"tag"` // of its id, see batch.Tag
	Slot      uint64 `json:"slot"`
	Pos0      uint64 `json:"pos0"`       // of its first row
	Tokens    uint64 `json:"tokens"`     // rows
	LocalPos0 uint64 `json:"local_pos0"` // the tokens before it lie with others
}

// Step is a step with remote spans, at its home.
type Step struct {
	ID       uint64
	Seqs     uint64 // requests, with those that have no remote spans
	Tokens   uint64
	Peers    uint64 // that are asked
	Shares   []Share
	Messages []*Message // in the order of Posted
	process  uint32
	begun    uint64 // 0: the trace began later
	ended    uint64 // 0: the trace ended earlier
}

func (s *Step) whole() bool { return s.begun != 0 && s.ended != 0 }

type messageKey struct {
	kind           Kind
	lane, id, part uint64
}

type stepKey struct {
	process uint32
	id      uint64
}

// Trace joins events. They may come in any order: each CPU writes its own.
type Trace struct {
	Events   int
	messages map[messageKey]*Message
	steps    map[stepKey]*Step
	lanes    map[uint64]*lane
	repeated int
	first    uint64
	last     uint64
}

// lane is what is known of the two ends that a lane's messages go between.
type lane struct{ home, creditor end }

// New returns a trace of nothing.
func New() *Trace {
	return &Trace{messages: map[messageKey]*Message{}, steps: map[stepKey]*Step{}, lanes: map[uint64]*lane{}}
}

// Add takes an event.
func (t *Trace) Add(e Event) {
	if t.Events == 0 || e.Time < t.first {
		t.first = e.Time
	}
	t.last = max(t.last, e.Time)
	t.Events++
	if kind, stage, ok := e.Mark.message(); ok {
		t.addMessage(e, kind, stage)
		return
	}
	s := t.step(e.Process, e.Args[0])
	switch e.Mark {
	case StepBegun:
		s.begun, s.Seqs, s.Tokens, s.Peers = e.Time, e.Args[1], e.Args[2], e.Args[3]
	case StepSeq:
		s.Shares = append(s.Shares, Share{Tag: e.Args[1], Slot: e.Args[2], Pos0: e.Args[3], Tokens: e.Args[4], LocalPos0: e.Args[5]})
	case StepEnded:
		s.ended = e.Time
	}
}

func (t *Trace) step(process uint32, id uint64) *Step {
	k := stepKey{process, id}
	s := t.steps[k]
	if s == nil {
		s = &Step{ID: id, process: process}
		t.steps[k] = s
	}
	return s
}

func (t *Trace) addMessage(e Event, kind Kind, stage Stage) {
	k := messageKey{kind, e.Args[1], e.Args[2], e.Args[3]}
	m := t.messages[k]
	if m == nil {
		m = &Message{Kind: kind, Lane: k.lane, ID: k.id, Part: k.part, Rows: e.Args[4]}
		t.messages[k] = m
	}
	if m.at[stage] != 0 {
		t.repeated++
		return
	}
	m.at[stage] = max(1, e.Time)
	l := t.lanes[k.lane]
	if l == nil {
		l = &lane{}
		t.lanes[k.lane] = l
	}
	here := end{true, e.Process, e.Args[0]}
	if stage.atHome() {
		m.home, l.home = here, here
		if kind == Query && stage == Posted {
			s := t.step(e.Process, k.id)
			s.Messages = append(s.Messages, m)
		}
	} else {
		m.creditor, l.creditor = here, here
	}
	if stage <= Computed {
		m.Bytes = e.Args[5]
	} else {
		m.Answer = e.Args[5]
	}
}

// Messages lists all, in the order in which they were first seen in time.
func (t *Trace) Messages() []*Message {
	out := make([]*Message, 0, len(t.messages))
	for _, m := range t.messages {
		out = append(out, m)
	}
	slices.SortFunc(out, compareMessages)
	return out
}

// since is the message's first time.
func (m *Message) since() uint64 {
	for _, at := range m.at {
		if at != 0 {
			return at
		}
	}
	return 0
}

func compareMessages(a, b *Message) int {
	return cmp.Or(cmp.Compare(a.since(), b.since()), cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Part, b.Part))
}

// Steps lists all, by process and number, their messages in the order of Posted.
func (t *Trace) Steps() []*Step {
	out := make([]*Step, 0, len(t.steps))
	for _, s := range t.steps {
		slices.SortFunc(s.Messages, compareMessages)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Step) int {
		return cmp.Or(cmp.Compare(a.process, b.process), cmp.Compare(a.ID, b.ID))
	})
	return out
}
