package grammar

import "slices"

// Compilations that are queued. Each is tried with QuickWork first, which is plenty for what people write; what takes
// more begins anew in a lane of its own, where one is made at a time. So what is dear never waits for more than maxSlow
// of its like, and what is cheap for no more than maxQuick compilations of QuickWork, whatever else is sent.
const (
	maxAtWork = 2   // compilations at once, so that they leave the machine to others; one of them may be slow
	maxQuick  = 128 // that wait, for many clients may come at once; beyond it sources are refused
	maxSlow   = 4
)

type lanes[T any] struct {
	quick, slow    []*entry[T]
	atWork, slowly int // in the making, and of these in the slow lane
}

func (l *lanes[T]) remove(e *entry[T]) {
	is := func(o *entry[T]) bool { return o == e }
	l.quick, l.slow = slices.DeleteFunc(l.quick, is), slices.DeleteFunc(l.slow, is)
}

// next takes the compilation that is to begin now; nil: none. A slow one begins as soon as none is under way, so that
// quick ones cannot keep it waiting for ever either.
func (l *lanes[T]) next() (e *entry[T]) {
	switch {
	case l.atWork == maxAtWork:
		return nil
	case l.slowly == 0 && len(l.slow) > 0:
		e, l.slow = l.slow[0], l.slow[1:]
		l.slowly++
	case len(l.quick) > 0:
		e, l.quick = l.quick[0], l.quick[1:]
	default:
		return nil
	}
	l.atWork++
	return e
}

// dispatch begins what can begin. The caller holds mu.
func (c *Cache[T]) dispatch() {
	for e := c.lanes.next(); e != nil; e = c.lanes.next() {
		steps := QuickWork
		if e.slow {
			steps = FullWork
		}
		go c.run(e, steps)
	}
}

func (c *Cache[T]) run(e *entry[T], steps int) {
	v, err := c.make(e, steps)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lanes.atWork--
	if steps == FullWork {
		c.lanes.slowly--
	}
	c.settle(e, v, err)
	c.dispatch()
}
