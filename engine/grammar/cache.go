package grammar

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
)

// Limits of a cache.
const (
	maxCached  = 32 // sources
	maxAtWork  = 2  // compilations at once, so that they leave the machine to others
	maxWaiting = 64 // beyond it sources are refused
)

// ErrBusy says that too many sources wait to be compiled.
var ErrBusy = errors.New("too many grammars wait to be compiled")

// Cache keeps what was made of the sources that were used last. It is safe for concurrent use.
type Cache[T any] struct {
	build func(kind, text string) (T, error)
	slots chan struct{}

	mu      sync.Mutex
	clock   uint64
	waiting int
	entries map[cacheKey]*entry[T]
}

type cacheKey struct{ kind, text string }

type entry[T any] struct {
	ready chan struct{} // closed when what follows is there
	value T
	err   error
	used  uint64
}

// NewCache makes values by how, which takes what Compile does.
func NewCache[T any](how func(kind, text string) (T, error)) *Cache[T] {
	return &Cache[T]{build: how, slots: make(chan struct{}, maxAtWork), entries: map[cacheKey]*entry[T]{}}
}

// Get returns what is made of a source, or makes it; several that want the same wait for one. ErrBusy; an *Error is the
// source's. ctx ends the wait.
func (c *Cache[T]) Get(ctx context.Context, kind, text string) (T, error) {
	key := cacheKey{kind, text}
	c.mu.Lock()
	c.clock++
	e := c.entries[key]
	if e == nil {
		if c.waiting == maxWaiting {
			c.mu.Unlock()
			var none T
			return none, ErrBusy
		}
		e = &entry[T]{ready: make(chan struct{})}
		c.entries[key] = e
		c.waiting++
		go c.fill(key, e)
	}
	e.used = c.clock
	c.mu.Unlock()
	select {
	case <-e.ready:
		return e.value, e.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// fill makes an entry's value; what cannot be made is not kept.
func (c *Cache[T]) fill(key cacheKey, e *entry[T]) {
	c.slots <- struct{}{}
	e.value, e.err = c.make(key)
	<-c.slots
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting--
	if e.err != nil {
		delete(c.entries, key)
	}
	close(e.ready)
	for len(c.entries)-c.waiting > maxCached {
		var oldest *cacheKey
		for k, o := range c.entries {
			if o.done() && (oldest == nil || o.used < c.entries[*oldest].used) {
				oldest = &k
			}
		}
		delete(c.entries, *oldest)
	}
}

// make makes an error of a panic, so that a source does not take the process with it.
func (c *Cache[T]) make(key cacheKey) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("compiling a grammar panicked", "kind", key.kind, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("cannot compile the grammar: internal error")
		}
	}()
	return c.build(key.kind, key.text)
}

func (e *entry[T]) done() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}
