package device

// #include "infinite/status.h"
import "C"

import (
	"errors"
	"fmt"
)

// What a caller may decide on; errors.Is tells which an Error is.
var (
	ErrInvalid     = errors.New("invalid argument")
	ErrNoMemory    = errors.New("out of memory")
	ErrPeer        = errors.New("the peer is gone")
	ErrTimeout     = errors.New("a deadline passed")
	ErrProtocol    = errors.New("the peer broke the protocol")
	ErrIO          = errors.New("input or output failed")
	ErrStale       = errors.New("the span is over")
	ErrFull        = errors.New("a table or a queue is full")
	ErrUnsupported = errors.New("not supported by this build or machine")
	ErrNotFinite   = errors.New("the logits are not finite")
	// ErrClosed is returned by every method of a closed device.
	ErrClosed = errors.New("the device is closed")
)

// Error is a status that the C data plane returned.
type Error struct {
	Code     int    // INF_E*, below 0
	Instance int    // the peer index it speaks of, -1 where none
	Layer    int    // -1 where none
	Message  string // C's own words
}

func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = e.reason().Error()
	}
	if e.Instance >= 0 {
		s += fmt.Sprintf(" (peer %d)", e.Instance)
	}
	if e.Layer >= 0 {
		s += fmt.Sprintf(" (layer %d)", e.Layer)
	}
	return s
}

// Is makes errors.Is(err, ErrPeer) and the like work.
func (e *Error) Is(target error) bool { return e.reason() == target }

func (e *Error) reason() error {
	switch e.Code {
	case C.INF_EINVAL:
		return ErrInvalid
	case C.INF_ENOMEM:
		return ErrNoMemory
	case C.INF_EPEER:
		return ErrPeer
	case C.INF_ETIMEOUT:
		return ErrTimeout
	case C.INF_EPROTO:
		return ErrProtocol
	case C.INF_EIO:
		return ErrIO
	case C.INF_ESTALE:
		return ErrStale
	case C.INF_EFULL:
		return ErrFull
	case C.INF_EUNSUPPORTED:
		return ErrUnsupported
	case C.INF_ENOTFINITE:
		return ErrNotFinite
	}
	return fmt.Errorf("status %d", e.Code)
}

// StatusError is the error of a request's share of a step or of a move, nil for success. peer is -1 where
// nobody is at fault. A move that failed with ErrIO met blocks that this device could not read.
func StatusError(status, peer int32) error {
	if status >= 0 {
		return nil
	}
	return &Error{Code: int(status), Instance: int(peer), Layer: -1}
}

// check turns the status and the record of a call into an error.
func check(status C.int, e *C.inf_err) error {
	if status >= 0 {
		return nil
	}
	return &Error{Code: int(status), Instance: int(e.instance), Layer: int(e.layer), Message: C.GoString(&e.message[0])}
}
