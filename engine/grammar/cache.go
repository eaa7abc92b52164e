package grammar

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
)

// ErrBusy says that there is no room for a source now: too many wait to be compiled, or what is in use takes too much
// memory.
var ErrBusy = errors.New("too many grammars wait to be compiled or are in use")

// Builder makes a value of a source. It ends with the context, whose cause it returns then, and with ErrUnfinished where
// it would take more than steps, if those are fewer than FullWork; see CompileWithin.
type Builder[T any] func(ctx context.Context, steps int, kind, text string) (T, error)

// Cache keeps what was made of the sources that were used last, and what was refused. It is safe for concurrent use.
type Cache[T any] struct {
	build Builder[T]

	mu      sync.Mutex
	clock   uint64
	entries map[cacheKey]*entry[T] // what is queued, in the making, and kept
	lanes   lanes[T]
}

type cacheKey [sha256.Size]byte

// entry is a source. Cache.mu guards it until ready is closed; of what is there then only used changes.
type entry[T any] struct {
	key        cacheKey
	kind, text string // "" once it is ready
	ctx        context.Context
	giveUp     context.CancelFunc
	waiters    int
	slow       bool          // it took more than QuickWork
	ready      chan struct{} // closed when what follows is there
	value      T
	err        error
	used       uint64
}

// NewCache makes values by build.
func NewCache[T any](build Builder[T]) *Cache[T] {
	return &Cache[T]{build: build, entries: map[cacheKey]*entry[T]{}}
}

// Get returns what is made of a source, or makes it; several that want the same wait for one, which is given up when the
// last of them has gone. ErrBusy; an *Error is the source's. ctx ends the wait.
func (c *Cache[T]) Get(ctx context.Context, kind, text string) (T, error) {
	e, err := c.join(kind, text)
	if err != nil {
		var none T
		return none, err
	}
	return c.wait(ctx, e)
}

// wait is for a source that was joined.
func (c *Cache[T]) wait(ctx context.Context, e *entry[T]) (T, error) {
	var none T
	select {
	case <-e.ready:
	default:
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.leave(e)
			return none, context.Cause(ctx)
		}
	}
	if e.err != nil {
		return none, e.err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uses(e) // no others drop it before it is in use
	if !c.admit(e) {
		return none, ErrBusy
	}
	return e.value, nil
}

// uses says that a source is the last that was used. The caller holds mu.
func (c *Cache[T]) uses(e *entry[T]) {
	c.clock++
	e.used = c.clock
}

// join finds a source's entry or queues a new one.
func (c *Cache[T]) join(kind, text string) (*entry[T], error) {
	key := cacheKey(sha256.Sum256([]byte(kind + "\x00" + text)))
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		if len(c.lanes.quick) >= maxQuick {
			return nil, ErrBusy
		}
		e = &entry[T]{key: key, kind: kind, text: text, ready: make(chan struct{})}
		e.ctx, e.giveUp = context.WithCancel(context.Background())
		c.entries[key] = e
		c.lanes.quick = append(c.lanes.quick, e)
		c.dispatch()
	}
	c.uses(e)
	e.waiters++
	return e, nil
}

// leave takes a waiter away, and with the last one what it waited for.
func (c *Cache[T]) leave(e *entry[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.waiters--; e.waiters > 0 || e.done() {
		return
	}
	e.giveUp()
	c.lanes.remove(e)
	delete(c.entries, e.key)
}

// settle takes the outcome of a compilation. What is wrong with a source is kept like a value; other failures are not.
func (c *Cache[T]) settle(e *entry[T], v T, err error) {
	if c.entries[e.key] != e {
		return // nobody waits any more
	}
	if errors.Is(err, ErrUnfinished) && !e.slow {
		if len(c.lanes.slow) < maxSlow {
			e.slow = true
			c.lanes.slow = append(c.lanes.slow, e)
			return
		}
		err = ErrBusy
	}
	e.value, e.err, e.kind, e.text = v, err, "", ""
	e.giveUp()
	close(e.ready)
	c.uses(e) // it may have been asked for long ago, and those that wait for it have yet to take it
	var wrong *Error
	if err != nil && !errors.As(err, &wrong) {
		delete(c.entries, e.key)
	}
	c.trim()
}

// make makes an error of a panic, so that a source does not take the process with it.
func (c *Cache[T]) make(e *entry[T], steps int) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("compiling a grammar panicked", "kind", e.kind, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("cannot compile the grammar: internal error")
		}
	}()
	return c.build(e.ctx, steps, e.kind, e.text)
}

func (e *entry[T]) done() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}
