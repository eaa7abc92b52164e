package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watcher notices clients that hang up while their request is queued or computed, when nothing is
// written that could fail: one epoll over all busy connections waits for POLLRDHUP.
type watcher struct {
	epoll int
	wake  int // eventfd that ends the loop
	done  chan struct{}

	mu     sync.Mutex
	next   int32
	busy   map[int32]func() // by token
	closed bool             // the descriptors may be another's by now
}

func newWatcher() (*watcher, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot watch connections: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1})
	}
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("cannot watch connections: %w", err)
	}
	w := &watcher{epoll: epoll, wake: wake, done: make(chan struct{}), busy: map[int32]func(){}}
	go w.loop()
	return w, nil
}

// watch calls gone once if conn hangs up before the returned function is called. That function must be
// called while the connection is still open; more calls do nothing.
func (w *watcher) watch(conn net.Conn, gone func()) (unwatch func()) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return func() {}
	}
	rc, err := raw.SyscallConn()
	if err != nil {
		return func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return func() {}
	}
	w.next = (w.next + 1) & 0x7fffffff
	token := w.next
	w.busy[token] = gone
	if ctlErr := rc.Control(func(f uintptr) {
		fd := int(f)
		ev := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLONESHOT, Fd: token}
		err = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &ev)
		if errors.Is(err, unix.EEXIST) {
			err = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_MOD, fd, &ev)
		}
	}); ctlErr != nil || err != nil {
		slog.Debug("cannot watch a connection", "error", errors.Join(ctlErr, err))
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, ok := w.busy[token]; !ok || w.closed {
			return // the descriptor may be watched for the next request by now
		}
		delete(w.busy, token)
		_ = rc.Control(func(f uintptr) { _ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, int(f), nil) })
	}
}

func (w *watcher) loop() {
	defer close(w.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			slog.Error("cannot watch connections any more", "error", err)
			return
		}
		for _, ev := range events[:max(n, 0)] {
			if ev.Fd == -1 {
				return
			}
			w.mu.Lock()
			gone := w.busy[ev.Fd]
			delete(w.busy, ev.Fd)
			w.mu.Unlock()
			if gone != nil {
				gone()
			}
		}
	}
}

func (w *watcher) close() {
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return
	}
	_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-w.done
	_ = unix.Close(w.epoll)
	_ = unix.Close(w.wake)
}
