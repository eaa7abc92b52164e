package head

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/config"
)

// Replacements come later and later, at most so many in a window, and again when the window has moved on.
func TestPlan(t *testing.T) {
	var s slot
	at := time.Unix(1000, 0)
	wait := func(most int, want time.Duration) {
		t.Helper()
		ok := s.plan(most, at)
		if want == 0 {
			if ok || s.waits() {
				t.Fatalf("it is started anew at %s", s.due)
			}
			return
		}
		if !ok || s.due.Sub(at) != want {
			t.Fatalf("%v: it waits for %s, not %s", ok, s.due.Sub(at), want)
		}
		at = s.due
	}
	wait(0, 0)
	for _, seconds := range []int{1, 2, 4} {
		wait(3, time.Duration(seconds)*time.Second)
	}
	wait(3, 0)
	at = time.Unix(1001, 0).Add(restartWindow - time.Nanosecond)
	wait(3, 0)
	at = time.Unix(1001, 0).Add(restartWindow)
	wait(3, 4*time.Second)
	at = time.Unix(1002, 0).Add(restartWindow)
	wait(3, 0)
	at = at.Add(2 * restartWindow)
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 64, 64} {
		wait(100, time.Duration(seconds)*time.Second)
	}
}

// What is left of an instance that was replaced is nobody who serves.
func TestLeft(t *testing.T) {
	runs, gone := &child{id: "i2", done: make(chan struct{})}, &child{id: "i1", done: make(chan struct{})}
	close(gone.done)
	members := map[string]cluster.Member{"i0": {ID: "i0"}, "i1": {ID: "i1"}, "i2": {ID: "i2"}, "m": {ID: "m", MemoryOnly: true}}
	slots := []*slot{{child: runs, former: []string{"i0"}}, {child: gone}}
	if own, others := left(slots, members); own != 1 || others != 0 {
		t.Error(own, others)
	}
	members["j"] = cluster.Member{ID: "j"}
	if own, others := left(slots[1:], members); own != 0 || others != 3 {
		t.Error(own, others)
	}
}

// Instances that never come up again are tried for as often as may be, and the process ends.
func TestInstancesDieAgain(t *testing.T) {
	h := start(t, func(cfg *config.Config) { cfg.Instances, cfg.MaxRestarts = 2, 2 })
	defer h.Close()
	t.Setenv(brokenEnv, "cannot start the device: it is broken")
	for _, s := range h.slots {
		if err := s.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-h.Failed():
		if !strings.Contains(err.Error(), "no instance is left; the last: instance i5: cannot start the device: it is broken") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if n := h.restarts.Load(); n != 4 {
		t.Errorf("%d instances were started anew", n)
	}
}

// One comes up again and serves.
func TestTheOnlyInstanceDies(t *testing.T) {
	h := start(t, func(cfg *config.Config) { cfg.MaxRestarts = 1 })
	defer h.Close()
	if err := h.slots[0].cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another one serves", func() bool { return sees(h, h.ControlAddress(), "i1") && complete(h) == nil })
	if err := complete(h); err != nil {
		t.Error(err)
	}
}
