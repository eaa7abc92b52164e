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

// cutLimit bounds the time that a process takes to end in order once nobody waits any more.
const cutLimit = 4 * time.Second

type endingKey struct{}

// ending is how a command ends by signals.
type ending struct {
	drains atomic.Bool
	hurry  context.Context
}

// untilSignal is a context that the first Ctrl-C or SIGTERM ends. The next one then ends the process as if nobody
// listened, unless the command drains.
func untilSignal(ctx context.Context) context.Context {
	hurry, cut := context.WithCancel(ctx)
	e := &ending{hurry: hurry}
	ctx, end := context.WithCancelCause(context.WithValue(ctx, endingKey{}, e))
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		got := <-signals
		if !e.drains.Load() {
			signal.Stop(signals)
		}
		end(fmt.Errorf("told to end: %s", got))
		if !e.drains.Load() {
			return
		}
		got = <-signals
		signal.Stop(signals)
		if !head.IsChild() { // whose head says so
			slog.Warn("a second signal: what still runs is cut short; a third one ends this process at once", "signal", got.String())
		}
		cut()
		time.Sleep(cutLimit)
		slog.Error("cannot end in order", "limit", cutLimit)
		os.Exit(1)
	}()
	return ctx
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
