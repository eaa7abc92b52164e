package loadgen

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// asked is a request as a server reads it.
type asked struct {
	Model     string
	Prompt    json.RawMessage
	Messages  []struct{ Role, Content string }
	MaxTokens int  `json:"max_tokens"`
	IgnoreEOS bool `json:"ignore_eos"`
	Stream    bool
	Options   struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`

	path string
	at   time.Duration // since the fake was made
}

// fakeServer is a transport whose answers take exact times of a fake clock: TTFT 10 ms, 5 ms for each further
// chunk.
type fakeServer struct {
	mu           sync.Mutex
	begun        time.Time
	asked        []asked
	flying, most int
	perChunk     int  // tokens
	noUsage      bool // does not count
	fail         func(n int) (status int, body string)
}

func newFake() *fakeServer { return &fakeServer{begun: time.Now(), perChunk: 1} }

func (f *fakeServer) RoundTrip(req *http.Request) (*http.Response, error) {
	var q asked
	if err := json.NewDecoder(req.Body).Decode(&q); err != nil {
		return nil, err
	}
	f.mu.Lock()
	q.path, q.at = req.URL.Path, time.Since(f.begun)
	f.asked = append(f.asked, q)
	n := len(f.asked)
	f.flying++
	f.most = max(f.most, f.flying)
	f.mu.Unlock()
	r, w := io.Pipe()
	resp := &http.Response{StatusCode: 200, Body: r, Request: req}
	if f.fail != nil {
		if status, body := f.fail(n); status != 0 {
			f.land()
			resp.StatusCode, resp.Body = status, io.NopCloser(strings.NewReader(body))
			return resp, nil
		}
	}
	go func() {
		stop := context.AfterFunc(req.Context(), func() { _ = w.CloseWithError(req.Context().Err()) })
		defer stop()
		f.write(w, q)
		f.land()
		_ = w.Close()
	}()
	return resp, nil
}

func (f *fakeServer) land() {
	f.mu.Lock()
	f.flying--
	f.mu.Unlock()
}

func (f *fakeServer) write(w io.Writer, q asked) {
	pause := 10 * time.Millisecond
	for sent := 0; sent < q.MaxTokens; sent += f.perChunk {
		time.Sleep(pause)
		pause = 5 * time.Millisecond
		if _, err := fmt.Fprintf(w, "data: {\"choices\":[{\"text\":\"x\"}]}\n\n"); err != nil {
			return
		}
	}
	if !f.noUsage {
		fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":%d}}\n\n", q.MaxTokens)
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// options of a small load on transport.
func options(transport http.RoundTripper, loads ...Load) Options {
	return Options{
		URL: "http://fake", Model: "m", Endpoint: Completions, Requests: 6, IgnoreEOS: true, Timeout: time.Minute, Loads: loads,
		Shape: Shape{Format: Text, Input: 8, Output: 5, Vocab: 100}, Transport: transport,
	}
}

// run is for tests under a fake clock. It lets the server's goroutines end too.
func run(t *testing.T, ctx context.Context, o Options) *Report {
	t.Helper()
	r, err := Run(ctx, o)
	time.Sleep(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
