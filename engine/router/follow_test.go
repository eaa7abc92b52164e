package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/server"
)

// homes are instances that take a request one after the other, and what each was asked.
type homes struct {
	t       *testing.T
	streams []*fakeStream
	stops   []*grpc.Server
	silent  bool // they number no reports, and do not tell that a request begins

	rehomed atomic.Uint64

	mu     sync.Mutex
	asked  []engine.Request
	avoids []string
}

var errNoHome = errors.New("no home is left")

func (h *homes) find(ctx context.Context, req *engine.Request, avoid string) (*stream, error) {
	h.mu.Lock()
	n := len(h.avoids)
	h.avoids = append(h.avoids, avoid)
	h.mu.Unlock()
	if n == len(h.streams) {
		return nil, errNoHome
	}
	r, m, g := reporting(h.t, func(_ context.Context, req *engine.Request) (engine.Stream, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.asked = append(h.asked, *req)
		return h.streams[n], nil
	}, func() uint64 {
		if h.silent {
			return 0
		}
		return 1
	})
	h.stops = append(h.stops, g)
	m.ID = string(rune('a' + n))
	return r.open(ctx, m, req)
}

func token(t int32) engine.Event { return engine.Event{Token: t, HasToken: true, StopToken: -1} }

func (h *homes) follow(req *engine.Request) engine.Stream {
	h.t.Helper()
	s, err := follow(timeout(h.t), req, h.find, &h.rehomed)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Close)
	return s
}

func (h *homes) expect(s engine.Stream, tokens ...int32) {
	h.t.Helper()
	for _, want := range tokens {
		if ev, err := s.Next(timeout(h.t)); err != nil || !ev.HasToken || ev.Token != want {
			h.t.Fatalf("%+v %v instead of token %d", ev, err, want)
		}
	}
}

var stopping = engine.Event{Finish: "abort", Err: engine.ErrStopped}

// However a home is lost, the next one is asked for the rest of the answer, and who reads does not notice.
func TestAnotherHomeGoesOn(t *testing.T) {
	for how, lose := range map[string]func(h *homes){
		"it dies":  func(h *homes) { within(h.t, "waiting for a token", h.streams[0].waits); h.stops[0].Stop() },
		"it stops": func(h *homes) { h.streams[0].ch <- stopping },
		"its device": func(h *homes) {
			h.streams[0].ch <- engine.Event{Finish: "error", Err: kindError(server.KindUnavailable)}
		},
		"no end": func(h *homes) { close(h.streams[0].ch) },
	} {
		t.Run(how, func(t *testing.T) {
			h := &homes{t: t, streams: []*fakeStream{newStream(token(5), token(6)), newStream(token(7), engine.Event{Token: 8, HasToken: true, Finish: "length", StopToken: -1})}}
			req := &engine.Request{ID: "r", Prompt: []int32{1, 2}, MaxTokens: 4, Logprobs: -1, PromptLogprobs: 3, Arrival: 11, Sampling: batch.Sampling{Seed: 9}}
			s := h.follow(req)
			h.expect(s, 5, 6)
			lose(h)
			h.expect(s, 7, 8)
			if _, err := s.Next(timeout(t)); err != io.EOF {
				t.Errorf("after the end: %v", err)
			}
			within(t, "closing", h.streams[0].closed)
			want := *req
			want.Answer, want.Handed = []int32{5, 6}, true
			if h.rehomed.Load() != 1 {
				t.Errorf("%d requests were handed on", h.rehomed.Load())
			}
			if !reflect.DeepEqual(h.asked[1], want) || !reflect.DeepEqual(h.avoids, []string{"", "a"}) {
				t.Errorf("asked %+v, avoiding %q", h.asked[1], h.avoids)
			}
		})
	}
}

// What is the request's own failure, and not its home's, ends it.
func TestFailuresThatAreNoLoss(t *testing.T) {
	for _, kind := range []string{server.KindNoRoom, server.KindPeerLost, server.KindQueueFull, "internal"} {
		h := &homes{t: t, streams: []*fakeStream{newStream(token(5), engine.Event{Finish: "error", Err: kindError(kind)}), newStream(token(6))}}
		s := h.follow(&engine.Request{})
		h.expect(s, 5)
		ev, err := s.Next(timeout(t))
		if err != nil || ev.Finish != "error" {
			t.Fatalf("%+v %v", ev, err)
		}
		wantKind(t, ev.Err, kind)
		if len(h.asked) != 1 {
			t.Errorf("after %s another home was asked", kind)
		}
	}
}

// With nobody to go on the answer ends, and the client may come again.
func TestNoOtherHome(t *testing.T) {
	h := &homes{t: t, streams: []*fakeStream{newStream(token(5))}}
	s := h.follow(&engine.Request{})
	h.expect(s, 5)
	close(h.streams[0].ch)
	_, err := s.Next(timeout(t))
	wantKind(t, err, server.KindUnavailable)
	if err == nil || !strings.Contains(err.Error(), "instance a") || h.rehomed.Load() != 0 {
		t.Errorf("the error is %v", err)
	}
	if _, err = s.Next(timeout(t)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

// A request with which every home fails is not handed on for ever, also if it only waited there; one that gets tokens
// between is, and one whose homes stop, or fail before it was in a step, for longer.
func TestHomesAreLostInARow(t *testing.T) {
	begun := engine.Event{Begun: true, StopToken: -1}
	broken := engine.Event{Finish: "error", Err: kindError(server.KindUnavailable)}
	all := func(events ...engine.Event) [][]engine.Event { return slices.Repeat([][]engine.Event{events}, 20) }
	for _, tc := range []struct {
		name   string
		events [][]engine.Event // of each home, until it fails
		asked  bool             // they tell that it begins
		silent bool             // or would, but do not know how
		lost   int              // homes that may be lost
	}{
		{"they fail", all(begun), true, false, maxFailures},
		{"their devices fail", all(begun, broken), true, false, maxFailures},
		{"it waits, and they fail", all(), true, false, maxUnbegun},
		{"it waits, and their devices fail", all(broken), true, false, maxUnbegun},
		{"it waits or runs, they do not tell", all(), true, true, maxFailures},
		{"it waits here and runs there", [][]engine.Event{{}, {}, {begun}, {}, {begun}, {}}, true, false, 4},
		{"tokens between", all(begun, token(1)), true, false, 20},
		{"tokens between, after it waited", slices.Repeat([][]engine.Event{{}, {}, {begun, token(1)}}, 7)[:20], true, false, 20},
		{"they stop", all(stopping), true, false, maxStops},
		{"it waits or runs, they are not asked", all(), false, false, maxFailures},
	} {
		h := &homes{t: t, silent: tc.silent}
		for _, events := range tc.events {
			st := newStream(events...)
			close(st.ch)
			h.streams = append(h.streams, st)
		}
		h.streams = append(h.streams, newStream(engine.Event{Token: 2, HasToken: true, Finish: "length"}))
		s := h.follow(&engine.Request{MaxTokens: 100, TellBegun: tc.asked})
		var err error
		var ev engine.Event
		for ev, err = s.Next(timeout(t)); err == nil && ev.Finish == ""; ev, err = s.Next(timeout(t)) {
		}
		if (err == nil) != (tc.lost == 20) || len(h.asked) != tc.lost+1 {
			t.Errorf("%s: %d homes, %v", tc.name, len(h.asked), err)
		}
		if want := fmt.Sprintf("it lost %d homes", tc.lost+1); err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", tc.name, err, want)
		}
	}
}

// Whoever gives up while another home is looked for, nothing is left of the request.
func TestCancelBetweenHomes(t *testing.T) {
	for _, how := range []string{"close", "next"} {
		t.Run(how, func(t *testing.T) {
			first := &homes{t: t, streams: []*fakeStream{newStream()}}
			looking := make(chan struct{})
			s, err := follow(timeout(t), &engine.Request{}, func(ctx context.Context, req *engine.Request, avoid string) (*stream, error) {
				if avoid == "" {
					return first.find(ctx, req, avoid)
				}
				close(looking)
				<-ctx.Done()
				return nil, ctx.Err()
			}, &first.rehomed)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			close(first.streams[0].ch)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := s.Next(ctx)
				ended <- err
			}()
			within(t, "looking for another home", looking)
			if how == "close" {
				s.Close()
			} else {
				cancel()
			}
			if err := <-ended; err == nil || how == "next" && !errors.Is(err, context.Canceled) {
				t.Errorf("Next returned %v", err)
			}
			if _, err := s.Next(timeout(t)); err == nil {
				t.Error("an event after the end")
			}
		})
	}
}
