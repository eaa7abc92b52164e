package sched

import "testing"

// Those behind the first request of a call may wait beyond the limit, but not without one.
func TestTakes(t *testing.T) {
	for _, c := range []struct {
		room                int
		handed, later, want bool
	}{
		{1, false, false, true}, {0, false, false, false}, {-5, false, false, false},
		{0, false, true, true}, {1 - MoreWaiting, false, true, true}, {-MoreWaiting, false, true, false},
		{0, true, false, true}, {-2 * MoreWaiting, true, false, true},
	} {
		if got := Takes(c.room, c.handed, c.later); got != c.want {
			t.Errorf("%+v", c)
		}
	}
}
