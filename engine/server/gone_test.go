package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
)

// eventually polls what has no signal of its own.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (a *api) idle() {
	t := a.t.(*testing.T)
	t.Helper()
	eventually(t, "no request in flight", func() bool { return a.counters()["infinite_requests_in_flight"] == "0" })
}

// hangUp posts body and cuts the connection as soon as now is closed.
func (a *api) hangUp(path string, body obj, now <-chan struct{}) {
	a.t.Helper()
	ctx, cut := context.WithCancel(context.Background())
	defer cut()
	req, err := http.NewRequestWithContext(ctx, "POST", a.url+path, strings.NewReader(body.String()))
	if err != nil {
		a.t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		res, err := a.client.Do(req)
		if err == nil {
			_, err = res.Body.Read(make([]byte, 1<<16)) // a stream's header comes at once
			if err == nil {
				_, err = res.Body.Read(make([]byte, 1))
			}
			_ = res.Body.Close()
		}
		failed <- err
	}()
	within(a.t, "the moment to hang up", now)
	cut()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		a.t.Errorf("the client saw %v", err)
	}
}

func TestGoneWhileQueued(t *testing.T) {
	for _, stream := range []bool{false, true} {
		queued, ended := make(chan struct{}), make(chan struct{})
		b := scripted()
		b.setScript(func(ctx context.Context, _ *engine.Request) (engine.Stream, error) {
			close(queued)
			<-ctx.Done()
			close(ended)
			return nil, ctx.Err()
		})
		a := serve(t, b)
		a.hangUp("/v1/completions", obj{"prompt": "a", "stream": stream}, queued)
		within(t, "the end of Submit", ended)
		a.idle()
	}
}

func TestGoneInPrefill(t *testing.T) {
	for _, path := range []string{"/v1/completions", "/v1/chat/completions"} {
		for _, stream := range []bool{false, true} {
			s := newFakeStream()
			b := scripted()
			b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
			a := serve(t, b)
			body := chatBody(obj{"stream": stream, "prompt": "a"})
			a.hangUp(path, body, s.waits)
			within(t, "closing of the stream", s.closed)
			a.idle()
		}
	}
}

func TestGoneMidStream(t *testing.T) {
	streams := []*fakeStream{newFakeStream(), newFakeStream()}
	b := scripted()
	b.setScript(func(_ context.Context, r *engine.Request) (engine.Stream, error) {
		return streams[r.ID[len(r.ID)-1]-'0'], nil
	})
	a := serve(t, b)
	s := a.open("/v1/completions", obj{"prompt": "a", "n": 2})
	streams[0].ch <- engine.Event{Token: testTokenizer(t).Encode("a", false)[0], HasToken: true}
	if c := s.next().text(t); c.Choices[0].Text != "a" {
		t.Fatalf("%+v", c)
	}
	s.close()
	for _, st := range streams {
		within(t, "closing of the stream", st.closed)
	}
	a.idle()
}

// One that went away takes nothing from the next on the same server, and a connection that is kept does not
// cancel its next request.
func TestKeptConnection(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	for range 20 {
		var out completion
		a.ok("/v1/completions", `{"prompt":"a"}`, &out)
		a.chunks("/v1/completions", obj{"prompt": "a"})
	}
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	a.idle()
}

func (a *api) shutdown(limit time.Duration) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		done <- a.srv.Shutdown(ctx)
	}()
	return done
}

func refuses(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return err != nil
}

func TestShutdownWaits(t *testing.T) {
	st := newFakeStream()
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return st, nil })
	a := serve(t, b)
	idle := &http.Client{Transport: &http.Transport{}} // its connection is kept, and holds nobody up
	defer idle.CloseIdleConnections()
	if res, err := idle.Get(a.url + "/v1/models"); err != nil {
		t.Fatal(err)
	} else if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	s := a.open("/v1/completions", obj{"prompt": "a"})
	token := testTokenizer(t).Encode("a", false)[0]
	send := func(finish string) {
		st.ch <- engine.Event{Token: token, HasToken: true, Finish: finish, StopToken: -1}
		if c := s.next().text(t); c.Choices[0].Text != "a" {
			t.Fatalf("%+v", c)
		}
	}
	send("")
	done := a.shutdown(patience)
	eventually(t, "new connections are refused", func() bool { return refuses(a.addr) })
	send("")
	select {
	case err := <-done:
		t.Fatalf("shut down during a stream: %v", err)
	default:
	}
	send("length")
	if more := s.rest(); len(more) != 0 {
		t.Errorf("more: %s", more)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// Requests that take too long are cut, and their clients are told so.
func TestShutdownCuts(t *testing.T) {
	streamed, whole := newFakeStream(), newFakeStream()
	b := scripted()
	b.setScript(func(_ context.Context, r *engine.Request) (engine.Stream, error) {
		if strings.HasPrefix(r.ID, "chat") {
			return streamed, nil
		}
		return whole, nil
	})
	a := serve(t, b)
	s := a.open("/v1/chat/completions", chatBody(nil))
	answer := make(chan reply, 1)
	go func() { answer <- a.post("/v1/completions", `{"prompt":"a"}`) }()
	within(t, "both run", streamed.waits)
	within(t, "both run", whole.waits)
	if err := <-a.shutdown(time.Millisecond); err == nil {
		t.Error("a shutdown that cut requests says nothing of it")
	}
	within(t, "closing", streamed.closed)
	within(t, "closing", whole.closed)
	wantError(t, <-answer, 503, "ServiceUnavailableError", "", "stopping")
	events := s.rest()
	if last := string(events[len(events)-1]); len(events) != 2 || !strings.Contains(last, "stopping") || !strings.Contains(last, "503") {
		t.Errorf("%s", events)
	}
}

func TestShutdownUnused(t *testing.T) {
	a := serve(t, scripted())
	if err := <-a.shutdown(patience); err != nil {
		t.Error(err)
	}
	if !refuses(a.addr) {
		t.Error("it still listens")
	}
}
