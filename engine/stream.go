package engine

import (
	"context"
	"io"
	"sync"
)

// Stream is a request's events.
type Stream interface {
	// Next waits for the next event; io.EOF follows the finishing event. ctx ends the wait, not the request.
	Next(ctx context.Context) (Event, error)
	// Close cancels the request if it goes on.
	Close()
}

// stream queues events between the loop and one reader. A request has at most MaxTokens+2 events, which
// bounds the queue; the loop never waits for a reader.
type stream struct {
	mu     sync.Mutex
	events []Event
	ended  bool // the finishing event is in the queue, or was read
	closed bool
	wake   chan struct{}
	cancel func()
}

func newStream(cancel func()) *stream {
	return &stream{wake: make(chan struct{}, 1), cancel: cancel}
}

func (s *stream) push(ev Event) {
	s.mu.Lock()
	if !s.ended && !s.closed {
		s.events = append(s.events, ev)
		s.ended = ev.Finish != ""
	}
	s.mu.Unlock()
	s.signal()
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *stream) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if len(s.events) > 0 {
			ev := s.events[0]
			s.events = s.events[1:]
			s.mu.Unlock()
			return ev, nil
		}
		over := s.ended || s.closed
		s.mu.Unlock()
		if over {
			return Event{}, io.EOF
		}
		select {
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		case <-s.wake:
		}
	}
}

func (s *stream) Close() {
	s.mu.Lock()
	cancel := !s.ended && !s.closed
	s.closed, s.events = true, nil
	s.mu.Unlock()
	s.signal()
	if cancel {
		s.cancel()
	}
}
