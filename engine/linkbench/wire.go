package linkbench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

// The listening end tells every connection of its address where its links are to be had, in one line, and
// closes it. The link itself is opened as between instances, which checks the secret. Then the client asks
// over the link for one measurement after another; each is answered, and both ends run it.

const (
	version    = 1
	serverName = "linkbench-server"
	clientName = "linkbench-client"
	farewell   = "farewell" // in place of what to measure: the client has all

	maxNote       = 4096 // bytes of a request or an answer; every slot holds one
	maxPlace      = 16 << 10
	meetLimit     = 5 * time.Second
	maxWireRounds = 1 << 40
)

var errSilent = errors.New("the other end is silent")

// place is where the listening end's links are to be had.
type place struct {
	Version  int           `json:"linkbench"`
	Endpoint rdma.Endpoint `json:"endpoint"`
}

// request is one measurement.
type request struct {
	Measure string `json:"measure"`
	Bytes   uint64 `json:"bytes"`
	Warmup  uint64 `json:"warmup"`
	Rounds  uint64 `json:"rounds"` // at most
	Waits   bool   `json:"waits"`
	Copies  bool   `json:"copies"`
}

type answer struct {
	Error       string `json:"error,omitempty"` // why the server does not take part
	Unsupported bool   `json:"unsupported,omitempty"`
}

// check decides on a request of the other end.
func (q request) check(slotBytes uint64) error {
	switch {
	case kinds[q.Measure] == 0:
		return fmt.Errorf("cannot measure %.20q", q.Measure)
	case q.Bytes < 1 || q.Bytes > min(slotBytes, MaxBytes):
		return fmt.Errorf("cannot measure messages of %d bytes in slots of %d", q.Bytes, slotBytes)
	case q.Rounds < 1 || q.Rounds > maxWireRounds || q.Warmup > maxWireRounds:
		return fmt.Errorf("cannot measure %d rounds after %d", q.Rounds, q.Warmup)
	}
	return nil
}

func (q request) bench(silence time.Duration) rdma.Bench {
	return rdma.Bench{
		Kind: kinds[q.Measure], Bytes: q.Bytes, Warmup: q.Warmup, Rounds: q.Rounds, Waits: q.Waits, Copies: q.Copies, Silence: silence,
	}
}

// meet asks at address where the links are to be had.
func meet(ctx context.Context, address string) (rdma.Endpoint, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return rdma.Endpoint{}, fmt.Errorf("cannot connect to %q, which is not HOST:PORT", address)
	}
	dialer := net.Dialer{Timeout: meetLimit}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return rdma.Endpoint{}, fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(meetLimit))
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(conn, maxPlace))
	if err != nil {
		return rdma.Endpoint{}, fmt.Errorf("cannot hear from %s: %w", address, err)
	}
	var p place
	if err := json.Unmarshal(text, &p); err != nil || p.Version == 0 {
		return rdma.Endpoint{}, fmt.Errorf("cannot understand %s: no linkbench listens there", address)
	}
	if p.Version != version {
		return rdma.Endpoint{}, fmt.Errorf("cannot understand %s: it speaks version %d, this is %d", address, p.Version, version)
	}
	// It need not know by which of its addresses it was reached.
	_, port, err := net.SplitHostPort(p.Endpoint.TCPAddr)
	if err != nil {
		return rdma.Endpoint{}, fmt.Errorf("cannot use the address that %s tells: %w", address, err)
	}
	p.Endpoint.TCPAddr = net.JoinHostPort(host, port)
	return p.Endpoint, nil
}

// session is a link and the memory that is put over it.
type session struct {
	link   *rdma.Link
	memory *rdma.BenchMemory
	failed error // why there is no memory; it is asked for once
}

func (s *session) openMemory() error {
	if s.memory == nil && s.failed == nil {
		s.memory, s.failed = rdma.OpenBenchMemory(s.link, s.link.SlotBytes())
	}
	return s.failed
}

func (s *session) close() error {
	return errors.Join(s.link.Close(), s.memory.Close()) // in this order: the link uses it
}

func send(ctx context.Context, link *rdma.Link, v any) error {
	note, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot write to the other end: %w", err)
	}
	return cause(ctx, link.Send(ctx, note))
}

func receive(ctx context.Context, link *rdma.Link, v any) error {
	note, err := link.Receive(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	d := json.NewDecoder(bytes.NewReader(note))
	d.DisallowUnknownFields()
	if err := d.Decode(v); len(note) > maxNote || err != nil {
		return errors.New("cannot understand the other end")
	}
	return nil
}

// cause names a deadline that passed.
func cause(ctx context.Context, err error) error {
	if err != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}
