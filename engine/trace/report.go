package trace

import (
	"fmt"
	"time"
)

// Process is one that is traced.
type Process struct {
	PID      int    `json:"pid"`
	Instance string `json:"instance,omitempty"` // its id, where its command or environment tells
	Program  string `json:"program"`
	Marks    int    `json:"marks"` // that have a probe
	Events   int    `json:"events"`
}

// Name is how a report calls it.
func (p *Process) Name() string {
	if p.Instance != "" {
		return p.Instance
	}
	return fmt.Sprintf("pid %d", p.PID)
}

// Refusal is a probe that could not be attached.
type Refusal struct {
	Probe   string `json:"probe"`
	Process string `json:"process,omitempty"` // of a mark
	Reason  string `json:"reason"`
	Remedy  string `json:"remedy,omitempty"`
}

// Function is a kernel function on the way of verbs messages.
type Function struct {
	Name    string `json:"name"`
	Does    string `json:"does"`
	Calls   uint64 `json:"calls"`
	Times   Times  `json:"times"` // of the calls that ended; quantiles are bounds of buckets
	Untimed string `json:"untimed,omitempty"`
}

// Source is what a trace is made from, beside its events.
type Source struct {
	Processes []Process
	Refused   []Refusal
	Functions []Function
	Lost      uint64            // events that found no room
	Unknown   int               // events that could not be read
	Names     map[uint64]string // tag -> request id
}

// Options choose what a report shows.
type Options struct {
	Peer     int             // an index; -1: all
	Requests map[uint64]bool // tags; nil: all
	Step     uint64          // 0: the slowest
}

// Report is what is told of a trace.
type Report struct {
	Seconds   float64    `json:"seconds"` // from the first event to the last
	Events    int        `json:"events"`
	Lost      uint64     `json:"lost"`
	Notes     []string   `json:"notes"` // what is missing in the figures, and why
	Processes []Process  `json:"processes"`
	Refused   []Refusal  `json:"refused"`
	Lanes     []Lane     `json:"lanes"`
	Functions []Function `json:"kernel"`
	Requests  []Request  `json:"requests"`
	Timeline  *Timeline  `json:"timeline"`
	Order     Order      `json:"order"`
}

// Order says whether the stages of messages came in their order: of those that were seen at both ends.
type Order struct {
	Checked    int `json:"checked"`
	Disordered int `json:"disordered"`
	// Overtaken have a stage marked after the other end had already seen what it tells of.
	Overtaken int `json:"overtaken"`
}

// End is one side of a lane.
type End struct {
	Process string `json:"process"` // "" if it was not traced
	Peer    int64  `json:"peer"`    // its index of the other, -1 if not known
}

// Lane is all messages of one kind between a home and a creditor.
type Lane struct {
	Kind     Kind         `json:"kind"`
	Home     End          `json:"home"`
	Creditor End          `json:"creditor"`
	Messages int          `json:"messages"`
	Whole    int          `json:"whole"` // that were seen from beginning to end
	Rows     uint64       `json:"rows"`  // or blocks
	Bytes    uint64       `json:"bytes"`
	Answers  uint64       `json:"answer_bytes"`
	Stages   []StageTimes `json:"stages"`
}

// StageTimes are the times between two stages.
type StageTimes struct {
	Name string `json:"name"`
	From string `json:"from"`
	To   string `json:"to"`
	Times
}

// Report makes the figures.
func (t *Trace) Report(src Source, opt Options) *Report {
	r := &Report{
		Seconds: float64(t.last-t.first) / float64(time.Second), Events: t.Events, Lost: src.Lost, Notes: []string{},
		Processes: src.Processes, Refused: src.Refused, Functions: src.Functions, Requests: []Request{}, Lanes: []Lane{},
	}
	messages := t.Messages()
	r.Lanes = append(r.Lanes, t.laneTimes(messages, src.Processes, opt)...)
	steps := t.Steps()
	r.Requests = append(r.Requests, requests(steps, src, opt)...)
	r.Timeline = t.timeline(pick(steps, opt), src)
	r.Order = order(messages)
	r.note(t, src)
	return r
}

func (r *Report) note(t *Trace, src Source) {
	add := func(format string, args ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, args...)) }
	if src.Lost > 0 {
		add("%d events were lost because they came faster than they were read: counts are too low, and some messages lack stages", src.Lost)
	}
	if src.Unknown > 0 {
		add("%d events could not be read", src.Unknown)
	}
	if t.repeated > 0 {
		add("%d times a message came to a stage that it had been at before; the first time counts", t.repeated)
	}
	if r.Order.Disordered > 0 {
		add("%d of %d messages have stages out of order: do the processes share a clock?", r.Order.Disordered, r.Order.Checked)
	}
	for _, l := range r.Lanes {
		if l.Creditor.Process == "" || l.Home.Process == "" {
			add("one end of some lanes was not traced (another host, or not among the pids): only the stages of the other are known")
			break
		}
	}
	if t.Events == 0 {
		add("no mark was hit: requests whose KV lies on one instance alone send no messages")
	}
}

func order(messages []*Message) Order {
	var o Order
	for _, m := range messages {
		if !m.home.seen || !m.creditor.seen {
			continue
		}
		o.Checked++
		if !m.inOrder() {
			o.Disordered++
		}
		if late(m, Wire, Arrived) || late(m, Returned, Back) {
			o.Overtaken++
		}
	}
	return o
}

func late(m *Message, a, b Stage) bool { return m.at[a] != 0 && m.at[b] != 0 && m.at[a] > m.at[b] }
