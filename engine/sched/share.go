package sched

import (
	"slices"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// search is about blocks of a waiting request that others may have.
type search struct {
	on    bool           // it is under way: the request keeps a slot, and is not admitted
	found []kvcache.Span // what came of it; the request begins with that in the next plan, or lets go of it
	last  int            // blocks that it let go of: the next search will find about as many
	rest  int            // plans before the next one, after one that came to nothing
}

const (
	// searchAgain is how many plans a request waits that nothing was found for: who has its blocks may have been short
	// of room just then.
	searchAgain = 64
	// maxUses is how many requests use the same blocks with others before they are computed here.
	maxUses = 8
)

// prefix is the keys of blocks that the request may begin with: its last token is to be computed, to sample from, and
// so are the positions that need rows.
func (s *Scheduler) prefix(r *request) []kvcache.Key {
	if r.Rows > 0 {
		return nil
	}
	return r.Keys[:min(len(r.Keys), (r.Tokens-1)/s.kv.BlockSize())]
}

// searches starts a search with others for what a request may begin with, if that is worth it: somebody may have some
// of it, and more than is here.
func (s *Scheduler) searches(r *request) bool {
	if r.search.rest > 0 || len(r.search.found) > 0 || s.cfg.MinShared == 0 {
		return false
	}
	keys := s.prefix(r)
	if !s.enough(keys, len(keys)) || r.Near == "" && s.kv.Lead(keys[0]) == "" {
		return false
	}
	r.search.on = true
	s.searching++
	s.plan.Searches = append(s.plan.Searches, Search{Request: r.ID, Keys: keys, Near: r.Near})
	return true
}

// mayFind is how many blocks a search for the request may find.
func (s *Scheduler) mayFind(r *request) int {
	if r.search.last > 0 {
		return r.search.last
	}
	return len(s.prefix(r))
}

// enough says whether to begin with the first blocks of keys, of which some may be here, saves MinShared tokens.
func (s *Scheduler) enough(keys []kvcache.Key, blocks int) bool {
	return blocks > 0 && (blocks-s.kv.Run(keys[:blocks]))*s.kv.BlockSize() >= s.cfg.MinShared
}

// popular says that so many requests here have used these very blocks with others that it is time to compute them here,
// once for all to come, if they leave room for much else. Each use costs a round trip a layer in each of its steps.
func (s *Scheduler) popular(keys []kvcache.Key) bool {
	return s.kv.Uses(keys[len(keys)-1]) >= maxUses && len(keys) <= s.kv.Total()/8
}

// Found ends a search. spans hold the request's first blocks, in order, and are its from now on; those that are not
// wanted, or not any more, come back, to be released.
func (s *Scheduler) Found(id kvcache.RequestID, spans []kvcache.Span) []kvcache.Ended {
	r := s.all[id]
	if r == nil || !r.search.on {
		return unwanted(spans)
	}
	s.endSearch(r)
	n := blocksIn(spans)
	keys := s.prefix(r)
	if n < 1 || n > len(keys) || !s.enough(keys, n+s.kv.Run(keys[n:])) || s.popular(keys[:n]) {
		r.search.rest = searchAgain
		return unwanted(spans)
	}
	r.search.found = spans
	return nil
}

// endSearch: the request does not wait for a search any more.
func (s *Scheduler) endSearch(r *request) {
	if r.search.on {
		r.search.on = false
		s.searching--
	}
}

// Lost says that all spans at an instance are gone. It returns those that were found beside one of them, to be released.
func (s *Scheduler) Lost(instance string) (spans []kvcache.Ended) {
	for _, r := range s.waiting {
		if slices.ContainsFunc(r.search.found, func(f kvcache.Span) bool { return f.Instance == instance }) {
			spans = append(spans, s.unfind(r)...)
		}
	}
	return spans
}

// endSearches lets go of what was found for requests that could not begin: others would be kept from blocks that nobody
// reads. They are searched for again.
func (s *Scheduler) endSearches() {
	for _, r := range s.waiting {
		r.search.rest = max(0, r.search.rest-1)
		if len(r.search.found) > 0 {
			s.plan.Release = append(s.plan.Release, s.unfind(r)...)
		}
	}
}

func (s *Scheduler) unfind(r *request) []kvcache.Ended {
	out := unwanted(r.search.found)
	if len(out) > 0 {
		r.search.last, r.search.found = blocksIn(r.search.found), nil
	}
	return out
}

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
