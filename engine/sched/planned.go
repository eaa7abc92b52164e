package sched

import (
	"fmt"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// planned is what a plan for the cluster wants of a running request.
type planned struct {
	to    string // instance
	left  int    // blocks that are to be placed there yet
	asked int    // blocks of the plan's offload in flight; 0: none of its is
	lent  int    // blocks that lay with others when it began
}

// Place plans to have so many of a running request's oldest blocks placed with an instance, in offloads that go there
// alone, one at a time. It ends when all are placed, when the first of them is not, when there is nothing left that could
// move, or with the request's run. An error is kvcache.ErrUnknown, or ErrState for a request that does not run or is in a
// plan.
func (s *Scheduler) Place(id kvcache.RequestID, to string, blocks int) error {
	switch r := s.all[id]; {
	case r == nil:
		return fmt.Errorf("cannot place blocks of request %d: %w", id, kvcache.ErrUnknown)
	case !r.active || r.planned.left > 0:
		return fmt.Errorf("cannot place blocks of request %d, which runs %v and has %d to be placed: %w", id, r.active, r.planned.left, kvcache.ErrState)
	case to == "" || blocks < 1:
		return fmt.Errorf("cannot place %d blocks of request %d with %q: %w", blocks, id, to, kvcache.ErrState)
	default:
		r.planned = planned{to: to, left: blocks}
		return nil
	}
}

// Planned is how many blocks of a request are to be placed by a plan yet, 0 when none is under way.
func (s *Scheduler) Planned(id kvcache.RequestID) int {
	if r := s.all[id]; r != nil {
		return r.planned.left
	}
	return 0
}

// Placed is how many blocks were placed by plans so far.
func (s *Scheduler) Placed() uint64 { return s.placedBlocks }

// carryOut goes on with what is planned. It comes after pressure, whose moves cannot wait, and which counts those that are
// under way: they make room too.
func (s *Scheduler) carryOut() {
	for _, r := range s.running {
		if r.planned.left == 0 || r.moving > 0 || r.returning > 0 {
			continue
		}
		size := s.kv.Size(r.ID)
		n := min(s.cfg.MaxOffload, r.planned.left, size.Movable)
		if n == 0 {
			r.planned = planned{}
			continue
		}
		r.moving = n
		r.planned.asked, r.planned.lent = n, size.Spans
		s.plan.Offloads = append(s.plan.Offloads, Offload{Request: r.ID, Blocks: n, To: r.planned.to})
	}
}

// placed takes the end of a plan's offload. One that was refused, if only in part, ends the plan: the next one knows more.
// It says nothing about other creditors, so pressure need not hold back.
func (s *Scheduler) placed(r *request) {
	got := max(0, s.kv.Size(r.ID).Spans-r.planned.lent)
	s.placedBlocks += uint64(got)
	r.planned.left -= got
	if got < r.planned.asked || r.planned.left <= 0 {
		r.planned = planned{}
		return
	}
	r.planned.asked = 0
}
