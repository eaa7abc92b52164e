package sched

import "github.com/infinite-llm/infinite/engine/kvcache"

// prefix is the keys of blocks that the request may begin with: its last token is to be computed, to sample from, and
// so are the positions that need rows.
func (s *Scheduler) prefix(r *request) []kvcache.Key {
	if r.Rows > 0 {
		return nil
	}
	return r.Keys[:min(len(r.Keys), (r.Tokens-1)/s.kv.BlockSize())]
}

// searches starts a search with others for what a request may begin with, if that is worth it: somebody may have some
// of it, and more than is here. One is made each time before the request starts.
func (s *Scheduler) searches(r *request) bool {
	if r.searched || s.cfg.MinShared == 0 {
		return false
	}
	keys := s.prefix(r)
	if !s.enough(keys, len(keys)) || r.Near == "" && s.kv.Lead(keys[0]) == "" || s.popular(keys) {
		return false
	}
	r.searching = true
	s.plan.Searches = append(s.plan.Searches, Search{Request: r.ID, Keys: keys, Near: r.Near})
	return true
}

// popular says that so many requests here have used the blocks with others that it is time to compute them here, once
// for all to come, if they leave room for much else. Each use costs a round trip a layer in each of its steps.
func (s *Scheduler) popular(keys []kvcache.Key) bool {
	return s.kv.Uses(keys[0]) >= maxUses && len(keys) <= s.kv.Total()/8
}

const maxUses = 8

// enough says whether to begin with the first blocks of keys, of which some may be here, saves MinShared tokens.
func (s *Scheduler) enough(keys []kvcache.Key, blocks int) bool {
	return blocks > 0 && (blocks-s.kv.Run(keys[:blocks]))*s.kv.BlockSize() >= s.cfg.MinShared
}

// Found ends a search. spans hold the request's first blocks, in order, and are its from now on; those that are not
// wanted, or not any more, come back, to be released.
func (s *Scheduler) Found(id kvcache.RequestID, spans []kvcache.Span) []kvcache.Ended {
	r := s.all[id]
	if r == nil || !r.searching {
		return unwanted(spans)
	}
	r.searching, r.searched = false, true
	n := blocksIn(spans)
	keys := s.prefix(r)
	if n > len(keys) || !s.enough(keys, n+s.kv.Run(keys[n:])) {
		return unwanted(spans)
	}
	r.found = spans
	return nil
}

// Lost says that all spans at an instance are gone. It returns those that were found beside one of them, to be released.
func (s *Scheduler) Lost(instance string) (spans []kvcache.Ended) {
	for _, r := range s.waiting {
		for _, f := range r.found {
			if f.Instance == instance {
				spans = append(spans, s.unfind(r)...)
				break
			}
		}
	}
	return spans
}

// unfindAll lets go of what was found for requests that could not begin: others would be kept from blocks that nobody
// reads. They are searched for again.
func (s *Scheduler) unfindAll() {
	for _, r := range s.waiting {
		s.plan.Release = append(s.plan.Release, s.unfind(r)...)
	}
}

func (s *Scheduler) unfind(r *request) []kvcache.Ended {
	out := unwanted(r.found)
	if len(r.found) > 0 {
		r.found, r.searched = nil, false
	}
	return out
}

// elsewhere is how many of the request's blocks take no room, for they were found with others.
func (s *Scheduler) elsewhere(r *request) int { return blocksIn(r.found) }

func blocksIn(spans []kvcache.Span) (n int) {
	for _, sp := range spans {
		n += sp.Blocks
	}
	return n
}

func unwanted(spans []kvcache.Span) (out []kvcache.Ended) {
	for _, sp := range spans {
		out = append(out, kvcache.Ended{Span: sp})
	}
	return out
}
