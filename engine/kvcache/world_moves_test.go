package kvcache

import (
	"errors"
	"slices"

	"pgregory.net/rapid"
)

// begin asks another instance for room and begins to move. The answer may be lost, and the request may
// begin anew before it comes.
func (w *world) begin(t *rapid.T) {
	i, id, l := w.pick(t)
	to := w.IntN(len(w.pools))
	n := 1 + w.IntN(8)
	if l.closed || to == i {
		return
	}
	if l.move != nil || l.back != nil {
		if _, err := w.pools[i].BeginMove(id, Span{}, 1); !errors.Is(err, ErrState) {
			t.Fatalf("a second move of a request: %v", err)
		}
		return
	}
	tab, err := w.pools[i].Table(id)
	if err != nil {
		t.Fatal(err)
	}
	g, ok := w.ask(t, i, to, n, tab)
	if !ok {
		return
	}
	if w.IntN(5) == 0 {
		if g.span.Blocks == 0 {
			w.lost = append(w.lost, answer{i, to, w.tag})
		}
		return // room behind a span that is in use waits for the next request for it
	}
	if w.IntN(5) == 0 {
		l, tab = w.anew(t, i, id)
	}
	got, err := w.pools[i].BeginMove(id, g.span, g.n)
	if err != nil {
		if g.span.Blocks == 0 {
			w.release(t, i, []Ended{{Span: g.span}})
		}
		return
	}
	g.blocks = got
	before := w.pools[i].Size(id).Spans
	full := l.tokens/worldBlock - before
	if !slices.Equal(got, tab.Local[:len(got)]) || len(got) > full || len(got) >= len(tab.Local) || g.span.Blocks > before {
		t.Fatalf("blocks %v of %+v move behind %+v, %d are full", got, tab, g.span, full)
	}
	l.move = &g
}

// anew ends a request and begins it again under its id, as a preemption does, with whatever fits.
func (w *world) anew(t *rapid.T, i int, id RequestID) (*life, Table) {
	w.close(t, i, id)
	if err := w.pools[i].Open(id); err != nil {
		t.Fatal(err)
	}
	l := w.begins(t, i, id)
	if from := l.tokens; w.pools[i].Grow(id, from+1+w.IntN(40)) == nil {
		l.tokens = w.pools[i].Capacity(id) - w.IntN(worldBlock)
		w.wrote(t, i, id, l, from)
	}
	tab, err := w.pools[i].Table(id)
	if err != nil {
		t.Fatal(err)
	}
	return l, tab
}

// ask reserves room at an instance, in the table's last span when that lies there.
func (w *world) ask(t *rapid.T, i, to, n int, tab Table) (grant, bool) {
	g := grant{span: Span{Instance: name(to), Peer: w.born[to]}, at: to}
	var h Hosted
	var err error
	limit := n
	if k := len(tab.Spans); k > 0 && tab.Spans[k-1].Instance == name(to) && !tab.Spans[k-1].Shared && !tab.Spans[k-1].Cut {
		g.span = tab.Spans[k-1]
		for _, before := range w.pools[to].HostedOf(name(i)) {
			if before.Handle == g.span.Handle {
				limit = max(g.span.Blocks+n, len(before.Blocks))
			}
		}
		h, err = w.pools[to].ExtendHost(name(i), g.span.Handle, g.span.Generation, g.span.Blocks, n)
	} else {
		w.tag++
		h, err = w.pools[to].Host(name(i), w.tag, n)
		g.span.Handle, g.span.Generation = h.Handle, h.Generation
	}
	if err != nil {
		if !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
		return g, false
	}
	g.n = min(n, len(h.Blocks)-g.span.Blocks)
	if g.n < 1 || h.Generation == 0 || len(h.Blocks) > limit {
		t.Fatalf("a grant of %+v for %d behind %d", h, n, g.span.Blocks)
	}
	if g.span.Blocks == 0 {
		if w.names[g.span] {
			t.Fatalf("%+v was granted before", g.span)
		}
		w.names[g.span] = true
	}
	return g, true
}

func (w *world) end(t *rapid.T) {
	i, id, l := w.pick(t)
	if l.move != nil {
		w.endMove(t, i, id, w.IntN(l.move.n+1))
	}
}

// endMove ends a move of which n blocks were acknowledged.
func (w *world) endMove(t *rapid.T, i int, id RequestID, n int) {
	l := w.live[i][id]
	if l.move == nil {
		return
	}
	g := *l.move
	l.move = nil
	var orphans []Ended
	var err error
	if n > 0 {
		w.copied(i, g, n)
		keys := w.pools[i].MovingKeys(id)
		if named := min(n, len(keys)); w.IntN(2) == 0 && g.span.Peer == w.born[g.at] {
			if err := w.pools[g.at].NameHosted(name(i), g.span.Handle, g.span.Generation, g.span.Blocks, keys[:named]); err != nil {
				t.Fatal(err)
			}
		}
		orphans, err = w.pools[i].CommitMove(id, n)
	} else if orphans, err = w.pools[i].AbortMove(id); g.span.Blocks == 0 {
		w.release(t, i, []Ended{{Span: g.span}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if l.closed {
		delete(w.live[i], id)
	} else if len(orphans) > 0 {
		t.Fatal("orphans of a live request")
	}
	w.release(t, i, orphans)
}

// copied: the first n blocks of a grant hold at the creditor what they held here.
func (w *world) copied(i int, g grant, n int) {
	for _, h := range w.pools[g.at].HostedOf(name(i)) {
		if h.Handle == g.span.Handle && h.Generation == g.span.Generation && g.span.Peer == w.born[g.at] {
			for k, b := range g.blocks[:n] {
				w.holds[g.at][h.Blocks[g.span.Blocks+k]] = w.holds[i][b]
			}
		}
	}
}

// release gives spans back; those at an earlier process of an instance are gone with it.
func (w *world) release(t *rapid.T, i int, spans []Ended) {
	for _, s := range spans {
		for at := range w.pools {
			if s.Instance == name(at) && s.Peer == w.born[at] {
				if err := w.pools[at].Unhost(name(i), s.Handle, s.Generation, s.Keys); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// recover frees what a lost answer was about.
func (w *world) recover(t *rapid.T) {
	if len(w.lost) == 0 {
		return
	}
	a := w.lost[0]
	w.lost = w.lost[1:]
	h, ok := w.tagged(a)
	if !ok {
		t.Fatalf("the grant of %+v is gone", a)
	}
	if err := w.pools[a.at].Unhost(name(a.owner), h.Handle, h.Generation, nil); err != nil {
		t.Fatal(err)
	}
}
