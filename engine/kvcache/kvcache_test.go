package kvcache

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"
)

// check verifies the invariant from the blocks themselves, not from the counters.
func (m *Manager) check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := make([]string, m.total)
	claim := func(blocks []BlockID, as string) error {
		for _, b := range blocks {
			if state[b] != "" {
				return fmt.Errorf("block %d is %s and %s", b, state[b], as)
			}
			state[b] = as
		}
		return nil
	}
	errs := []error{claim(m.free, "free")}
	owned, lent, hosted := 0, 0, 0
	for id, r := range m.requests {
		errs = append(errs, claim(r.local, fmt.Sprintf("owned by %d", id)))
		owned += len(r.local)
		in := 0
		for _, s := range r.spans {
			in += s.Blocks
		}
		if in != r.inSpans || r.moving > len(r.local) || r.moving > 0 && !r.closed && r.moving == len(r.local) {
			errs = append(errs, fmt.Errorf("request %d: %+v", id, *r))
		}
		lent += in
	}
	for h := range m.slots {
		errs = append(errs, claim(m.slots[h].blocks, fmt.Sprintf("hosted in %d", h)))
		hosted += len(m.slots[h].blocks)
	}
	if owned != m.owned || lent != m.lent || hosted != m.hosted || len(m.free)+owned+hosted != m.total {
		errs = append(errs, fmt.Errorf("free %d, owned %d/%d, hosted %d/%d, lent %d/%d of %d", len(m.free), owned, m.owned, hosted, m.hosted, lent, m.lent, m.total))
	}
	if i := slices.Index(state, ""); i >= 0 {
		errs = append(errs, fmt.Errorf("block %d is lost", i))
	}
	return errors.Join(errs...)
}

func TestNewRefuses(t *testing.T) {
	for _, c := range [][2]int{{0, 16}, {-1, 16}, {4, 0}} {
		if _, err := New(c[0], c[1]); err == nil {
			t.Errorf("New(%d, %d) made a pool", c[0], c[1])
		}
	}
}

// TestScripts runs testdata/*.txt; -rewrite writes what comes out.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var m *Manager
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out := runCommand(t, &m, d)
			if err := m.check(); err != nil {
				t.Fatalf("%s: %v", d.Pos, err)
			}
			return out
		})
	})
}

func runCommand(t *testing.T, mp **Manager, d *datadriven.TestData) string {
	var id, n, handle, generation, blocks, size, maxSpans, reserve int
	var at, owner string
	var on bool
	for _, a := range []struct {
		key string
		p   any
	}{{"id", &id}, {"n", &n}, {"handle", &handle}, {"gen", &generation}, {"blocks", &blocks}, {"size", &size}, {"spans", &maxSpans},
		{"reserve", &reserve}, {"at", &at}, {"owner", &owner}, {"on", &on}} {
		if d.HasArg(a.key) {
			d.ScanArgs(t, a.key, a.p)
		}
	}
	m, r := *mp, RequestID(id)
	result := func(err error, format string, args ...any) string {
		if err != nil {
			return err.Error() + "\n"
		}
		return strings.TrimSpace(fmt.Sprintf(format, args...)) + "\n"
	}
	switch d.Cmd {
	case "new":
		var err error
		*mp, err = NewWithOptions(blocks, size, Options{MaxSpans: maxSpans, Reserve: reserve})
		return result(err, "ok")
	case "open":
		return result(m.Open(r), "ok")
	case "grow":
		return result(m.Grow(r, n), "capacity %d", m.Capacity(r))
	case "computed":
		return result(m.SetComputed(r, n), "ok")
	case "begin":
		got, err := m.BeginMove(r, n)
		return result(err, "moving %v", got)
	case "commit":
		orphans, err := m.CommitMove(r, Span{Instance: at, Handle: uint32(handle), Generation: uint32(generation), Blocks: n})
		return result(err, "orphans %v", orphans)
	case "abort":
		orphans, err := m.AbortMove(r)
		return result(err, "orphans %v", orphans)
	case "close":
		return result(nil, "release %v", m.Close(r))
	case "table":
		tab, err := m.Table(r)
		return result(err, "spans %v local %v moving %d", tab.Spans, tab.Local, tab.Moving)
	case "at":
		return result(nil, "%v", m.RequestsAt(at))
	case "host":
		h, err := m.Host(owner, n)
		return result(err, "%+v", h)
	case "extend":
		h, err := m.ExtendHost(owner, uint32(handle), uint32(generation), n)
		return result(err, "%+v", h)
	case "unhost":
		return result(m.Unhost(owner, uint32(handle), uint32(generation)), "ok")
	case "hosted":
		return result(nil, "%+v", m.HostedOf(owner))
	case "pressure":
		m.SetPressure(on)
		return result(nil, "hostable %d", m.Hostable())
	case "demand":
		m.SetDemand(n)
		return result(nil, "hostable %d", m.Hostable())
	case "counts":
		return result(nil, "%+v", m.Counts())
	}
	t.Fatalf("%s: no command %s", d.Pos, d.Cmd)
	return ""
}

// world is several pools with requests and moves between them, driven at random.
type world struct {
	pools []*Manager
	live  []map[RequestID]*life
	next  RequestID
	dead  []bool
}

type life struct {
	tokens int
	moving *Span // reserved at another instance
	to     int
	closed bool
}

func name(i int) string { return fmt.Sprintf("i%d", i) }

func TestRandomWorld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 4).Draw(t, "instances")
		w := &world{dead: make([]bool, n)}
		for range n {
			m, err := NewWithOptions(rapid.IntRange(1, 24).Draw(t, "blocks"), 4, Options{MaxSpans: rapid.IntRange(1, 6).Draw(t, "spans")})
			if err != nil {
				t.Fatal(err)
			}
			w.pools, w.live = append(w.pools, m), append(w.live, map[RequestID]*life{})
		}
		actions := map[string]func(*rapid.T){
			"open": w.open, "append": w.append, "begin": w.begin, "end": w.end, "cancel": w.cancel, "die": w.die, "pressure": w.press,
			"": func(t *rapid.T) {
				for i, m := range w.pools {
					if err := m.check(); err != nil {
						t.Fatalf("instance %d: %v", i, err)
					}
				}
			},
		}
		t.Repeat(actions)
		for i := range w.pools {
			for id := range w.live[i] {
				w.endMove(t, i, id, false)
				w.close(t, i, id)
			}
		}
		for i, m := range w.pools {
			if c := m.Counts(); c.Free != c.Total || c.Lent != 0 {
				t.Fatalf("instance %d ends with %+v", i, c)
			}
		}
	})
}

func (w *world) pick(t *rapid.T) (int, RequestID, *life) {
	i := rapid.IntRange(0, len(w.pools)-1).Draw(t, "instance")
	var ids []RequestID
	for id := range w.live[i] {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		t.Skip("no request")
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(t, "request")
	return i, id, w.live[i][id]
}

func (w *world) open(t *rapid.T) {
	i := rapid.IntRange(0, len(w.pools)-1).Draw(t, "instance")
	w.next++
	if err := w.pools[i].Open(w.next); err != nil {
		t.Fatal(err)
	}
	w.live[i][w.next] = &life{}
}

func (w *world) append(t *rapid.T) {
	i, id, l := w.pick(t)
	if l.closed {
		t.Skip("closed")
	}
	more := rapid.IntRange(1, 20).Draw(t, "tokens")
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
	if err := w.pools[i].SetComputed(id, l.tokens); err != nil {
		t.Fatal(err)
	}
}

func (w *world) begin(t *rapid.T) {
	i, id, l := w.pick(t)
	to := rapid.IntRange(0, len(w.pools)-1).Draw(t, "to")
	n := rapid.IntRange(1, 8).Draw(t, "blocks")
	if l.closed || l.moving != nil || to == i {
		t.Skip("nothing to move")
	}
	h, err := w.pools[to].Host(name(i), n)
	if err != nil {
		if !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
		return
	}
	if len(h.Blocks) < 1 || len(h.Blocks) > n || h.Generation == 0 {
		t.Fatalf("a grant of %+v for %d", h, n)
	}
	tab, _ := w.pools[i].Table(id)
	got, err := w.pools[i].BeginMove(id, len(h.Blocks))
	if err != nil {
		if uerr := w.pools[to].Unhost(name(i), h.Handle, h.Generation); uerr != nil {
			t.Fatal(uerr)
		}
		return
	}
	full := l.tokens/4 - tab.SpanBlocks()
	if !slices.Equal(got, tab.Local[:len(got)]) || len(got) > full || len(got) >= len(tab.Local) {
		t.Fatalf("blocks %v of %+v move, %d are full", got, tab, full)
	}
	l.moving, l.to = &Span{Instance: name(to), Handle: h.Handle, Generation: h.Generation, Blocks: len(got)}, to
}

func (w *world) end(t *rapid.T) {
	i, id, _ := w.pick(t)
	w.endMove(t, i, id, rapid.Bool().Draw(t, "success"))
}

func (w *world) endMove(t *rapid.T, i int, id RequestID, ok bool) {
	l := w.live[i][id]
	if l.moving == nil {
		return
	}
	var orphans []Span
	var err error
	if ok {
		orphans, err = w.pools[i].CommitMove(id, *l.moving)
	} else {
		if orphans, err = w.pools[i].AbortMove(id); err == nil {
			w.release(t, i, []Span{*l.moving})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	l.moving = nil
	if l.closed {
		delete(w.live[i], id)
	} else if len(orphans) > 0 {
		t.Fatal("orphans of a live request")
	}
	w.release(t, i, orphans)
}

// release gives spans back; one that an instance forgot when it died is unknown there.
func (w *world) release(t *rapid.T, i int, spans []Span) {
	for _, s := range spans {
		for j := range w.pools {
			if name(j) == s.Instance {
				if err := w.pools[j].Unhost(name(i), s.Handle, s.Generation); err != nil && !errors.Is(err, ErrUnknown) {
					t.Fatal(err)
				}
			}
		}
	}
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
	spans := w.pools[i].Close(id)
	if l.moving != nil {
		if len(spans) > 0 {
			t.Fatal("spans are released while blocks move into them")
		}
		l.closed = true
		return
	}
	w.release(t, i, spans)
	delete(w.live[i], id)
}

// die: one instance forgets everything that others lent it, and everything it hosted.
func (w *world) die(t *rapid.T) {
	d := rapid.IntRange(0, len(w.pools)-1).Draw(t, "instance")
	for id := range w.live[d] {
		w.endMove(t, d, id, false)
		w.close(t, d, id)
	}
	for i, m := range w.pools {
		for id, l := range w.live[i] {
			if l.moving != nil && l.to == d {
				w.endMove(t, i, id, false)
			}
		}
		for _, id := range m.RequestsAt(name(d)) {
			w.close(t, i, id)
		}
		if len(m.RequestsAt(name(d))) > 0 {
			t.Fatal("a lost instance still has spans")
		}
		for _, h := range m.HostedOf(name(d)) {
			if err := m.Unhost(name(d), h.Handle, h.Generation); err != nil {
				t.Fatal(err)
			}
			if m.Unhost(name(d), h.Handle, h.Generation) == nil {
				t.Fatal("a span ended twice")
			}
		}
	}
}

func (w *world) press(t *rapid.T) {
	i := rapid.IntRange(0, len(w.pools)-1).Draw(t, "instance")
	on := rapid.Bool().Draw(t, "on")
	w.pools[i].SetPressure(on)
	w.pools[i].SetDemand(rapid.IntRange(0, 5).Draw(t, "demand"))
	if _, err := w.pools[i].Host("other", 1); on && err == nil {
		t.Fatal("an instance under pressure lends")
	}
	for _, h := range w.pools[i].HostedOf("other") {
		if err := w.pools[i].Unhost("other", h.Handle, h.Generation); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	m, err := New(64, 4)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(2)
		go func() {
			defer wg.Done()
			for k := range 200 {
				id := RequestID(g*1000 + k)
				if err := m.Open(id); err != nil {
					t.Error(err)
				}
				_ = m.Grow(id, k%40)
				_, _ = m.Table(id)
				m.Close(id)
			}
		}()
		go func() {
			defer wg.Done()
			for k := range 200 {
				if h, err := m.Host(name(g), 1+k%5); err == nil {
					if err := m.Unhost(name(g), h.Handle, h.Generation); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	if err := m.check(); err != nil || m.Free() != 64 {
		t.Fatalf("%d free: %v", m.Free(), err)
	}
}
