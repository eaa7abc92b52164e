package kvcache

import "fmt"

// Ended is a span that no request needs any more, and what its blocks hold, block by block, as far as that is known: its
// creditor may keep them, to be found by others.
type Ended struct {
	Span
	Keys []Key
}

// EndedOf is spans of which nothing is known but that no request needs them.
func EndedOf(spans []Span) (out []Ended) {
	for _, s := range spans {
		out = append(out, Ended{Span: s})
	}
	return out
}

// lead is where the block of a key was last, when it was not here, and those that follow it in the text, of which some may
// have been elsewhere; and how many requests have used it there as the last of a span.
type lead struct {
	instance string
	blocks   int // of the text, from this one to the last that was there
	uses     int
}

// leads are guesses: the instance may have dropped the block. Of two generations the older one is dropped when the
// younger is full.
type leads struct{ young, former map[Key]lead }

// maxLeads is how many blocks one generation remembers: the first of each span, and of those that were used the last.
const maxLeads = 4096

// put notes where so many blocks were, and whether the first was used there.
func (l *leads) put(k Key, instance string, blocks int, used bool) {
	now := lead{instance: instance, blocks: blocks}
	if before := l.get(k); before.instance == instance {
		now.uses, now.blocks = before.uses, max(blocks, before.blocks)
	}
	if used {
		now.uses++
	}
	l.set(k, now)
}

func (l *leads) set(k Key, x lead) {
	if _, there := l.young[k]; !there && len(l.young) >= maxLeads {
		l.young, l.former = nil, l.young
	}
	if l.young == nil {
		l.young = map[Key]lead{}
	}
	l.young[k] = x
}

func (l *leads) get(k Key) lead {
	if x, there := l.young[k]; there {
		return x
	}
	return l.former[k]
}

// of is the block whose lead reaches block at of a text, the last such one before it, -1: there is none.
func (l *leads) of(keys []Key, at int) int {
	for i := at; i >= 0; i-- {
		if i+l.get(keys[i]).blocks > at {
			return i
		}
	}
	return -1
}

// Lead names the instance that may have block at of the text whose blocks keys name: when a request here ended, it had that
// one or some before and behind it. "": none is known.
func (m *Manager) Lead(keys []Key, at int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lead(keys, at)
}

func (m *Manager) lead(keys []Key, at int) string {
	if i := m.leads.of(keys, at); i >= 0 {
		return m.leads.get(keys[i]).instance
	}
	return ""
}

// LeadBehind is Lead of the first of a text's blocks that others are to be asked for.
func (m *Manager) LeadBehind(keys []Key) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := 0
	if !m.inOrder {
		at = m.reach(nil, keys)
	}
	if at == len(keys) {
		return ""
	}
	return m.lead(keys, at)
}

// Uses is how many requests here have used the block of a key, as the last of a span, at the instance that had it then.
func (m *Manager) Uses(k Key) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leads.get(k).uses
}

// DropLead forgets that the instance has block at of a text, and those behind it: it was asked, and has not.
func (m *Manager) DropLead(keys []Key, at int, instance string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.leads.of(keys, at)
	if i < 0 || m.leads.get(keys[i]).instance != instance {
		return
	}
	x := m.leads.get(keys[i])
	delete(m.leads.young, keys[i])
	delete(m.leads.former, keys[i])
	if x.blocks = at - i; x.blocks > 0 {
		m.leads.set(keys[i], x)
	}
}

// Run is how many of the first blocks that keys name are here.
func (m *Manager) Run(keys []Key) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reach(nil, keys)
}

// Share opens a span for owner over blocks that keys name, which others may use too: the first, or ErrUnknown if it is not
// here, and all others that are, only those that follow it where tables are in order. It returns which they are, ascending.
// Blocks that nobody uses now are not free any more, so they count like blocks that are lent: none behind the first that may
// not be, and ErrNoRoom if none may.
func (m *Manager) Share(owner string, tag uint64, keys []Key) (h Hosted, which []int32, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.unused) == 0 {
		return Hosted{}, nil, fmt.Errorf("cannot share blocks with %s: all %d spans are in use: %w", owner, len(m.slots), ErrNoRoom)
	}
	var blocks []BlockID
	spare := m.hostable()
	for i, k := range keys {
		b, there := m.prefixes.named[k]
		if !there && (i == 0 || m.inOrder) {
			break
		}
		if !there {
			continue
		}
		if m.blocks[b].users == 0 && !m.blocks[b].hosted {
			if spare--; spare < 0 {
				break
			}
		}
		blocks, which = append(blocks, b), append(which, int32(i))
	}
	if len(blocks) == 0 && spare >= 0 {
		return Hosted{}, nil, fmt.Errorf("cannot share blocks with %s: the first is not here: %w", owner, ErrUnknown)
	}
	if len(blocks) == 0 {
		return Hosted{}, nil, fmt.Errorf("cannot share blocks with %s: %w", owner, ErrNoRoom)
	}
	for _, b := range blocks {
		m.use(b)
	}
	m.shared += len(blocks)
	return m.view(m.openSlot(hostSlot{owner: owner, tag: tag, blocks: blocks, shared: true})), which, nil
}

// use adds a user to a block that has a name.
func (m *Manager) use(b BlockID) {
	if m.blocks[b].users == 0 && !m.blocks[b].hosted {
		m.uncache(b)
		m.owned++
	}
	m.blocks[b].users++
}

// NameHosted says what blocks of a hosted span hold, keys[i] the one at index first+i: others may use them while their
// owner has them, and after it.
func (m *Manager) NameHosted(owner string, handle, generation uint32, first int, keys []Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.slot(owner, handle, generation)
	if err != nil {
		return fmt.Errorf("cannot name blocks of a span: %w", err)
	}
	if s.shared || first < 0 || first > len(s.blocks) || len(keys) > len(s.blocks)-first {
		return fmt.Errorf("cannot name %d blocks from %d on in a span of %d: %w", len(keys), first, len(s.blocks), ErrState)
	}
	for i, k := range keys {
		m.name(s.blocks[first+i], k)
	}
	return nil
}

// name gives a block a key, unless it has one, or another block has it.
func (m *Manager) name(b BlockID, k Key) {
	if _, there := m.prefixes.named[k]; there || k == (Key{}) || m.blocks[b].key != (Key{}) {
		return
	}
	m.blocks[b].key = k
	m.prefixes.named[k] = b
}

// keep takes hosted blocks from their owner. They are free, but for those that others use; those of which it is known
// what they hold, by keys or by NameHosted before, are cached. The last ones become the oldest of these: without those
// before them they are of no use.
func (m *Manager) keep(blocks []BlockID, keys []Key) {
	for i := len(blocks) - 1; i >= 0; i-- {
		b := blocks[i]
		if m.blocks[b].hosted = false; i < len(keys) {
			m.name(b, keys[i])
		}
		switch {
		case m.blocks[b].users > 0:
			m.owned++
		case m.blocks[b].key != (Key{}):
			m.cache(b)
		default:
			m.free = append(m.free, b)
		}
	}
}

// ended says what the creditors of a request's spans may free, and remembers where they lie.
func (m *Manager) ended(r *request) []Ended {
	var out []Ended
	at := 0
	for _, s := range r.spans {
		e := Ended{Span: s}
		if e.Keys = r.keysAt(at, s.Blocks); len(e.Keys) > 0 {
			m.led(r, s, at, len(e.Keys))
			if s.Shared {
				m.leads.put(e.Keys[len(e.Keys)-1], s.Instance, 1, true) // these blocks, and not all that begins alike
			}
		}
		at += s.Blocks
		out = append(out, e)
	}
	return out
}

// led remembers where a span of a request lies: the n blocks of its table from at on.
func (m *Manager) led(r *request, s Span, at, n int) {
	if k, known := r.key(at); known {
		m.leads.put(k, s.Instance, max(1, r.place(at+n-1)-r.place(at)+1), false)
	}
}
