package rdma

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The probe runs over a fresh link before anyone else uses it: the client sends, the server echoes, and
// an empty message ends it.
const (
	probeRounds    = 20
	probeSmall     = 64      // bytes
	probeLarge     = 1 << 20 // bytes, or the slot if that is smaller
	probeLargeMax  = 3       // rounds
	probeLargeTime = 20 * time.Millisecond
	// probeMessages bounds how long a server echoes.
	probeMessages = probeRounds + probeLargeMax + 1
	probeLimit    = 5 * time.Second
	waitSlice     = 20 * time.Millisecond
)

// Info tells what a link uses, why, and what was measured when it was opened.
type Info struct {
	Transport Transport
	Reason    string
	FellBack  bool   // auto wanted a better transport, which failed or is down now as Reason says
	Rail      int    // of a verbs link
	Device    string // likewise: the RDMA device of this end
	// LatencyP50 is the median round trip of a 64-byte message.
	LatencyP50 time.Duration
	// BandwidthBytesPerSec counts both directions of the best echo of a large message.
	BandwidthBytesPerSec float64
}

var errProbe = errors.New("the peer did not follow the probe")

func (l *Link) send(ctx context.Context, n uint64, fill func([]byte)) error {
	return l.until(ctx, func() (bool, error) { return l.trySend(n, fill) })
}

func (l *Link) receive(ctx context.Context, use func([]byte)) error {
	return l.until(ctx, func() (bool, error) { return l.tryReceive(use) })
}

// until repeats try, sleeping in short slices so that ctx is heeded.
func (l *Link) until(ctx context.Context, try func() (bool, error)) error {
	for {
		if done, err := try(); done || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.wait(waitSlice.Nanoseconds()); err != nil {
			return err
		}
	}
}

func (l *Link) roundTrip(ctx context.Context, n uint64) (time.Duration, error) {
	start := time.Now()
	if err := l.send(ctx, n, func(b []byte) { clear(b) }); err != nil {
		return 0, err
	}
	got := -1
	if err := l.receive(ctx, func(b []byte) { got = len(b) }); err != nil {
		return 0, err
	}
	if got != int(n) {
		return 0, errProbe
	}
	return time.Since(start), nil
}

// probe measures the link from the client's end.
func (l *Link) probe(ctx context.Context, slotBytes uint64, info *Info) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var rounds []time.Duration
	for range probeRounds {
		d, err := l.roundTrip(ctx, probeSmall)
		if err != nil {
			return fmt.Errorf("cannot measure the link: %w", err)
		}
		rounds = append(rounds, d)
	}
	slices.Sort(rounds)
	info.LatencyP50 = rounds[len(rounds)/2]
	large, begun := min(uint64(probeLarge), slotBytes), time.Now()
	for i := 0; i < probeLargeMax && (i == 0 || time.Since(begun) < probeLargeTime); i++ {
		d, err := l.roundTrip(ctx, large)
		if err != nil {
			return fmt.Errorf("cannot measure the link: %w", err)
		}
		info.BandwidthBytesPerSec = max(info.BandwidthBytesPerSec, 2*float64(large)/d.Seconds())
	}
	if err := l.send(ctx, 0, nil); err != nil {
		return fmt.Errorf("cannot measure the link: %w", err)
	}
	return nil
}

// echo is the server's end of probe.
func (l *Link) echo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var copied []byte
	for range probeMessages {
		if err := l.receive(ctx, func(b []byte) { copied = append(copied[:0], b[:min(len(b), probeLarge)]...) }); err != nil {
			return fmt.Errorf("cannot answer the probe: %w", err)
		}
		if len(copied) == 0 {
			return nil
		}
		if err := l.send(ctx, uint64(len(copied)), func(b []byte) { copy(b, copied) }); err != nil {
			return fmt.Errorf("cannot answer the probe: %w", err)
		}
	}
	return errProbe
}
