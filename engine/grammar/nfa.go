package grammar

import "slices"

// edge reads one byte of a range.
type edge struct {
	byteRange
	to int32
}

// callEdge goes on at ret after what rule is.
type callEdge struct{ rule, ret int32 }

// nfa is one rule's automaton with empty edges. State 0 is its beginning, end its only end.
type nfa struct {
	*work
	eps   [][]int32
	edges [][]edge
	calls [][]callEdge
	end   int32
	fault error // the first, and nothing is added after it

	rules   []*expr // of the source, where calls of those that inline names become a part; nil: no calls do
	inline  []bool
	inlined bool // some did
}

func buildNFA(e *expr, w *work) (*nfa, error) {
	n := &nfa{work: w}
	n.end = n.build(e, n.state(), 0)
	return n, n.fault
}

func (n *nfa) state() int32 {
	if n.fault == nil && len(n.eps) >= maxStates {
		n.fault = errLarge
	}
	if n.fault != nil {
		return 0
	}
	if err := n.spend(1); err != nil {
		n.fault = err
		return 0
	}
	n.eps, n.edges, n.calls = append(n.eps, nil), append(n.edges, nil), append(n.calls, nil)
	return int32(len(n.eps) - 1)
}

func (n *nfa) empty(from, to int32) { n.eps[from] = append(n.eps[from], to) }

// build adds e behind a state and returns where it ends.
func (n *nfa) build(e *expr, from int32, depth int) int32 {
	if n.fault == nil && depth > 16*maxDepth {
		n.fault = errLarge
	}
	if n.fault == nil {
		n.fault = n.spend(1) // also what has no states: it may be repeated, and have many parts
	}
	if n.fault != nil {
		return 0
	}
	switch e.op {
	case opSeq:
		for _, s := range e.subs {
			from = n.build(s, from, depth+1)
		}
		return from
	case opAlt:
		to := n.state()
		for _, s := range e.subs {
			n.empty(n.build(s, from, depth+1), to)
		}
		return to
	case opChars:
		return n.chars(e.ranges, from)
	case opRepeat:
		return n.repeat(e, from, depth)
	case opCall:
		if n.rules != nil && n.inline[e.rule] {
			n.inlined = true
			return n.build(n.rules[e.rule], from, depth+1)
		}
		to := n.state()
		n.calls[from] = append(n.calls[from], callEdge{int32(e.rule), to})
		return to
	default:
		return n.chain(e, from, depth)
	}
}

// chars shares the ends of encodings that are alike.
func (n *nfa) chars(ranges []rune, from int32) int32 {
	to := n.state()
	type tail struct {
		r  byteRange
		to int32
	}
	shared := map[tail]int32{}
	for i := 0; i < len(ranges) && n.fault == nil; i += 2 {
		utf8Ranges(ranges[i], ranges[i+1], func(seq []byteRange) {
			at := to
			if err := n.spend(len(seq)); err != nil {
				n.fault = err
				return
			}
			for _, r := range slices.Backward(seq[1:]) {
				before, ok := shared[tail{r, at}]
				if !ok {
					if before = n.state(); n.fault != nil {
						return
					}
					n.edges[before] = append(n.edges[before], edge{r, at})
					shared[tail{r, at}] = before
				}
				at = before
			}
			n.edges[from] = append(n.edges[from], edge{seq[0], at})
		})
	}
	return to
}

func (n *nfa) repeat(e *expr, from int32, depth int) int32 {
	if err := n.spend(max(e.min, e.max)); err != nil { // what is repeated may be empty
		n.fault = err
		return 0
	}
	for range e.min {
		if from = n.build(e.subs[0], from, depth+1); n.fault != nil {
			return 0
		}
	}
	to := n.state()
	if e.max == forever {
		at := n.state() // not from: what leads there may come from elsewhere
		n.empty(from, at)
		n.empty(n.build(e.subs[0], at, depth+1), at)
		n.empty(at, to)
		return to
	}
	for range e.max - e.min {
		n.empty(from, to)
		next := n.state()
		n.empty(from, next)
		if from = n.build(e.subs[0], next, depth+1); n.fault != nil {
			return 0
		}
	}
	n.empty(from, to)
	return to
}

// chain has two states before each part: nothing was there yet, or something, and then a separator comes first.
func (n *nfa) chain(e *expr, bare int32, depth int) int32 {
	after := n.state()
	for _, p := range e.parts {
		part, nextBare, nextAfter := n.state(), n.state(), n.state()
		n.empty(bare, part)
		n.empty(n.build(e.sep, after, depth+1), part)
		n.empty(n.build(p.e, part, depth+1), nextAfter)
		if p.repeated {
			n.empty(nextAfter, after)
		}
		if p.optional {
			n.empty(bare, nextBare)
			n.empty(after, nextAfter)
		}
		bare, after = nextBare, nextAfter
	}
	to := n.state()
	n.empty(bare, to)
	n.empty(after, to)
	return to
}
