package kvcache

import (
	"fmt"
	"slices"
)

// Hosted is a span of another instance's request in this pool. Blocks is the whole list, a copy. Tag is
// what the owner called it when it asked, for the case that the answer is lost.
type Hosted struct {
	Owner      string
	Tag        uint64
	Handle     uint32
	Generation uint32
	Blocks     []BlockID
	Shared     bool // they are not the owner's alone
}

// hostSlot is what a handle stands for. Generation counts its uses, so that a late message about an
// earlier span is recognised; 0 is never a span's.
type hostSlot struct {
	owner      string
	tag        uint64
	generation uint32
	blocks     []BlockID // nil: unused
	shared     bool      // blocks are owned, not hosted: the slot is one more user of them
	giving     int       // goroutines that read the blocks, for the owner to have them back: Give
	over       bool      // it ended meanwhile, and does when the last of these is through
	keys       []Key     // Unhost's, then
}

// isOf says whether it is a span of the owner's.
func (s *hostSlot) isOf(owner string) bool { return s.blocks != nil && !s.over && s.owner == owner }

// SetPressure says that own requests are short of blocks, or that they borrow: nothing is lent then.
func (m *Manager) SetPressure(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pressure = on
}

// SetDemand says how many blocks own running requests will take soon; Host leaves them free.
func (m *Manager) SetDemand(blocks int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.demand = max(0, blocks)
}

// Hostable is the number of blocks that Host would grant now.
func (m *Manager) Hostable() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.unused) == 0 {
		return 0 // whoever counts on room that Host then refuses would wait for it in vain
	}
	return m.hostable()
}

func (m *Manager) hostable() int {
	if m.pressure {
		return 0
	}
	return max(0, m.available()-m.demand)
}

// Host opens a span for owner with up to n blocks: at least one, or ErrNoRoom.
func (m *Manager) Host(owner string, tag uint64, n int) (Hosted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n = min(n, m.hostable())
	if n < 1 {
		return Hosted{}, fmt.Errorf("cannot host blocks of %s: %w", owner, ErrNoRoom)
	}
	if len(m.unused) == 0 {
		return Hosted{}, fmt.Errorf("cannot host blocks of %s: all %d spans are in use: %w", owner, len(m.slots), ErrNoRoom)
	}
	return m.view(m.openSlot(hostSlot{owner: owner, tag: tag, blocks: slices.Clone(m.host(n))})), nil
}

// host takes n free blocks to be hosted; the result is valid until the next operation.
func (m *Manager) host(n int) []BlockID {
	blocks := m.take(n)
	for _, b := range blocks {
		m.blocks[b].hosted = true
	}
	m.hosted += n
	return blocks
}

// openSlot gives s a handle that is unused, of which there is one, and its next generation.
func (m *Manager) openSlot(s hostSlot) (handle uint32) {
	handle = m.unused[len(m.unused)-1]
	m.unused = m.unused[:len(m.unused)-1]
	if s.generation = m.slots[handle].generation + 1; s.generation == 0 {
		s.generation = 1
	}
	m.slots[handle] = s
	return handle
}

// ExtendHost makes up to n blocks of a hosted span from its block index first on the owner's: at least
// one, or ErrNoRoom. Blocks that are there already, from an answer that the owner never got, count as the
// first of them; what is missing is added at the end. The beginning of the list stays as it was.
func (m *Manager) ExtendHost(owner string, handle, generation uint32, first, n int) (Hosted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.slot(owner, handle, generation)
	if err != nil {
		return Hosted{}, fmt.Errorf("cannot extend a span: %w", err)
	}
	if s.shared || first < 1 || first > len(s.blocks) {
		return Hosted{}, fmt.Errorf("cannot extend a span of %d blocks from block %d on: %w", len(s.blocks), first, ErrState)
	}
	there := len(s.blocks) - first
	more := min(n-there, m.hostable())
	if n < 1 || there+more < 1 {
		return Hosted{}, fmt.Errorf("cannot host blocks of %s: %w", owner, ErrNoRoom)
	}
	if more > 0 {
		s.blocks = append(s.blocks, m.host(more)...)
	}
	return m.view(handle), nil
}

// Unhost ends a hosted span; its blocks are free. keys are what they hold, as far as that is known: those are kept, to be
// found by others. Shared ones are as they were without it.
func (m *Manager) Unhost(owner string, handle, generation uint32, keys []Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.slot(owner, handle, generation)
	if err != nil {
		return fmt.Errorf("cannot end a span: %w", err)
	}
	if s.giving > 0 {
		s.over, s.keys = true, keys
		return nil
	}
	m.endSlot(handle, keys)
	return nil
}

// endSlot frees a slot, which nobody reads any more.
func (m *Manager) endSlot(handle uint32, keys []Key) {
	s := &m.slots[handle]
	if s.shared {
		m.shared -= len(s.blocks)
		m.release(s.blocks)
	} else {
		m.hosted -= len(s.blocks)
		m.keep(s.blocks, keys)
	}
	*s = hostSlot{generation: s.generation}
	m.unused = append(m.unused, handle)
}

// HostedOf lists the spans hosted for owner, by handle.
func (m *Manager) HostedOf(owner string) []Hosted {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Hosted
	for h := range m.slots {
		if m.slots[h].isOf(owner) {
			out = append(out, m.view(uint32(h)))
		}
	}
	return out
}

// HandlesOf is HostedOf without the lists of blocks.
func (m *Manager) HandlesOf(owner string) []Hosted {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Hosted
	for h := range m.slots {
		if s := &m.slots[h]; s.isOf(owner) {
			out = append(out, Hosted{Owner: owner, Tag: s.tag, Handle: uint32(h), Generation: s.generation, Shared: s.shared})
		}
	}
	return out
}

// slot finds a hosted span; owner and generation must match.
func (m *Manager) slot(owner string, handle, generation uint32) (*hostSlot, error) {
	if int64(handle) < int64(len(m.slots)) {
		s := &m.slots[handle]
		if s.isOf(owner) && s.generation == generation {
			return s, nil
		}
	}
	return nil, fmt.Errorf("span %d.%d of %s is not hosted here: %w", handle, generation, owner, ErrUnknown)
}

func (m *Manager) view(handle uint32) Hosted {
	s := &m.slots[handle]
	return Hosted{Owner: s.owner, Tag: s.tag, Handle: handle, Generation: s.generation, Blocks: slices.Clone(s.blocks), Shared: s.shared}
}
