package kvcache

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"
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
	var id, n, handle, generation, blocks, size, maxSpans, has int
	var at, owner string
	var on bool
	for _, a := range []struct {
		key string
		p   any
	}{{"id", &id}, {"n", &n}, {"handle", &handle}, {"gen", &generation}, {"blocks", &blocks}, {"size", &size}, {"spans", &maxSpans},
		{"has", &has}, {"at", &at}, {"owner", &owner}, {"on", &on}} {
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
		*mp, err = NewWithOptions(blocks, size, Options{MaxSpans: maxSpans})
		return result(err, "ok")
	case "open":
		return result(m.Open(r), "ok")
	case "grow":
		return result(m.Grow(r, n), "capacity %d", m.Capacity(r))
	case "computed":
		return result(m.SetComputed(r, n), "ok")
	case "begin":
		got, err := m.BeginMove(r, Span{Instance: at, Handle: uint32(handle), Generation: uint32(generation), Blocks: has}, n)
		return result(err, "moving %v", got)
	case "commit":
		orphans, err := m.CommitMove(r, n)
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
		h, err := m.Host(owner, 7, n)
		return result(err, "%+v", h)
	case "extend":
		h, err := m.ExtendHost(owner, uint32(handle), uint32(generation), has, n)
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
				if h, err := m.Host(name(g), 0, 1+k%5); err == nil {
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
