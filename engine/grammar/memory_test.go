package grammar

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// weighed is a value with a memory as it is told.
type weighed struct {
	fixed, made int
	used        bool
	allowed     int
}

func (w *weighed) weight() (int, int) { return w.fixed, w.made }
func (w *weighed) InUse() bool        { return w.used }
func (w *weighed) allow(made int)     { w.allowed = made }

// Values in use are never more than may be, with what they are allowed to make; those that are not take no more than
// theirs, also where they have grown since. What has no room is told so, and what was used last stays.
func TestCacheMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	c := NewCache(func(_ context.Context, _ int, _, _ string) (*weighed, error) {
		return &weighed{fixed: r.IntN(20 << 20), allowed: maxMemory}, nil
	})
	var all []*weighed
	busy, lowest := 0, maxMemory
	for i := range 4000 {
		v, err := c.Get(t.Context(), "", fmt.Sprint(r.IntN(1000)))
		if errors.Is(err, ErrBusy) {
			busy++
		} else if err != nil {
			t.Fatal(err)
		} else {
			all, v.used = append(all, v), true
		}
		kept, used, usedBytes, idleBytes := 0, 0, 0, 0
		for _, e := range c.entries {
			switch v := e.value; {
			case !v.used:
				kept++
				idleBytes += v.fixed + v.made
			default:
				used++
				usedBytes += v.fixed + v.allowed
				if v.allowed < minShare {
					t.Fatalf("one may make %d bytes", v.allowed)
				}
				lowest = min(lowest, v.allowed)
			}
		}
		if kept > maxIdle || idleBytes > maxIdleBytes && kept > 1 || usedBytes > maxUsedBytes {
			t.Fatalf("after %d: %d are kept with %d bytes, %d in use with up to %d", i, kept, idleBytes, used, usedBytes)
		}
		for range 2 * r.IntN(2) { // some end, and what is in use grows
			if len(all) > 0 {
				k := r.IntN(len(all))
				all[k].made = r.IntN(all[k].allowed + 1)
				if r.IntN(40) > 0 {
					all[k].used = false
				}
			}
		}
		if i%1000 == 999 { // nobody ends for a while: it comes to its limit
			for range 200 {
				if v, err := c.Get(t.Context(), "", fmt.Sprint(r.IntN(1000))); err == nil {
					all, v.used = append(all, v), true
				}
			}
			for _, v := range all {
				v.used = false
			}
		}
	}
	if busy == 0 || lowest > 4*minShare {
		t.Errorf("the limit was not reached: %d refused, %d bytes allowed at least", busy, lowest)
	}
}

// Guides count while an answer uses them, and what they make counts too, and stays within what they may.
func TestGuideWeight(t *testing.T) {
	v := large()
	u := guide(t, JSONSchema, `{"type":"string","maxLength":2000}`, v)
	fixed, warm := u.weight()
	if u.InUse() || fixed < 1<<20 || warm == 0 {
		t.Errorf("%d and %d bytes, in use: %v", fixed, warm, u.InUse())
	}
	a, b := u.Matcher(), u.Matcher()
	a.Close()
	if !u.InUse() {
		t.Error("it is not in use")
	}
	b.Close()
	if u.InUse() {
		t.Error("it is in use")
	}
	for _, limit := range []int{maxMemory, 1 << 20, minShare} {
		u.allow(limit)
		m := u.Matcher()
		if err := m.Accept(1 + '"'); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			if _, _, err := m.Mask(); err != nil {
				t.Fatal(err)
			}
			if err := m.Accept(1 + 'a'); err != nil {
				t.Fatal(err)
			}
			if _, made := u.weight(); made > limit+128<<10 { // one mask more
				t.Fatalf("%d bytes, %d are allowed", made, limit)
			}
		}
		m.Close()
	}
}

// What is counted is near what the heap holds.
func TestWeightIsHeap(t *testing.T) {
	v := large()
	heap := func() int {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return int(s.HeapAlloc)
	}
	var props []string
	for i := range 200 {
		props = append(props, fmt.Sprintf(`"property_%d":{"type":"string","maxLength":20}`, i))
	}
	for _, text := range []string{
		`{"type":"string","maxLength":5000}`, `{"type":"object","properties":{` + strings.Join(props, ",") + `}}`, person,
	} {
		before := heap()
		g, err := Compile(JSONSchema, text)
		if err != nil {
			t.Fatal(err)
		}
		between := heap()
		fixed, took := g.bytes(), between-before
		if fixed < took/2 || fixed > 2*took {
			t.Errorf("%.60s: %d bytes are counted, %d taken", text, fixed, took)
		}
		u := NewGuide(g, v)
		m := u.Matcher()
		r := rand.New(rand.NewPCG(1, 1))
		for range 300 {
			mask, some, err := m.Mask()
			if err != nil {
				t.Fatal(err)
			}
			if !some {
				break
			}
			var ids []int32
			eachBit(mask, func(id int32) { ids = append(ids, id) })
			if err := m.Accept(ids[r.IntN(len(ids))]); err != nil {
				t.Fatal(err)
			}
		}
		_, made := u.weight()
		took = heap() - between
		if made < took/2 || made > 2*took {
			t.Errorf("%.60s: %d bytes made are counted, %d taken", text, made, took)
		}
		runtime.KeepAlive(u)
	}
	runtime.KeepAlive(v)
}
