package sched

import (
	"cmp"
	"fmt"
	"slices"
)

// watermark is how many blocks are kept free, as far as running requests need them: those of one step's
// tokens or a twentieth of the pool, but never more than a quarter, so that a small pool can be filled.
func (s *Scheduler) watermark() int {
	if s.cfg.Watermark > 0 {
		return s.cfg.Watermark
	}
	total := s.kv.Total()
	w := max(blocksOf(s.cfg.MaxBatchedTokens, s.kv.BlockSize()), blocksOf(total, 20))
	return max(1, min(w, total/4))
}

// demand is how many blocks running requests take soon, at most the watermark: those of the tokens they
// have, and one more each for what they generate.
func (s *Scheduler) demand() int {
	n, bs := 0, s.kv.BlockSize()
	for _, r := range s.running {
		if !r.wave.provided() {
			n += max(0, blocksOf(r.Tokens, bs)+1-s.kv.Capacity(r.ID)/bs)
		}
	}
	return min(n, s.watermark())
}

// pressure plans offloads while fewer blocks are free than running requests take soon, and tells the pool
// whether it may lend: an instance that borrows, or is short itself, does not.
func (s *Scheduler) pressure(view View) {
	target := s.demand()
	counts := s.kv.Counts()
	short := target - counts.Free
	s.kv.SetDemand(target)
	s.kv.SetPressure(counts.Lent > 0 || short > 0)
	for _, r := range s.running {
		short -= r.moving
	}
	// What is to come home is no reason to move blocks of the same request away.
	home := s.comingBack(view) + min(short, 0)
	short = max(short, 0)
	peers := view.PeersFree
	if short+home <= 0 || peers <= 0 {
		return
	}
	s.order = append(s.order[:0], s.running...)
	slices.SortStableFunc(s.order, func(a, b *request) int {
		// What others have too frees nothing when it moves.
		if aShares, bShares := s.kv.Shares(a.ID), s.kv.Shares(b.ID); aShares != bShares {
			if aShares {
				return 1
			}
			return -1
		}
		return cmp.Compare(s.kv.Size(b.ID).Local, s.kv.Size(a.ID).Local)
	})
	for _, r := range s.order {
		if short+home <= 0 || peers <= 0 {
			return
		}
		if short <= 0 && s.isAway(r, view) {
			continue
		}
		size := s.kv.Size(r.ID)
		if r.moving > 0 || r.returning > 0 || r.cooldown > 0 || size.Movable == 0 {
			continue
		}
		// A batch is larger than the need of the moment, so that moves are few; small enough to end soon.
		n := min(s.cfg.MaxOffload, max(1, size.Local/4), size.Movable, peers)
		r.moving = n
		short, home = max(0, short-n), home-max(0, n-short)
		peers -= n
		s.plan.Offloads = append(s.plan.Offloads, Offload{Request: r.ID, Blocks: n})
	}
}

// relieve acts on a stall: it waits while blocks move or can move, preempts otherwise, and fails the last
// request of the cluster that still has no room. It says whether blocks became free.
func (s *Scheduler) relieve(view View, left *room) bool {
	movable := false
	for _, r := range s.running {
		if r.moving > 0 {
			s.stuck = 0
			return false
		}
		movable = movable || s.kv.Size(r.ID).Movable > 0
	}
	if view.PeersFree > 0 && movable {
		s.stuck = 0
		return false
	}
	victim := s.running[len(s.running)-1]
	alone := len(s.running) == 1
	if s.oldest(victim, view) {
		if view.OthersRunning > 0 && s.fits(victim, view) {
			s.stuck = 0
			return false
		}
		if s.stuck++; s.stuck < s.cfg.Patience {
			return false
		}
		if victim.shares {
			// Spans that it found may hold more blocks than it uses of them, up to a hole: in a cluster that it fills
			// these are what it lacks. It computes all of its tokens then.
			s.stuck, victim.whole = 0, true
			s.preempt(victim, view, left)
			return true
		}
		size := s.kv.Size(victim.ID)
		s.fail(victim, size.Spans+size.Local)
		return false
	}
	if alone {
		// Nobody here gains by its preemption; those elsewhere may end soon and make room.
		if s.stuck++; s.stuck < max(1, s.cfg.Patience/10) {
			return false
		}
	}
	s.stuck = 0
	s.preempt(victim, view, left)
	return true
}

// oldest says whether the request is the oldest of the cluster, as far as is known. Then no other runs here.
func (s *Scheduler) oldest(r *request, view View) bool {
	if view.OldestArrival != 0 && view.OldestArrival < r.Arrival {
		return false
	}
	if view.OldestArrival == 0 && len(s.waiting) > 0 && older(s.waiting[0], r) < 0 {
		return false
	}
	return older(s.running[0], r) >= 0
}

// starving is the arrival of the oldest request here when it has been without room for long. Others then
// admit no younger ones: else a crowd of small requests elsewhere could keep it waiting for ever. One that
// runs stays so for a while after room has come, since it comes piece by piece; one that waits is through
// once it is admitted. What does not fit the cluster would wait in vain.
func (s *Scheduler) starving(view View) uint64 {
	var short *request
	if at := slices.IndexFunc(s.running, func(r *request) bool { return r.stalled && s.fits(r, view) }); at >= 0 {
		short = s.running[at]
	}
	// One that waits may be older than all that run: it has had its blocks taken away, or a smaller priority.
	at := slices.IndexFunc(s.waiting, func(r *request) bool { return s.fits(r, view) })
	if s.blocked && at >= 0 && (short == nil || older(s.waiting[at], short) < 0) {
		short = s.waiting[at]
	}
	gone := s.hungry != nil && s.all[s.hungry.ID] != s.hungry
	if s.hunger == 0 || gone || short != nil && older(short, s.hungry) < 0 {
		s.hungry, s.hunger = short, 0
	}
	switch {
	case s.hungry == nil:
		return 0
	case s.hungry == short:
		s.hunger = min(s.hunger+1, s.cfg.Patience+s.cfg.Patience/10)
	default:
		s.hunger--
	}
	if s.hunger < s.cfg.Patience {
		return 0
	}
	return s.hungry.Arrival
}

// preempt takes a request's blocks away; it waits again, to compute all its tokens anew.
func (s *Scheduler) preempt(r *request, view View, left *room) {
	size := s.kv.Size(r.ID)
	counts := s.kv.Counts()
	reason := fmt.Sprintf("no free block in the cluster: %d of %d local blocks free, %d hosted for others, peers have %d free; "+
		"request %d has %d local and %d remote blocks and is the last in order of %d running",
		counts.Free, counts.Total, counts.Hosted, view.PeersFree, r.ID, size.Local, size.Spans, len(s.running))
	s.unplan(r.ID, left)
	if r.wave.helper {
		s.fail(r, size.Local) // its home computes it by itself
		return
	}
	s.plan.Release = append(s.plan.Release, s.requeue(r)...)
	s.plan.Preempted = append(s.plan.Preempted, Preemption{Request: r.ID, Reason: reason})
}
