package grammar

import (
	"cmp"
	"slices"
)

// What a cache keeps. Guides that answers use cannot be dropped: when those take too much, no more are taken.
const (
	maxIdle      = 256       // sources that are not in use
	maxRefused   = 1024      // sources that were wrong
	maxIdleBytes = 128 << 20 // of guides that are not in use, about
	maxUsedBytes = 384 << 20 // of those that are
	minShare     = 256 << 10 // bytes of masks and places that each of them may have
)

// heavy is a value whose memory counts: *Guide. Others count as nothing.
type heavy interface {
	// weight is bytes, about: those that stay as they are, and those that can be forgotten and made again.
	weight() (fixed, made int)
	InUse() bool
	// allow says how many bytes may be made from now on.
	allow(made int)
}

// admit makes room for a value that is to be used: it and the others share what is there for those in use. The caller
// holds mu.
func (c *Cache[T]) admit(e *entry[T]) bool {
	mine, ok := any(e.value).(heavy)
	if !ok {
		return true
	}
	defer c.trim() // some that were in use are not any more
	users, fixed := []heavy{mine}, 0
	for _, o := range c.entries {
		if h, ok := o.heavy(); ok && o != e && h.InUse() {
			users = append(users, h)
		}
	}
	for _, h := range users {
		n, _ := h.weight()
		fixed += n
	}
	share := (maxUsedBytes - fixed) / len(users)
	if share < minShare {
		return false
	}
	for _, h := range users {
		h.allow(min(share, maxMemory))
	}
	return true
}

// trim drops what was used longest ago, until what is kept is within its limits. The caller holds mu.
func (c *Cache[T]) trim() {
	var idle, refused []*entry[T]
	for _, e := range c.entries {
		h, ok := e.heavy()
		switch {
		case !e.done() || ok && h.InUse():
		case e.err != nil:
			refused = append(refused, e)
		default:
			idle = append(idle, e)
		}
	}
	c.drop(idle, maxIdle, maxIdleBytes)
	c.drop(refused, maxRefused, maxIdleBytes)
}

func (c *Cache[T]) drop(from []*entry[T], most, mostBytes int) {
	bytes := 0
	for _, e := range from {
		bytes += e.bytes()
	}
	if len(from) <= most && bytes <= mostBytes {
		return
	}
	slices.SortFunc(from, func(a, b *entry[T]) int { return cmp.Compare(a.used, b.used) })
	for i, e := range from {
		if len(from)-i <= most && bytes <= mostBytes {
			return
		}
		delete(c.entries, e.key)
		bytes -= e.bytes()
	}
}

func (e *entry[T]) bytes() int {
	h, ok := e.heavy()
	if !ok {
		return 0
	}
	fixed, made := h.weight()
	return fixed + made
}

func (e *entry[T]) heavy() (heavy, bool) {
	if !e.done() || e.err != nil {
		return nil, false
	}
	h, ok := any(e.value).(heavy)
	return h, ok
}

// bytes is what a grammar takes, about.
func (g *Grammar) bytes() int {
	n := 0
	for s := range g.states {
		n += stateBytes + edgeBytes*(cap(g.states[s].edges)+cap(g.states[s].calls))
	}
	for _, skips := range g.skips {
		n += 24 + 4*cap(skips)
	}
	return n + 100*len(g.rules)
}

// Bytes of a state, with its part in a guide, and of an edge.
const stateBytes, edgeBytes = 64, 8

func (u *Guide) weight() (fixed, made int) {
	return u.fixed, int(u.made.Load())
}

// InUse tells whether an answer has a matcher that is not closed.
func (u *Guide) InUse() bool { return u.users.Load() > 0 }

func (u *Guide) allow(made int) { u.limit.Store(int64(made)) }
