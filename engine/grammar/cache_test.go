package grammar

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

func TestCache(t *testing.T) {
	var made atomic.Int64
	c := NewCache(func(kind, text string) (string, error) {
		made.Add(1)
		if text == "worse" {
			panic("a bug")
		}
		if text == "bad" {
			return "", &Error{"", "bad"}
		}
		return kind + text, nil
	})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if v, err := c.Get(t.Context(), "k", "same"); v != "ksame" || err != nil {
				t.Errorf("%q %v", v, err)
			}
		})
	}
	all.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("20 that want one source make it %d times", n)
	}
	for i := range 3 * maxCached {
		_, _ = c.Get(t.Context(), "k", fmt.Sprint(i))
		_, _ = c.Get(t.Context(), "k", "same")
	}
	if n := made.Load(); n != 1+3*maxCached {
		t.Errorf("%d were made: the one that is used most was forgotten", n)
	}
	c.mu.Lock()
	if n := len(c.entries); n != maxCached {
		t.Errorf("%d are kept", n)
	}
	c.mu.Unlock()
	for range 2 {
		if _, err := c.Get(t.Context(), "k", "bad"); err == nil {
			t.Error("no error")
		}
	}
	if n := made.Load(); n != 3+3*maxCached {
		t.Errorf("%d: what failed was kept", n)
	}
	if _, err := c.Get(t.Context(), "k", "worse"); err == nil {
		t.Error("a panic is no error")
	}
}

func TestCacheIsBusy(t *testing.T) {
	hold := make(chan struct{})
	c := NewCache(func(kind, text string) (int, error) { <-hold; return 1, nil })
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	for i := range maxWaiting {
		if _, err := c.Get(ctx, "", fmt.Sprint(i)); !errors.Is(err, gone) {
			t.Fatal(err)
		}
	}
	if _, err := c.Get(ctx, "", "one more"); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	close(hold)
	if v, err := c.Get(t.Context(), "", "0"); v != 1 || err != nil {
		t.Fatal(v, err)
	}
}
