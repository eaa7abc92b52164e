package kvcache

// Leg is a run of a prompt's tokens that one instance computes: full blocks, but for the last one.
type Leg struct {
	Part       int // which of the instances; the home is the last of them
	Start, End int
}

// Course is what a wave's request knows of it.
type Course struct {
	Legs  []Leg // of all, in order, from position 0 on; the first is the home's beginning if it has that already
	Base  int   // tokens of that beginning
	Parts int
	Me    int
}

// Cut makes the course of part me: the tokens behind base in legs of chunk tokens, for parts instances in turn; the last one
// is the home's, and base, if there is one, its first.
func Cut(base, tokens, chunk, parts, me int) Course {
	c := Course{Base: base, Parts: parts, Me: me}
	if base > 0 {
		c.Legs = append(c.Legs, Leg{parts - 1, 0, base})
	}
	n := (tokens - base + chunk - 1) / chunk
	for i := range n {
		start := base + i*chunk
		c.Legs = append(c.Legs, Leg{parts - 1 - (n-1-i)%parts, start, min(start+chunk, tokens)})
	}
	return c
}

// Own is the tokens of part's legs.
func (c Course) Own(part int) (n int) {
	for _, l := range c.Legs {
		if l.Part == part {
			n += l.End - l.Start
		}
	}
	return n
}

// SpanOf is the index of part's span in the table of part me.
func SpanOf(part, me int) int {
	if part > me {
		return part - 1
	}
	return part
}

// Until is the course up to part's last leg.
func (c Course) Until(part int) Course {
	for n := len(c.Legs); n > 0; n-- {
		if c.Legs[n-1].Part == part {
			c.Legs = c.Legs[:n]
			return c
		}
	}
	c.Legs = nil
	return c
}

// End is the tokens up to the course's end.
func (c Course) End() int {
	if len(c.Legs) == 0 {
		return 0
	}
	return c.Legs[len(c.Legs)-1].End
}

// Order is which block of the text each full block of the table is, at the end: those of the others' spans, then own ones.
func (c Course) Order(blockSize int) (order []int32) {
	put := func(part int) {
		for _, l := range c.Legs {
			for b := l.Start / blockSize; l.Part == part && b < l.End/blockSize; b++ {
				order = append(order, int32(b))
			}
		}
	}
	for part := range c.Parts {
		if part != c.Me {
			put(part)
		}
	}
	put(c.Me)
	return order
}
