package server

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// stallLimit is how long a client may take nothing of what is sent to it. A stream as a whole may take as
	// long as it likes, so it is no timeout of fasthttp's, which is for a whole answer.
	stallLimit = 60 * time.Second
	stallPiece = 64 << 10 // bytes, of which a slow client has to take each within the limit
	// lingerLimit is how long a client that is still sending has to take its answer and close.
	lingerLimit = time.Second
)

// stallListener accepts connections that give up on clients which do not read.
type stallListener struct {
	net.Listener
	limit time.Duration
}

func (l stallListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &stallConn{Conn: c, limit: l.limit}, nil
}

// stallConn fails a write of which the client takes nothing. It has no ReadFrom, which would go around Write.
type stallConn struct {
	net.Conn
	limit  time.Duration
	linger atomic.Int64 // how long Close waits for a client that is still sending, 0 for none that is
}

// linger says that a request's connection is closed after the answer, though more may come.
func linger(ctx *fasthttp.RequestCtx) {
	if c, ok := ctx.Conn().(*stallConn); ok {
		c.linger.Store(int64(lingerLimit))
	}
}

// Close ends the connection. To close one with bytes that were not read resets it, which can cost the client the
// answer that is on its way: one that lingers is read, to nowhere, until the client has closed as well.
func (c *stallConn) Close() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if limit := c.linger.Load(); ok && limit > 0 && half.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(time.Duration(limit)))
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	return c.Conn.Close()
}

func (c *stallConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), stallPiece)]
		if err = c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
			break
		}
		var m int
		m, err = c.Conn.Write(piece)
		n, b = n+m, b[m:]
	}
	return n, err
}

// SyscallConn is what the watcher polls.
func (c *stallConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.New("cannot watch a connection without a descriptor")
}
