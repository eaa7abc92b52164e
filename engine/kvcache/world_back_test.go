package kvcache

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// comeback is blocks of a request on their way back from instance at.
type comeback struct {
	Return
	at    int
	born  uint32      // the process there
	given []BlockID   // its blocks
	held  map[int]Key // what they held
}

// fetch begins to bring blocks of a request back.
func (w *world) fetch(t *rapid.T) {
	i, id, l := w.pick(t)
	for k := 0; k < 10 && !l.closed && len(w.pools[i].requests[id].spans) < 2; k++ {
		i, id, l = w.pick(t) // one that has a middle
	}
	if l.closed {
		return
	}
	m, n := w.pools[i], 1+w.IntN(8)
	at := w.IntN(len(w.pools))
	if spans := m.requests[id].spans; len(spans) > 0 && w.IntN(4) > 0 {
		where := spans[w.IntN(len(spans))].Instance
		for at = 0; name(at) != where; at++ {
		}
	}
	where, away, all := m.Away(id, []string{name(at)})
	if away > all {
		t.Fatalf("%d of %d blocks are away", away, all)
	}
	if where != "" && where != name(at) {
		t.Fatalf("%d blocks are away at %s, and not at %s", away, where, name(at))
	}
	free, owned := m.Counts().Free-m.demand, m.Counts().Owned
	ret, err := m.BeginReturn(id, name(at), w.born[at], n)
	if err != nil {
		if !errors.Is(err, ErrNoRoom) && away > 0 || errors.Is(err, ErrNoRoom) && free >= min(n, away) && len(m.unused) > 0 {
			t.Fatalf("%d blocks are away, %d are free: %v", away, free, err)
		}
		return
	}
	blocks := ret.Into.Blocks
	if k := m.Counts(); len(blocks) != min(n, away) || ret.First+len(blocks) != ret.From.Blocks || k.Owned != owned+len(blocks) {
		t.Fatalf("%d of %d blocks come back as %+v; %d were owned: %+v", n, away, ret, owned, k)
	}
	if _, err := m.BeginReturn(id, name(at), w.born[at], n); !errors.Is(err, ErrState) {
		t.Fatalf("a second return of a request: %v", err)
	}
	given, err := w.pools[at].Give(name(i), ret.From.Handle, ret.From.Generation, ret.First, len(blocks))
	if err != nil {
		t.Fatal(err)
	}
	l.back = &comeback{ret, at, w.born[at], given, map[int]Key{}}
	for k, b := range given {
		l.back.held[k] = w.holds[at][b]
	}
}

func (w *world) fetched(t *rapid.T) {
	i, id, l := w.pick(t)
	if l.back != nil {
		w.endBack(t, i, id, w.IntN(5) > 0)
	}
}

// endBack ends a return, in which all blocks have arrived or none counts.
func (w *world) endBack(t *rapid.T, i int, id RequestID, arrived bool) {
	l := w.live[i][id]
	if l == nil || l.back == nil {
		return
	}
	b := *l.back
	l.back = nil
	m := w.pools[i]
	if alive := w.born[b.at] == b.born; alive {
		w.gave(t, &b)
	} else {
		arrived = false
	}
	for k, to := range b.Into.Blocks {
		w.holds[i][to] = b.held[k]
	}
	// With the other instance its spans here may have ended, this one with them.
	if err := m.Unhost(name(b.at), b.Into.Handle, b.Into.Generation, nil); err != nil && (w.born[b.at] == b.born || !errors.Is(err, ErrUnknown)) {
		t.Fatal(err)
	}
	mixed := m.away(m.requests[id], func(s Span) bool { return s == b.From }) != len(m.requests[id].spans)-1
	ended, err := m.EndReturn(id, arrived)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case l.closed:
		delete(w.live[i], id)
	case arrived:
		if w.returned++; mixed {
			w.turned++
		}
		tab, err := m.Table(id)
		if n := len(b.Into.Blocks); err != nil || !slices.Equal(tab.Local[:n], b.Into.Blocks) || (b.First == 0) != (len(ended) == 1) {
			t.Fatalf("blocks %v came back, all of a span %v, and it ended: %v; the table is %+v, %v", b.Into.Blocks, b.First == 0, ended, tab, err)
		}
	case len(ended) > 0:
		t.Fatal("spans of a live request ended")
	}
	w.release(t, i, ended)
}

// gave: blocks that are given stay as they were, whatever became of their span.
func (w *world) gave(t *rapid.T, b *comeback) {
	for k, from := range b.given {
		if w.holds[b.at][from] != b.held[k] {
			t.Fatalf("block %d of instance %d was written to while it was given", from, b.at)
		}
	}
	w.pools[b.at].Given(b.From.Handle)
}

// backs are what comes back to requests of an instance's process that ends: the others are through with it soon.
func (w *world) backs(i int) (out []*comeback) {
	for _, id := range slices.Sorted(maps.Keys(w.live[i])) {
		if b := w.live[i][id].back; b != nil {
			out = append(out, b)
		}
	}
	return out
}

// cutOff ends what comes back to instance i from d, whose process has ended. The spans here of that one may have ended before.
func (w *world) cutOff(t *rapid.T, i, d int) {
	for _, id := range slices.Sorted(maps.Keys(w.live[i])) {
		if b := w.live[i][id].back; b != nil && b.at == d {
			w.endBack(t, i, id, w.IntN(2) == 0)
		}
	}
}

// Blocks come back all the time, from the end of tables and out of the middle of them, while requests grow, move and end, and
// processes die.
func TestRandomReturns(t *testing.T) {
	often := []operation{
		{"open", 3, (*world).open}, {"append", 12, (*world).append}, {"begin", 20, (*world).begin}, {"end", 20, (*world).end},
		{"fetch", 20, (*world).fetch}, {"fetched", 16, (*world).fetched}, {"cancel", 1, (*world).cancel}, {"preempt", 1, (*world).preempt},
		{"recover", 2, (*world).recover}, {"die", 1, (*world).die},
	}
	returned, turned := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := &world{Rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), names: map[Span]bool{}, least: 20}
		w.inOrder = w.IntN(4) == 0
		for i := range 3 {
			w.pools, w.born, w.live = append(w.pools, nil), append(w.born, 0), append(w.live, nil)
			w.holds = append(w.holds, nil)
			w.start(t, i)
		}
		for range 300 {
			w.step(t, often)
			w.check(t)
		}
		w.finish(t)
		returned, turned = returned+w.returned, turned+w.turned
	})
	if returned == 0 {
		t.Error("no block ever came back")
	}
	t.Logf("blocks came back %d times, %d times from the middle of a table", returned, turned)
}
