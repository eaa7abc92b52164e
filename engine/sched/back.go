package sched

import "github.com/infinite-llm/infinite/engine/kvcache"

// restAfter is how many plans a request's KV is left where it is after a return that came to nothing.
const restAfter = 8

// Return asks for up to Blocks of a request's blocks to come back from an instance. It is in flight until Returned.
type Return struct {
	Request kvcache.RequestID
	From    string
	Blocks  int
}

// bringBack plans returns from instances that are about to leave, the oldest requests first, as far as the pool has room
// beside what running requests take soon. What has not come back when an instance is gone is computed anew.
func (s *Scheduler) bringBack(view View) {
	if len(view.Leaving) == 0 {
		return
	}
	room := s.kv.Free() - s.demand()
	for _, r := range s.running {
		room -= r.returning
	}
	for _, r := range s.running {
		if room <= 0 {
			return
		}
		if r.moving > 0 || r.returning > 0 || r.rest > 0 {
			continue
		}
		from, blocks := s.kv.Away(r.ID, view.Leaving)
		n := min(blocks, room, s.cfg.MaxOffload)
		if n == 0 {
			continue
		}
		r.returning = n
		room -= n
		s.plan.Returns = append(s.plan.Returns, Return{Request: r.ID, From: from, Blocks: n})
	}
}

// comingBack is for how many blocks, of those with instances that are about to leave, there should be room now: those of one
// return. Others are asked to take blocks for it.
func (s *Scheduler) comingBack(view View) (blocks int) {
	if len(view.Leaving) == 0 {
		return 0
	}
	for _, r := range s.running {
		_, n := s.kv.Away(r.ID, view.Leaving)
		blocks += n
	}
	return min(blocks, s.cfg.MaxOffload)
}

// Returned says that the return in flight is over; its books were settled in kvcache before.
func (s *Scheduler) Returned(id kvcache.RequestID, ok bool) {
	if r := s.all[id]; r != nil {
		r.returning = 0
		if !ok {
			r.rest = restAfter
		}
	}
}
