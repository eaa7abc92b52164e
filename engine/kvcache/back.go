package kvcache

import (
	"fmt"
	"slices"
)

// Blocks come back from an instance that is about to leave: from the end of a span, as many at a time as there is room for.
// At the home they are written into blocks that are the request's already, and in its table when all have arrived; at the
// other instance they stay as they are until the span ends.

// Return is blocks of a request on their way back.
type Return struct {
	From  Span   // where they are; it stays so until EndReturn
	First int    // the span's block that the first of them is
	Into  Hosted // a span here over the blocks that take them, for the instance that sends them; ended with Unhost
}

// underWay says whether blocks of the request are being copied, from here or to here. There is one such copy at a time.
func (r *request) underWay() bool { return r.moving > 0 || len(r.arriving) > 0 }

// Away is where a request has blocks that could come back now, of those instances, and how many at most: the last span
// there. Where tables are in order it has to be the last of all. all is how many it has with these instances together.
func (m *Manager) Away(id RequestID, instances []string) (instance string, blocks, all int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil || r.wave || r.underWay() {
		return "", 0, 0
	}
	there := func(s Span) bool { return slices.Contains(instances, s.Instance) }
	for _, s := range r.spans {
		if there(s) {
			all += s.Blocks
		}
	}
	if at := m.away(r, there); at >= 0 {
		return r.spans[at].Instance, r.spans[at].Blocks, all
	}
	return "", 0, all
}

// away is the last of a request's spans that is at the right place, -1: there is none.
func (m *Manager) away(r *request, there func(Span) bool) int {
	for at := len(r.spans) - 1; at >= 0; at-- {
		if there(r.spans[at]) {
			return at
		}
		if m.inOrder {
			break
		}
	}
	return -1
}

// BeginReturn takes free blocks for n of a request's that lie with an instance, behind the device's peer, or for all of its last
// span there: the last ones of that. The request's table stays as it is until EndReturn. It returns ErrNoRoom where fewer are
// free beside what running requests take soon (SetDemand).
func (m *Manager) BeginReturn(id RequestID, instance string, peer uint32, n int) (Return, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return Return{}, err
	}
	at := m.away(r, func(s Span) bool { return s.Instance == instance && s.Peer == peer && s.Blocks > 0 })
	if at < 0 || r.wave || r.underWay() || n < 1 {
		return Return{}, fmt.Errorf("cannot bring %d blocks of request %d back from %s: it has none there, or a move in flight: %w", n, id, instance, ErrState)
	}
	from := r.spans[at]
	n = min(n, from.Blocks)
	if n > m.available()-m.demand || len(m.unused) == 0 {
		return Return{}, fmt.Errorf("cannot bring blocks of request %d back from %s: %w", id, instance, ErrNoRoom)
	}
	blocks := slices.Clone(m.take(n))
	for _, b := range blocks {
		m.blocks[b].users = 2 // the request, and the slot
	}
	m.owned += n
	m.shared += n
	r.arriving, r.from = blocks, from
	into := m.openSlot(hostSlot{owner: instance, blocks: slices.Clone(blocks), shared: true})
	return Return{From: from, First: from.Blocks - n, Into: m.view(into)}, nil
}

// EndReturn ends what BeginReturn began: with all blocks here, which are the oldest of the local ones now, or with none. What
// is written to them has ended, and Into. ended are the spans that creditors may free: the one that all blocks have left; if
// the request was closed meanwhile all of its.
func (m *Manager) EndReturn(id RequestID, arrived bool) (ended []Ended, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	if r == nil || len(r.arriving) == 0 {
		return nil, fmt.Errorf("cannot end a return of request %d: none is under way: %w", id, ErrState)
	}
	blocks := r.arriving
	r.arriving = nil
	if r.closed || !arrived {
		m.release(blocks)
		if r.closed {
			ended = m.forget(id, r)
		}
		return ended, nil
	}
	k := slices.Index(r.spans, r.from)
	s, at := &r.spans[k], 0 // the table's block that comes first
	for _, before := range r.spans[:k+1] {
		at += before.Blocks
	}
	at -= len(blocks)
	back := Ended{Span: *s, Keys: r.keysAt(at, len(blocks))}
	r.behind(at, len(blocks))
	r.local = slices.Insert(r.local, 0, blocks...)
	s.Blocks -= len(blocks)
	s.Cut = true
	r.inSpans -= len(blocks)
	r.named = r.inSpans
	if !s.Shared {
		m.lent -= len(blocks)
	}
	if s.Blocks == 0 {
		r.spans = slices.Delete(r.spans, k, k+1)
		ended = append(ended, back)
	}
	return ended, nil
}

// behind notes that n of the blocks in the table's spans, from at on, come behind all others of these.
func (r *request) behind(at, n int) {
	if at+n == r.inSpans {
		return
	}
	order := slices.Clone(r.order)
	for i := len(order); i < r.inSpans; i++ {
		order = append(order, int32(i))
	}
	moved := slices.Clone(order[at : at+n])
	copy(order[at:], order[at+n:r.inSpans])
	copy(order[r.inSpans-n:], moved)
	r.order = order
}

// Give returns n blocks of a hosted span from first on. They stay as they are until Given, also when the span ends.
func (m *Manager) Give(owner string, handle, generation uint32, first, n int) ([]BlockID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.slot(owner, handle, generation)
	if err != nil {
		return nil, fmt.Errorf("cannot give blocks back: %w", err)
	}
	if first < 0 || n < 1 || first > len(s.blocks) || n > len(s.blocks)-first {
		return nil, fmt.Errorf("cannot give %d blocks from %d on back, of a span of %d: %w", n, first, len(s.blocks), ErrState)
	}
	s.giving++
	return slices.Clone(s.blocks[first : first+n]), nil
}

// Given ends a Give, once: the handle is the span's until then.
func (m *Manager) Given(handle uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.slots[handle]
	if s.giving--; s.over && s.giving == 0 {
		m.endSlot(handle, s.keys)
	}
}
