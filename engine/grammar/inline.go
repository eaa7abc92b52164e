package grammar

// Rules that are called from one place, and small ones, become a part of the automaton that calls them, if that stays
// deterministic. So branches that begin alike are one state until they differ, where calls would be one for each.

const (
	maxCopies = 64           // states that copies of a small rule may take
	joinWork  = FullWork / 8 // for one try
)

// uses is what a source's rules call, by rule.
type uses struct {
	src    *source
	w      *work
	times  []int   // a rule is called from automata, were none inlined
	size   []int   // states of its own, about
	calls  [][]int // the rules that it calls
	total  []int   // states with what is inlined into it, about; 0: not known, -1: being found
	inline []bool
}

// inlinable tells which rules may become a part of their callers. None of them is within itself.
func inlinable(src *source, w *work) ([]bool, error) {
	n := len(src.rules)
	u := &uses{src: src, w: w, times: make([]int, n), size: make([]int, n), calls: make([][]int, n), total: make([]int, n), inline: make([]bool, n)}
	for r, e := range src.rules {
		if err := u.count(r, e, 1); err != nil {
			return nil, err
		}
	}
	for r := range src.rules {
		u.inline[r] = r > 0 && u.times[r] > 0
	}
	for r := range src.rules {
		if err := u.find(r, 0); err != nil {
			return nil, err
		}
	}
	return u.inline, nil
}

// count adds an expression's states and calls to a rule that has it so many times.
func (u *uses) count(rule int, e *expr, times int) error {
	if err := u.w.spend(1); err != nil {
		return err
	}
	times = min(times, maxStates)
	u.size[rule] = min(u.size[rule]+times*(1+len(e.ranges)), maxStates)
	inner := times
	switch e.op {
	case opCall:
		u.times[e.rule] = min(u.times[e.rule]+times, maxStates)
		u.calls[rule] = append(u.calls[rule], e.rule)
	case opRepeat:
		inner *= max(e.min, e.max, e.min+1) // also where it has no limit
	case opChain:
		for _, p := range e.parts {
			if err := u.count(rule, p.e, times); err != nil {
				return err
			}
		}
		if err := u.count(rule, e.sep, times*len(e.parts)); err != nil {
			return err
		}
	}
	for _, s := range e.subs {
		if err := u.count(rule, s, inner); err != nil {
			return err
		}
	}
	return nil
}

// find decides about the rules that one calls, from the innermost on.
func (u *uses) find(rule, depth int) error {
	if u.total[rule] != 0 {
		if u.total[rule] < 0 {
			u.inline[rule] = false // it is within itself
		}
		return nil
	}
	if err := u.w.spend(1 + len(u.calls[rule])); err != nil {
		return err
	}
	if depth > maxDepth {
		u.inline[rule] = false
		return nil
	}
	u.total[rule] = -1
	total := u.size[rule]
	for _, c := range u.calls[rule] {
		if err := u.find(c, depth+1); err != nil {
			return err
		}
		if u.inline[c] {
			total = min(total+u.total[c], maxStates)
		}
	}
	u.total[rule] = total
	u.inline[rule] = u.inline[rule] && (u.times[rule] == 1 || (u.times[rule]-1)*total <= maxCopies)
	return nil
}

// build makes the automata of all rules that are not a part of others, and returns their names.
func (g *Grammar) build(src *source, w *work) ([]string, error) {
	inline, err := inlinable(src, w)
	if err != nil {
		return nil, err
	}
	ids := make([]int32, len(src.rules)) // by the source's rules; -1: a part of others
	var todo []int
	for r := range src.rules {
		if ids[r] = -1; !inline[r] {
			ids[r] = int32(len(todo))
			todo = append(todo, r)
		}
	}
	var names []string
	for i := 0; i < len(todo); i++ {
		r := todo[i]
		start := len(g.states)
		done, err := g.joined(src, r, inline, int32(i), w)
		if err == nil && !done {
			err = g.alone(src, r, int32(i), w)
		}
		if err != nil {
			return nil, err
		}
		if len(g.states) > maxStates {
			return nil, errLarge
		}
		for s := range g.states[start:] {
			for _, c := range g.states[start+s].calls {
				if ids[c.rule] < 0 { // it was to be a part of this one, which did not come about
					ids[c.rule] = int32(len(todo))
					todo = append(todo, int(c.rule))
				}
			}
		}
		g.rules, names = append(g.rules, rule{start: int32(start)}), append(names, src.names[r])
	}
	for s := range g.states {
		calls := g.states[s].calls
		for i := range calls {
			calls[i].rule = ids[calls[i].rule]
		}
	}
	return names, nil
}

// joined appends a rule's states with those that may be a part of it. It says false where there are none, or where
// states would be more for it: ways that were apart would have to be followed together.
func (g *Grammar) joined(src *source, r int, inline []bool, id int32, w *work) (bool, error) {
	try := &work{ctx: w.ctx, left: min(w.left, joinWork), look: lookEvery, over: errLarge}
	all := try.left
	n := &nfa{work: try, rules: src.rules, inline: inline}
	n.end = n.build(src.rules[r], n.state(), 0)
	done, states := false, g.states
	if n.fault == nil && n.inlined {
		states, done, n.fault = n.determinize(id, g.states, len(n.eps))
	}
	if err := w.spend(all - try.left); err != nil { // also where the try was cut short for w
		return false, err
	}
	if n.fault != nil || !done {
		return false, nil
	}
	g.states = states
	return true, nil
}

// alone appends a rule's states, with calls of all others.
func (g *Grammar) alone(src *source, r int, id int32, w *work) error {
	n, err := buildNFA(src.rules[r], w)
	if err != nil {
		return err
	}
	g.states, err = n.finish(id, g.states)
	return err
}
