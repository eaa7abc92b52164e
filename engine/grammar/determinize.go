package grammar

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// state is one of a finished automaton; where rules were too large to be made deterministic, edges may overlap.
type state struct {
	edges  []edge
	calls  []callEdge
	accept bool // the rule may end here
	rule   int32
}

// closure is what empty edges lead to from the given states, sorted, without states that do nothing.
func (n *nfa) closure(from []int32, seen map[int32]bool) ([]int32, error) {
	clear(seen)
	stack, out := slices.Clone(from), []int32(nil)
	for len(stack) > 0 {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[s] {
			continue
		}
		seen[s] = true
		if err := n.spend(1 + len(n.eps[s])); err != nil {
			return nil, err
		}
		if s == n.end || len(n.edges[s]) > 0 || len(n.calls[s]) > 0 {
			out = append(out, s)
		}
		stack = append(stack, n.eps[s]...)
	}
	slices.Sort(out)
	return out, nil
}

// finish appends the rule's states to out, its beginning first.
func (n *nfa) finish(rule int32, out []state) ([]state, error) {
	if done, ok, err := n.determinize(rule, out, 256+2*len(n.eps)); ok || err != nil {
		return done, err
	}
	// Without empty edges, but not deterministic: a run then is in several states at once.
	base := int32(len(out))
	seen, edges := map[int32]bool{}, 0
	for s := range n.eps {
		set, err := n.closure([]int32{int32(s)}, seen)
		if err != nil {
			return nil, err
		}
		st := state{rule: rule, accept: slices.Contains(set, n.end)}
		for _, from := range set {
			if err := n.spend(len(n.edges[from]) + len(n.calls[from])); err != nil {
				return nil, err
			}
			for _, e := range n.edges[from] {
				st.edges = append(st.edges, edge{e.byteRange, base + e.to})
			}
			for _, c := range n.calls[from] {
				st.calls = append(st.calls, callEdge{c.rule, base + c.ret})
			}
		}
		if edges += len(st.edges) + len(st.calls); edges > maxEdges {
			return nil, errLarge
		}
		out = append(out, st)
	}
	return out, nil
}

// subsets makes states of sets of an nfa's states.
type subsets struct {
	n     *nfa
	ids   map[string]int32
	sets  [][]int32
	base  int32
	seen  map[int32]bool
	key   []byte
	limit int
}

// id names the closure of a set of states; -1 says that there are too many.
func (b *subsets) id(from []int32) (int32, error) {
	set, err := b.n.closure(from, b.seen)
	if err != nil {
		return 0, err
	}
	b.key = b.key[:0]
	for _, s := range set {
		b.key = binary.LittleEndian.AppendUint32(b.key, uint32(s))
	}
	id, ok := b.ids[string(b.key)]
	if !ok {
		if len(b.sets) >= b.limit {
			return -1, nil
		}
		id = b.base + int32(len(b.sets))
		b.ids[string(b.key)] = id
		b.sets = append(b.sets, set)
	}
	return id, nil
}

// determinize says false where the states would be more than limit.
func (n *nfa) determinize(rule int32, out []state, limit int) ([]state, bool, error) {
	b := &subsets{
		n: n, ids: map[string]int32{}, base: int32(len(out)), seen: map[int32]bool{}, limit: min(limit, maxStates),
	}
	if _, err := b.id([]int32{0}); err != nil {
		return nil, false, err
	}
	rollback := len(out)
	for at := 0; at < len(b.sets); at++ {
		st := state{rule: rule, accept: slices.Contains(b.sets[at], n.end)}
		ok, err := b.calls(&st, b.sets[at])
		if ok && err == nil {
			ok, err = b.edges(&st, b.sets[at])
		}
		if !ok || err != nil {
			return out[:rollback], false, err
		}
		out = append(out, st)
	}
	return out, true, nil
}

func (b *subsets) calls(st *state, set []int32) (bool, error) {
	rets := map[int32][]int32{}
	for _, s := range set {
		for _, c := range b.n.calls[s] {
			rets[c.rule] = append(rets[c.rule], c.ret)
		}
	}
	for rule, to := range rets {
		id, err := b.id(to)
		if id < 0 || err != nil {
			return false, err
		}
		st.calls = append(st.calls, callEdge{rule, id})
	}
	slices.SortFunc(st.calls, func(a, b callEdge) int { return cmp.Compare(a.rule, b.rule) })
	return true, nil
}

// edges cuts the bytes where any edge begins or ends, and joins neighbours that lead to the same.
func (b *subsets) edges(st *state, set []int32) (bool, error) {
	var all []edge
	var cut [257]bool
	for _, s := range set {
		for _, e := range b.n.edges[s] {
			all = append(all, e)
			cut[e.lo], cut[int(e.hi)+1] = true, true
		}
	}
	for lo := 0; lo < 256; {
		hi := lo
		for hi < 255 && !cut[hi+1] {
			hi++
		}
		if err := b.n.spend(1 + len(all)); err != nil {
			return false, err
		}
		var to []int32
		for _, e := range all {
			if int(e.lo) <= lo && hi <= int(e.hi) {
				to = append(to, e.to)
			}
		}
		if len(to) > 0 {
			id, err := b.id(to)
			if id < 0 || err != nil {
				return false, err
			}
			if k := len(st.edges) - 1; k >= 0 && st.edges[k].to == id && int(st.edges[k].hi)+1 == lo {
				st.edges[k].hi = byte(hi)
			} else {
				st.edges = append(st.edges, edge{byteRange{byte(lo), byte(hi)}, id})
			}
		}
		lo = hi + 1
	}
	return true, nil
}
