package arrival

import (
	"cmp"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The order is that of priorities, and of clocks within one; the clock comes back.
func TestOrder(t *testing.T) {
	type place struct {
		priority int
		clock    uint64
	}
	draw := rapid.Custom(func(t *rapid.T) place {
		return place{rapid.IntRange(MinPriority, MaxPriority).Draw(t, "priority"), rapid.Uint64Range(0, 1<<clockBits-1).Draw(t, "clock")}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw.Draw(t, "a"), draw.Draw(t, "b")
		if rapid.Bool().Draw(t, "alike") {
			b.priority = a.priority
		}
		want := cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.clock, b.clock))
		x, y := Of(a.priority, a.clock), Of(b.priority, b.clock)
		if got := cmp.Compare(x, y); got != want {
			t.Fatalf("%+v and %+v: %d, not %d", a, b, got, want)
		}
		if Clock(x) != a.clock || x >= 1<<63 {
			t.Fatalf("%+v became %#x", a, x)
		}
	})
}

func TestClock(t *testing.T) {
	at := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	if a, b := Now(at), Now(at.Add(128*time.Nanosecond)); b != a+1 {
		t.Errorf("%d, then %d", a, b)
	}
	if last := Now(time.Date(2070, 1, 1, 0, 0, 0, 0, time.UTC)); last >= MaxClock {
		t.Errorf("%d is no clock of 2070: the last is %d", last, uint64(MaxClock))
	}
}
