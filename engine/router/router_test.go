package router

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
	"github.com/infinite-llm/infinite/engine/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 2 * time.Minute // far beyond what anything here takes
	secret   = "s"
)

var kinds = []string{server.KindQueueFull, server.KindNoRoom, server.KindPeerLost, server.KindUnavailable, "internal"}

// fakeStream hands out what is sent to ch; a closed ch is the end.
type fakeStream struct {
	ch     chan engine.Event
	waits  chan struct{} // closed once Next began to wait
	closed chan struct{}
	wait   sync.Once
	close  sync.Once
}

func newStream(events ...engine.Event) *fakeStream {
	s := &fakeStream{ch: make(chan engine.Event, len(events)+16), waits: make(chan struct{}), closed: make(chan struct{})}
	for _, ev := range events {
		s.ch <- ev
	}
	return s
}

func (s *fakeStream) Next(ctx context.Context) (engine.Event, error) {
	if len(s.ch) == 0 {
		s.wait.Do(func() { close(s.waits) })
	}
	select {
	case ev, ok := <-s.ch:
		if !ok {
			return engine.Event{}, io.EOF
		}
		return ev, nil
	case <-ctx.Done():
		return engine.Event{}, context.Cause(ctx)
	}
}

func (s *fakeStream) Close() { s.close.Do(func() { close(s.closed) }) }

type submitter func(ctx context.Context, req *engine.Request) (engine.Stream, error)

func (f submitter) Submit(ctx context.Context, req *engine.Request) (engine.Stream, error) {
	return f(ctx, req)
}

// instance serves f, and returns a router and the member to open requests at.
func instance(t *testing.T, f submitter, options ...grpc.ServerOption) (*Router, cluster.Member, *grpc.Server) {
	t.Helper()
	return reporting(t, f, func() uint64 { return 1 }, options...)
}

// reporting is an instance whose next report has that number.
func reporting(t *testing.T, f submitter, nextReport func() uint64, options ...grpc.ServerOption) (*Router, cluster.Member, *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(append(cluster.ServerOptions(secret), options...)...)
	routerpb.RegisterInferenceServer(g, NewInference(f, nextReport))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	t.Cleanup(func() {
		r.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return r, cluster.Member{ID: "b", Address: l.Addr().String()}, g
}

func takes(s engine.Stream) submitter {
	return func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil }
}

func within(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("%s did not happen", what)
	}
}

func timeout(t *testing.T) context.Context {
	ctx, done := context.WithTimeout(context.Background(), patience)
	t.Cleanup(done)
	return ctx
}

func wantKind(t *testing.T, err error, kind string) {
	t.Helper()
	var k interface{ Kind() string }
	if !errors.As(err, &k) || k.Kind() != kind {
		t.Errorf("error %v, want one of kind %s", err, kind)
	}
}

func TestRemoteStream(t *testing.T) {
	lp := engine.TokenLogprob{Token: 5, Logprob: -0.5, Rank: 1, Top: []engine.Alt{{Token: 6, Logprob: -2}}}
	events := []engine.Event{
		{Token: 5, HasToken: true, StopToken: -1, Logprob: &lp, Prompt: []engine.TokenLogprob{{Token: 9, Logprob: -1, Rank: 3}}},
		{Token: 0, HasToken: true, StopToken: -1},
		{Token: 3, HasToken: true, Finish: "stop", StopToken: 3},
	}
	st := newStream(events...)
	close(st.ch)
	var got *engine.Request
	r, m, _ := instance(t, func(_ context.Context, req *engine.Request) (engine.Stream, error) {
		got = req
		return st, nil
	})
	want := &engine.Request{ID: "r", Prompt: []int32{1, 2}, MaxTokens: 7, Logprobs: -1, PromptLogprobs: -1, Arrival: 11, Sampling: batch.Sampling{TopP: 1, Seed: 1 << 63}}
	s, err := r.open(timeout(t), m, want)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, ev := range events {
		e, err := s.Next(timeout(t))
		if err != nil || !reflect.DeepEqual(e, ev) {
			t.Errorf("event %d: %+v %v", i, e, err)
		}
	}
	for range 2 {
		if _, err := s.Next(timeout(t)); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	}
	within(t, "closing", st.closed)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("request %+v, want %+v", got, want)
	}
}

// However long a prompt is, its log probabilities come through: the size of a message does not depend on it.
func TestLongPromptsLogprobs(t *testing.T) {
	top := make([]engine.Alt, batch.MaxTop)
	for i := range top {
		top[i] = engine.Alt{Token: math.MaxInt32 - int32(i), Logprob: -float32(i + 1)}
	}
	for _, tokens := range []int{1, promptPiece, promptPiece + 1, 8 * promptPiece} {
		first := engine.Event{Token: 5, HasToken: true, StopToken: -1, Logprob: &engine.TokenLogprob{Token: 5, Logprob: -1, Rank: 1}}
		for i := range tokens {
			first.Prompt = append(first.Prompt, engine.TokenLogprob{Token: int32(math.MaxInt32 - i), Logprob: -1, Rank: int32(i + 1), Top: top})
		}
		last := engine.Event{Token: 6, HasToken: true, StopToken: -1, Finish: "length"}
		st := newStream(first, last)
		close(st.ch)
		r, m, _ := instance(t, takes(st), grpc.MaxSendMsgSize(1<<20)) // 8 pieces are over 2 MiB
		s, err := r.open(timeout(t), m, &engine.Request{Prompt: make([]int32, tokens+1)})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []engine.Event{first, last} {
			if got, err := s.Next(timeout(t)); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("of %d tokens %d came, token %d, finish %q: %v", tokens, len(got.Prompt), got.Token, got.Finish, err)
			}
		}
		s.Close()
	}
}

// pieces are a call that brings the same message again and again.
type pieces struct {
	grpc.ServerStreamingClient[routerpb.GenerateEvent]
	ev *routerpb.GenerateEvent
}

func (p pieces) Recv() (*routerpb.GenerateEvent, error) { return p.ev, nil }

// What goes on without an end does not take all memory.
func TestPiecesWithoutEnd(t *testing.T) {
	for _, ev := range []*routerpb.GenerateEvent{{More: true}, {More: true, Prompt: []*routerpb.TokenLogprob{{}, {}}}, {Prompt: slices.Repeat([]*routerpb.TokenLogprob{{}}, 102)}} {
		s := &stream{call: pieces{ev: ev}, cancel: func() {}, end: func() {}, instance: "b", prompt: 101}
		_, err := s.Next(timeout(t))
		wantKind(t, err, server.KindPeerLost)
		if _, err = s.Next(timeout(t)); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	}
}

type kindError string

func (k kindError) Error() string { return "failed: " + string(k) }
func (k kindError) Kind() string  { return string(k) }

func TestRefusals(t *testing.T) {
	for _, kind := range kinds {
		r, m, _ := instance(t, func(context.Context, *engine.Request) (engine.Stream, error) { return nil, kindError(kind) })
		_, err := r.open(timeout(t), m, &engine.Request{})
		wantKind(t, err, kind)
		if err.Error() != "failed: "+kind {
			t.Errorf("message %q", err)
		}
	}
	r, m, _ := instance(t, func(context.Context, *engine.Request) (engine.Stream, error) { return nil, errors.New("plain") })
	_, err := r.open(timeout(t), m, &engine.Request{})
	wantKind(t, err, "internal")
}

func TestFailuresMidStream(t *testing.T) {
	for _, kind := range kinds {
		r, m, _ := instance(t, takes(newStream(engine.Event{Token: 1, HasToken: true}, engine.Event{Finish: "error", Err: kindError(kind)})))
		s, err := r.open(timeout(t), m, &engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if ev, err := s.Next(timeout(t)); err != nil || ev.Token != 1 {
			t.Errorf("%+v %v", ev, err)
		}
		ev, err := s.Next(timeout(t))
		if err != nil || ev.Finish != "error" || ev.Err.Error() != "failed: "+kind {
			t.Errorf("%+v %v", ev, err)
		}
		wantKind(t, ev.Err, kind)
		s.Close()
	}
}

// Whoever gives the request up, its stream at the instance is closed.
func TestCancel(t *testing.T) {
	for name, cancel := range map[string]func(s engine.Stream, life context.CancelFunc) error{
		"close":   func(s engine.Stream, _ context.CancelFunc) error { s.Close(); s.Close(); return nil },
		"request": func(_ engine.Stream, life context.CancelFunc) error { life(); return nil },
		"next": func(s engine.Stream, _ context.CancelFunc) error {
			ctx, done := context.WithCancelCause(context.Background())
			why := errors.New("why")
			done(why)
			if _, err := s.Next(ctx); !errors.Is(err, why) {
				return err
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStream()
			r, m, _ := instance(t, takes(st))
			life, end := context.WithCancel(context.Background())
			defer end()
			s, err := r.open(life, m, &engine.Request{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			within(t, "waiting for a token", st.waits)
			if err := cancel(s, end); err != nil {
				t.Errorf("Next: %v", err)
			}
			within(t, "closing", st.closed)
			if _, err := s.Next(timeout(t)); err == nil {
				t.Error("an event after the end")
			}
		})
	}
}

// A client may go away while an instance thinks about its request.
func TestCancelWhileSubmitting(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	r, m, _ := instance(t, func(ctx context.Context, _ *engine.Request) (engine.Stream, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	life, end := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := r.open(life, m, &engine.Request{})
		failed <- err
	}()
	within(t, "Submit", begun)
	end()
	within(t, "the end of Submit", ended)
	if err := <-failed; err == nil {
		t.Error("a request that nobody wants was taken")
	}
}

func TestInstanceDies(t *testing.T) {
	st := newStream(engine.Event{Token: 1, HasToken: true})
	r, m, g := instance(t, takes(st))
	s, err := r.open(timeout(t), m, &engine.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Next(timeout(t)); err != nil {
		t.Fatal(err)
	}
	within(t, "waiting for a token", st.waits)
	g.Stop()
	_, err = s.Next(timeout(t))
	wantKind(t, err, server.KindPeerLost)
	if err != nil && !strings.Contains(err.Error(), "instance b") {
		t.Errorf("%v does not name the instance", err)
	}
	if _, err := s.Next(timeout(t)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	within(t, "closing", st.closed)
	_, err = r.open(timeout(t), m, &engine.Request{})
	wantKind(t, err, server.KindUnavailable)
}

// An engine that ends a stream without saying how is as lost as one that died.
func TestStreamWithoutEnd(t *testing.T) {
	st := newStream(engine.Event{Token: 1, HasToken: true})
	close(st.ch)
	r, m, _ := instance(t, takes(st))
	s, err := r.open(timeout(t), m, &engine.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Next(timeout(t)); err != nil {
		t.Fatal(err)
	}
	_, err = s.Next(timeout(t))
	wantKind(t, err, server.KindPeerLost)
}

func TestWrongSecret(t *testing.T) {
	_, m, _ := instance(t, takes(newStream()))
	r := New(nil, Config{Secret: "other", BlockSize: 16})
	defer r.Close()
	_, err := r.open(timeout(t), m, &engine.Request{})
	wantKind(t, err, server.KindUnavailable)
}
