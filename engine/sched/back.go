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

// bringBack plans returns from instances that are about to leave, the oldest requests first, as far as the pool has room.
// What has not come back when an instance is gone is computed anew.
func (s *Scheduler) bringBack(view View) {
	if len(view.Leaving) == 0 {
		return
	}
	room := s.roomAtHome(view)
	for _, r := range s.running {
		room -= r.returning
	}
	for _, r := range s.running {
		if r.moving > 0 || r.returning > 0 || r.rest > 0 {
			continue
		}
		from, blocks, all := s.kv.Away(r.ID, view.Leaving)
		n := min(blocks, room, s.cfg.MaxOffload)
		if n <= 0 || all > room+view.PeersFree {
			continue
		}
		r.returning = n
		room -= n
		s.plan.Returns = append(s.plan.Returns, Return{Request: r.ID, From: from, Blocks: n})
	}
}

// roomAtHome is for how many blocks there is room beside what running requests take soon. Where nobody else has any, more is
// kept for their answers, as far as these may grow: they fare better with KV that stays where it is until they end.
func (s *Scheduler) roomAtHome(view View) int {
	if view.PeersFree == 0 {
		return s.kv.Free() - s.watermark()
	}
	return s.kv.Free() - s.demand()
}

// comingBack is for how many blocks, of those with instances that are about to leave, there should be room now: those of one
// return. Others are asked to take blocks for it. A request comes home as a whole or not at all: with a part that is lost all
// of it is computed anew, and what has come takes the room that its answer needs.
func (s *Scheduler) comingBack(view View) (blocks int) {
	if len(view.Leaving) == 0 {
		return 0
	}
	room := s.roomAtHome(view) + view.PeersFree
	for _, r := range s.running {
		if _, _, all := s.kv.Away(r.ID, view.Leaving); all <= room {
			blocks += all
			room -= all
		}
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
