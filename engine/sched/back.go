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

// bringBack plans a return from an instance that is about to leave, where the pool has room. There is one at a time, of the
// oldest request that may come home: several at once would share the way, and maybe none would be home in time. A request
// comes home as a whole or not at all: with a part that is lost all of it is computed anew, and what has come takes the room
// that its answer needs.
func (s *Scheduler) bringBack(view View) {
	if len(view.Leaving) == 0 || s.returning() > 0 {
		return
	}
	room := s.roomAtHome(view)
	for _, r := range s.running {
		from, blocks, all := s.kv.Away(r.ID, view.Leaving)
		n := min(blocks, room, s.cfg.MaxOffload)
		if n <= 0 || all > room+view.PeersFree {
			continue
		}
		if r.moving > 0 || r.rest > 0 {
			room -= all
			continue
		}
		r.returning = n
		s.plan.Returns = append(s.plan.Returns, Return{Request: r.ID, From: from, Blocks: n})
		return
	}
}

// returning is the blocks of returns in flight.
func (s *Scheduler) returning() (blocks int) {
	for _, r := range s.running {
		blocks += r.returning
	}
	return blocks
}

// roomAtHome is for how many blocks there is room beside what running requests take soon. Where nobody else has any to give
// a watermark is kept, into which answers may grow; one that grows beyond it would have fared better with KV left where it
// was, if it had ended before the other instance did.
func (s *Scheduler) roomAtHome(view View) int {
	return s.kv.Free() - max(s.demand(), s.watermark()-view.PeersFree)
}

// comingBack is for how many blocks, of those with instances that are about to leave, there should be room now: those of one
// return. Others are asked to take blocks for it.
func (s *Scheduler) comingBack(view View) (blocks int) {
	if len(view.Leaving) == 0 {
		return 0
	}
	room := s.roomAtHome(view) + view.PeersFree
	for _, r := range s.running {
		if _, last, all := s.kv.Away(r.ID, view.Leaving); last > 0 && all <= room {
			blocks += all
			room -= all
		}
	}
	return min(blocks, s.cfg.MaxOffload)
}

// isAway says whether a request has blocks with an instance that is about to leave.
func (s *Scheduler) isAway(r *request, view View) bool {
	_, _, all := s.kv.Away(r.ID, view.Leaving)
	return all > 0
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
