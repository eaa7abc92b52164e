package kvcache

import "fmt"

// A wave is a prompt that several instances compute at the same time, a leg each in turn. Each of them has a request for
// it, whose local blocks are those of its own legs; what the others compute lies in spans of theirs that grow as the wave
// goes on. Attention does not ask in which order keys lie, so a request's table is what it always is: the spans' blocks,
// then the local ones, only that these do not follow each other in the text.

// Join makes an open request one of a wave: spans, empty ones, are to hold what the other instances compute. Its local
// blocks are there already, and do not move until EndWave.
func (m *Manager) Join(id RequestID, spans []Span) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return err
	}
	if r.wave || len(r.spans) > 0 || r.underWay() {
		return fmt.Errorf("cannot let request %d join a wave: it is in one, or has %d spans or a move in flight: %w", id, len(r.spans), ErrState)
	}
	for _, s := range spans {
		if s.Blocks != 0 || !s.Shared {
			return fmt.Errorf("cannot let request %d join a wave with a span of %d blocks at %s: %w", id, s.Blocks, s.Instance, ErrState)
		}
	}
	r.wave, r.spans = true, append(r.spans, spans...)
	return nil
}

// Advance says that the others have come further: blocks[i] more of the request's are in its span i, and computed.
func (m *Manager) Advance(id RequestID, blocks []int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return err
	}
	if !r.wave || len(blocks) != len(r.spans) {
		return fmt.Errorf("cannot advance %d spans of request %d, which has %d, in a wave: %v: %w", len(blocks), id, len(r.spans), r.wave, ErrState)
	}
	for i, n := range blocks {
		if n < 0 {
			return fmt.Errorf("cannot advance a span of request %d by %d blocks: %w", id, n, ErrState)
		}
		r.spans[i].Blocks += n
		r.inSpans += n
		r.computed += n * m.blockSize
	}
	return nil
}

// EndWave makes a request of a wave an ordinary one. order[i] is which block of the text is the table's block i, for all
// that are full: a permutation of them.
func (m *Manager) EndWave(id RequestID, order []int32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return err
	}
	if full := r.computed / m.blockSize; !r.wave || len(order) != full {
		return fmt.Errorf("cannot end the wave of request %d with an order of %d blocks: it has %d: %w", id, len(order), full, ErrState)
	}
	r.wave, r.order, r.named = false, order, r.inSpans
	return nil
}

// ShareWave opens a span for owner over all local blocks of a request of a wave, of which most are still to be computed:
// the device says when they are there.
func (m *Manager) ShareWave(id RequestID, owner string, tag uint64) (Hosted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return Hosted{}, err
	}
	if len(r.local) == 0 || len(m.unused) == 0 {
		return Hosted{}, fmt.Errorf("cannot share %d blocks of request %d with %s, %d of %d spans are in use: %w",
			len(r.local), id, owner, len(m.slots)-len(m.unused), len(m.slots), ErrNoRoom)
	}
	for _, b := range r.local {
		m.use(b)
	}
	m.shared += len(r.local)
	return m.view(m.openSlot(hostSlot{owner: owner, tag: tag, blocks: append([]BlockID(nil), r.local...), shared: true})), nil
}

// Run is blocks of a request that follow each other in the text and lie on one instance, "" being this one.
type Run struct {
	Instance string
	Blocks   int
}

// Runs says where a request's blocks lie, in the order of the text.
func (m *Manager) Runs(id RequestID) ([]Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return nil, err
	}
	at := make([]string, r.inSpans+len(r.local)) // by block of the text
	i := 0
	for _, s := range r.spans {
		for range s.Blocks {
			at[r.place(i)] = s.Instance
			i++
		}
	}
	var runs []Run
	for _, instance := range at {
		if n := len(runs); n > 0 && runs[n-1].Instance == instance {
			runs[n-1].Blocks++
			continue
		}
		runs = append(runs, Run{instance, 1})
	}
	return runs, nil
}

// place is which block of the text the table's block i is.
func (r *request) place(i int) int {
	if i < len(r.order) {
		return int(r.order[i])
	}
	return i
}

// key is what the table's block i holds, false where that is not known.
func (r *request) key(i int) (Key, bool) {
	i = r.place(i)
	if r.wave || i >= len(r.keys) {
		return Key{}, false
	}
	return r.keys[i], true
}

// keysAt is what the table's blocks [from, from+n) hold, as far as that is known of the first of them.
func (r *request) keysAt(from, n int) []Key {
	if !r.wave && from >= len(r.order) {
		return r.keys[min(from, len(r.keys)):min(from+n, len(r.keys))]
	}
	var out []Key
	for i := from; i < from+n; i++ {
		k, known := r.key(i)
		if !known {
			break
		}
		out = append(out, k)
	}
	return out
}
