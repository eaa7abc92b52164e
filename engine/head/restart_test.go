package head

import (
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/config"
)

// Replacements come later and later, at most so many in a window, and then when the window has moved on.
func TestPlan(t *testing.T) {
	var s slot
	at := time.Unix(1000, 0)
	wait := func(most int, want time.Duration, rests bool) {
		t.Helper()
		s.plan(most, at)
		if s.waits() != (want > 0) || s.waits() && s.due.Sub(at) != want || s.rests != rests || s.comes() != (s.waits() && !rests) {
			t.Fatalf("it is due in %s, rests %v", s.due.Sub(at), s.rests)
		}
		if at = at.Add(want); want > 0 {
			s.begun = append(s.begun, at) // as replace does
		}
	}
	wait(0, 0, false)
	for _, seconds := range []int{1, 2, 4} {
		wait(3, time.Duration(seconds)*time.Second, false)
	}
	wait(3, restartWindow-6*time.Second, true) // since the first of them, at 1001
	at = at.Add(time.Second)
	wait(3, time.Second, true) // since the second, at 1003
	at = at.Add(2 * restartWindow)
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 64, 64} {
		wait(100, time.Duration(seconds)*time.Second, false)
	}
}

// One that does not become a member is ended, and another one is started; one that cannot be named is tried for again, however
// often, and counts as nothing.
func TestReplacementsThatComeToNothing(t *testing.T) {
	h := start(t, func(cfg *config.Config) { cfg.MaxRestarts = 2 })
	defer h.Close()
	h.unwatch()
	s := h.slots[0]
	s.joined = false
	now := time.Now()
	if h.keep(t.Context(), map[string]cluster.Member{}, now); s.joined || s.ended() != nil {
		t.Fatal("it is a member, or has ended")
	}
	h.note()
	if h.Missing() != 1 {
		t.Error("it is not missed")
	}
	if h.keep(t.Context(), nil, now.Add(startLimit)); s.ended() == nil {
		<-s.done
	}
	h.sayEnded(s, 0, 0)
	h.note()
	if !s.comes() || h.Missing() != 1 || !h.comes.Load() {
		t.Error("no other one comes")
	}
	h.keep(t.Context(), nil, s.due)
	if s.id == "i0" || s.ended() != nil || len(s.begun) != 1 || h.Restarts() != 1 {
		t.Errorf("%s, %v, %d", s.id, s.ended(), len(s.begun))
	}
	members := map[string]cluster.Member{s.id: {ID: s.id}}
	h.keep(t.Context(), members, time.Now())
	h.note()
	if !s.joined || h.Missing() != 0 {
		t.Error("it is missed")
	}
	if h.keep(t.Context(), nil, now.Add(2*startLimit)); s.ended() != nil {
		t.Error("one that was a member is ended")
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	h.sayEnded(s, 0, 0)
	_ = h.etcd.Close()
	for range 3 {
		at := s.due
		if h.keep(t.Context(), nil, at); !s.comes() || len(s.begun) != 1 || !s.due.After(time.Now()) {
			t.Fatalf("%d were started, another comes: %v", len(s.begun), s.comes())
		}
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
		if !regexp.MustCompile("no instance is left; the last: instance i[45]: cannot start the device: it is broken").MatchString(err.Error()) {
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

// A process that had nobody for a while goes on with the one that came.
func TestWaitForOthersEnds(t *testing.T) {
	h := start(t, func(cfg *config.Config) { cfg.MaxRestarts = 1 })
	defer h.Close()
	h.unwatch()
	s := h.slots[0]
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.done
	h.note()
	if !h.comes.Load() {
		t.Error("one that has just died, and was not planned for, is given up")
	}
	h.watch()
	eventually(t, "another one serves", func() bool { return complete(h) == nil })
	select {
	case err := <-h.Failed():
		t.Error(err)
	default:
	}
}
