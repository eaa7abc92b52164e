package kvcache

import "slices"

// What a request begins with: blocks of its text that lie with others, in spans that were found, and those that are here.
// Attention does not ask in which order keys lie, so any of them may be anywhere, as long as there is no hole: the request's
// order says which is which. With a window it does ask; then the spans hold the first blocks, in order, and own ones come
// last (Options.InOrder).

// Found is a span of blocks that another instance shares with this one.
type Found struct {
	Span
	Has []int32 // which blocks of the text they are, ascending
}

// Beginning is how far a request's text is there.
type Beginning struct {
	Blocks int // the first ones of the text, up to the first that is neither found nor here
	Found  int // of them in spans
	Last   int // the last of these, -1: there is none
	InUse  int // those that are not in spans, and are in use here: to have them costs no block
}

// Begins works out what Adopt would do now.
func (m *Manager) Begins(found []Found, keys []Key) Beginning {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, used := m.usable(found, keys)
	b := Beginning{Last: -1}
	b.Blocks = m.reach(used, keys)
	for i := range b.Blocks {
		if used.has(i) {
			b.Found, b.Last = b.Found+1, i
		} else if x := &m.blocks[m.prefixes.named[keys[i]]]; x.users > 0 || x.hosted {
			b.InUse++
		}
	}
	return b
}

// places says which blocks of a text lie in spans.
type places []bool

func (p places) has(i int) bool { return i < len(p) && p[i] }

// usable is how many of the first blocks of each span may be used, if everything before them is there, and which blocks of
// the text these are: none twice, which a table must not have.
func (m *Manager) usable(found []Found, keys []Key) (n []int, used places) {
	if len(found) == 0 {
		return nil, nil
	}
	n, used = make([]int, len(found)), make(places, len(keys))
	next := int32(0)
	for i, f := range found {
		for _, at := range f.Has[:min(len(f.Has), f.Blocks)] {
			if at < 0 || int(at) >= len(keys) || used[at] || n[i] > 0 && at < f.Has[n[i]-1] || m.inOrder && at != next {
				break
			}
			used[at] = true
			n[i]++
			next++
		}
	}
	return n, used
}

// reach is the first block of the text that is neither in a span nor here.
func (m *Manager) reach(used places, keys []Key) int {
	for i := range keys {
		if _, here := m.prefixes.named[keys[i]]; !here && !used.has(i) {
			return i
		}
	}
	return len(keys)
}

// Lacks lists the blocks of the text that others are to be asked for, beside those that were found: the first of them is the
// one without which the rest is of no use.
func (m *Manager) Lacks(found []Found, keys []Key) (lacks []int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, used := m.usable(found, keys)
	from := 0
	for m.inOrder && used.has(from) {
		from++
	}
	rest := false // some of it is neither found nor here
	for i := from; i < len(keys); i++ {
		_, here := m.prefixes.named[keys[i]]
		if rest = rest || !here && !used.has(i); m.inOrder || !here && !used.has(i) {
			lacks = append(lacks, int32(i))
		}
	}
	if !rest {
		return nil
	}
	return lacks
}

// Adopt gives a request without blocks what its text, whose blocks keys name, begins with: what lies in found, and what is
// here. It returns the number of tokens whose KV is thereby computed, and the spans of which nothing is used. A block that is
// in a span and here is used where it was found, since spans are used from their first block on.
func (m *Manager) Adopt(id RequestID, found []Found, keys []Key) (tokens int, back []Ended) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil || r.inSpans+len(r.local) > 0 {
		for _, f := range found {
			back = append(back, Ended{Span: f.Span})
		}
		return 0, back
	}
	n, used := m.usable(found, keys)
	whole := m.reach(used, keys)
	var order []int32
	for i, f := range found {
		has := f.Has[:n[i]]
		if has = has[:below(has, whole)]; len(has) == 0 {
			back = append(back, Ended{Span: f.Span})
			continue
		}
		f.Span.Blocks = len(has)
		r.spans = append(r.spans, f.Span)
		r.inSpans += len(has)
		order = append(order, has...)
	}
	for i := range whole {
		if used.has(i) {
			continue
		}
		b := m.prefixes.named[keys[i]]
		m.use(b)
		r.local = append(r.local, b)
		if len(found) > 0 {
			order = append(order, int32(i))
		}
	}
	if !slices.IsSorted(order) {
		r.order = order
	}
	r.named, r.keys = whole, keys
	r.computed = whole * m.blockSize
	return r.computed, back
}

// below is how many of the ascending places come before end.
func below(places []int32, end int) int {
	n, _ := slices.BinarySearch(places, int32(end))
	return n
}
