package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/model/bundled"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// One clock for the Date header, as long as the process lives.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		// A pool's cleaner looks for the pool's end only every ten seconds.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

const (
	modelName = "small"
	eos       = int32(3) // of the bundled model
	vocab     = 2048
	maxLen    = 512
	patience  = 2 * time.Minute // far beyond what anything here takes
)

var loadTokenizer = sync.OnceValues(func() (*tokenizer.Tokenizer, error) { return tokenizer.LoadFS(bundled.FS) })

func testTokenizer(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := loadTokenizer()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// fakeStream hands out what is sent to ch; a closed ch is the end.
type fakeStream struct {
	ch     chan engine.Event
	waits  chan struct{} // closed once Next found nothing and began to wait
	closed chan struct{} // closed by Close
	wait   sync.Once
	close  sync.Once
}

func newFakeStream(events ...engine.Event) *fakeStream {
	s := &fakeStream{ch: make(chan engine.Event, len(events)+16), waits: make(chan struct{}), closed: make(chan struct{})}
	for _, ev := range events {
		s.ch <- ev
	}
	return s
}

// ended is a stream that has events and nothing more.
func ended(events ...engine.Event) *fakeStream {
	s := newFakeStream(events...)
	close(s.ch)
	return s
}

func (s *fakeStream) Next(ctx context.Context) (engine.Event, error) {
	select {
	case ev, ok := <-s.ch:
		if !ok {
			return engine.Event{}, io.EOF
		}
		return ev, nil
	default:
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
	case <-s.closed:
		return engine.Event{}, io.EOF
	}
}

func (s *fakeStream) Close() { s.close.Do(func() { close(s.closed) }) }

// fakeBackend records requests and answers them with script.
type fakeBackend struct {
	mu       sync.Mutex
	requests []*engine.Request
	script   func(ctx context.Context, req *engine.Request) (engine.Stream, error)
	capacity int
	view     *ClusterView
	err      error // of Cluster
}

func (b *fakeBackend) Submit(ctx context.Context, req *engine.Request) (engine.Stream, error) {
	b.mu.Lock()
	b.requests = append(b.requests, req)
	script := b.script
	b.mu.Unlock()
	if script == nil {
		return nil, errors.New("the test has no script")
	}
	return script(ctx, req)
}

func (b *fakeBackend) Capacity() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.capacity
}

func (b *fakeBackend) setScript(f func(context.Context, *engine.Request) (engine.Stream, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script = f
}

func (b *fakeBackend) setError(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *fakeBackend) setCapacity(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.capacity = n
}

func (b *fakeBackend) Cluster(context.Context) (*ClusterView, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	if b.view != nil {
		return b.view, nil
	}
	return &ClusterView{}, nil
}

// last is the request submitted last.
func (b *fakeBackend) last(t testing.TB) *engine.Request {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		t.Fatal("nothing was submitted")
	}
	return b.requests[len(b.requests)-1]
}

func (b *fakeBackend) submitted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.requests)
}

// scripted answers every request with a new stream of the same events.
func scripted(events ...engine.Event) *fakeBackend {
	return &fakeBackend{capacity: 1 << 20, script: func(context.Context, *engine.Request) (engine.Stream, error) {
		return ended(events...), nil
	}}
}

// tokens makes events of ids; the last one ends by length.
func tokens(ids ...int32) []engine.Event {
	out := make([]engine.Event, len(ids))
	for i, id := range ids {
		out[i] = engine.Event{Token: id, HasToken: true, StopToken: -1}
	}
	if len(out) > 0 {
		out[len(out)-1].Finish = "length"
	}
	return out
}

// says makes the events of an answer that ends with EOS.
func says(t testing.TB, text string) []engine.Event {
	events := tokens(append(testTokenizer(t).Encode(text, false), eos)...)
	events[len(events)-1].Finish, events[len(events)-1].StopToken = "stop", eos
	return events
}

// api is a running server and a client of it.
type api struct {
	t      testing.TB
	url    string
	addr   string
	srv    *Server
	client *http.Client
}

func testConfig() Config {
	return Config{
		ModelNames: []string{modelName, "org/alias"}, MaxBodySize: 1 << 16, MaxModelLen: maxLen, Seed: 1,
		Defaults: Defaults{Temperature: 1, TopP: 1, RepetitionPenalty: 1, EOS: []int32{eos}, VocabSize: vocab},
	}
}

func serve(t testing.TB, b Backend, change ...func(*Config)) *api {
	t.Helper()
	return serveWith(t, testTokenizer(t), b, change...)
}

func serveWith(t testing.TB, tok *tokenizer.Tokenizer, b Backend, change ...func(*Config)) *api {
	t.Helper()
	cfg := testConfig()
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg, tok, b)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(l)
	tr := &http.Transport{DisableCompression: true}
	a := &api{t: t, url: "http://" + l.Addr().String(), addr: l.Addr().String(), srv: s, client: &http.Client{Transport: tr, Timeout: 2 * patience}}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		ctx, done := context.WithTimeout(context.Background(), patience)
		defer done()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return a
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

func (a *api) do(method, path, body string, header ...string) reply {
	a.t.Helper()
	req, err := http.NewRequest(method, a.url+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, b}
}

func (a *api) post(path, body string) reply { a.t.Helper(); return a.do("POST", path, body) }

// ok posts and decodes a 200 into into; fields that into does not have are an error.
func (a *api) ok(path, body string, into any) {
	a.t.Helper()
	r := a.post(path, body)
	if r.status != 200 {
		a.t.Fatalf("POST %s %s: %d %s", path, body, r.status, r.body)
	}
	strict(a.t, r.body, into)
}

func strict(t testing.TB, data []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
}

// obj is a JSON body.
type obj map[string]any

func (o obj) String() string {
	b, err := json.Marshal(map[string]any(o))
	if err != nil {
		panic(err)
	}
	return string(b)
}

func within(t testing.TB, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("%s did not happen", what)
	}
}

// json posts and decodes a 200 into into, which need not have all fields.
func (a *api) json(path string, body obj, into any) {
	a.t.Helper()
	r := a.post(path, body.String())
	if r.status != 200 {
		a.t.Fatalf("POST %s %s: %d %s", path, body, r.status, r.body)
	}
	if err := json.Unmarshal(r.body, into); err != nil {
		a.t.Fatalf("%v in %s", err, r.body)
	}
}
