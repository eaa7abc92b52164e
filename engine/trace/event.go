package trace

import (
	"encoding/binary"
	"fmt"
)

// Event is one hit of a mark.
type Event struct {
	Time    uint64 // ns of CLOCK_MONOTONIC, the same for all processes of a machine
	Mark    Mark
	Process uint32 // index into the traced processes
	Thread  uint32 // as the kernel numbers it, outside of any container
	Args    [6]uint64
}

// EventSize is an event's size as a BPF program writes it, in the machine's byte order: time, mark (4 bytes),
// process (4 bytes), process and thread id of the kernel (8 bytes), six arguments.
const EventSize = 8 + 4 + 4 + 8 + 6*8

// Decode reads an event of a trace of so many processes.
func Decode(b []byte, processes int) (Event, error) {
	if len(b) != EventSize {
		return Event{}, fmt.Errorf("cannot read an event of %d bytes, it has %d", len(b), EventSize)
	}
	order := binary.NativeEndian
	mark, process := order.Uint32(b[8:]), order.Uint32(b[12:])
	if mark == 0 || mark > uint32(lastMark) {
		return Event{}, fmt.Errorf("cannot read an event: there is no mark %d", mark)
	}
	if uint64(process) >= uint64(processes) {
		return Event{}, fmt.Errorf("cannot read an event: process %d of %d", process, processes)
	}
	e := Event{Time: order.Uint64(b), Mark: Mark(mark), Process: process, Thread: uint32(order.Uint64(b[16:]))}
	for i := range e.Args {
		e.Args[i] = order.Uint64(b[24+8*i:])
	}
	return e, nil
}

// AppendEvent is the reverse of Decode.
func AppendEvent(b []byte, e Event) []byte {
	order := binary.NativeEndian
	b = order.AppendUint64(b, e.Time)
	b = order.AppendUint32(b, uint32(e.Mark))
	b = order.AppendUint32(b, e.Process)
	b = order.AppendUint64(b, uint64(e.Thread))
	for _, a := range e.Args {
		b = order.AppendUint64(b, a)
	}
	return b
}
