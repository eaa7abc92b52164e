package engine

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Limits are what no token of an answer may break, whatever its form. The zero Limits allow all.
type Limits struct {
	Allowed []int32       // the only tokens that are sampled; empty: all are
	Bad     [][]int32     // of each the last token is not sampled behind the others, which the answer has
	Thought *ThoughtLimit // nil: none; what ends thoughts at their limit may break the others
}

// none tells that all is allowed.
func (l *Limits) none() bool { return len(l.Allowed)+len(l.Bad) == 0 && l.Thought == nil }

// errNoneLeft fails a request of which no token may come next.
var errNoneLeft = errors.New("cannot go on with the answer: no token is left that its limits and its form allow")

// limits are a request's Limits as masks have them.
type limits struct {
	allowed []uint32 // nil: all
	bad     [][]int32
	thought *thoughtLimit // nil: none
}

// limits is nil where all is allowed.
func (e *Engine) limits(req *Request) (*limits, error) {
	l, words := &req.Limits, e.maskWords()
	if l.none() {
		return nil, nil
	}
	out := &limits{bad: l.Bad}
	if t := l.Thought; t != nil {
		if t.Most < 0 || t.Close < 0 || int(t.Close)/32 >= words {
			return nil, fmt.Errorf("cannot hold the answer to its limits: thoughts of %d tokens that end with token %d", t.Most, t.Close)
		}
		out.thought = &thoughtLimit{ThoughtLimit: *t, drafts: e.cfg.Speculation.Tokens}
	}
	if len(l.Allowed) > 0 {
		out.allowed = make([]uint32, words)
	}
	for _, t := range l.Allowed {
		if t < 0 || int(t)/32 >= words {
			return nil, fmt.Errorf("cannot hold the answer to its limits: %d is no token", t)
		}
		out.allowed[t/32] |= 1 << (t % 32)
	}
	for _, seq := range l.Bad {
		if len(seq) == 0 || slices.Min(seq) < 0 || int(slices.Max(seq))/32 >= words {
			return nil, fmt.Errorf("cannot hold the answer to its limits: %d are no tokens", seq)
		}
	}
	return out, nil
}

// hold tells whether they may keep any token from following an answer, or its drafts.
func (l *limits) hold(answer []int32) bool {
	return len(l.allowed)+len(l.bad) > 0 || l.thought.near(answer)
}

// cut takes from a mask what may not come behind an answer and drafts that follow it. What ends thoughts that have come to
// their limit may, whatever else holds.
func (l *limits) cut(mask []uint32, answer, drafts []int32) {
	if l.thought.over(answer, drafts) {
		clear(mask)
		mask[l.thought.Close/32] = 1 << (l.thought.Close % 32)
		return
	}
	for i, w := range l.allowed {
		mask[i] &= w
	}
	for _, seq := range l.bad {
		before, last := seq[:len(seq)-1], seq[len(seq)-1]
		if endsWith(answer, drafts, before) {
			mask[last/32] &^= 1 << (last % 32)
		}
	}
}

// endsWith tells whether a and then b end with tail.
func endsWith(a, b, tail []int32) bool {
	k := min(len(b), len(tail))
	rest := len(tail) - k
	return slices.Equal(b[len(b)-k:], tail[rest:]) && rest <= len(a) && slices.Equal(a[len(a)-rest:], tail[:rest])
}

// formed tells whether the next token has a form.
func (r *request) formed() bool { return r.guided != nil && !r.guided.waits() }

// masks tells whether the rows that sample a request's next tokens have masks.
func (r *request) masks() bool { return r.formed() || r.limits != nil && r.limits.hold(r.answer()) }

// answer is what has been sampled.
func (r *request) answer() []int32 { return r.tokens[len(r.Prompt):] }

// needsMask tells whether a request samples a token in a step that is not free.
func needsMask(r *request, it sched.Item) bool { return it.Last && r.MaxTokens > 0 && r.masks() }

// late tells that a form's mask did not come in time for the step.
func (r *request) late() bool { return r.formed() && r.guided.late }

// mask fills in what may come behind drafts, and tells whether anything may.
func (r *request) mask(to []uint32, drafts []int32) bool {
	if r.formed() {
		k := len(drafts)
		r.guided.fill(to, k, r.generated()+k >= r.MinTokens)
	} else {
		for i := range to {
			to[i] = math.MaxUint32
		}
	}
	if r.limits == nil {
		return true // the form has a token, or there would be no place
	}
	if t := r.limits.thought; t != nil && r.guided != nil && r.guided.thinking == nil {
		t.closed = true // by whatever tokens: the form has begun
	}
	r.limits.cut(to, r.answer(), drafts)
	return slices.ContainsFunc(to, func(w uint32) bool { return w != 0 })
}

// addMask gives the row behind drafts its mask.
func (r *request) addMask(st *batch.Step, row int, drafts []int32) error {
	to, err := st.AddMask(row)
	if err == nil {
		r.mask(to, drafts)
	}
	return err
}

// blocked says why no token may come next.
func (e *Engine) blocked(r *request) error {
	if r.formed() && r.guided.err != nil {
		return r.guided.err
	}
	if r.limits != nil && r.masks() && !r.mask(e.scratch(), nil) {
		return errNoneLeft
	}
	return nil
}

// maskWords are those of a mask.
func (e *Engine) maskWords() int {
	st := e.dev.Step()
	return len(st.Masks) / len(st.Seqs)
}

// scratch is room for a mask that no row gets.
func (e *Engine) scratch() []uint32 {
	if e.noMask == nil {
		e.noMask = make([]uint32, e.maskWords())
	}
	return e.noMask
}

// within returns those of the drafts that keep the request's limits, and behind which more may come.
func (e *Engine) within(r *request, drafts []int32) []int32 {
	to := e.scratch()
	for k := 0; k <= len(drafts); k++ {
		if !r.mask(to, drafts[:k]) {
			return drafts[:max(0, k-1)]
		}
		if k < len(drafts) && to[drafts[k]/32]&(1<<(drafts[k]%32)) == 0 {
			return drafts[:k]
		}
	}
	return drafts
}
