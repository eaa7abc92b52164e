package sched

import (
	"slices"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// search is about blocks of a waiting request that others may have.
type search struct {
	on    bool            // it is under way: the request keeps a slot, and is not admitted
	found []kvcache.Found // what came of it; the request begins with that in the next plan, or lets go of it
	last  int             // blocks that it let go of: the next search will find about as many
	rest  int             // plans before the next one, after one that came to nothing
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

// searches starts a search with others for what a request may begin with, if that is worth it: somebody may have the first
// block that is missing, and more than is here.
func (s *Scheduler) searches(r *request) bool {
	if r.search.rest > 0 || len(r.search.found) > 0 || s.cfg.MinShared == 0 || r.whole {
		return false
	}
	keys := s.prefix(r)
	if !s.enough(keys, len(keys)) || r.Near == "" && s.kv.LeadBehind(keys) == "" {
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
func (s *Scheduler) popular(keys []kvcache.Key, b kvcache.Beginning) bool {
	return b.Found > 0 && s.kv.Uses(keys[b.Last]) >= maxUses && b.Found <= s.kv.Total()/8
}

// Found ends a search. found are spans that hold, with what is here, the request's first blocks, and are its from now on;
// those that are not wanted, or not any more, come back, to be released.
func (s *Scheduler) Found(id kvcache.RequestID, found []kvcache.Found) []kvcache.Ended {
	r := s.all[id]
	if r == nil || !r.search.on {
		return letGo(found)
	}
	s.endSearch(r)
	keys := s.prefix(r)
	if !within(found, len(keys)) {
		r.search.rest = searchAgain
		return letGo(found)
	}
	b := s.kv.Begins(found, keys)
	popular := s.popular(keys, b)
	if popular || b.Found == 0 || !s.enough(keys, b.Blocks) {
		r.search.rest = searchAgain
		r.alone = r.alone || popular // a wave would leave most of it with others again
		return letGo(found)
	}
	r.search.found = found
	return nil
}

// kept is what the request begins with of what was found for it. It is let go of, with false, if that is not worth it any
// more: blocks that were here have made room for others.
func (s *Scheduler) kept(r *request) (b kvcache.Beginning, ok bool) {
	if len(r.search.found) == 0 {
		return b, true
	}
	keys := s.prefix(r)
	if b = s.kv.Begins(r.search.found, keys); b.Found > 0 && s.enough(keys, b.Blocks) {
		return b, true
	}
	s.plan.Release = append(s.plan.Release, s.unfind(r)...)
	return b, false
}

// inUse is how many of the blocks that the request begins with are in use here, and so need no room.
func (s *Scheduler) inUse(r *request, found kvcache.Beginning) int {
	if len(r.search.found) == 0 {
		found = s.kv.Begins(nil, s.prefix(r))
	}
	return found.InUse
}

// within says that spans are of the first blocks of a text.
func within(found []kvcache.Found, blocks int) bool {
	return !slices.ContainsFunc(found, func(f kvcache.Found) bool {
		return f.Blocks < 1 || len(f.Has) != f.Blocks || int(f.Has[f.Blocks-1]) >= blocks
	})
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
		if slices.ContainsFunc(r.search.found, func(f kvcache.Found) bool { return f.Instance == instance }) {
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
	out := letGo(r.search.found)
	if len(out) > 0 {
		r.search.last, r.search.found = blocksIn(r.search.found)+s.kv.Begins(r.search.found, s.prefix(r)).InUse, nil
	}
	return out
}

func blocksIn(found []kvcache.Found) (n int) {
	for _, f := range found {
		n += f.Blocks
	}
	return n
}

func letGo(found []kvcache.Found) (out []kvcache.Ended) {
	for _, f := range found {
		out = append(out, kvcache.Ended{Span: f.Span})
	}
	return out
}
