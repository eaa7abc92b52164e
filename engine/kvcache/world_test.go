package kvcache

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

const worldBlock = 4

// world is several pools, requests, and moves between them whose messages may be lost, driven at random.
type world struct {
	*rand.Rand
	pools   []*Manager
	born    []uint32 // incarnation of each pool, the Peer of spans there
	live    []map[RequestID]*life
	lost    []answer      // grants that their owners never heard of
	names   map[Span]bool // every span that was ever granted
	holds   [][]Key       // what was last written to each pool's blocks, the zero Key for what fills none
	adopted int           // blocks
	found   int           // requests that began with blocks of another instance
	next    RequestID
	tag     uint64
	inOrder bool
	least   int // blocks of a pool
	waves   []*worldWave
	mixed   int // requests whose tables are not in the order of the text
	waved   int // waves that came to their end
	// Returns that ended well, and those of them that came from the middle of a table.
	returned, turned int
}

type life struct {
	family int
	tokens int
	move   *grant
	back   *comeback
	closed bool
	wave   *worldWave
}

// grant is room at instance at, for n blocks behind those of the span.
type grant struct {
	span   Span
	at, n  int
	blocks []BlockID // that move
}

type answer struct {
	owner, at int
	tag       uint64
}

func name(i int) string { return fmt.Sprintf("i%d", i) }

type operation struct {
	name   string
	weight int
	run    func(*world, *rapid.T)
}

// operations, each as often as its weight says: requests have to grow old for what is rare to happen.
var operations = []operation{
	{"open", 6, (*world).open}, {"append", 20, (*world).append}, {"begin", 20, (*world).begin}, {"end", 15, (*world).end},
	{"cancel", 2, (*world).cancel}, {"preempt", 2, (*world).preempt}, {"recover", 2, (*world).recover}, {"die", 1, (*world).die},
	{"pressure", 3, (*world).press}, {"wave", 2, (*world).form}, {"leg", 12, (*world).leg},
	{"fetch", 8, (*world).fetch}, {"fetched", 8, (*world).fetched},
}

func (w *world) step(t *rapid.T, operations []operation) {
	sum := 0
	for _, op := range operations {
		sum += op.weight
	}
	at := w.IntN(sum)
	for _, op := range operations {
		if at -= op.weight; at < 0 {
			t.Log(op.name)
			op.run(w, t)
			return
		}
	}
}

func TestRandomWorld(t *testing.T) {
	adopted, found, mixed, waved := 0, 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := &world{Rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), names: map[Span]bool{}}
		w.inOrder = w.IntN(4) == 0
		for i := range 2 + w.IntN(3) {
			w.pools, w.born, w.live = append(w.pools, nil), append(w.born, 0), append(w.live, nil)
			w.holds = append(w.holds, nil)
			w.start(t, i)
		}
		w.check(t)
		for range rapid.IntRange(150, 300).Draw(t, "operations") {
			w.step(t, operations)
			w.check(t)
		}
		w.finish(t)
		adopted += w.adopted
		found += w.found
		mixed += w.mixed
		waved += w.waved
	})
	if adopted == 0 || found == 0 || mixed == 0 || waved == 0 {
		t.Errorf("requests began with %d blocks of others, %d with some of another instance, %d of these in no order; %d waves ended", adopted, found, mixed, waved)
	}
}

// finish ends all that goes on: every block is free then.
func (w *world) finish(t *rapid.T) {
	for i := range w.pools {
		for id := range w.live[i] {
			w.endMove(t, i, id, 0)
			w.endBack(t, i, id, true)
			w.close(t, i, id)
		}
	}
	for len(w.lost) > 0 {
		w.recover(t)
	}
	for i, m := range w.pools {
		if c := m.Counts(); c.Free != c.Total || c.Lent != 0 || c.Shared != 0 {
			t.Fatalf("instance %d ends with %+v", i, c)
		}
	}
}

// start makes a new process of an instance.
func (w *world) start(t *rapid.T, i int) {
	m, err := NewWithOptions(w.least+1+w.IntN(24), worldBlock, Options{MaxSpans: 1 + w.IntN(6), InOrder: w.inOrder})
	if err != nil {
		t.Fatal(err)
	}
	w.pools[i], w.live[i], w.holds[i] = m, map[RequestID]*life{}, make([]Key, m.Total())
	w.born[i]++
}

// check: in every pool every block is in one state, and every hosted span is one that its owner names, is
// moving blocks into, or was never told of.
func (w *world) check(t *rapid.T) {
	type key struct {
		owner, at int
		handle    uint32
	}
	wanted := map[key]int{}
	want := func(owner int, s Span) {
		for at := range w.pools {
			if s.Instance == name(at) && s.Peer == w.born[at] {
				if wanted[key{owner, at, s.Handle}] != 0 {
					t.Fatalf("span %+v of instance %d is named twice", s, owner)
				}
				wanted[key{owner, at, s.Handle}] = max(1, s.Blocks)
			}
		}
	}
	for i, m := range w.pools {
		if err := m.check(); err != nil {
			t.Fatalf("instance %d: %v", i, err)
		}
		w.checkHolds(t, i)
		for id, r := range m.requests {
			for _, s := range r.spans {
				want(i, s)
			}
			l := w.live[i][id]
			if l.move != nil && l.move.span.Blocks == 0 {
				want(i, l.move.span)
			}
			if b := l.back; b != nil {
				wanted[key{b.at, i, b.Into.Handle}] = len(b.Into.Blocks)
			}
		}
	}
	for _, a := range w.lost {
		if h, ok := w.tagged(a); ok {
			want(a.owner, Span{Instance: name(a.at), Peer: w.born[a.at], Handle: h.Handle})
		}
	}
	hosted := 0
	for at, m := range w.pools {
		for owner := range w.pools {
			for _, h := range m.HostedOf(name(owner)) {
				hosted++
				if n := wanted[key{owner, at, h.Handle}]; n == 0 || n > len(h.Blocks) {
					t.Fatalf("instance %d hosts %+v, the owner names %d blocks there", at, h, n)
				}
			}
		}
	}
	if hosted != len(wanted) {
		t.Fatalf("%d spans are hosted, owners name %d: %v", hosted, len(wanted), wanted)
	}
}

func (w *world) tagged(a answer) (Hosted, bool) {
	for _, h := range w.pools[a.at].HostedOf(name(a.owner)) {
		if h.Tag == a.tag {
			return h, true
		}
	}
	return Hosted{}, false
}

// pick draws a request; one that was never opened, with an empty life, when there is none.
func (w *world) pick(t *rapid.T) (int, RequestID, *life) {
	type at struct {
		i  int
		id RequestID
	}
	var all []at
	for i := range w.pools {
		for id := range w.live[i] {
			all = append(all, at{i, id})
		}
	}
	if len(all) == 0 {
		return 0, 0, &life{closed: true}
	}
	slices.SortFunc(all, func(a, b at) int { return cmp.Compare(a.id, b.id) })
	x := all[w.IntN(len(all))]
	return x.i, x.id, w.live[x.i][x.id]
}

func (w *world) open(t *rapid.T) {
	i := w.IntN(len(w.pools))
	w.next++
	if err := w.pools[i].Open(w.next); err != nil {
		t.Fatal(err)
	}
	w.begins(t, i, w.next)
}

func (w *world) append(t *rapid.T) {
	i, id, l := w.pick(t)
	if l.closed || l.wave != nil {
		return
	}
	more := 1 + w.IntN(20)
	before := w.pools[i].Counts()
	if err := w.pools[i].Grow(id, l.tokens+more); err != nil {
		if !errors.Is(err, ErrNoRoom) || w.pools[i].Counts() != before {
			t.Fatalf("%v; %+v became %+v", err, before, w.pools[i].Counts())
		}
		return
	}
	l.tokens += more
	if w.pools[i].Capacity(id) < l.tokens {
		t.Fatal("grown, and still too small")
	}
	w.wrote(t, i, id, l, l.tokens-more)
}

func (w *world) cancel(t *rapid.T) {
	i, id, _ := w.pick(t)
	w.close(t, i, id)
}

func (w *world) close(t *rapid.T, i int, id RequestID) {
	l := w.live[i][id]
	if l == nil {
		return
	}
	defer w.breaks(t, l)
	spans := w.pools[i].Close(id)
	if l.move != nil || l.back != nil {
		if len(spans) > 0 {
			t.Fatal("spans are released while blocks move into them, or from them")
		}
		l.closed = true
		return
	}
	w.release(t, i, spans)
	delete(w.live[i], id)
}

// preempt takes a request's blocks; it begins anew under its id, once no move of its is in flight.
func (w *world) preempt(t *rapid.T) {
	i, id, l := w.pick(t)
	if l.closed {
		return
	}
	w.close(t, i, id)
	if err := w.pools[i].Open(id); (err != nil) != (l.move != nil || l.back != nil) {
		t.Fatalf("opened again, a move in flight %v: %v", l.move != nil || l.back != nil, err)
	} else if err == nil {
		w.begins(t, i, id)
	}
}

// die: one process ends, with it all that it had and hosted; the others free what they hosted for it, and
// a new one takes its place.
func (w *world) die(t *rapid.T) {
	d := w.IntN(len(w.pools))
	w.lost = slices.DeleteFunc(w.lost, func(a answer) bool { return a.owner == d || a.at == d })
	backs := w.backs(d)
	w.start(t, d)
	for i, m := range w.pools {
		if i == d {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(w.live[i])) {
			if l := w.live[i][id]; l.move != nil && l.move.at == d {
				w.endMove(t, i, id, 0)
			}
		}
		first := w.IntN(2) == 0 // what comes back ends before its request does
		if first {
			w.cutOff(t, i, d)
		}
		for _, id := range m.RequestsAt(name(d)) {
			w.close(t, i, id)
		}
		if len(m.RequestsAt(name(d))) > 0 {
			t.Fatal("a lost instance still has spans")
		}
		for _, h := range m.HostedOf(name(d)) {
			if err := m.Unhost(name(d), h.Handle, h.Generation, nil); err != nil {
				t.Fatal(err)
			}
			if m.Unhost(name(d), h.Handle, h.Generation, nil) == nil {
				t.Fatal("a span ended twice")
			}
		}
		w.cutOff(t, i, d)
	}
	for _, b := range backs {
		if b.at != d && w.born[b.at] == b.born {
			w.gave(t, b)
		}
	}
}

func (w *world) press(t *rapid.T) {
	i := w.IntN(len(w.pools))
	on := w.IntN(4) == 0
	w.pools[i].SetPressure(on)
	w.pools[i].SetDemand(w.IntN(3))
	hostable := w.pools[i].Hostable()
	h, err := w.pools[i].Host("other", 0, 1)
	if on && err == nil || (err == nil) != (hostable > 0) {
		t.Fatalf("pressure %v, hostable %d, host: %v", on, hostable, err)
	}
	if err == nil {
		if err := w.pools[i].Unhost("other", h.Handle, h.Generation, nil); err != nil {
			t.Fatal(err)
		}
	}
}
