package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/infinite-llm/infinite/engine/head"
)

// cutLimit bounds the time that a process takes to end in order once nobody waits any more: clients have 2 s to hear of it,
// instances 1 s, and etcd another.
const cutLimit = 6 * time.Second

// oneStop is how long after a signal another one is the same request to end: `timeout` sends it to its child and to the
// child's group, killall and systemd to a head and to its instances, which the head tells as well.
const oneStop = time.Second

type endingKey struct{}

// ending is how a command ends by signals.
type ending struct {
	drains atomic.Bool
	hurry  context.Context
	// child: of a head, which sends SIGTERM and, when nobody waits any more, SIGINT. Others may have sent SIGTERM as well.
	child bool
	// failed is closed when the process cannot go on, and drains without a signal.
	failed chan struct{}
}

// untilSignal is a context that the first Ctrl-C or SIGTERM ends. The next one then ends the process as if nobody
// listened, unless the command drains.
func untilSignal(ctx context.Context) context.Context {
	hurry, cut := context.WithCancel(ctx)
	e := &ending{hurry: hurry, child: head.IsChild(), failed: make(chan struct{})}
	ctx, end := context.WithCancelCause(context.WithValue(ctx, endingKey{}, e))
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		if !e.untilHurry(signals, end) {
			signal.Stop(signals)
			return
		}
		cut()
		time.Sleep(oneStop)
		if !e.child { // which its head kills
			signal.Stop(signals)
		}
		time.Sleep(cutLimit - oneStop)
		slog.Error("cannot end in order", "limit", cutLimit)
		os.Exit(1)
	}()
	return ctx
}

// untilHurry calls end at the first signal, and returns at the second, true if there is something to be cut short. After a
// failure the first one is the second.
func (e *ending) untilHurry(signals <-chan os.Signal, end func(error)) bool {
	var got os.Signal
	var first time.Time
	select {
	case got = <-signals:
		first = time.Now()
		if e.drains.Load() && !e.child { // whose head says so
			slog.Info("draining", "signal", got.String())
		}
		end(fmt.Errorf("told to end: %s", got))
	case <-e.failed:
	}
	if !e.drains.Load() {
		time.Sleep(oneStop)
		return false
	}
	for got = range signals {
		switch {
		case e.child && got == os.Interrupt:
			return true
		case !e.child && time.Since(first) > oneStop:
			slog.Warn("another signal: what still runs is cut short; one more ends this process at once", "signal", got.String())
			return true
		}
	}
	return true
}

// draining says that the command finishes what it has begun after the first signal. What it returns ends with the second.
func draining(ctx context.Context) (hurry context.Context) {
	e, ok := ctx.Value(endingKey{}).(*ending)
	if !ok {
		return context.Background() // of a test
	}
	e.drains.Store(true)
	return e.hurry
}

// failing says that the command drains since it cannot go on.
func failing(ctx context.Context, why error) {
	slog.Error("cannot go on; draining", "why", why)
	if e, ok := ctx.Value(endingKey{}).(*ending); ok {
		close(e.failed)
	}
}
