package rdma

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// PipeEnd is an end of a Pipe. It is no unix connection to those who ask: what is passed over it is bytes.
type PipeEnd struct {
	*net.UnixConn
	near   net.IP
	reason atomic.Pointer[error]
}

// LocalAddr is the address of this host on the network that the bytes travel by.
func (p *PipeEnd) LocalAddr() net.Addr { return &net.TCPAddr{IP: p.near} }

// Fail tells the reader why nothing more will come, before the other end is closed. The first reason counts.
func (p *PipeEnd) Fail(why error) { p.reason.CompareAndSwap(nil, &why) }

// Read returns what Fail was told in place of io.EOF.
func (p *PipeEnd) Read(b []byte) (int, error) {
	n, err := p.UnixConn.Read(b)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) { // the latter if bytes were left at the other end
		if why := p.reason.Load(); why != nil {
			err = *why
		}
	}
	return n, err
}

// Pipe makes a connection for Choice.Via or Listener.Serve, whose other end is the caller's, to carry its bytes
// by a way of its own. near is this host's address on that way, nil if unknown: a GID with it is preferred.
func Pipe(near net.IP) (link *PipeEnd, carrier net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	defer ours.Close() // the connections have copies
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err == nil {
		if carrier, err = net.FileConn(theirs); err == nil {
			return &PipeEnd{UnixConn: conn.(*net.UnixConn), near: near}, carrier, nil
		}
		conn.Close()
	}
	return nil, nil, fmt.Errorf("cannot use a socket pair: %w", err)
}
