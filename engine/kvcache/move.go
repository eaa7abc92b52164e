package kvcache

import "fmt"

// movable is the number of blocks that may be marked: full, computed, not moving yet, and never the last.
func (m *Manager) movable(r *request) int {
	if r.underWay() || r.wave {
		return 0
	}
	return max(0, min(r.computed/m.blockSize-r.inSpans, len(r.local)-1))
}

// BeginMove marks the oldest n local blocks as moving into to, and returns them. They stay readable, and
// owned. One move per request is in flight at a time, and at least one local block stays.
//
// to.Blocks of the request's blocks lie there already: none in a new span. A span that is extended must
// be the request's last, and hold exactly these; otherwise the request ended and began anew since the
// caller looked at its table, and to is being released.
func (m *Manager) BeginMove(id RequestID, to Span, n int) ([]BlockID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return nil, err
	}
	if r.underWay() {
		return nil, fmt.Errorf("cannot move blocks of request %d: a move is in flight: %w", id, ErrState)
	}
	if can := m.movable(r); n < 1 || n > can {
		return nil, fmt.Errorf("cannot move %d blocks of request %d: %d can be moved: %w", n, id, can, ErrState)
	}
	if last := len(r.spans) - 1; to.Shared || to.Blocks != 0 && (last < 0 || to.Cut || r.spans[last] != to) {
		return nil, fmt.Errorf("cannot extend a span of request %d at %s: it is not the last, or shared, or cut: %w", id, to.Instance, ErrState)
	}
	r.moving, r.to = n, to
	return append([]BlockID(nil), r.local[:n]...), nil
}

// MovingKeys is what the moving blocks of a request hold, as far as that is known.
func (m *Manager) MovingKeys(id RequestID) []Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	if r == nil || r.moving == 0 {
		return nil
	}
	return r.keysAt(r.inSpans, r.moving)
}

// CommitMove ends a move: the oldest n of the moving blocks were acknowledged. They are free here now, as after Close;
// the rest of the moving blocks, if any, stay local. If the request was closed meanwhile, orphans are the
// spans that its creditors should free, this one with them.
func (m *Manager) CommitMove(id RequestID, n int) (orphans []Ended, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	switch {
	case r == nil || r.moving == 0:
		return nil, fmt.Errorf("cannot commit a move of request %d: none is in flight: %w", id, ErrState)
	case n < 1 || n > r.moving:
		return nil, fmt.Errorf("cannot commit %d blocks of request %d: %d are moving: %w", n, id, r.moving, ErrState)
	}
	m.release(r.local[:n])
	r.local = append(r.local[:0], r.local[n:]...)
	if r.to.Blocks == 0 {
		r.spans = append(r.spans, r.to)
	}
	s := &r.spans[len(r.spans)-1]
	s.Blocks += n
	r.inSpans += n
	m.led(r, *s, r.inSpans-s.Blocks, s.Blocks)
	m.lent += n
	return m.endMove(id, r), nil
}

// AbortMove ends a move that came to nothing: the blocks stay local. For a request that was closed
// meanwhile they become free, and orphans are the spans that its creditors should free.
func (m *Manager) AbortMove(id RequestID) (orphans []Ended, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.requests[id]
	if r == nil || r.moving == 0 {
		return nil, fmt.Errorf("cannot abort a move of request %d: none is in flight: %w", id, ErrState)
	}
	return m.endMove(id, r), nil
}

func (m *Manager) endMove(id RequestID, r *request) []Ended {
	r.moving, r.to = 0, Span{}
	if !r.closed {
		return nil
	}
	m.release(r.local)
	r.local = nil
	return m.forget(id, r)
}
