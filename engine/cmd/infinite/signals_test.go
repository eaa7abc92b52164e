package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// One request to end may arrive as several signals; a head hurries its instances by another one.
func TestSignalsOfOneStop(t *testing.T) {
	type sent struct {
		after time.Duration // the one before
		what  os.Signal
	}
	now, later := time.Millisecond, 2*oneStop
	for name, tc := range map[string]struct {
		child   bool
		signals []sent
		hurry   bool
	}{
		"timeout":                    {false, []sent{{0, syscall.SIGTERM}, {now, syscall.SIGTERM}}, false},
		"two":                        {false, []sent{{0, syscall.SIGTERM}, {later, os.Interrupt}}, true},
		"two at once and another":    {false, []sent{{0, os.Interrupt}, {now, os.Interrupt}, {later, os.Interrupt}}, true},
		"a child by killall":         {true, []sent{{0, syscall.SIGTERM}, {now, syscall.SIGTERM}, {later, syscall.SIGTERM}}, false},
		"a child by killall -INT":    {true, []sent{{0, os.Interrupt}, {now, syscall.SIGTERM}}, false},
		"a child whose head hurries": {true, []sent{{0, syscall.SIGTERM}, {now, os.Interrupt}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &ending{child: tc.child}
				e.drains.Store(true)
				signals, ended, hurried := make(chan os.Signal, 3), 0, false
				go func() { e.untilHurry(signals, func(error) { ended++ }); hurried = true }()
				for _, s := range tc.signals {
					time.Sleep(s.after)
					signals <- s.what
				}
				synctest.Wait()
				if ended != 1 || hurried != tc.hurry {
					t.Errorf("it was ended %d times; hurried %v", ended, hurried)
				}
				close(signals)
			})
		})
	}
}

// A process that cannot go on drains already: its first signal cuts that short.
func TestSignalAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, signals, hurried := &ending{failed: make(chan struct{})}, make(chan os.Signal, 3), false
		e.drains.Store(true)
		go func() { hurried = e.untilHurry(signals, func(error) { t.Error("it is ended") }) }()
		failing(context.WithValue(t.Context(), endingKey{}, e), errors.New("no instance is left"))
		synctest.Wait()
		if hurried {
			t.Error("nothing was sent")
		}
		signals <- os.Interrupt
		if synctest.Wait(); !hurried {
			t.Error("the first signal did nothing")
		}
	})
}

// A command that finishes nothing listens on as long, or what it says at its end would be lost.
func TestSignalsOfOneStopToAnotherCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, signals, begun := &ending{}, make(chan os.Signal, 3), time.Now()
		signals <- syscall.SIGTERM
		signals <- syscall.SIGTERM
		if e.untilHurry(signals, func(error) {}) || time.Since(begun) != oneStop {
			t.Errorf("it listened for %s", time.Since(begun))
		}
	})
}
