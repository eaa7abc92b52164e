package server

import (
	"bytes"
	"context"
	"io"
	"maps"
	"math"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/infinite-llm/infinite/engine"
)

// A browser asks without a key whether a page may use the API; answers of every kind then say so.
func TestOrigins(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), func(c *Config) { c.APIKey = "secret"; c.MaxBodySize = 1000 })
	for _, path := range []string{"/v1/chat/completions", "/v1/models", "/health"} {
		r := a.do("OPTIONS", path, "", "Origin", "http://page", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-stainless-os")
		for k, want := range map[string]string{"Origin": "*", "Headers": "authorization,x-stainless-os", "Methods": "GET, HEAD, POST, DELETE, OPTIONS"} {
			if got := r.header.Get("Access-Control-Allow-" + k); r.status != 200 || got != want {
				t.Errorf("%s: %d, %s %q", path, r.status, k, got)
			}
		}
	}
	key := []string{"Authorization", "Bearer secret", "Origin", "http://page"}
	for _, x := range []struct {
		method, path, body string
		status             int
		header             []string
	}{
		{"POST", "/v1/completions", `{"prompt":"a"}`, 200, key}, {"POST", "/v1/completions", `{"prompt":"a","stream":true}`, 200, key},
		{"POST", "/v1/completions", `{`, 400, key}, {"POST", "/v1/completions", `{}`, 401, nil}, {"GET", "/nothing", ``, 404, key},
		{"DELETE", "/v1/models", ``, 405, key}, {"POST", "/v1/completions", strings.Repeat(" ", 2000), 413, key},
	} {
		r := a.do(x.method, x.path, x.body, x.header...)
		if got := r.header.Get("Access-Control-Allow-Origin"); r.status != x.status || got != "*" {
			t.Errorf("%s %s: %d, allowed %q", x.method, x.path, r.status, got)
		}
	}
}

func TestMethods(t *testing.T) {
	a := serve(t, scripted())
	for _, path := range []string{"/health", "/v1/models", "/v1/models/org/alias", "/metrics", "/cluster"} {
		if r := a.do("HEAD", path, ""); r.status != 200 || len(r.body) != 0 {
			t.Errorf("HEAD %s: %d %q", path, r.status, r.body)
		}
	}
	if r := a.do("HEAD", "/v1/completions", ""); r.status != 405 {
		t.Errorf("HEAD of completions: %d", r.status)
	}
	r := a.do("GET", "/v1/completions", "")
	wantError(t, r, 405, "BadRequestError", "", "GET")
	if allow := r.header.Get("Allow"); !strings.Contains(allow, "POST") {
		t.Errorf("allowed: %q", allow)
	}
	if r = a.do("OPTIONS", "/v1/completions", ""); r.status != 200 || !strings.Contains(r.header.Get("Allow"), "POST") {
		t.Errorf("OPTIONS: %d %q", r.status, r.header.Get("Allow"))
	}
}

// Clients escape what a path may not hold, slashes included.
func TestModelPaths(t *testing.T) {
	a := serve(t, scripted(), func(c *Config) { c.ModelNames = []string{"org/alias", "模型 7%"} })
	for path, want := range map[string]string{"org/alias": "org/alias", "org%2Falias": "org/alias", "%E6%A8%A1%E5%9E%8B%207%25": "模型 7%"} {
		var one modelCard
		if r := a.do("GET", "/v1/models/"+path, ""); r.status != 200 {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		} else if strict(t, r.body, &one); one.ID != want || one.Root != "org/alias" || one.Parent != nil {
			t.Errorf("%s: %+v", path, one)
		}
	}
	wantError(t, a.do("GET", "/v1/models/%E6%A8", ""), 404, "NotFoundError", "model")
}

// What comes out as /health only after dots are resolved is no open path.
func TestKeyAndPaths(t *testing.T) {
	a := serve(t, scripted(), func(c *Config) { c.APIKey = "secret" })
	for _, path := range []string{"/v1/models/../../health", "/v1/../health", "//health", "/health/", "/%68ealth"} {
		if status := a.raw("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"); status != 401 {
			t.Errorf("%s without a key: %d", path, status)
		}
	}
	r := a.do("GET", "/v1/models", "")
	if got := r.header.Get("WWW-Authenticate"); r.status != 401 || got != "Bearer" {
		t.Errorf("%d, asks for %q", r.status, got)
	}
	if r = a.do("GET", "/v1/models", "", "Authorization", "bearer secret"); r.status != 200 {
		t.Errorf("the scheme in lower case: %d", r.status)
	}
}

// raw sends bytes as they are and returns the answer's status.
func (a *api) raw(request string) int {
	a.t.Helper()
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err = c.Write([]byte(request)); err != nil {
		a.t.Fatal(err)
	}
	head := make([]byte, 12)
	if _, err = io.ReadFull(c, head); err != nil {
		a.t.Fatal(err)
	}
	status := 0
	for _, d := range head[9:] {
		status = status*10 + int(d-'0')
	}
	return status
}

// A body is JSON, whatever its header calls it.
func TestContentTypes(t *testing.T) {
	a := serve(t, scripted(tokens(5)...))
	for _, kind := range []string{"", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"} {
		if r := a.do("POST", "/v1/completions", `{"prompt":"a"}`, "Content-Type", kind); r.status != 200 {
			t.Errorf("%s: %d %s", kind, r.status, r.body)
		}
	}
	form := "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n"
	wantError(t, a.do("POST", "/v1/completions", form, "Content-Type", "multipart/form-data; boundary=x"), 400, "BadRequestError", "", "JSON")
}

func TestHeaderSizes(t *testing.T) {
	a := serve(t, scripted())
	for size, want := range map[int]int{100: 200, 12 << 10: 200, 20 << 10: 431} {
		if got := a.raw("GET /health HTTP/1.1\r\nHost: x\r\nCookie: " + strings.Repeat("x", size) + "\r\n\r\n"); got != want {
			t.Errorf("%d bytes: %d, want %d", size, got, want)
		}
	}
	if got := a.raw("hello\r\n\r\n"); got != 400 {
		t.Errorf("no HTTP: %d", got)
	}
}

// The error of a broken request does not repeat its bytes.
func TestBrokenRequest(t *testing.T) {
	a := serve(t, scripted())
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err = c.Write([]byte("GET /health HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || !bytes.Contains(answer, []byte("host")) || bytes.Contains(answer, []byte("secret")) {
		t.Errorf("%v: %s", err, answer)
	}
}

// The time to the first token begins when the request comes in: also what waits for an instance waits.
func TestTimesFromArrival(t *testing.T) {
	const wait = 30 * time.Millisecond
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) {
		time.Sleep(wait)
		events := tokens(5, 6)
		events[0].Queued = wait / 2
		return ended(events...), nil
	})
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":"a"}`, &out)
	got := a.counters()
	observed := map[string]time.Duration{}
	for name, least := range map[string]time.Duration{
		"time_to_first_token": wait, "e2e_request_latency": wait, "request_queue_time": wait / 2, "request_prefill_time": wait / 2,
		"request_decode_time": 0, "request_inference_time": wait / 2,
	} {
		// A histogram's sum of one observation is the observation.
		name = "infinite_" + name + "_seconds"
		seconds, err := strconv.ParseFloat(got[name+"_sum"], 64)
		d := time.Duration(math.Round(seconds * 1e9))
		if err != nil || got[name+"_count"] != "1" || d < least {
			t.Errorf("%s: %v of %s observations, %v", name, d, got[name+"_count"], err)
		}
		observed[name] = d
	}
	sum := observed["infinite_request_queue_time_seconds"] + observed["infinite_request_inference_time_seconds"]
	if e2e := observed["infinite_e2e_request_latency_seconds"]; observed["infinite_request_queue_time_seconds"] != wait/2 || sum > e2e {
		t.Errorf("queue and inference are %v of %v: %v", sum, e2e, observed)
	}
}

// All that asked for completions and got an error is counted, however early; nothing else is.
func TestRefusalsAreCounted(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), func(c *Config) { c.APIKey = "secret"; c.MaxBodySize = 1000 })
	key := []string{"Authorization", "Bearer secret"}
	head := func(path, more string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n" + more + "\r\n"
	}
	long := "Cookie: " + strings.Repeat("x", 20<<10) + "\r\n"
	for _, path := range []string{"/v1/completions", "/v1/chat/completions", "/v1/completions?a=b", "/tokenize", "/v1/models", "/nothing"} {
		a.do("POST", path, `{"prompt":"a"}`)
		a.do("POST", path, `{"prompt":"a","model":"gpt"}`, key...)
		a.do("GET", path, "")
		a.do("GET", path, "", key...)
		a.do("OPTIONS", path, "", "Access-Control-Request-Method", "POST")
		for status, request := range map[int]string{
			413: head(path, "Content-Length: 2000\r\n") + strings.Repeat(" ", 2000),
			431: head(path, long),
			400: head(path, "Content-Length: x\r\n"),
		} {
			if got := a.raw(request); got != status {
				t.Errorf("%s: %d, want %d", path, got, status)
			}
		}
	}
	a.raw("hello\r\n\r\n")
	got := map[string]string{}
	for k, v := range a.counters() {
		if labels, ok := strings.CutPrefix(k, "infinite_request_failures_total"); ok {
			got[labels] = v
		}
	}
	want := map[string]string{`{code="431",path="unknown"}`: "6", `{code="400",path="unknown"}`: "7"} // of whatever path
	for _, status := range []string{"401", "404", "413"} {
		want[`{code="`+status+`",path="/v1/completions"}`] = "2"
		want[`{code="`+status+`",path="/v1/chat/completions"}`] = "1"
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestAbortsAreCounted(t *testing.T) {
	for _, stream := range []bool{false, true} {
		s := newFakeStream()
		b := scripted()
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
		a := serve(t, b)
		a.hangUp("/v1/completions", obj{"prompt": "a", "stream": stream}, s.waits)
		a.idle()
		got := a.counters()
		if n := got[`infinite_request_success_total{finished_reason="abort"}`]; n != "1" {
			t.Errorf("stream %v: %s aborts", stream, n)
		}
		for k := range got {
			if strings.HasPrefix(k, "infinite_request_failures") {
				t.Errorf("stream %v: counted as a failure: %s", stream, k)
			}
		}
	}
}

// The exposition is valid and its names keep Prometheus's conventions.
func TestMetricsFormat(t *testing.T) {
	b := scripted(tokens(5)...)
	b.view = &ClusterView{Instances: []InstanceView{{ID: `i"0\`, KVBlocksTotal: 1}, {ID: "i1"}}}
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":"a"}`, &out)
	r := a.do("GET", "/metrics", "")
	if ct := r.header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Errorf("content type %q", ct)
	}
	problems, err := promlint.New(bytes.NewReader(r.body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A client that closes only its own direction is one that left, but is still told so.
func TestHalfClosed(t *testing.T) {
	s := newFakeStream()
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
	a := serve(t, b)
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	const body = `{"prompt":"a"}`
	if _, err = c.Write([]byte("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n" + body)); err != nil {
		t.Fatal(err)
	}
	within(t, "the request runs", s.waits)
	if err = c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	within(t, "closing of the stream", s.closed)
	answer, err := io.ReadAll(c)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) || !bytes.Contains(answer, []byte("given up")) {
		t.Errorf("%v: %s", err, answer)
	}
}

// Clients that fill all places for requests leave some for a probe.
func TestConnectionsBesideRequests(t *testing.T) {
	for requests, want := range map[int]int{0: 16384, 1088: 16384, 16 * 1088: 34816} {
		cfg := testConfig()
		cfg.MaxRequests = requests
		s, err := New(cfg, testTokenizer(t), scripted())
		if err != nil {
			t.Fatal(err)
		}
		if s.http.Concurrency != want {
			t.Errorf("%d requests: %d connections", requests, s.http.Concurrency)
		}
		s.cancel(nil)
		s.watcher.close()
	}
}
