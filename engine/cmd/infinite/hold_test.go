package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/device"
)

// holdEnv names a file. While it is there, steps of the instances that know of it do not end, so that a state
// of a request lasts until a test has seen it, however fast the machine is.
const holdEnv = "INFINITE_TEST_HOLD"

// hold holds up, in all that the test starts after it was made, every step (from is 0), or every step that only
// decodes and has a request of so many tokens in it.
type hold struct {
	t    *testing.T
	file string
}

// holdSteps makes a hold. A server does not stop amid a step, so release must be deferred.
func holdSteps(t *testing.T, from int) *hold {
	t.Helper()
	h := &hold{t, filepath.Join(t.TempDir(), "hold")}
	h.from(from)
	t.Setenv(holdEnv, h.file)
	return h
}

// from changes which steps are held up.
func (h *hold) from(from int) {
	h.t.Helper()
	err := os.WriteFile(h.file+".new", []byte(strconv.Itoa(from)), 0o600)
	if err == nil {
		err = os.Rename(h.file+".new", h.file)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// fail makes the devices be over.
func (h *hold) fail() {
	h.t.Helper()
	if err := os.WriteFile(h.file+".failed", nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hold) release() { _ = os.Remove(h.file) }

// poison is a token that no device takes five of in a step: it is over then.
const poison = 999

// heldDevice is a device whose steps can be held up. The rest of its instance goes on: heartbeats, calls,
// links, and what it computes for others.
type heldDevice struct {
	*device.Device
	file string
}

func (d heldDevice) Wait(timeout time.Duration) (bool, error) {
	bad := 0
	for _, token := range d.Step().Tokens[:d.Step().Head.NTokens] {
		if token == poison {
			bad++
		}
	}
	if bad >= 5 {
		return false, errors.New("an illegal memory access, for a test")
	}
	if d.held() {
		time.Sleep(min(timeout, 2*time.Millisecond))
		return false, nil
	}
	return d.Device.Wait(timeout)
}

func (d heldDevice) Err() error {
	if _, err := os.Stat(d.file + ".failed"); err == nil {
		return errors.New("no device any more")
	}
	return d.Device.Err()
}

func (d heldDevice) held() bool {
	text, err := os.ReadFile(d.file)
	if err != nil {
		return false
	}
	from, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil || from == 0 {
		return err == nil
	}
	st, long := d.Step(), false
	for _, q := range st.Seqs[:st.Head.NSeqs] {
		if q.NTokens != 1 {
			return false
		}
		long = long || uint64(q.Pos0) >= from
	}
	return long
}
