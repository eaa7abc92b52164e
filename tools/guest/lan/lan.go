// Package lan is the network between guests: a switch for Ethernet frames, each guest's QEMU connected by
// -netdev stream. A link that is cut loses every frame and tells nobody, as a switch on the way that lost its
// power: the guests' own ports stay up.
package lan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	maxFrame = 65550
	// queued frames a guest may be behind by before it loses some. A guest that has stopped must not hold up the others.
	// More than all that links have under way, so that one that is only slow loses none: rxe does not take losses well.
	queued = 16384
)

// prefix is that of the guests' addresses; the byte behind it is a guest's number.
var prefix = [5]byte{0x02, 0, 0, 0, 0x77}

// Switch carries frames between guests until Close.
type Switch struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	ports  map[*port]bool
	cut    map[int]bool
	lost   int
	closed bool
}

type port struct {
	conn   net.Conn
	frames chan []byte
	number int // -1 until it has sent
}

// Listen opens the switch at a Unix socket, for run.sh's --lan.
func Listen(path string) (*Switch, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the network: %w", err)
	}
	s := &Switch{listener: l, ports: map[*port]bool{}, cut: map[int]bool{}}
	s.wg.Go(s.accept)
	return s, nil
}

// Cut takes a guest off the network, or brings it back.
func (s *Switch) Cut(number int, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[number] = cut
}

// Lost is how many frames have not come to a guest that they were for.
func (s *Switch) Lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Close ends the network.
func (s *Switch) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for p := range s.ports {
		_ = p.conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func (s *Switch) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		p := &port{conn: conn, frames: make(chan []byte, queued), number: -1}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = conn.Close()
			return
		}
		s.ports[p] = true
		s.wg.Go(func() { s.receive(p) })
		s.wg.Go(func() { p.send() })
		s.mu.Unlock()
	}
}

// receive deals out what a guest sends, until it ends.
func (s *Switch) receive(p *port) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.ports, p)
		close(p.frames)
		_ = p.conn.Close()
	}()
	for {
		frame, err := read(p.conn)
		if err != nil {
			return
		}
		s.deal(p, frame)
	}
}

func (s *Switch) deal(from *port, frame []byte) {
	to := number(frame[4:10])
	s.mu.Lock()
	defer s.mu.Unlock()
	from.number = number(frame[10:16])
	for p := range s.ports {
		// To one of them, or to all: broadcasts, and what nobody has sent from yet.
		if p == from || to >= 0 && p.number >= 0 && p.number != to {
			continue
		}
		if s.cut[from.number] || s.cut[p.number] {
			s.lost++
			continue
		}
		select {
		case p.frames <- frame:
		default:
			s.lost++
		}
	}
}

func (p *port) send() {
	for frame := range p.frames {
		if _, err := p.conn.Write(frame); err != nil {
			_ = p.conn.Close() // ends receive
			for range p.frames {
			}
			return
		}
	}
}

// number of the guest that has an address, -1: none has.
func number(mac []byte) int {
	if [5]byte(mac[:5]) != prefix {
		return -1
	}
	return int(mac[5])
}

// read returns a frame with its length before it, as QEMU sends and takes them.
func read(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 14 || n > maxFrame {
		return nil, errors.New("cannot take a frame of such a length")
	}
	frame := make([]byte, 4+n)
	copy(frame, head[:])
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}
