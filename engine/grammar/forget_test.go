package grammar

import (
	"errors"
	"slices"
	"testing"
)

// A place whose parts are dear: what was forgotten is made again, and is no reason to fail.
func TestMaskAfterForgetting(t *testing.T) {
	u := guide(t, Regex, `[a-z ]*a[a-z ]{300}`, large())
	m := u.Matcher()
	a := int32(slices.IndexFunc(u.v.bytes, func(b []byte) bool { return string(b) == "a" }))
	var want []uint32
	for range 60 { // each way is one more
		if err := m.Accept(a); err != nil {
			t.Fatal(err)
		}
		var err error
		if want, _, err = m.Mask(); err != nil {
			t.Fatal(err)
		}
	}
	parts := func() (n int) {
		for _, p := range u.parts {
			if p != nil {
				n++
			}
		}
		return n
	}
	had := parts()
	for _, kept := range []int{u.kept, maxMemory} {
		u.spare, u.m.size, u.kept = 0, maxMemory, kept
		got, _, err := m.Mask()
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("after what is %d bytes was forgotten: %v", kept, err)
		}
		if u.m.size >= maxMemory || u.kept >= maxMemory/2 {
			t.Errorf("%d and %d bytes are kept", u.m.size, u.kept)
		}
		if n := parts(); kept < maxMemory && n != had {
			t.Errorf("%d of %d parts are left", n, had)
		}
	}
	// The control: without the work to spare it does fail.
	u.m.size = maxMemory
	m.at = u.tidy(m.at)
	clear(u.parts)
	u.kept, u.spare = 0, 0
	if _, _, err := m.Mask(); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("the place is too cheap for this test: %v", err)
	}
}
