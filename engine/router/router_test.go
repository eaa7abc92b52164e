package router

import (
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
	"github.com/infinite-llm/infinite/engine/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 20 * time.Second // far beyond what anything here takes
	secret   = "s"
)

// list is nil where it is empty, as protobuf has it.
func list[T any](t *rapid.T, name string, g *rapid.Generator[T]) []T {
	l := rapid.SliceOfN(g, 0, 5).Draw(t, name)
	if len(l) == 0 {
		return nil
	}
	return l
}

func drawRequest(t *rapid.T) *engine.Request {
	i32, f32, u32 := rapid.Int32(), rapid.Float32(), rapid.Uint32()
	return &engine.Request{
		ID: rapid.String().Draw(t, "id"), Prompt: list(t, "prompt", i32), StopTokens: list(t, "stop", i32),
		MaxTokens: int(u32.Draw(t, "max")), MinTokens: int(u32.Draw(t, "min")), IgnoreEOS: rapid.Bool().Draw(t, "ignore"),
		Logprobs: rapid.IntRange(-1, 20).Draw(t, "logprobs"), PromptLogprobs: rapid.IntRange(-1, 20).Draw(t, "prompt logprobs"),
		Arrival: rapid.Uint64().Draw(t, "arrival"),
		Bias: list(t, "bias", rapid.Custom(func(t *rapid.T) batch.Bias {
			return batch.Bias{Token: i32.Draw(t, "token"), Value: f32.Draw(t, "value")}
		})),
		Sampling: batch.Sampling{
			Temperature: f32.Draw(t, "temperature"), TopP: f32.Draw(t, "top_p"), MinP: f32.Draw(t, "min_p"), Repetition: f32.Draw(t, "repetition"),
			Presence: f32.Draw(t, "presence"), Frequency: f32.Draw(t, "frequency"), TopK: i32.Draw(t, "top_k"), Seed: rapid.Uint64().Draw(t, "seed"),
		},
	}
}

func drawLogprob(t *rapid.T) engine.TokenLogprob {
	return engine.TokenLogprob{
		Token: rapid.Int32().Draw(t, "token"), Logprob: rapid.Float32().Draw(t, "logprob"), Rank: rapid.Int32().Draw(t, "rank"),
		Top: list(t, "top", rapid.Custom(func(t *rapid.T) engine.Alt {
			return engine.Alt{Token: rapid.Int32().Draw(t, "alternative"), Logprob: rapid.Float32().Draw(t, "its")}
		})),
	}
}

// wire sends a message through its encoding.
func wire[M proto.Message](t *rapid.T, m, into M) M {
	b, err := proto.Marshal(m)
	if err == nil {
		err = proto.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
	return into
}

func TestRequestSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		if got := requestFromPB(wire(t, toPB(r), &routerpb.GenerateRequest{})); !reflect.DeepEqual(got, r) {
			t.Fatalf("got  %+v\nwant %+v", got, r)
		}
	})
	// Every field is drawn: a new one has to be sent too.
	if a, b := reflect.TypeFor[engine.Request]().NumField(), 11; a != b {
		t.Errorf("a request has %d fields, this test knows %d", a, b)
	}
	if a, b := reflect.TypeFor[batch.Sampling]().NumField(), 9; a != b {
		t.Errorf("sampling has %d fields, this test knows %d", a, b)
	}
}

func TestEventSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ev := engine.Event{
			Token: rapid.Int32().Draw(t, "token"), HasToken: rapid.Bool().Draw(t, "has"), StopToken: rapid.Int32Min(-1).Draw(t, "stop"),
			Finish: rapid.SampledFrom([]string{"", "stop", "length", "error", "abort"}).Draw(t, "finish"), Prompt: list(t, "prompt", rapid.Custom(drawLogprob)),
		}
		for range rapid.IntRange(0, 3).Draw(t, "spans") {
			ev.Spans = append(ev.Spans, engine.SpanInfo{Instance: rapid.StringN(1, 9, 9).Draw(t, "instance"), Blocks: rapid.IntRange(0, 1<<30).Draw(t, "blocks")})
		}
		if rapid.Bool().Draw(t, "logprob") {
			lp := drawLogprob(t)
			ev.Logprob = &lp
		}
		if rapid.Bool().Draw(t, "failed") {
			ev.Err = &Error{rapid.SampledFrom(kinds).Draw(t, "kind"), "x" + rapid.String().Draw(t, "message")}
		}
		if got := eventFromPB(wire(t, eventToPB(ev), &routerpb.GenerateEvent{}), "i0"); !reflect.DeepEqual(got, ev) {
			t.Fatalf("got  %+v\nwant %+v", got, ev)
		}
	})
	if a, b := reflect.TypeFor[engine.Event]().NumField(), 8; a != b {
		t.Errorf("an event has %d fields, this test knows %d", a, b)
	}
}

// What peers send is not trusted: any message makes a request or an event.
func TestEmptyMessages(t *testing.T) {
	if r := requestFromPB(&routerpb.GenerateRequest{}); len(r.Prompt) != 0 {
		t.Errorf("%+v", r)
	}
	if ev := eventFromPB(&routerpb.GenerateEvent{Prompt: []*routerpb.TokenLogprob{{}}, Logprob: &routerpb.TokenLogprob{}}, ""); len(ev.Prompt) != 1 {
		t.Errorf("%+v", ev)
	}
	// The home names its own blocks by nothing; the router knows its name.
	if ev := eventFromPB(&routerpb.GenerateEvent{Spans: []*routerpb.Span{{Instance: "i1", Blocks: 2}, {Blocks: 3}}}, "i0"); !reflect.DeepEqual(ev.Spans, []engine.SpanInfo{{Instance: "i1", Blocks: 2}, {Instance: "i0", Blocks: 3}}) {
		t.Errorf("%+v", ev.Spans)
	}
}

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
func instance(t *testing.T, f submitter) (*Router, cluster.Member, *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(cluster.ServerOptions(secret)...)
	routerpb.RegisterInferenceServer(g, NewInference(f))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	r := New(nil, secret, 16)
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
	r := New(nil, "other", 16)
	defer r.Close()
	_, err := r.open(timeout(t), m, &engine.Request{})
	wantKind(t, err, server.KindUnavailable)
}

func TestStamps(t *testing.T) {
	r := New(nil, secret, 16)
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := uint64(0)
			for range 500 {
				n := r.stamp()
				mu.Lock()
				if n <= last || seen[n] {
					t.Errorf("%d after %d", n, last)
				}
				seen[n] = true
				mu.Unlock()
				last = n
			}
		})
	}
	wg.Wait()
}
