package node

import (
	"testing"
	"time"
)

// A line at once, then one for all that came in ten seconds.
func TestRefusals(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	for i, c := range []struct {
		total uint64
		after time.Duration
		want  uint64
	}{{0, 0, 0}, {3, 0, 3}, {100000, time.Second, 0}, {200003, 8 * time.Second, 0}, {200003, 11 * time.Second, 200000}, {200003, 30 * time.Second, 0}, {200004, 31 * time.Second, 1}} {
		if got := r.look(c.total, now.Add(c.after)); got != c.want {
			t.Errorf("look %d: %d, want %d", i, got, c.want)
		}
	}
}
