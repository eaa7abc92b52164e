package grammar

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

// node is the calls of one rule at one place in the text: where each goes on after it, within what. Equal ones are
// one object, as long as the machine remembers them.
type node struct {
	id      uint64
	rule    int32
	base    bool // the bottom: of the whole text, or of what a mask is made for
	callers []caller
}

type caller struct {
	ret int32
	up  *node
}

// item is a state within calls.
type item struct {
	state int32
	up    *node
}

// config is a place in a text: all items that it may have led to and that read a byte. Equal ones are one object, as
// long as the machine remembers them.
type config struct {
	items []item
	ended bool // the text, or what the bottom stands for, may end here
	next  []*config
	mask  []uint32
	epoch uint64
	tried bool    // plain is known
	plain *config // see afterPlain
}

// dead is where no text of the grammar leads.
var dead = &config{}

// machine runs a grammar and remembers where it was. It is not safe for concurrent use.
type machine struct {
	g       *Grammar
	work    int  // left
	over    bool // a step since it was reset came to too many items
	size    int  // bytes that are remembered, about
	epoch   uint64
	lastID  uint64
	nodes   map[string]*node
	configs map[string]*config

	// of a step under way
	key     []byte
	seen    map[item]bool
	list    []item
	pending map[int32][]caller
}

func newMachine(g *Grammar) *machine {
	m := &machine{g: g, seen: map[item]bool{}, pending: map[int32][]caller{}}
	m.forget()
	return m
}

// forget drops all that is remembered. Places that somebody holds stay what they are; see adopt.
func (m *machine) forget() {
	m.nodes, m.configs, m.size = map[string]*node{}, map[string]*config{}, 0
	m.epoch++
}

// bottom is a node without callers, of its own.
func (m *machine) bottom(rule int32) *node {
	m.lastID++
	return &node{id: m.lastID, rule: rule, base: true}
}

// from is the place that given items lead to.
func (m *machine) from(items ...item) *config {
	clear(m.seen)
	m.list = m.list[:0]
	for _, it := range items {
		m.add(it)
	}
	return m.settle()
}

// adopt gives a place that was found before forget one of the present.
func (m *machine) adopt(c *config) *config {
	if c == dead || c.epoch == m.epoch {
		return c
	}
	return m.intern(c.items, c.ended)
}

// step is the place behind one more byte. Where a limit is passed it is dead, which is not remembered.
func (m *machine) step(c *config, b byte) *config {
	class := m.g.classes[b]
	if c.next == nil {
		if len(c.items) == 0 { // also c is dead
			return dead
		}
		c.next = make([]*config, len(m.g.reps))
	}
	if next := c.next[class]; next != nil {
		return next
	}
	clear(m.seen)
	m.list = m.list[:0]
	for _, it := range c.items {
		for _, e := range m.g.states[it.state].edges {
			if e.lo <= b && b <= e.hi {
				m.add(item{e.to, it.up})
			}
		}
		m.work -= 1 + len(m.g.states[it.state].edges)
	}
	next := m.settle()
	if next != dead || m.within() {
		c.next[class] = next
	}
	return next
}

// add puts an item on the list, with those that calls of the empty text lead to.
func (m *machine) add(it item) {
	if m.seen[it] {
		return
	}
	m.seen[it] = true
	m.list = append(m.list, it)
	for _, s := range m.g.skips[it.state] {
		if next := (item{s, it.up}); !m.seen[next] {
			m.seen[next] = true
			m.list = append(m.list, next)
		}
	}
}

// settle makes a place of the list: it ends what can end, and begins what can begin. Calls that begin here do not end
// here, for what is empty was skipped; and none begins within itself, for left recursion is refused.
func (m *machine) settle() *config {
	ended := false
	for i := 0; i < len(m.list) && m.within(); i++ {
		it := m.list[i]
		if !m.g.states[it.state].accept {
			continue
		}
		if it.up.base {
			ended = true
			continue
		}
		m.work -= len(it.up.callers)
		for _, c := range it.up.callers {
			m.add(item{c.ret, c.up})
		}
	}
	clear(m.pending)
	for _, it := range m.list {
		if m.begin(it); !m.within() {
			break
		}
	}
	for len(m.pending) > 0 && m.within() {
		first := int32(-1)
		for r := range m.pending {
			if first < 0 || m.g.rules[r].order < m.g.rules[first].order {
				first = r
			}
		}
		m.work -= len(m.pending)
		up := m.node(first, m.pending[first])
		delete(m.pending, first)
		for _, s := range m.g.rules[first].opening {
			it := item{s, up}
			m.list = append(m.list, it)
			m.begin(it)
		}
	}
	if !m.within() {
		m.over = m.over || len(m.list) > maxItems
		return dead
	}
	m.work -= len(m.list)
	items := slices.DeleteFunc(m.list, func(it item) bool { return len(m.g.states[it.state].edges) == 0 })
	slices.SortFunc(items, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.state, b.state), cmp.Compare(a.up.id, b.up.id))
	})
	return m.intern(items, ended)
}

// within tells whether the step is within its limits.
func (m *machine) within() bool { return m.work >= 0 && len(m.list) <= maxItems }

// begin notes the calls that an item makes.
func (m *machine) begin(it item) {
	calls := m.g.states[it.state].calls
	m.work -= len(calls)
	for _, c := range calls {
		m.pending[c.rule] = append(m.pending[c.rule], caller{c.ret, it.up})
	}
}

// node is the calls of a rule. To sort them is work, also where the node is there.
func (m *machine) node(rule int32, callers []caller) *node {
	m.work -= len(callers) * bits.Len(uint(len(callers)))
	slices.SortFunc(callers, func(a, b caller) int {
		return cmp.Or(cmp.Compare(a.ret, b.ret), cmp.Compare(a.up.id, b.up.id))
	})
	callers = slices.Compact(callers)
	m.key = binary.LittleEndian.AppendUint32(m.key[:0], uint32(rule))
	for _, c := range callers {
		m.key = binary.LittleEndian.AppendUint32(m.key, uint32(c.ret))
		m.key = binary.LittleEndian.AppendUint64(m.key, c.up.id)
	}
	n, ok := m.nodes[string(m.key)]
	if !ok {
		m.lastID++
		n = &node{id: m.lastID, rule: rule, callers: slices.Clone(callers)}
		m.nodes[string(m.key)] = n
		m.took(2*len(m.key) + 128)
	}
	return n
}

func (m *machine) intern(items []item, ended bool) *config {
	if len(items) == 0 && !ended {
		return dead
	}
	m.key = m.key[:0]
	if ended {
		m.key = append(m.key, 1)
	}
	for _, it := range items {
		m.key = binary.LittleEndian.AppendUint32(m.key, uint32(it.state))
		m.key = binary.LittleEndian.AppendUint64(m.key, it.up.id)
	}
	c, ok := m.configs[string(m.key)]
	if !ok {
		c = &config{items: slices.Clone(items), ended: ended, epoch: m.epoch}
		m.configs[string(m.key)] = c
		m.took(2*len(m.key) + 8*len(m.g.reps) + 160)
	}
	return c
}

// took counts memory, also as work, so that what one mask takes is bounded.
func (m *machine) took(bytes int) {
	m.size += bytes
	m.work -= bytes / 4
}
