package router

import (
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

func text(seed int32, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(i)*31 + seed
	}
	return out
}

func TestPlaces(t *testing.T) {
	p := newPlaces()
	long := text(1, 4*placeTokens+7)
	p.put(p.hashes("", long), "a")
	p.put(p.hashes("", slices.Concat(long[:2*placeTokens], text(2, 2*placeTokens))), "b")
	p.put(p.hashes("salt", long), "c")
	for _, tc := range []struct {
		name, salt string
		tokens     []int32
		want       string
		known      int
	}{
		{"the same", "", long, "a", 4 * placeTokens},
		{"longer", "", slices.Concat(long, text(3, 1000)), "a", 4 * placeTokens},
		{"three pieces", "", long[:3*placeTokens+5], "a", 3 * placeTokens},
		{"what both began with went to the second", "", long[:2*placeTokens], "b", 2 * placeTokens},
		{"another token at the start", "", append([]int32{7}, long[1:]...), "", 0},
		{"another salt", "pepper", long, "", 0},
		{"its salt", "salt", long, "c", 4 * placeTokens},
		{"too short to know", "", long[:placeTokens-1], "", 0},
	} {
		if got, known := p.find(p.hashes(tc.salt, tc.tokens)); got != tc.want || known != tc.known {
			t.Errorf("%s: %q has %d tokens, want %q with %d", tc.name, got, known, tc.want, tc.known)
		}
	}
	// What is asked for again stays, the rest goes, and memory has a bound.
	again := p.hashes("", long)
	for i := range int32(3 * maxPlaces / 100) {
		p.put(again, "a")
		p.put(p.hashes("", text(1000+i, 100*placeTokens)), "b")
	}
	if got, _ := p.find(again); got != "a" || len(p.young)+len(p.former) > 2*maxPlaces {
		t.Errorf("%q, %d and %d places", got, len(p.young), len(p.former))
	}
	if got, _ := p.find(p.hashes("salt", long)); got != "" {
		t.Errorf("an old place is %q", got)
	}
}

// A request goes where what it begins with is, unless that instance has no room for the rest, or is much busier.
func TestNearIsChosen(t *testing.T) {
	members := map[string]cluster.Member{"a": {ID: "a", BlocksTotal: 100}, "b": {ID: "b", BlocksTotal: 100}}
	req := &engine.Request{Prompt: text(1, 3*placeTokens)} // 48 blocks
	for _, tc := range []struct {
		name    string
		b       *clusterpb.Load
		request []int32
		want    string
	}{
		{"near", &clusterpb.Load{KvBlocksFree: 50, Running: 2}, req.Prompt, "b"},
		{"not enough of it is there", &clusterpb.Load{KvBlocksFree: 50, Running: 2}, slices.Concat(req.Prompt, text(5, 4*placeTokens)), "a"},
		{"the rest has room", &clusterpb.Load{KvBlocksFree: 17, Running: 2}, slices.Concat(req.Prompt, text(5, placeTokens)), "b"},
		{"the rest has none", &clusterpb.Load{KvBlocksFree: 16, Running: 2}, slices.Concat(req.Prompt, text(5, placeTokens)), "a"},
		{"it has lent what is shared", &clusterpb.Load{KvBlocksFree: 17, KvBlocksLent: 90, Running: 1}, req.Prompt, "b"},
		{"busy, but not much more", &clusterpb.Load{KvBlocksFree: 50, Running: 10}, req.Prompt, "b"},
		{"much busier", &clusterpb.Load{KvBlocksFree: 50, Running: 11}, req.Prompt, "a"},
	} {
		r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
		r.sent(r.want(req, ""), "b")
		loads := map[string]*clusterpb.Load{"a": {KvBlocksFree: 90, Running: 1}, "b": tc.b}
		if m, _ := r.pick(members, loads, r.want(&engine.Request{Prompt: tc.request}, "")); m.ID != tc.want {
			t.Errorf("%s: %s is chosen", tc.name, m.ID)
		}
	}
	// Many at once that begin alike, between two reports: no instance gets much more than the others.
	r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	r.sent(r.want(req, ""), "b")
	chosen := map[string]int{}
	for range 60 {
		w := r.want(req, "")
		m, _ := r.pick(members, nil, w)
		r.sent(w, m.ID)
		chosen[m.ID]++
	}
	if chosen["a"] < 15 || chosen["b"] < 15 {
		t.Errorf("of 60 requests %v are chosen", chosen)
	}
	// Where there is no cache nothing is near.
	r = New(nil, Config{Secret: secret, BlockSize: 16})
	r.sent(r.want(req, ""), "b")
	if w := r.want(req, ""); w.near != "" {
		t.Errorf("%q is near", w.near)
	}
	// One that was tried, or has left, is not.
	r = New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	r.sent(r.want(req, ""), "b")
	if m, _ := r.pick(members, nil, r.want(req, "b")); m.ID != "a" {
		t.Errorf("%q is chosen", m.ID)
	}
	if w := r.want(req, "b"); w.near != "" {
		t.Errorf("%q is near, which is lost", w.near)
	}
	r.sent(&want{hashes: r.want(req, "").hashes}, "gone")
	if m, c := r.pick(members, nil, r.want(req, "")); c == nil || m.ID == "gone" {
		t.Errorf("%q is chosen", m.ID)
	}
}

// What an instance uses where it lies stays where it is; what it had to compute is with it from then on.
func TestWhatIsFoundStays(t *testing.T) {
	r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	base := text(1, 4*placeTokens)
	long := slices.Concat(base, text(2, 2*placeTokens))
	place := func(tokens []int32) string {
		w := r.want(&engine.Request{Prompt: tokens}, "")
		return w.near
	}
	r.sent(r.want(&engine.Request{Prompt: base}, ""), "a")
	w := r.want(&engine.Request{Prompt: long}, "")
	r.sent(w, "b")
	r.found(w, "b", 4*placeTokens)
	if place(base) != "a" || place(long) != "b" {
		t.Errorf("the beginning is near %q, all of it near %q", place(base), place(long))
	}
	r.found(w, "b", 2*placeTokens)
	if place(base) != "a" {
		t.Errorf("with half of it found it is near %q", place(base))
	}
	r.found(w, "b", 2*placeTokens-1)
	if place(base) != "b" {
		t.Errorf("with little of it found it is near %q", place(base))
	}
}
