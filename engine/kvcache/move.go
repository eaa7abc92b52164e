package kvcache

import "fmt"

// movable is the number of blocks that may be marked: full, computed, not moving yet, and never the last.
func (m *Manager) movable(r *request) int {
	if r.moving > 0 {
		return 0
	}
	return max(0, min(r.computed/m.blockSize-r.inSpans, len(r.local)-1))
}

// BeginMove marks the oldest n local blocks as moving and returns them. They stay readable, and owned.
// One move per request is in flight at a time, and at least one local block stays.
func (m *Manager) BeginMove(id RequestID, n int) ([]BlockID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return nil, err
	}
	if r.moving > 0 {
		return nil, fmt.Errorf("cannot move blocks of request %d: a move is in flight: %w", id, ErrState)
	}
	if can := m.movable(r); n < 1 || n > can {
		return nil, fmt.Errorf("cannot move %d blocks of request %d: %d can be moved: %w", n, id, can, ErrState)
	}
	r.moving = n
	return append([]BlockID(nil), r.local[:n]...), nil
}

// CommitMove ends a move: the oldest span.Blocks of the moving blocks were acknowledged by span.Instance.
// They are free here now; the rest of the moving blocks, if any, stay local. The span extends the
// request's last one when it is the same. If the request was closed meanwhile, orphans are the spans that
// its creditors should free, this one with them.
func (m *Manager) CommitMove(id RequestID, span Span) (orphans []Span, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	switch {
	case r == nil || r.moving == 0:
		return nil, fmt.Errorf("cannot commit a move of request %d: none is in flight: %w", id, ErrState)
	case span.Blocks < 1 || span.Blocks > r.moving:
		return nil, fmt.Errorf("cannot commit %d blocks of request %d: %d are moving: %w", span.Blocks, id, r.moving, ErrState)
	}
	m.release(r.local[:span.Blocks])
	r.local = append(r.local[:0], r.local[span.Blocks:]...)
	if last := len(r.spans) - 1; last >= 0 && sameSpan(r.spans[last], span) {
		r.spans[last].Blocks += span.Blocks
	} else {
		r.spans = append(r.spans, span)
	}
	r.inSpans += span.Blocks
	m.lent += span.Blocks
	return m.endMove(id, r), nil
}

// AbortMove ends a move that came to nothing: the blocks stay local. For a request that was closed
// meanwhile they become free, and orphans are the spans that its creditors should free.
func (m *Manager) AbortMove(id RequestID) (orphans []Span, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	if r == nil || r.moving == 0 {
		return nil, fmt.Errorf("cannot abort a move of request %d: none is in flight: %w", id, ErrState)
	}
	return m.endMove(id, r), nil
}

func (m *Manager) endMove(id RequestID, r *request) []Span {
	r.moving = 0
	if !r.closed {
		return nil
	}
	m.release(r.local)
	r.local = nil
	return m.forget(id, r)
}

func sameSpan(a, b Span) bool {
	return a.Instance == b.Instance && a.Peer == b.Peer && a.Handle == b.Handle && a.Generation == b.Generation
}
