package rdma

// #include <stdlib.h>
// #include "infinite/linkbench.h"
// #include "infinite/verbs.h"
//
// static inf_memory host_memory(void *at, uint64_t bytes) {
//     inf_memory m = {.address = (uint64_t)(uintptr_t)at, .bytes = bytes, .kind = INF_MEMORY_HOST};
//     return m;
// }
//
// static void stop_bench(uint32_t *stop) { __atomic_store_n(stop, 1, __ATOMIC_RELAXED); }
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchKind is what a Bench measures.
type BenchKind uint32

const (
	BenchLatency   BenchKind = C.INF_BENCH_LATENCY   // round trips
	BenchBandwidth BenchKind = C.INF_BENCH_BANDWIDTH // messages from client to server
	BenchPuts      BenchKind = C.INF_BENCH_PUTS      // likewise, bytes past the ring
)

// Bench is one measurement of a link. Both ends run it at the same time, with the same values.
type Bench struct {
	Kind           BenchKind
	Bytes          uint64
	Warmup, Rounds uint64
	Waits          bool          // the ends sleep when they have nothing to do; else they poll, except who only receives
	Copies         bool          // messages are written into their slots and read out of them
	Duration       time.Duration // the client ends after it, if the rounds are not over; 0: no limit
	Silence        time.Duration // longest wait for the peer
}

// BenchResult is what the client measured.
type BenchResult struct {
	Rounds uint64
	Took   time.Duration
}

// BenchMemory is memory of this process that can be put from and into over a link. It is closed after the link.
type BenchMemory struct {
	pages  []byte
	region *C.inf_region
}

// OpenBenchMemory registers memory for puts over link. The error wraps ErrUnsupported where it has no puts.
func OpenBenchMemory(link *Link, bytes uint64) (*BenchMemory, error) {
	link.mu.Lock()
	defer link.mu.Unlock()
	if link.handle == nil {
		return nil, net.ErrClosed
	}
	device := C.inf_link_verbs_device(link.handle)
	if device == nil {
		return nil, fmt.Errorf("cannot put over a link without an RDMA device: %w", ErrUnsupported)
	}
	pages, err := unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("cannot map %d bytes: %w", bytes, err)
	}
	m := &BenchMemory{pages: pages}
	if err := m.open(link, device); err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("cannot register memory for puts: %w", err)
	}
	return m, nil
}

// open makes the region and names it to the link, whose mu the caller holds.
func (m *BenchMemory) open(link *Link, device *C.inf_verbs_device) error {
	var cerr C.inf_err
	memory := C.host_memory(unsafe.Pointer(&m.pages[0]), C.uint64_t(len(m.pages)))
	switch C.inf_region_open(device, &memory, &m.region, &cerr) {
	case C.INF_OK:
	case C.INF_EUNSUPPORTED:
		return fmt.Errorf("%s: %w", C.GoString(&cerr.message[0]), ErrUnsupported)
	default:
		return goError(&cerr)
	}
	switch rc := C.inf_link_use_region(link.handle, m.region); rc {
	case C.INF_OK:
		return nil
	case C.INF_EUNSUPPORTED:
		return fmt.Errorf("this link cannot put: %w", ErrUnsupported)
	default:
		return fmt.Errorf("the link refused the memory: status %d", int(rc))
	}
}

// Close frees the memory; nil is allowed.
func (m *BenchMemory) Close() error {
	if m == nil {
		return nil
	}
	if C.inf_region_close(m.region) != C.INF_OK {
		return errors.New("cannot free memory that a link still uses")
	}
	return unix.Munmap(m.pages)
}

// Bench measures the link, or answers where the other end measures; ns, for the client of a latency run, gets
// the rounds' times in ns and has room for all. After an error, or when ctx ends, the link is of no more use.
func (l *Link) Bench(ctx context.Context, b Bench, ns []int64) (BenchResult, error) {
	if b.Kind == BenchLatency && uint64(len(ns)) < b.Rounds {
		ns = nil // which the client's end refuses
	}
	// C's own memory, because another thread writes it while C reads it.
	stop := (*C.uint32_t)(C.calloc(1, C.sizeof_uint32_t))
	defer C.free(unsafe.Pointer(stop))
	told := make(chan struct{})
	unwatch := context.AfterFunc(ctx, func() { C.stop_bench(stop); close(told) })
	defer func() {
		if !unwatch() {
			<-told
		}
	}()
	cb := C.inf_bench{
		kind: C.uint32_t(b.Kind), bytes: C.uint64_t(b.Bytes), warmup: C.uint64_t(b.Warmup), rounds: C.uint64_t(b.Rounds),
		duration_ns: C.int64_t(b.Duration), silence_ns: C.int64_t(b.Silence), stop: stop,
	}
	if b.Waits {
		cb.flags |= C.INF_BENCH_WAITS
	}
	if b.Copies {
		cb.flags |= C.INF_BENCH_COPIES
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handle == nil {
		return BenchResult{}, net.ErrClosed
	}
	var out C.inf_bench_result
	var cerr C.inf_err
	rc := C.inf_link_bench(l.handle, &cb, (*C.int64_t)(unsafe.Pointer(unsafe.SliceData(ns))), &out, &cerr)
	if err := ctx.Err(); err != nil {
		return BenchResult{}, err
	}
	if rc < 0 {
		return BenchResult{}, goError(&cerr)
	}
	return BenchResult{Rounds: uint64(out.rounds), Took: time.Duration(out.took_ns)}, nil
}

// SlotBytes is the largest message, 0 for a link that was closed or taken.
func (l *Link) SlotBytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(C.inf_link_slot_bytes(l.handle))
}
