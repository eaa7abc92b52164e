package lan

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// guest is a network card: its number is its address.
type guest struct {
	t      *testing.T
	number byte
	conn   net.Conn
}

func plug(t *testing.T, path string, number byte) *guest {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &guest{t, number, conn}
}

const broadcast = 255

func (g *guest) send(to byte, text string) {
	g.t.Helper()
	mac := append(prefix[:len(prefix):len(prefix)], to)
	if to == broadcast {
		mac = []byte{255, 255, 255, 255, 255, 255}
	}
	frame := append(append(append(mac, prefix[:]...), g.number, 0x08, 0), text...)
	if _, err := g.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) hears(want string) {
	g.t.Helper()
	_ = g.conn.SetReadDeadline(time.Now().Add(time.Minute))
	frame, err := read(g.conn)
	if err != nil || string(frame[18:]) != want {
		g.t.Fatalf("guest %d heard %q, %v instead of %q", g.number, frame, err, want)
	}
}

// Frames go to whom they are for, in order. A guest that is cut off hears and says nothing, until it is back; one that
// has stopped holds nobody up; one that is started anew has its number again.
func TestSwitch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lan")
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	a, b, c := plug(t, path, 0), plug(t, path, 1), plug(t, path, 2)
	for plugged := 0; plugged < 3; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		plugged = len(s.ports)
		s.mu.Unlock()
	}
	b.send(broadcast, "b is here")
	a.hears("b is here")
	c.hears("b is here")
	c.send(broadcast, "c is here")
	a.hears("c is here")
	b.hears("c is here")
	a.send(1, "to b")
	a.send(2, "to c")
	b.hears("to b")
	c.hears("to c")

	s.Cut(1, true)
	a.send(1, "lost")
	b.send(0, "lost, too")
	b.send(broadcast, "and this")
	a.send(2, "c hears on")
	c.hears("c hears on")
	for s.Lost() < 4 { // one to b, one to a, and one to both others
		time.Sleep(time.Millisecond)
	}
	s.Cut(1, false)
	b.send(0, "back")
	a.hears("back")
	a.send(1, "welcome")
	b.hears("welcome")

	// b stops reading.
	for range 2 * queued {
		a.send(1, "flood")
	}
	a.send(2, "still here")
	c.hears("still here")
	if s.Lost() == 4 {
		t.Error("a guest that does not read lost nothing")
	}
	_ = b.conn.Close()
	b = plug(t, path, 1)
	b.send(0, "anew")
	a.hears("anew")
	a.send(1, "hello again")
	b.hears("hello again")
}
