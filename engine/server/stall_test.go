package server

import (
	"bytes"
	"errors"
	"io"
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

// A client that sends on after its answer finds that it can, until it has closed.
func TestLinger(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	_ = client.SetDeadline(time.Now().Add(patience))
	c, err := stallListener{l, patience}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = client.Write([]byte("the beginning of a body")); err != nil {
		t.Fatal(err)
	}
	c.(*stallConn).linger.Store(int64(patience))
	closed := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("no"))
		closed <- errors.Join(err, c.Close())
	}()
	if got, err := io.ReadAll(client); err != nil || string(got) != "no" {
		t.Fatalf("%q %v", got, err)
	}
	for range 64 { // more than the socket holds
		if _, err = client.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-closed:
		t.Fatalf("closed while the client was sending: %v", err)
	default:
	}
	_ = client.Close()
	if err := <-closed; err != nil {
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
