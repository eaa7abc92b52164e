package sched

import (
	"slices"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// room is what is left of a step.
type room struct{ tokens, rows int }

// Schedule plans the next step. Every item of the plan is committed, or its request made no progress.
func (s *Scheduler) Schedule(view View) *Plan {
	p := &s.plan
	*p = Plan{Items: p.Items[:0], Offloads: p.Offloads[:0], Returns: p.Returns[:0], Searches: p.Searches[:0], Forms: p.Forms[:0], Preempted: p.Preempted[:0], Failed: p.Failed[:0], Release: p.Release[:0]}
	left := room{s.cfg.MaxBatchedTokens, s.cfg.MaxRows}
	for _, r := range s.running {
		r.inPlan, r.drafts, r.stalled = 0, 0, false
		r.cooldown, r.rest = max(0, r.cooldown-1), max(0, r.rest-1)
	}
	for _, r := range s.catchUpOrder() {
		s.place(r, &left)
	}
	for s.anyStalled() && s.relieve(view, &left) {
		for _, r := range s.catchUpOrder() {
			if r.stalled {
				s.place(r, &left)
			}
		}
	}
	if len(s.running) > 0 && !s.anyStalled() {
		s.stuck = 0
	}
	s.admit(view, &left)
	s.pressure(view)
	s.carryOut()
	s.bringBack(view)
	for _, r := range s.running {
		if r.stalled {
			p.Stalled++
		}
	}
	p.Starving = s.starving(view)
	s.left, s.awaited = left, view.Starving != 0
	return p
}

// catchUpOrder is the running requests, each group by arrival: those one token behind first, then legs of waves, for which
// other instances wait.
func (s *Scheduler) catchUpOrder() []*request {
	s.order = s.order[:0]
	for turn := range 3 {
		for _, r := range s.running {
			if r.turn() == turn {
				s.order = append(s.order, r)
			}
		}
	}
	return s.order
}

func (r *request) turn() int {
	switch {
	case r.Tokens-r.computed == 1:
		return 0
	case r.wave.phase == moving:
		return 1
	}
	return 2
}

func (s *Scheduler) anyStalled() bool {
	return slices.ContainsFunc(s.running, func(r *request) bool { return r.stalled })
}

// place puts as many of the request's tokens into the plan as the step and the local pool have room for.
// Without room for one token in the pool the request is stalled.
func (s *Scheduler) place(r *request, left *room) {
	r.stalled = false
	n := s.fitStep(r, *left)
	if w := &r.wave; w.phase == moving {
		n = min(n, w.course.Legs[w.leg].End-r.computed)
	} else if w.phase != ordinary {
		return
	}
	if n <= 0 {
		return
	}
	bs := s.kv.BlockSize()
	for {
		// Free may shrink between the look and the taking: the pool also hosts.
		fit := s.kv.Capacity(r.ID) + s.kv.Free()*bs - r.computed
		if n = min(n, fit); n <= 0 {
			r.stalled = true
			return
		}
		if s.kv.Grow(r.ID, r.computed+n) == nil {
			break
		}
	}
	r.inPlan = n
	left.tokens -= n
	left.rows -= r.rows(n)
	s.plan.Items = append(s.plan.Items, Item{
		Request: r.ID, Slot: r.slot, Start: r.computed, N: n, First: !r.begun, Last: r.computed+n == r.Tokens,
	})
}

// fitStep is how many of the request's next tokens the step has tokens and rows for.
func (s *Scheduler) fitStep(r *request, left room) int {
	n := min(r.Tokens-r.computed, left.tokens)
	if n <= 0 {
		return 0
	}
	if asked := r.Rows - r.computed; asked > left.rows {
		n = min(n, left.rows)
	}
	if r.rows(n) > left.rows {
		n-- // the row to sample from
	}
	return n
}

// rows is how many rows of logits the request's next n tokens need.
func (r *request) rows(n int) int {
	k := max(0, min(r.Rows-r.computed, n))
	if r.computed+n == r.Tokens && r.Rows < r.Tokens {
		k++
	}
	return k
}

func blocksOf(tokens, blockSize int) int { return (tokens + blockSize - 1) / blockSize }

// outstanding is the number of blocks that running requests still need for the tokens they have.
func (s *Scheduler) outstanding() int {
	n, bs := 0, s.kv.BlockSize()
	for _, r := range s.running {
		if !r.wave.provided() {
			n += max(0, blocksOf(r.Tokens, bs)-s.kv.Capacity(r.ID)/bs)
		}
	}
	return n
}

// fits is false for a request that the whole cluster is too small for: instances were lost since it was taken.
func (s *Scheduler) fits(r *request, view View) bool {
	return view.Blocks == 0 || blocksOf(r.Tokens, s.kv.BlockSize()) <= view.Blocks
}

// giveUpMisfits fails waiting requests that have not fitted the cluster for long; what was lost may come back.
func (s *Scheduler) giveUpMisfits(view View) {
	for i := len(s.waiting) - 1; i >= 0; i-- {
		r := s.waiting[i]
		if s.fits(r, view) {
			r.misfits = 0
		} else if r.misfits++; r.misfits >= s.cfg.Patience {
			s.fail(r, view.Blocks)
		}
	}
}

// admit starts waiting requests in the order of arrival while there is a slot, and room in the cluster
// for all their tokens and those of the running ones: what is started should not have to be preempted.
// Those that do not fit the cluster hold up nobody.
func (s *Scheduler) admit(view View, left *room) {
	s.blocked = false
	s.giveUpMisfits(view)
	defer s.endSearches()
	for len(s.slots) > s.searching && left.tokens > 0 && left.rows > 0 {
		r := s.next(view)
		if r == nil {
			return
		}
		if view.Starving != 0 && view.Starving < r.Arrival {
			// What becomes free here is for the older one elsewhere; its home asks for it.
			s.blocked = true
			return
		}
		if !s.kv.CanOpen(r.ID) {
			// Blocks of its earlier life are still on the move; they come back soon.
			s.blocked = true
			return
		}
		found, ok := s.kept(r)
		if !ok {
			continue
		}
		free := s.kv.Free() - s.returning()
		lack := blocksOf(r.Tokens, s.kv.BlockSize()) + 1 - found.Found - (free + view.PeersFree - s.outstanding())
		// What others have of it takes no room here, so it may begin where there is none for all of it.
		if !s.anyStalled() && free >= 1 && lack <= s.mayFind(r) && s.searches(r) {
			continue
		}
		if s.anyStalled() || free < 1 || lack > 0 && lack > s.inUse(r, found) && !s.ownsAll(r) {
			s.blocked = true
			s.giveUpWaiting(r, view)
			return
		}
		s.start(r, view, left)
	}
}

// next is the request to be admitted next; nil: none, or it has to wait for an older one.
func (s *Scheduler) next(view View) *request {
	at := slices.IndexFunc(s.waiting, func(r *request) bool { return !r.search.on && s.fits(r, view) })
	if at < 0 {
		return nil
	}
	// One that had no room after it was searched for keeps its turn during the next search: else younger ones would take
	// what becomes free, again and again.
	if slices.ContainsFunc(s.waiting[:at], func(r *request) bool { return r.search.on && r.search.last > 0 }) {
		s.blocked = true
		return nil
	}
	return s.waiting[at]
}

// start makes a waiting request run, from behind what is found of it.
func (s *Scheduler) start(r *request, view View, left *room) {
	if s.kv.Open(r.ID) != nil {
		s.blocked = true
		return
	}
	s.stuck = 0
	if s.hungry == r {
		s.hungry, s.hunger = nil, 0
	}
	s.waiting = remove(s.waiting, r)
	r.slot = s.slots[len(s.slots)-1]
	s.slots = s.slots[:len(s.slots)-1]
	r.shares = len(r.search.found) > 0
	tokens, back := s.kv.Adopt(r.ID, r.search.found, s.prefix(r))
	s.plan.Release = append(s.plan.Release, back...)
	r.active, r.computed, r.cooldown, r.refused = true, tokens, 0, 0
	r.search = search{}
	s.running = insert(s.running, r)
	if s.wants(r, view) {
		s.form(r, view)
	}
	s.place(r, left)
}

// ownsAll says that the request alone would fit this pool, which is empty: the block for what comes after
// its tokens cannot be had, but may not be needed.
func (s *Scheduler) ownsAll(r *request) bool {
	return len(s.running) == 0 && s.kv.Free() == s.kv.Total() && blocksOf(r.Tokens, s.kv.BlockSize()) <= s.kv.Total()
}

// giveUpWaiting fails the oldest waiting request when nothing runs anywhere that could make room for it.
func (s *Scheduler) giveUpWaiting(r *request, view View) {
	if len(s.running) > 0 {
		return
	}
	if view.OthersRunning > 0 || s.hosts() || view.OldestArrival != 0 && view.OldestArrival < r.Arrival {
		s.stuck = 0
		return
	}
	if s.stuck++; s.stuck >= s.cfg.Patience {
		s.fail(r, s.kv.Free()+view.PeersFree-1)
	}
}

// hosts says whether blocks here are kept by others, who may end soon.
func (s *Scheduler) hosts() bool {
	c := s.kv.Counts()
	return c.Hosted > 0 || c.Shared > 0
}

// fail ends a request that does not fit the cluster.
func (s *Scheduler) fail(r *request, blocks int) {
	s.stuck = 0
	err := &NoRoomError{Request: r.ID, Tokens: r.Tokens, Room: max(0, blocks) * s.kv.BlockSize()}
	spans, _ := s.Remove(r.ID)
	s.plan.Release = append(s.plan.Release, spans...)
	s.plan.Failed = append(s.plan.Failed, Failure{Request: r.ID, Err: err})
}

// unplan takes a request's item out of the plan.
func (s *Scheduler) unplan(id kvcache.RequestID, left *room) {
	at := slices.IndexFunc(s.plan.Items, func(i Item) bool { return i.Request == id })
	if at < 0 {
		return
	}
	r := s.all[id]
	left.tokens += r.inPlan
	left.rows += r.rows(r.inPlan)
	r.inPlan = 0
	s.plan.Items = slices.Delete(s.plan.Items, at, at+1)
}
