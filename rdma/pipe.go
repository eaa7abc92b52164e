package rdma

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// pipeEnd is an end of a Pipe. It is no unix connection to those who ask: what is passed over it is bytes.
type pipeEnd struct {
	*net.UnixConn
	near net.IP
}

// LocalAddr is the address of this host on the network that the bytes travel by.
func (p pipeEnd) LocalAddr() net.Addr { return &net.TCPAddr{IP: p.near} }

// Pipe makes a connection for Choice.Via or Listener.Serve, whose other end is the caller's, to carry its bytes
// by a way of its own. near is this host's address on that way, nil if unknown: a GID with it is preferred.
func Pipe(near net.IP) (link, carrier net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pipe")
		c, err := net.FileConn(f) // a copy
		f.Close()
		if err != nil {
			if ends[0] != nil {
				ends[0].Close()
			} else {
				unix.Close(fds[1])
			}
			return nil, nil, fmt.Errorf("cannot use a socket pair: %w", err)
		}
		ends[i] = c
	}
	return pipeEnd{ends[0].(*net.UnixConn), near}, ends[1], nil
}
