package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/server"
)

const (
	// maxFailures is how many homes of a request may fail without a token between and be replaced: what made one of
	// them fail may be the request, and make all fail, one after the other.
	maxFailures = 1
	// maxUnbegun is the same of homes that fail before it was in a step, so that it cannot be why. It has a bound because
	// what ends a process at once may come before the word that the request begins.
	maxUnbegun = 4
	// maxStops is the same of homes that stop in order.
	maxStops = 16
)

// findHome opens a request at an instance, at the one named by avoid only if no other takes it.
type findHome func(ctx context.Context, req *engine.Request, avoid string) (*stream, error)

// followed is a request whose stream outlives its home. When that is gone, or ends the request because it stops or
// its device is over, another instance is asked for the rest: the next token depends on the tokens before it alone,
// since sampling goes by seed and position. Who reads sees a pause.
type followed struct {
	life   context.Context // the request's
	cancel context.CancelFunc
	find   findHome
	req    *engine.Request // its own; Answer is what was read so far
	// rehomed counts, for all requests.
	rehomed *atomic.Uint64
	// Homes lost since the last token, by how.
	failures, unbegun, stops int

	mu     sync.Mutex
	home   *stream
	closed bool
}

func follow(ctx context.Context, req *engine.Request, find findHome, rehomed *atomic.Uint64) (engine.Stream, error) {
	life, cancel := context.WithCancel(ctx)
	home, err := find(life, req, "")
	if err != nil {
		cancel()
		return nil, err
	}
	return &followed{life: life, cancel: cancel, find: find, req: req, rehomed: rehomed, home: home}, nil
}

// Next returns the request's next event. ctx cancels the request.
func (f *followed) Next(ctx context.Context) (engine.Event, error) {
	for {
		home := f.at()
		ev, err := home.Next(ctx)
		why := err
		if ev.Finish == "error" || ev.Finish == "abort" {
			why = ev.Err
		}
		if !f.lost(ctx, why) {
			if ev.HasToken {
				f.req.Answer = append(f.req.Answer, ev.Token)
				f.failures, f.unbegun, f.stops = 0, 0, 0
			}
			return ev, err
		}
		switch {
		case ev.Finish == "abort":
			f.stops++
		case home.begun:
			f.failures++
		default:
			f.unbegun++
		}
		if err = f.goOn(ctx, home, why); err != nil {
			return engine.Event{}, err
		}
	}
}

func (f *followed) at() *stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.home
}

// lost says whether a failure is the home's, and somebody still waits for the answer.
func (f *followed) lost(ctx context.Context, why error) bool {
	if why == nil || why == io.EOF || ctx.Err() != nil || f.life.Err() != nil {
		return false
	}
	var gone *homeLostError
	return errors.As(why, &gone) || kindOf(why) == server.KindUnavailable
}

// goOn finds another home, or says why the request ends.
func (f *followed) goOn(ctx context.Context, old *stream, why error) error {
	old.Close()
	f.req.Handed = true
	if f.failures > maxFailures || f.unbegun > maxUnbegun || f.stops > maxStops {
		return &Error{kindOf(why), fmt.Sprintf("%v; it lost %d homes since its last token", why, f.failures+f.unbegun+f.stops)}
	}
	stop := context.AfterFunc(ctx, f.cancel)
	defer stop()
	next, err := f.find(f.life, f.req, old.instance)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		if next != nil {
			next.Close()
		}
		return err
	}
	if err != nil {
		slog.Warn("a request's home is lost, and no other instance goes on with it", "id", f.req.ID, "from", old.instance, "why", why, "error", err)
		return &Error{server.KindUnavailable, "cannot go on with the request: the instance " + old.instance + " that ran it is gone or stops, and no other one takes it"}
	}
	f.rehomed.Add(1)
	slog.Warn("a request's home is lost; another one goes on with it", "id", f.req.ID, "from", old.instance, "to", next.instance,
		"generated", len(f.req.Answer), "why", why)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.home = next; f.closed {
		next.Close() // it was asked for while nobody wanted it any more
	}
	return nil
}

// Close cancels the request if it goes on.
func (f *followed) Close() {
	f.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.home.Close()
}

// homeLostError says that the instance that ran a request is gone.
type homeLostError struct {
	instance string
	cause    error
}

func (e *homeLostError) Error() string {
	return fmt.Sprintf("the instance %s that ran this request is gone: %v", e.instance, e.cause)
}

// Kind is the API's kind of error.
func (e *homeLostError) Kind() string { return server.KindPeerLost }
