package kvcache

import "fmt"

// Ended is a span that no request needs any more, and what its blocks hold, block by block, as far as that is known: its
// creditor may keep them, to be found by others.
type Ended struct {
	Span
	Keys []Key
}

// lead is where the block of a key was last, when it was not here, and how many requests have used it there.
type lead struct {
	instance string
	uses     int
}

// leads are guesses: the instance may have dropped the block. Of two generations the older one is dropped when the
// younger is full.
type leads struct{ young, former map[Key]lead }

// maxLeads is how many blocks one generation remembers: one of each span of a request, the first.
const maxLeads = 4096

// put notes where a block was, used there if shared.
func (l *leads) put(k Key, instance string, shared bool) {
	now := lead{instance: instance}
	if before := l.get(k); shared && before.instance == instance {
		now.uses = before.uses
	}
	if shared {
		now.uses++
	}
	if len(l.young) >= maxLeads {
		l.young, l.former = nil, l.young
	}
	if l.young == nil {
		l.young = map[Key]lead{}
	}
	l.young[k] = now
}

func (l *leads) get(k Key) lead {
	if x, there := l.young[k]; there {
		return x
	}
	return l.former[k]
}

// Lead names the instance that had the block of a key when a request here ended, "" when that is not known.
func (m *Manager) Lead(k Key) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leads.get(k).instance
}

// Uses is how many requests here have used the block of a key at the instance that Lead names.
func (m *Manager) Uses(k Key) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leads.get(k).uses
}

// DropLead forgets that the instance has the block of a key: it was asked, and has not.
func (m *Manager) DropLead(k Key, instance string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leads.get(k).instance == instance {
		delete(m.leads.young, k)
		delete(m.leads.former, k)
	}
}

// Run is how many of the first blocks that keys name are here.
func (m *Manager) Run(keys []Key) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, k := range keys {
		if _, there := m.prefixes.named[k]; !there {
			return i
		}
	}
	return len(keys)
}

// Share opens a span for owner over the first blocks that keys name, which others may use too: at least one, or
// ErrUnknown if the first is not here. Blocks that nobody uses now are not free any more, so they count like blocks that
// are lent; ErrNoRoom if none of them may be.
func (m *Manager) Share(owner string, tag uint64, keys []Key) (Hosted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.unused) == 0 {
		return Hosted{}, fmt.Errorf("cannot share blocks with %s: all %d spans are in use: %w", owner, len(m.slots), ErrNoRoom)
	}
	var blocks []BlockID
	spare := m.hostable()
	for _, k := range keys {
		b, there := m.prefixes.named[k]
		if !there {
			break
		}
		if m.blocks[b].users == 0 {
			if spare--; spare < 0 {
				break
			}
		}
		blocks = append(blocks, b)
	}
	if len(blocks) == 0 && spare >= 0 {
		return Hosted{}, fmt.Errorf("cannot share blocks with %s: the first is not here: %w", owner, ErrUnknown)
	}
	if len(blocks) == 0 {
		return Hosted{}, fmt.Errorf("cannot share blocks with %s: %w", owner, ErrNoRoom)
	}
	for _, b := range blocks {
		m.use(b)
	}
	m.shared += len(blocks)
	return m.view(m.openSlot(hostSlot{owner: owner, tag: tag, blocks: blocks, shared: true})), nil
}

// use adds a user to a block that has a name.
func (m *Manager) use(b BlockID) {
	if m.blocks[b].users == 0 {
		m.uncache(b)
		m.owned++
	}
	m.blocks[b].users++
}

// keep makes hosted blocks free, those of which keys say what they hold for others to find. The last ones become the
// oldest that are cached: without those before them they are of no use.
func (m *Manager) keep(blocks []BlockID, keys []Key) {
	for i := len(blocks) - 1; i >= 0; i-- {
		b := blocks[i]
		if i < len(keys) && keys[i] != (Key{}) {
			if _, there := m.prefixes.named[keys[i]]; !there {
				m.blocks[b].key = keys[i]
				m.prefixes.named[keys[i]] = b
				m.cache(b)
				continue
			}
		}
		m.free = append(m.free, b)
	}
}

// ended says what the creditors of a request's spans may free, and remembers where they lie.
func (m *Manager) ended(r *request) []Ended {
	var out []Ended
	at := 0
	for _, s := range r.spans {
		e := Ended{Span: s}
		if at < len(r.keys) {
			e.Keys = r.keys[at:min(at+s.Blocks, len(r.keys))]
			m.leads.put(e.Keys[0], s.Instance, s.Shared)
		}
		at += s.Blocks
		out = append(out, e)
	}
	return out
}
