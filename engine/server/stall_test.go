package server

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// A client that takes nothing is given up; one that takes little at a time is not.
func TestStalledClient(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	c := &stallConn{Conn: here, limit: 50 * time.Millisecond}
	if n, err := c.Write([]byte("hello")); !errors.Is(err, os.ErrDeadlineExceeded) || n != 0 {
		t.Fatalf("wrote %d bytes to a client that does not read: %v", n, err)
	}
	c.limit = time.Minute
	sent := bytes.Repeat([]byte("x"), 3*stallPiece+17)
	done := make(chan error, 1)
	go func() {
		n, err := c.Write(sent)
		if n != len(sent) {
			err = errors.Join(err, errors.New("a short write"))
		}
		done <- errors.Join(err, here.Close())
	}()
	var got bytes.Buffer
	if _, err := got.ReadFrom(there); err != nil || !bytes.Equal(got.Bytes(), sent) {
		t.Fatalf("%d of %d bytes came: %v", got.Len(), len(sent), err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Over a real connection, through the listener: what fills the socket's buffers and is not read fails.
func TestStalledSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := stallListener{l, 100 * time.Millisecond}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err = c.(*stallConn).SyscallConn(); err != nil {
		t.Fatal(err)
	}
	for range 1 << 10 {
		if _, err = c.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a gigabyte went to a client that does not read: %v", err)
	}
}
