package rdma

// #cgo CFLAGS: -I${SRCDIR}/../csrc/include
// #cgo LDFLAGS: -linfinite -lm -lpthread
// #include "infinite/verbs.h"
//
// static int wait_one(inf_link *link, int64_t timeout_ns) {
//     return inf_link_wait((inf_link *const *)&link, 1, -1, timeout_ns);
// }
import "C"

import (
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error is a status that the C data plane returned for a link.
type Error struct {
	Code    int
	Peer    int
	Message string
}

func (e *Error) Error() string { return e.Message }

// PeerGone reports that the other end is closed or its process dead.
func (e *Error) PeerGone() bool { return e.Code == C.INF_EPEER }

// openLinks counts the links that this process has opened and neither closed nor given away; tests
// compare it before and after.
var openLinks atomic.Int64

// OpenLinks returns the number of links that were neither closed nor taken.
func OpenLinks() int { return int(openLinks.Load()) }

// Link is one end of an open link. Its owner either closes it or takes the C handle out of it.
type Link struct {
	mu      sync.Mutex
	handle  *C.inf_link // nil once closed or taken
	cleanup runtime.Cleanup
}

// shmBytes is the memory a shm link of this shape needs, 0 if the shape is not allowed.
func shmBytes(slots uint32, slotBytes uint64) uint64 {
	return uint64(C.inf_link_shm_bytes(C.uint32_t(slots), C.uint64_t(slotBytes)))
}

// openLink opens one end over conn, which it closes in every case, like the descriptors.
func openLink(conn net.Conn, transport Transport, client bool, shape Shape, fds shmFDs) (*Link, error) {
	defer conn.Close()
	sock, err := dupFD(conn)
	if err != nil {
		fds.close()
		return nil, fmt.Errorf("cannot take over the connection: %w", err)
	}
	config := C.inf_link_config{
		role: C.INF_LINK_SERVER, provider: C.INF_PROVIDER_TCP,
		slots: C.uint32_t(shape.Slots), slot_bytes: C.uint64_t(shape.SlotBytes), peer: C.int32_t(shape.Peer),
		sock_fd: C.int32_t(sock), mem_fd: C.int32_t(fds[0]), rx_event_fd: C.int32_t(fds[2]), tx_event_fd: C.int32_t(fds[1]),
	}
	if client {
		config.role = C.INF_LINK_CLIENT
		config.rx_event_fd, config.tx_event_fd = config.tx_event_fd, config.rx_event_fd
	}
	if transport == SHM {
		config.provider = C.INF_PROVIDER_SHM
	}
	var (
		handle *C.inf_link
		cerr   C.inf_err
	)
	if C.inf_link_open(&config, &handle, &cerr) < 0 {
		return nil, goError(&cerr)
	}
	return newLink(handle), nil
}

// openVerbsLink opens one end over a queue pair that is ready, which it takes. conn, which it closes in
// every case, is what shows the peer's death.
func openVerbsLink(conn net.Conn, client bool, shape Shape, end *verbsEnd) (*Link, error) {
	defer conn.Close()
	sock, err := dupFD(conn)
	if err != nil {
		return nil, fmt.Errorf("cannot take over the connection: %w", err)
	}
	config := C.inf_link_config{
		role: C.INF_LINK_SERVER, provider: C.INF_PROVIDER_VERBS,
		slots: C.uint32_t(shape.Slots), slot_bytes: C.uint64_t(shape.SlotBytes), peer: C.int32_t(shape.Peer),
		sock_fd: C.int32_t(sock), mem_fd: -1, rx_event_fd: -1, tx_event_fd: -1,
	}
	if client {
		config.role = C.INF_LINK_CLIENT
	}
	var (
		handle *C.inf_link
		cerr   C.inf_err
	)
	endpoint := end.handle
	end.handle = nil
	if C.inf_link_open_verbs(&config, endpoint, &handle, &cerr) < 0 {
		return nil, goError(&cerr)
	}
	return newLink(handle), nil
}

// newLink wraps an open link and reports it when nobody closes it.
func newLink(handle *C.inf_link) *Link {
	openLinks.Add(1)
	l := &Link{handle: handle}
	l.cleanup = runtime.AddCleanup(l, func(handle *C.inf_link) {
		slog.Error("a link was neither closed nor taken", "peer", int(C.inf_link_peer(handle)))
		openLinks.Add(-1)
		closeHandle(unsafe.Pointer(handle))
	}, handle)
	return l
}

func goError(e *C.inf_err) error {
	return &Error{Code: int(e.code), Peer: int(e.instance), Message: C.GoString(&e.message[0])}
}

// dupFD returns a descriptor of conn that belongs to the caller.
func dupFD(conn net.Conn) (int, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("cannot use a %T", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, dupErr
}

func (l *Link) detach() *C.inf_link {
	l.mu.Lock()
	defer l.mu.Unlock()
	handle := l.handle
	if handle != nil {
		l.handle = nil
		l.cleanup.Stop()
		openLinks.Add(-1)
	}
	return handle
}

// Take gives the C link (inf_link *) away: whoever gets it closes it. It is nil if the link was closed
// or taken before.
func (l *Link) Take() unsafe.Pointer { return unsafe.Pointer(l.detach()) }

// Close closes this end, unless it was taken. The peer then sees that its end is dead.
func (l *Link) Close() error {
	closeHandle(unsafe.Pointer(l.detach()))
	return nil
}

// Err says why the link is dead, nil while it lives or after it was taken.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var cerr C.inf_err
	if l.handle == nil || C.inf_link_status(l.handle, &cerr) == C.INF_OK {
		return nil
	}
	return goError(&cerr)
}

// dead is Err for a call that returned a status < 0. The caller holds mu.
func (l *Link) dead() error {
	var cerr C.inf_err
	C.inf_link_status(l.handle, &cerr)
	return goError(&cerr)
}

// trySend posts n bytes that fill writes in place, nil: whatever the slot holds. False: no room now.
func (l *Link) trySend(n uint64, fill func([]byte)) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handle == nil {
		return false, net.ErrClosed
	}
	var buf unsafe.Pointer
	rc := C.inf_link_prepare(l.handle, &buf)
	if rc == C.INF_AGAIN {
		return false, nil
	}
	if rc == C.INF_OK {
		if fill != nil && n > 0 {
			fill(unsafe.Slice((*byte)(buf), n))
		}
		rc = C.inf_link_post(l.handle, C.uint64_t(n))
	}
	if rc < 0 {
		return false, l.dead()
	}
	return true, nil
}

// tryReceive shows the next message to use, then releases it. False: none is there now.
func (l *Link) tryReceive(use func([]byte)) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handle == nil {
		return false, net.ErrClosed
	}
	var (
		msg unsafe.Pointer
		n   C.uint64_t
	)
	rc := C.inf_link_poll(l.handle, &msg, &n)
	if rc == C.INF_AGAIN {
		return false, nil
	}
	if rc < 0 {
		return false, l.dead()
	}
	use(unsafe.Slice((*byte)(msg), uint64(n)))
	C.inf_link_release(l.handle)
	return true, nil
}

// wait sleeps until the link has something to do, at most ns nanoseconds.
func (l *Link) wait(ns int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handle == nil {
		return net.ErrClosed
	}
	if rc := C.wait_one(l.handle, C.int64_t(ns)); rc < 0 {
		return &Error{Code: int(rc), Peer: int(C.inf_link_peer(l.handle)), Message: "cannot wait for a link"}
	}
	return nil
}

// closeHandle ends what Take returned; nil is allowed.
func closeHandle(handle unsafe.Pointer) { C.inf_link_close((*C.inf_link)(handle)) }
