package grammar

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Guide is a grammar with a vocabulary, and the masks that were made so far. Requests share it: it is safe for
// concurrent use.
//
// Most of a mask depends on the innermost rule alone, so that part is made once for each of its states (partial): the
// tokens that stay within the rule, and those that may leave it, which are followed from the place itself. Masks of
// whole places are kept too.
type Guide struct {
	g *Grammar
	v *Vocabulary

	fixed int          // bytes of the grammar, about
	made  atomic.Int64 // bytes of what is remembered, about
	limit atomic.Int64 // what made may be before it is forgotten
	users atomic.Int64 // answers

	mu      sync.Mutex
	m       *machine
	spare   int // work for what is not there yet, beyond a mask's own
	start   *config
	first   []uint32   // the mask at the beginning, where tokens stand for other bytes there
	bottoms []*node    // by rule
	parts   []*partial // by state; nil: not made
	kept    int        // bytes of parts
	configs []*config  // by depth in a trie
	unsure  []int32
}

// partial is what a state alone knows of a mask. Few tokens are listed, many are bits.
type partial struct {
	ids    []int32
	bits   []uint32
	unsure []int32 // tokens that may be allowed, by what comes after the rule
}

// NewGuide makes a guide, with the masks that need the most work.
func NewGuide(g *Grammar, v *Vocabulary) *Guide {
	u := &Guide{g: g, v: v, fixed: g.bytes(), m: newMachine(g), bottoms: make([]*node, len(g.rules)), parts: make([]*partial, len(g.states))}
	u.configs = make([]*config, 1+max(v.mid.deep, v.start.deep))
	u.limit.Store(maxMemory)
	defer u.weigh()
	u.m.work, u.spare = maxMaskWork, remakeWork
	for r := range g.rules {
		u.bottoms[r] = u.m.bottom(int32(r))
	}
	u.start = u.m.from(item{g.rules[0].start, u.bottoms[0]})
	u.m.work = warmWork
	for s := range g.states {
		if wide(g.states[s].edges) && u.m.work > 0 && u.room() {
			u.part(int32(s))
		}
	}
	return u
}

// wide tells whether so many bytes may come that a mask is work.
func wide(edges []edge) bool {
	n := 0
	for _, e := range edges {
		n += int(e.hi) - int(e.lo) + 1
	}
	return n >= 32
}

func (u *Guide) room() bool { return u.kept+u.m.size < int(u.limit.Load()) }

// weigh lets others see what is remembered.
func (u *Guide) weigh() { u.made.Store(int64(u.kept + u.m.size)) }

// tidy forgets what was made when it has become too much. The place of whoever asks is taken over. Parts of masks, which
// are dear and do not depend on places, stay while they are not most of it. Masks may take more work while what they
// share is made again: a text must not fail for what was forgotten.
func (u *Guide) tidy(c *config) *config {
	if !u.room() {
		u.m.forget()
		u.spare = max(u.spare, remakeWork)
		if u.kept > int(u.limit.Load())/2 {
			clear(u.parts)
			u.kept, u.spare = 0, partsWork
		}
		u.start = u.m.adopt(u.start)
	}
	return u.m.adopt(c)
}

// part is a state's part of masks; nil when the work that is left did not suffice.
func (u *Guide) part(s int32) *partial {
	if u.parts[s] != nil {
		return u.parts[s]
	}
	rule := u.g.states[s].rule
	c := u.m.intern([]item{{s, u.bottoms[rule]}}, false)
	p := &partial{bits: make([]uint32, u.v.Words())}
	tokens := &u.v.mid
	if n, ok := u.plainRun(c); ok {
		tokens = &u.v.rest
		if n > 0 {
			copy(p.bits, u.v.plain[n-1])
		}
	}
	u.walk(tokens, c, &u.g.rules[rule].follow, p)
	if u.m.work < 0 {
		return nil
	}
	n := 0
	for _, w := range p.bits {
		n += bits.OnesCount32(w)
	}
	if n < len(p.bits) {
		p.ids = make([]int32, 0, n)
		eachBit(p.bits, func(id int32) { p.ids = append(p.ids, id) })
		p.bits = nil
	}
	u.parts[s] = p
	u.kept += 4*(len(p.ids)+len(p.bits)+len(p.unsure)) + 64
	return p
}

// walk notes the tokens of a trie that the grammar allows from c on. follow, if it is not nil,
// are the bytes that may come after the rule at c's bottom: tokens that go on so are unsure.
func (u *Guide) walk(t *trie, c *config, follow *[4]uint64, p *partial) {
	u.configs[0] = c
	unsureTo := int32(0) // nodes before this one are below an end of the rule
	for i := int32(0); int(i) < len(t.nodes); {
		node := &t.nodes[i]
		at := u.configs[node.depth-1]
		c := dead
		if at.next != nil { // the common case, without a call
			c = at.next[u.g.classes[node.b]]
		}
		if c == nil || c == dead && at.next == nil {
			c = u.m.step(at, node.b)
		}
		u.m.work--
		if follow != nil && i >= unsureTo && at.ended && follow[node.b>>6]>>(node.b&63)&1 == 1 {
			unsureTo = node.skip
		}
		if u.m.work < 0 {
			return
		}
		if c == dead && i >= unsureTo {
			i = node.skip
			continue
		}
		u.configs[node.depth] = c
		for _, id := range t.ids[node.from:node.to] {
			if c != dead {
				p.bits[id/32] |= 1 << (id % 32)
			} else {
				p.unsure = append(p.unsure, id)
			}
		}
		i++
	}
}

// mask is the tokens that the grammar allows at a place; it is kept, and not to be changed.
func (u *Guide) mask(c *config, beginning bool) ([]uint32, error) {
	beginning = beginning && u.v.first != nil
	kept := &c.mask
	if beginning {
		kept = &u.first
	}
	if *kept != nil {
		return *kept, nil
	}
	u.m.work = maxMaskWork + u.spare
	all := partial{bits: make([]uint32, u.v.Words())}
	if beginning {
		u.walk(&u.v.start, c, nil, &all)
	} else {
		u.join(c, all.bits)
	}
	u.spare = min(u.spare, max(0, u.m.work))
	if u.m.work < 0 {
		return nil, ErrAmbiguous
	}
	*kept = all.bits
	u.m.size += 4 * len(all.bits)
	return *kept, nil
}

// join puts a mask together from the parts of a place's states and what those leave open.
func (u *Guide) join(c *config, to []uint32) {
	u.unsure = u.unsure[:0]
	last := int32(-1)
	for _, it := range c.items {
		if it.state == last {
			continue
		}
		last = it.state
		p := u.part(it.state)
		if p == nil {
			return
		}
		for _, id := range p.ids {
			to[id/32] |= 1 << (id % 32)
		}
		for i, w := range p.bits {
			to[i] |= w
		}
		u.unsure = append(u.unsure, p.unsure...)
		u.m.work -= len(to) + len(p.unsure)
	}
	for _, id := range u.unsure {
		if to[id/32]>>(id%32)&1 == 0 && u.run(c, u.v.bytes[id]) != dead {
			to[id/32] |= 1 << (id % 32)
		}
		if u.m.work < 0 {
			return
		}
	}
}

func (u *Guide) run(c *config, bytes []byte) *config {
	for _, b := range bytes {
		if c == dead {
			break
		}
		c = u.m.step(c, b)
	}
	u.m.work -= len(bytes)
	return c
}

// eachBit calls f with the bits that are set, from the lowest on.
func eachBit(bits []uint32, f func(id int32)) {
	for i, w := range bits {
		for b := int32(0); w != 0; b, w = b+1, w>>1 {
			if w&1 == 1 {
				f(int32(i)*32 + b)
			}
		}
	}
}

// anyBit tells whether a bit is set.
func anyBit(bits []uint32) bool {
	return slices.ContainsFunc(bits, func(w uint32) bool { return w != 0 })
}
