package rdma

// #include "infinite/link.h"
import "C"

import (
	"context"
	"fmt"
	"net"
	"slices"
)

// Send posts one message and waits until there is room for it.
func (l *Link) Send(ctx context.Context, message []byte) error {
	l.mu.Lock()
	handle := l.handle
	room := C.inf_link_slot_bytes(handle) // 0 for nil
	l.mu.Unlock()
	if handle == nil {
		return net.ErrClosed
	}
	if uint64(len(message)) > uint64(room) {
		return fmt.Errorf("cannot send %d bytes in a slot of %d", len(message), uint64(room))
	}
	return l.send(ctx, uint64(len(message)), func(b []byte) { copy(b, message) })
}

// Receive waits for the next message and returns a copy of it.
func (l *Link) Receive(ctx context.Context) ([]byte, error) {
	var message []byte
	err := l.receive(ctx, func(b []byte) { message = slices.Clone(b) })
	return message, err
}
