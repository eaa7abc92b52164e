package rdma

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
)

// A connection waits while too many shake hands: for one of these to end, for its caller, for the listener.
func TestServeWaits(t *testing.T) {
	l := listen(t)
	pipe := func() (*PipeEnd, net.Conn) {
		t.Helper()
		link, carrier, err := Pipe(nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { carrier.Close() })
		return link, carrier
	}
	greeting := func(carrier net.Conn) error {
		_, err := io.ReadFull(carrier, make([]byte, len(magic)+nonceBytes))
		return err
	}
	var silent []net.Conn
	for len(l.slots) < cap(l.slots) { // the listener's own take two of them
		link, carrier := pipe()
		if err := l.Serve(t.Context(), link); err != nil {
			t.Fatal(err)
		}
		silent = append(silent, carrier)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	link, _ := pipe()
	if err := l.Serve(over, link); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	link, carrier := pipe()
	served := make(chan error, 1)
	go func() { served <- l.Serve(t.Context(), link) }()
	silent[0].Close()
	if err := errors.Join(<-served, greeting(carrier)); err != nil {
		t.Error(err)
	}
	for len(l.slots) < cap(l.slots) {
		link, _ := pipe()
		if err := l.Serve(t.Context(), link); err != nil {
			t.Fatal(err)
		}
	}
	link, _ = pipe()
	go func() { served <- l.Serve(t.Context(), link) }()
	l.Close()
	if err := <-served; err != nil && !errors.Is(err, ErrClosed) { // nil: a silent one's time was over just before
		t.Errorf("error is %v", err)
	}
}

// What the carrier says is why the reader's bytes end; without a word they just end.
func TestPipeReason(t *testing.T) {
	why := errors.New("why")
	for _, c := range []struct{ unread, says bool }{{false, false}, {false, true}, {true, true}} {
		link, carrier, err := Pipe(nil)
		if err != nil {
			t.Fatal(err)
		}
		carrier.Write([]byte("abc"))
		if c.unread {
			link.Write([]byte("x"))
		}
		if c.says {
			link.Fail(why)
			link.Fail(errors.New("later"))
		}
		carrier.Close()
		got, err := io.ReadAll(link)
		link.Close()
		if c.says != (err == why) || !c.says && err != nil || !c.unread && string(got) != "abc" {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
