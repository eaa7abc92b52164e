package sched

import (
	"testing"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// overtaken runs an old request, of whose beginning others have found blocks, beside younger ones that need nobody and
// never cease to come, and returns how many of those are admitted before it, at most limit.
func overtaken(t *testing.T, pool, seqs, found, limit int) (overtook, searches int) {
	t.Helper()
	kv, err := kvcache.New(pool, simBlock)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{MaxNumSeqs: seqs, MaxBatchedTokens: 256, MaxWaiting: 100, Patience: 20, MinShared: 8}, kv)
	if err != nil {
		t.Fatal(err)
	}
	const old = 1
	steps := map[kvcache.RequestID]int{} // of the young ones
	next := kvcache.RequestID(100)
	crowd := func() {
		for len(steps) < 2*seqs {
			next++
			steps[next] = 0
			if err := s.Add(Request{ID: next, Arrival: uint64(next), Tokens: 3 * simBlock}); err != nil {
				t.Fatal(err)
			}
		}
	}
	crowd()
	s.Schedule(View{Blocks: 1000, OldestArrival: old})
	tokens := make([]int32, 16*simBlock)
	keys := kvcache.AppendKeys(nil, kvcache.RootKey(""), tokens, simBlock)
	if err := s.Add(Request{ID: old, Arrival: old, Tokens: len(tokens), Keys: keys, Near: "n"}); err != nil {
		t.Fatal(err)
	}
	for handle := uint32(1); overtook < limit; handle++ {
		p := s.Schedule(View{Blocks: 1000, OldestArrival: old})
		for _, it := range p.Items {
			if it.Request == old {
				return overtook, searches
			}
			if it.First {
				overtook++
			}
			if err := s.Commit(it.Request, 1); err != nil {
				t.Fatal(err)
			}
			if steps[it.Request]++; steps[it.Request] > 6+int(it.Request)%5 {
				s.Remove(it.Request)
				delete(steps, it.Request)
			}
		}
		crowd()
		for _, q := range p.Searches {
			searches++
			s.Found(q.Request, first(handle, found))
		}
	}
	return overtook, searches
}

// first is a span of a text's first blocks.
func first(handle uint32, blocks int) []kvcache.Found {
	f := kvcache.Found{Span: kvcache.Span{Instance: "n", Handle: handle, Generation: 1, Blocks: blocks, Shared: true}}
	for i := range blocks {
		f.Has = append(f.Has, int32(i))
	}
	return []kvcache.Found{f}
}

// While others are searched for a request's beginning, and while there is no room for the rest, younger ones do not take
// its turn for ever.
func TestSearchesKeepTheirTurn(t *testing.T) {
	for _, tc := range []struct {
		name              string
		pool, seqs, found int
	}{
		{"a part is found, memory is short", 20, 8, 3},
		{"all is found, slots are short", 2000, 1, 15},
		{"some slots", 2000, 4, 15},
		{"both are short", 16, 2, 4},
	} {
		overtook, searches := overtaken(t, tc.pool, tc.seqs, tc.found, 1000)
		if overtook > 4*tc.seqs+8 || searches == 0 {
			t.Errorf("%s: %d younger requests were admitted before it, after %d searches", tc.name, overtook, searches)
		}
	}
}

// No more requests are searched for at a time than could begin.
func TestSearchesAreAsManyAsSlots(t *testing.T) {
	kv, err := kvcache.New(1000, simBlock)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{MaxNumSeqs: 3, MaxBatchedTokens: 256, MaxWaiting: 100, MinShared: 8}, kv)
	if err != nil {
		t.Fatal(err)
	}
	keys := kvcache.AppendKeys(nil, kvcache.RootKey(""), make([]int32, 16*simBlock), simBlock)
	for id := range kvcache.RequestID(50) {
		if err := s.Add(Request{ID: id, Arrival: uint64(id), Tokens: len(keys) * simBlock, Keys: keys, Near: "n"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if p := s.Schedule(View{}); len(p.Searches) > 3 || s.searching != 3 {
			t.Fatalf("%d searches in a plan, %d under way", len(p.Searches), s.searching)
		}
	}
	// One that ends while it is searched for makes place for another.
	s.Remove(0)
	if p := s.Schedule(View{}); len(p.Searches) != 1 || p.Searches[0].Request != 3 {
		t.Fatalf("%+v", p.Searches)
	}
	if back := s.Found(0, first(1, 15)); len(back) != 1 || s.searching != 3 {
		t.Fatalf("%v comes back, %d are under way", back, s.searching)
	}
}
