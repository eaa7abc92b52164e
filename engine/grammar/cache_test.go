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
	c := NewCache(func(_ context.Context, _ int, kind, text string) (string, error) {
		made.Add(1)
		switch text {
		case "worse":
			panic("a bug")
		case "bad":
			return "", fmt.Errorf("wrapped: %w", &Error{"", "bad"})
		case "unlucky":
			return "", errors.New("may pass")
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
	if n := made.Swap(0); n != 1 {
		t.Errorf("20 that want one source make it %d times", n)
	}
	for i := range 3 * maxIdle {
		_, _ = c.Get(t.Context(), "k", fmt.Sprint(i))
		_, _ = c.Get(t.Context(), "k", "same")
	}
	if n := made.Swap(0); n != 3*maxIdle {
		t.Errorf("%d were made: the one that is used most was forgotten", n)
	}
	if n := c.size(); n != maxIdle {
		t.Errorf("%d are kept", n)
	}
	for _, x := range []struct {
		text string
		made int64
	}{{"bad", 1}, {"unlucky", 3}, {"worse", 3}} {
		for range 3 {
			if _, err := c.Get(t.Context(), "k", x.text); err == nil {
				t.Errorf("%s is taken", x.text)
			}
		}
		if n := made.Swap(0); n != x.made {
			t.Errorf("%s was made %d times", x.text, n)
		}
	}
}

func (c *Cache[T]) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// What is wrong is remembered, within a limit of its own: it takes no room of what is right.
func TestCacheOfRefused(t *testing.T) {
	made := 0
	c := NewCache(func(_ context.Context, _ int, _, text string) (int, error) {
		made++
		if text == "right" {
			return 1, nil
		}
		return 0, errAt("", "%s", text)
	})
	for i := range 2 * maxRefused {
		if _, err := c.Get(t.Context(), "", []string{"right", fmt.Sprint(i)}[min(i, 1)]); (err == nil) != (i == 0) {
			t.Fatal(i, err)
		}
	}
	if n := c.size(); n != maxRefused+1 {
		t.Errorf("%d are kept", n)
	}
	made = 0
	for _, text := range []string{"right", fmt.Sprint(2*maxRefused - 1), fmt.Sprint(maxRefused)} {
		_, _ = c.Get(t.Context(), "", text)
	}
	if made != 0 {
		t.Errorf("%d were made again", made)
	}
}

// held is a cache whose compilations wait to be let go.
type held struct {
	*Cache[string]
	begun chan string
	ended chan error // the cause of what was given up

	ends sync.Map // by source
}

func newHeld() *held {
	h := &held{begun: make(chan string), ended: make(chan error)}
	h.Cache = NewCache(func(ctx context.Context, steps int, _, text string) (string, error) {
		if steps == FullWork {
			text = "slow " + text
		}
		h.begun <- text
		select {
		case err := <-h.end(text):
			return text, err
		case <-ctx.Done():
			h.ended <- context.Cause(ctx)
			return "", context.Cause(ctx)
		}
	})
	return h
}

// end takes what the compilation of a source ends with.
func (h *held) end(text string) chan error {
	ch, _ := h.ends.LoadOrStore(text, make(chan error))
	return ch.(chan error)
}

// ask gets a source beside the test; when it returns, the source waits to be compiled, or is.
func (h *held) ask(ctx context.Context, text string) (done chan error) {
	done = make(chan error, 1)
	e, err := h.join("", text)
	go func() {
		if err == nil {
			_, err = h.wait(ctx, e)
		}
		done <- err
	}()
	return done
}

// begins wants the compilation that begins next to be this one's.
func (h *held) begins(t *testing.T, want string) {
	t.Helper()
	if text := <-h.begun; text != want {
		t.Fatalf("%s begins, wanted %s", text, want)
	}
}

var errGone = errors.New("gone")

// A compilation goes on while one waits for it, and ends with the last.
func TestCacheWaiters(t *testing.T) {
	h := newHeld()
	first, leave := context.WithCancelCause(t.Context())
	second, leaveToo := context.WithCancelCause(t.Context())
	a := h.ask(first, "x")
	h.begins(t, "x")
	b := h.ask(second, "x")
	leave(errGone)
	if err := <-a; !errors.Is(err, errGone) {
		t.Error(err)
	}
	c := h.ask(t.Context(), "x")
	h.end("x") <- nil
	for _, w := range []chan error{b, c} {
		if err := <-w; err != nil {
			t.Error(err)
		}
	}
	// Both go: it ends, and who comes then begins anew.
	a, b = h.ask(second, "y"), h.ask(second, "y")
	h.begins(t, "y")
	leaveToo(errGone)
	<-a
	<-b
	if n := h.size(); n != 1 {
		t.Errorf("%d entries: what nobody waits for is still there", n)
	}
	a = h.ask(t.Context(), "y")
	h.begins(t, "y")
	if err := <-h.ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	h.end("y") <- nil
	if err := <-a; err != nil {
		t.Error(err)
	}
}

// What took long to make is not dropped for what was asked for meanwhile: those that wait use it only now.
func TestCacheKeepsWhatTookLong(t *testing.T) {
	h := newHeld()
	dear := h.ask(t.Context(), "dear")
	h.begins(t, "dear")
	h.end("dear") <- ErrUnfinished
	h.begins(t, "slow dear")
	get := func(text string) {
		w := h.ask(t.Context(), text)
		h.begins(t, text)
		h.end(text) <- nil
		if err := <-w; err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxIdle {
		get(fmt.Sprint(i))
	}
	h.end("slow dear") <- nil
	if err := <-dear; err != nil {
		t.Fatal(err)
	}
	if n := h.size(); n != maxIdle {
		t.Errorf("%d are kept", n)
	}
	select {
	case err := <-h.ask(t.Context(), "dear"):
		if err != nil {
			t.Error(err)
		}
	case text := <-h.begun:
		t.Errorf("%s begins: it was dropped", text)
		h.end(text) <- nil
	}
}

// What was waited for counts as used when it is taken, not when it was asked for.
func TestCacheKeepsWhatIsTaken(t *testing.T) {
	c := NewCache(func(_ context.Context, _ int, _, text string) (string, error) { return text, nil })
	get := func(text string) {
		if _, err := c.Get(t.Context(), "", text); err != nil {
			t.Fatal(err)
		}
	}
	get("x")
	e, err := c.join("", "x")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxIdle - 1 {
		get(fmt.Sprint(i))
	}
	if _, err := c.wait(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	get("one more")
	if c.entries[e.key] != e {
		t.Error("it was dropped")
	}
}

// What nobody waits for any more is not begun.
func TestCacheSkips(t *testing.T) {
	h := newHeld()
	ctx, leave := context.WithCancelCause(t.Context())
	kept := []chan error{h.ask(t.Context(), "a"), h.ask(t.Context(), "b")}
	<-h.begun
	<-h.begun
	var left []chan error
	for i := range maxQuick - 1 {
		left = append(left, h.ask(ctx, fmt.Sprint(i)))
	}
	kept = append(kept, h.ask(t.Context(), "c"))
	if err := <-h.ask(t.Context(), "d"); !errors.Is(err, ErrBusy) {
		t.Errorf("one too many waits: %v", err)
	}
	leave(errGone)
	for _, w := range left {
		<-w
	}
	h.end("a") <- nil
	h.begins(t, "c")
	h.end("b") <- nil
	h.end("c") <- nil
	for _, w := range kept {
		if err := <-w; err != nil {
			t.Error(err)
		}
	}
}

// Whatever dear sources are sent, cheap ones go past them; and cheap ones do not keep a dear one from its turn.
func TestCacheLanes(t *testing.T) {
	h := newHeld()
	var dear []chan error
	for i := range maxSlow + 2 {
		text := fmt.Sprint("dear ", i)
		dear = append(dear, h.ask(t.Context(), text))
		h.begins(t, text)
		h.end(text) <- ErrUnfinished
		if i == 0 {
			h.begins(t, "slow dear 0")
		}
	}
	// One is under way, maxSlow wait.
	if err := <-dear[maxSlow+1]; !errors.Is(err, ErrBusy) {
		t.Errorf("one too many is slow: %v", err)
	}
	for i := range 50 {
		text := fmt.Sprint("cheap ", i)
		w := h.ask(t.Context(), text)
		h.begins(t, text)
		h.end(text) <- nil
		if err := <-w; err != nil {
			t.Fatal(err)
		}
	}
	var cheap []chan error
	for i := range 3 {
		cheap = append(cheap, h.ask(t.Context(), fmt.Sprint(i)))
	}
	h.begins(t, "0")
	for i := range maxSlow {
		h.end(fmt.Sprint("slow dear ", i)) <- nil
		h.begins(t, fmt.Sprint("slow dear ", i+1))
	}
	for i := range 3 {
		h.end(fmt.Sprint(i)) <- nil
		if i < 2 {
			h.begins(t, fmt.Sprint(i+1))
		}
	}
	h.end(fmt.Sprint("slow dear ", maxSlow)) <- nil
	for _, w := range append(cheap, dear[:maxSlow+1]...) {
		if err := <-w; err != nil {
			t.Error(err)
		}
	}
}
