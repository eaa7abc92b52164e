package engine

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/plan"
)

// work is what a step computed, for the fit of this instance's model.
func (e *Engine) work(st *batch.Step, took time.Duration) plan.Step {
	c := e.kv.Counts()
	w := plan.Step{Hosts: c.Hosted+c.Shared > 0, Tokens: int(st.Head.NTokens), Took: took}
	for i := range st.Seqs[:st.Head.NSeqs] {
		q := &st.Seqs[i]
		n, before := int(q.NTokens), int(q.Pos0)-min(int(q.LocalPos0), int(q.Pos0))
		// Behind drafts it is much the same: keys are read once for all rows.
		if n-e.share[i].drafts == 1 {
			w.KV += before + 1
		} else {
			w.Scores += n*before + n*(n+1)/2
		}
	}
	if st.Head.NSpans == 0 {
		return w
	}
	clear(e.asked)
	for i := range st.Spans[:st.Head.NSpans] {
		s := &st.Spans[i]
		if more := int(s.Peer) + 1 - len(e.asked); more > 0 {
			e.asked = append(e.asked, make([]int, more)...) // once per peer
		}
		e.asked[s.Peer] += int(s.NTokens)
		w.Asked = max(w.Asked, e.asked[s.Peer])
	}
	return w
}

// Model is how long steps take here, by those so far; ok is false while that is not known well enough.
func (e *Engine) Model() (m plan.Model, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fit.Model()
}

// Placing asks for a request's oldest blocks to be placed with an instance.
type Placing struct {
	Request kvcache.RequestID
	ID      string // the request's public id
	To      string // instance
	Blocks  int
}

// Place asks for blocks to be placed with an instance, for the good of the cluster; the scheduler decides when, and whether
// it goes on. An error is kvcache.ErrUnknown, or ErrState when nothing of the kind is possible for the request now.
func (e *Engine) Place(p Placing) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.live[p.Request]
	if r == nil || r.ID != p.ID || e.stopped {
		return fmt.Errorf("cannot place blocks of request %d (%s): %w", p.Request, p.ID, kvcache.ErrUnknown)
	}
	if !r.running.Load() || r.planned.Load() > 0 {
		return fmt.Errorf("cannot place blocks of request %s: it waits, or others are being placed: %w", p.ID, kvcache.ErrState)
	}
	if can := movable(e.kv.Size(r.id)); p.Blocks < 1 || p.Blocks > can || p.To == "" {
		return fmt.Errorf("cannot place %d blocks of request %s with %q: %d can move: %w", p.Blocks, p.ID, p.To, can, kvcache.ErrState)
	}
	r.planned.Store(int64(p.Blocks))
	r.plannedTo = p.To
	e.stats.PlannedMoves++
	e.inbox.places = append(e.inbox.places, p)
	e.signal()
	return nil
}

// movable is how many blocks may go, now or once those on their way have arrived; the last one stays.
func movable(s kvcache.Size) int {
	if s.Moving > 0 {
		return max(0, s.Local-s.Moving-1)
	}
	return s.Movable
}

// begin hands what Place took to the scheduler, which may know better by now.
func (e *Engine) begin(p Placing) {
	r := e.get(p.Request)
	if r == nil {
		return // it ended
	}
	if err := e.sched.Place(p.Request, p.To, p.Blocks); err != nil {
		slog.Debug("a planned move comes too late", "id", p.ID, "to", p.To, "blocks", p.Blocks, "error", err)
	}
	e.placed = append(e.placed, r)
}

// follow lets others see how far plans are.
func (e *Engine) follow() {
	e.placed = slices.DeleteFunc(e.placed, func(r *request) bool {
		left := e.sched.Planned(r.id)
		r.planned.Store(int64(left))
		return left == 0
	})
}
