package sched

import "github.com/infinite-llm/infinite/engine/kvcache"

// Draft adds up to n drafts, guesses of the tokens to come, to a request whose item in the last plan is its Last one, and
// returns how many there is room for: behind each a token is sampled as well. Commit then takes up to that many tokens more.
//
// Drafts have what everything else leaves of a step. Of the pool they have the rest of the request's last block, and more
// only where no request waits here, none has long waited elsewhere, and as much is left as running ones may need soon.
func (s *Scheduler) Draft(id kvcache.RequestID, n int) int {
	r := s.all[id]
	if r == nil || r.inPlan == 0 || r.drafts > 0 || r.wave.phase != ordinary || r.computed+r.inPlan != r.Tokens {
		return 0
	}
	n = min(n, s.left.tokens, s.left.rows)
	if s.cfg.MaxModelLen > 0 {
		n = min(n, s.cfg.MaxModelLen-r.Tokens-1) // the token behind the last one is to have a position, too
	}
	bs := s.kv.BlockSize()
	has := s.kv.Capacity(id)
	spare := 0
	if len(s.waiting) == 0 && !s.awaited {
		spare = max(0, s.kv.Free()-s.watermark())
	}
	n = min(n, has+spare*bs-r.Tokens)
	// The pool also hosts, so what was free may be gone; then those that need no block are left.
	if n > 0 && s.kv.Grow(id, r.Tokens+n) != nil {
		n = min(n, has-r.Tokens)
	}
	if n <= 0 {
		return 0
	}
	r.drafts = n
	s.left.tokens -= n
	s.left.rows -= n
	return n
}
