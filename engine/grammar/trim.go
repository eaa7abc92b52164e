package grammar

import "slices"

// rule is a finished rule.
type rule struct {
	start    int32
	nullable bool    // the empty text is one of its texts
	opening  []int32 // its states before the first byte: the beginning, and what follows calls of the empty text
	order    int32   // at one place callers come before what they call
	follow   [4]uint64
}

// Grammar is a compiled source. It does not change and may be shared.
type Grammar struct {
	states  []state
	rules   []rule
	skips   [][]int32 // by state: states that calls of the empty text lead to; nil for most
	classes [256]uint8
	reps    []byte // a byte of each class
}

// compile makes automata of expressions.
func compile(src *source, w *work) (*Grammar, error) {
	g := &Grammar{}
	names, err := g.build(src, w)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(*work) error{g.trim, g.findNullable, g.findSkips, func(w *work) error { return g.sortRules(names, w) }, g.findFollow} {
		if err := step(w); err != nil {
			return nil, err
		}
	}
	g.classify()
	return g, nil
}

// trim takes away what leads to no end, so that whoever follows edges that are left always can come to one.
func (g *Grammar) trim(w *work) error {
	users := make([][]int32, len(g.states)) // states that may live once this one does
	for s := range g.states {
		for _, e := range g.states[s].edges {
			users[e.to] = append(users[e.to], int32(s))
		}
		for _, c := range g.states[s].calls {
			users[c.ret] = append(users[c.ret], int32(s))
			users[g.rules[c.rule].start] = append(users[g.rules[c.rule].start], int32(s))
		}
	}
	live := make([]bool, len(g.states))
	alive := func(s int32) bool {
		st := &g.states[s]
		return st.accept || slices.ContainsFunc(st.edges, func(e edge) bool { return live[e.to] }) ||
			slices.ContainsFunc(st.calls, func(c callEdge) bool { return live[c.ret] && live[g.rules[c.rule].start] })
	}
	var queue []int32
	look := func(s int32) error {
		if live[s] {
			return nil
		}
		if live[s] = alive(s); live[s] {
			queue = append(queue, s)
		}
		return w.spend(1 + len(g.states[s].edges) + len(g.states[s].calls))
	}
	for s := range g.states {
		if err := look(int32(s)); err != nil {
			return err
		}
	}
	for len(queue) > 0 {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, u := range users[s] {
			if err := look(u); err != nil {
				return err
			}
		}
	}
	if !live[g.rules[0].start] {
		return errAt("", "no text satisfies it")
	}
	for s := range g.states {
		st := &g.states[s]
		st.edges = slices.DeleteFunc(st.edges, func(e edge) bool { return !live[e.to] })
		st.calls = slices.DeleteFunc(st.calls, func(c callEdge) bool { return !live[c.ret] || !live[g.rules[c.rule].start] })
	}
	return nil
}

// emptyReach is what calls of the empty text lead to from s, s first.
func (g *Grammar) emptyReach(s int32, w *work) ([]int32, error) {
	out := []int32{s}
	for i := 0; i < len(out); i++ {
		for _, c := range g.states[out[i]].calls {
			if err := w.spend(1 + len(out)); err != nil {
				return nil, err
			}
			if g.rules[c.rule].nullable && !slices.Contains(out, c.ret) {
				out = append(out, c.ret)
			}
		}
	}
	return out, nil
}

func (g *Grammar) findNullable(w *work) error {
	callers := make([][]int32, len(g.rules))
	queue := make([]int32, 0, len(g.rules))
	for s := range g.states {
		for _, c := range g.states[s].calls {
			callers[c.rule] = append(callers[c.rule], g.states[s].rule)
		}
	}
	for r := range g.rules {
		queue = append(queue, int32(r))
	}
	for len(queue) > 0 {
		r := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if g.rules[r].nullable {
			continue
		}
		reach, err := g.emptyReach(g.rules[r].start, w)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(reach, func(s int32) bool { return g.states[s].accept }) {
			g.rules[r].nullable = true
			queue = append(queue, callers[r]...)
		}
	}
	return nil
}

func (g *Grammar) findSkips(w *work) error {
	g.skips = make([][]int32, len(g.states))
	for s := range g.states {
		reach, err := g.emptyReach(int32(s), w)
		if err != nil {
			return err
		}
		g.skips[s] = reach[1:]
	}
	for r := range g.rules {
		g.rules[r].opening = append([]int32{g.rules[r].start}, g.skips[g.rules[r].start]...)
	}
	return nil
}

// sortRules gives the rules an order in which one that calls another before its first byte comes before it; where
// there is none, that is left recursion.
func (g *Grammar) sortRules(names []string, w *work) error {
	const fresh, open, done = 0, 1, 2
	mark := make([]uint8, len(g.rules))
	type frame struct {
		rule  int32
		calls []int32
	}
	next := int32(len(g.rules))
	first := func(r int32) (out []int32) {
		for _, s := range g.rules[r].opening {
			for _, c := range g.states[s].calls {
				out = append(out, c.rule)
			}
		}
		return out
	}
	for root := range g.rules {
		if mark[root] != fresh {
			continue
		}
		mark[root] = open
		stack := []frame{{int32(root), first(int32(root))}}
		for len(stack) > 0 {
			f := &stack[len(stack)-1]
			if err := w.spend(1); err != nil {
				return err
			}
			if len(f.calls) == 0 {
				mark[f.rule] = done
				next--
				g.rules[f.rule].order = next
				stack = stack[:len(stack)-1]
				continue
			}
			r := f.calls[0]
			f.calls = f.calls[1:]
			switch mark[r] {
			case open:
				return errAt(names[r], "left recursion: it begins with itself")
			case fresh:
				mark[r] = open
				stack = append(stack, frame{r, first(r)})
			}
		}
	}
	return nil
}

// findFollow finds for each rule the bytes that may come after it, wherever it was called.
func (g *Grammar) findFollow(w *work) error {
	first := make([][4]uint64, len(g.rules)) // bytes that a text of the rule may begin with
	add := func(to *[4]uint64, from [4]uint64) (changed bool) {
		for i := range to {
			changed = changed || from[i]&^to[i] != 0
			to[i] |= from[i]
		}
		return changed
	}
	begins := func(s int32) (out [4]uint64, err error) {
		for _, at := range append([]int32{s}, g.skips[s]...) {
			n := 1 + len(g.states[at].calls)
			for _, e := range g.states[at].edges {
				n += 1 + int(e.hi) - int(e.lo)
				for b := int(e.lo); b <= int(e.hi); b++ {
					out[b>>6] |= 1 << (b & 63)
				}
			}
			for _, c := range g.states[at].calls {
				add(&out, first[c.rule])
			}
			if err := w.spend(1 + n/16); err != nil {
				return out, err
			}
		}
		return out, nil
	}
	byOrder := make([]int32, len(g.rules))
	for r := range g.rules {
		byOrder[g.rules[r].order] = int32(r)
	}
	for _, r := range slices.Backward(byOrder) { // what a rule may begin with comes before it
		var err error
		if first[r], err = begins(g.rules[r].start); err != nil {
			return err
		}
	}
	var tails []callEdge // rule: one that ends where rule ret was called; whatever follows the former follows the latter
	for s := range g.states {
		for _, c := range g.states[s].calls {
			after, err := begins(c.ret)
			if err != nil {
				return err
			}
			add(&g.rules[c.rule].follow, after)
			ends := func(at int32) bool { return g.states[at].accept }
			if ends(c.ret) || slices.ContainsFunc(g.skips[c.ret], ends) {
				tails = append(tails, callEdge{g.states[s].rule, c.rule})
			}
		}
	}
	for changed := true; changed; {
		changed = false
		if err := w.spend(len(tails)); err != nil {
			return err
		}
		for _, t := range tails {
			changed = add(&g.rules[t.ret].follow, g.rules[t.rule].follow) || changed
		}
	}
	return nil
}

// classify puts bytes that no edge tells apart into one class.
func (g *Grammar) classify() {
	var cut [257]bool
	cut[0] = true
	for s := range g.states {
		for _, e := range g.states[s].edges {
			cut[e.lo], cut[int(e.hi)+1] = true, true
		}
	}
	for b := range 256 {
		if cut[b] {
			g.reps = append(g.reps, byte(b))
		}
		g.classes[b] = uint8(len(g.reps) - 1)
	}
}
