package kvcache

import (
	"slices"

	"pgregory.net/rapid"
)

// worldWave is a prompt that several instances compute, leg by leg.
type worldWave struct {
	tokens int
	parts  []wavePart
	course Course // of the home; the others have it up to their last legs
	next   int    // leg
}

type wavePart struct {
	pool int
	id   RequestID
	life *life
}

// form begins a wave of a new request, if those that take part have room.
func (w *world) form(t *rapid.T) {
	if w.inOrder {
		return
	}
	pools := w.Perm(len(w.pools))[:2+w.IntN(len(w.pools)-1)]
	chunk, family := worldBlock*(1+w.IntN(2)), w.IntN(families)
	wv := &worldWave{}
	base := 0
	for k, i := range pools {
		w.next++
		if err := w.pools[i].Open(w.next); err != nil {
			t.Fatal(err)
		}
		p := wavePart{i, w.next, &life{family: family, wave: wv}}
		wv.parts = append(wv.parts, p)
		w.live[i][w.next] = p.life
		if k == len(pools)-1 {
			base, _ = w.pools[i].Adopt(w.next, nil, keysOf(family, w.IntN(20)))
		}
	}
	wv.tokens = base + chunk*len(pools) + w.IntN(4*chunk)
	wv.course = Cut(base, wv.tokens, chunk, len(pools), len(pools)-1)
	if !w.joins(t, wv) {
		w.breaks(t, wv.parts[0].life)
		w.close(t, wv.parts[0].pool, wv.parts[0].id)
		return
	}
	w.waves = append(w.waves, wv)
}

// joins takes the blocks of all parts, opens a span at each for each of the others, and lets them join.
func (w *world) joins(t *rapid.T, wv *worldWave) bool {
	spans := make([][]Span, len(wv.parts))
	ok := true
	for k, p := range wv.parts {
		ok = ok && w.pools[p.pool].Grow(p.id, wv.course.Own(k)) == nil
	}
	for k, p := range wv.parts {
		for other, q := range wv.parts {
			if !ok || other == k {
				continue
			}
			w.tag++
			h, err := w.pools[p.pool].ShareWave(p.id, name(q.pool), w.tag)
			if ok = err == nil; ok {
				spans[other] = append(spans[other], Span{Instance: name(p.pool), Peer: w.born[p.pool], Handle: h.Handle, Generation: h.Generation, Shared: true})
			}
		}
	}
	for k, p := range wv.parts {
		if !ok {
			for _, s := range spans[k] {
				w.release(t, p.pool, []Ended{{Span: s}})
			}
		} else if err := w.pools[p.pool].Join(p.id, spans[k]); err != nil {
			t.Fatal(err)
		}
	}
	return ok
}

// leg computes the next leg of a wave, and ends it where it is its part's last.
func (w *world) leg(t *rapid.T) {
	w.waves = slices.DeleteFunc(w.waves, func(wv *worldWave) bool {
		home := wv.parts[len(wv.parts)-1]
		return wv.next == len(wv.course.Legs) || w.live[home.pool][home.id] != home.life || home.life.wave != wv
	})
	if len(w.waves) == 0 {
		return
	}
	wv := w.waves[w.IntN(len(w.waves))]
	l := wv.course.Legs[wv.next]
	wv.next++
	p := wv.parts[l.Part]
	m, r := w.pools[p.pool], w.pools[p.pool].requests[p.id]
	keys := keysOf(p.life.family, wv.tokens)
	if p.life.tokens < l.End && l.End > r.computed {
		w.reaches(t, wv, l.Part, l.Start)
		if err := m.SetComputed(p.id, l.End); err != nil {
			t.Fatal(err)
		}
		own := 0 // blocks of its legs before this one
		for _, x := range wv.course.Legs[:wv.next-1] {
			if x.Part == l.Part {
				own += (x.End - x.Start) / worldBlock
			}
		}
		for b := l.Start / worldBlock; b < l.End/worldBlock; b++ {
			w.holds[p.pool][r.local[own+b-l.Start/worldBlock]] = keys[b]
		}
		if l.End%worldBlock > 0 {
			w.holds[p.pool][r.local[own+l.End/worldBlock-l.Start/worldBlock]] = Key{}
		}
		p.life.tokens = l.End
		m.Name(p.id, keys[:l.End/worldBlock]) // too early: that says nothing to others yet
	}
	until := wv.course.Until(l.Part)
	if until.End() > l.End {
		return
	}
	until.Me = l.Part
	if err := m.EndWave(p.id, until.Order(worldBlock)); err != nil {
		t.Fatal(err)
	}
	m.Name(p.id, keys[:l.End/worldBlock])
	if p.life.wave = nil; wv.next == len(wv.course.Legs) {
		w.waved++
	} else if w.IntN(3) > 0 {
		w.close(t, p.pool, p.id)
	}
}

// reaches: the others have come as far as a part's leg that begins at start.
func (w *world) reaches(t *rapid.T, wv *worldWave, part, start int) {
	p := wv.parts[part]
	blocks := make([]int, len(wv.parts)-1)
	r := w.pools[p.pool].requests[p.id]
	for _, l := range wv.course.Legs {
		if l.Part != part && l.Start >= r.computed && l.Start < start {
			blocks[SpanOf(l.Part, part)] += (l.End - l.Start) / worldBlock
		}
	}
	if err := w.pools[p.pool].Advance(p.id, blocks); err != nil {
		t.Fatal(err)
	}
}

// breaks: a request of a wave has ended before it, and with it the wave.
func (w *world) breaks(t *rapid.T, l *life) {
	wv := l.wave
	if wv == nil {
		return
	}
	for _, p := range wv.parts {
		if p.life.wave = nil; p.life != l && w.live[p.pool][p.id] == p.life {
			w.close(t, p.pool, p.id)
		}
	}
}

// checkHolds: the named blocks of a pool hold what their names say, and the tables of its requests every block of the text
// once, where their order says.
func (w *world) checkHolds(t *rapid.T, i int) {
	m := w.pools[i]
	for k, b := range m.prefixes.named {
		if w.holds[i][b] != k {
			t.Fatalf("block %d of instance %d does not hold what its name says", b, i)
		}
	}
	for id, r := range m.requests {
		l := w.live[i][id]
		if r.closed || r.wave {
			continue
		}
		at, full := 0, r.computed/worldBlock
		keys, seen := keysOf(l.family, r.computed), make([]bool, full)
		holds := func(held Key) {
			place := at
			if at < len(r.order) {
				place = int(r.order[at])
			}
			if at++; held != keys[place] || seen[place] {
				t.Fatalf("block %d of request %d's table holds something else than block %d of the text, or that is twice there", at-1, id, place)
			}
			seen[place] = true
			if k, known := r.key(at - 1); known && k != held {
				t.Fatalf("request %d is wrong about block %d of its table", id, at-1)
			}
		}
		for _, s := range r.spans {
			w.readSpan(t, i, s, holds, &at)
		}
		for k := 0; at < full; k++ {
			holds(w.holds[i][r.local[k]])
		}
	}
}

// readSpan reads a request's blocks at another instance, if that still lives.
func (w *world) readSpan(t *rapid.T, owner int, s Span, holds func(Key), at *int) {
	for o := range w.pools {
		if s.Instance != name(o) {
			continue
		}
		for _, h := range w.pools[o].HostedOf(name(owner)) {
			if h.Handle == s.Handle && h.Generation == s.Generation && s.Peer == w.born[o] {
				for _, b := range h.Blocks[:s.Blocks] {
					holds(w.holds[o][b])
				}
				return
			}
		}
	}
	t.Fatalf("instance %d reads %+v, which is nowhere", owner, s)
}
