// Package linkbench measures a link between two processes as instances have them: round trips and bandwidth
// over a sweep of sizes.
//
//	linkbench.go   the end that measures
//	serve.go       the end that answers
//	second.go      a second process of this program on this host, to answer
//	wire.go        what the two tell each other
//	report.go      figures of the rounds; the table
//
// The loops that are timed are C's (csrc/transport/bench.c): no Go runs in them.
package linkbench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

// What can be measured.
const (
	Latency   = "latency"
	Bandwidth = "bandwidth"
	Puts      = "puts"
)

const (
	// MaxBytes is the largest message.
	MaxBytes = 64 << 20
	// MaxRounds bounds Options.Rounds: each round's time is kept.
	MaxRounds = 10_000_000
	// defaultRounds is the most that a duration gets.
	defaultRounds = 1 << 20
	warmupRounds  = 100
	// DefaultSlots of a link: enough to keep the wire busy.
	DefaultSlots = 16
	maxSlots     = 64
	slotUnit     = 64
)

// Options is what to measure, and how.
type Options struct {
	Cluster, Secret string
	Link            rdma.Choice
	Sizes           []uint64      // bytes of a message
	Measure         []string      // empty: all that the link can do
	Rounds          uint64        // of round trips, and messages of a bandwidth; 0: as many as fit Duration
	Duration        time.Duration // longest for each
	Waits           bool          // both ends sleep between messages; else both poll
	Slots           uint32
	Silence         time.Duration // longest wait for the other end
}

// Check says what of the options makes no sense.
func (o *Options) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Sizes) == 0 {
		bad("cannot measure no sizes")
	}
	for _, n := range o.Sizes {
		if n < 1 || n > MaxBytes {
			bad("cannot measure messages of %d bytes, only of 1 to %d", n, MaxBytes)
		}
	}
	for _, what := range o.Measure {
		if kinds[what] == 0 {
			bad("cannot measure %q, which is none of %s, %s, %s", what, Latency, Bandwidth, Puts)
		}
	}
	if o.Rounds > MaxRounds {
		bad("cannot measure %d rounds, at most %d", o.Rounds, MaxRounds)
	}
	if o.Duration < time.Millisecond || o.Duration > 10*time.Minute {
		bad("cannot measure for %s, which is not between 1 ms and 10 min", o.Duration)
	}
	if o.Slots < 2 || o.Slots > maxSlots {
		bad("cannot use %d slots, only 2 to %d", o.Slots, maxSlots)
	}
	return errors.Join(errs...)
}

var kinds = map[string]rdma.BenchKind{Latency: rdma.BenchLatency, Bandwidth: rdma.BenchBandwidth, Puts: rdma.BenchPuts}

// Measure opens a link to the end that listens at address (host:port) and measures it.
func Measure(ctx context.Context, address string, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	remote, err := meet(ctx, address)
	if err != nil {
		return nil, err
	}
	slot := max(slices.Max(o.Sizes), maxNote)
	shape := rdma.Shape{Slots: o.Slots, SlotBytes: (slot + slotUnit - 1) / slotUnit * slotUnit}
	local := rdma.Identity{ClusterID: o.Cluster, Instance: clientName, Process: rand.Text(), Secret: o.Secret}
	link, info, err := rdma.Dial(ctx, local, remote, rdma.LaneQuery, shape, o.Link)
	if err != nil {
		return nil, err
	}
	if info.FellBack {
		slog.Warn("the transport is not the best one", "transport", info.Transport, "reason", info.Reason)
	}
	s := sweep{session: session{link: link}, options: &o, copies: info.Transport == rdma.SHM}
	defer func() { _ = s.close() }()
	report := &Report{
		Transport: info.Transport, Reason: info.Reason, Device: info.Device, Peer: address, Ends: "poll",
		Copies: s.copies, Slots: shape.Slots, SlotBytes: shape.SlotBytes,
	}
	if o.Waits {
		report.Ends = "wait"
	}
	if report.Results, err = s.run(ctx); err != nil {
		return nil, fmt.Errorf("cannot measure the %s link to %s: %w", info.Transport, address, err)
	}
	return report, nil
}

// sweep is one client's measurements over a link.
type sweep struct {
	session
	options *Options
	copies  bool // else nothing would move the bytes
	samples []int64
}

func (s *sweep) run(ctx context.Context) ([]Result, error) {
	measure := s.options.Measure
	all := len(measure) == 0
	if all {
		measure = []string{Latency, Bandwidth, Puts}
	}
	var results []Result
	for _, bytes := range s.options.Sizes {
		r := Result{Bytes: bytes}
		for _, what := range measure {
			err := s.one(ctx, what, &r)
			var no *cannotError
			if all && what == Puts && errors.As(err, &no) {
				level := slog.LevelWarn
				if errors.Is(err, rdma.ErrUnsupported) {
					level = slog.LevelDebug
				}
				slog.Log(ctx, level, "puts are left out", "reason", err)
				measure = measure[:len(measure)-1]
			} else if err != nil {
				return nil, fmt.Errorf("%s of %d bytes: %w", what, bytes, err)
			}
		}
		results = append(results, r)
	}
	// The other end may be gone before its answer is read: everything is measured.
	if _, err := s.ask(ctx, request{Measure: farewell}); err != nil {
		slog.Debug("the other end did not say farewell", "error", err)
	}
	return results, nil
}

// cannotError is why a measurement did not begin; the next one may.
type cannotError struct{ err error }

func (e *cannotError) Error() string { return e.err.Error() }
func (e *cannotError) Unwrap() error { return e.err }

// one measures one thing for one size.
func (s *sweep) one(ctx context.Context, what string, r *Result) error {
	q := request{Measure: what, Bytes: r.Bytes, Rounds: s.options.Rounds, Warmup: warmupRounds, Waits: s.options.Waits, Copies: s.copies}
	if what != Latency {
		q.Warmup = 2 * uint64(s.options.Slots)
	}
	if q.Rounds == 0 {
		q.Rounds = maxWireRounds
		if what == Latency {
			q.Rounds = defaultRounds
		}
	}
	q.Warmup = min(q.Warmup, q.Rounds)
	if what == Puts {
		if err := s.openMemory(); err != nil {
			return &cannotError{err}
		}
	}
	if what == Latency && s.samples == nil {
		s.samples = make([]int64, q.Rounds)
	}
	answer, err := s.ask(ctx, q)
	if err != nil {
		return err
	}
	if answer.Unsupported {
		return &cannotError{fmt.Errorf("the other end: %s: %w", answer.Error, rdma.ErrUnsupported)}
	}
	if answer.Error != "" {
		return &cannotError{fmt.Errorf("the other end: %s", answer.Error)}
	}
	b := q.bench(s.options.Silence)
	b.Duration = s.options.Duration
	got, err := s.link.Bench(ctx, b, s.samples)
	if err != nil {
		return err
	}
	switch what {
	case Latency:
		r.Latency = newRoundTrips(s.samples[:got.Rounds])
	case Bandwidth:
		r.Bandwidth = newRate(r.Bytes, got)
	case Puts:
		r.Puts = newRate(r.Bytes, got)
	}
	return nil
}

// ask sends a request and returns the answer.
func (s *sweep) ask(ctx context.Context, q request) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.options.Silence, errSilent)
	defer cancel()
	var a answer
	if err := send(ctx, s.link, q); err != nil {
		return a, err
	}
	return a, receive(ctx, s.link, &a)
}
