package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/engine/top"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 2 * time.Minute

// script answers the nth question, from 0 on.
type script func(n int) (top.Sample, error)

type scripted struct {
	answer script
	asked  int
}

func (s *scripted) Ask(ctx context.Context) (top.Sample, error) {
	s.asked++
	return s.answer(s.asked - 1)
}

// sample has an instance that made 10 steps a second since it started.
func sample(n int) top.Sample {
	return top.Sample{At: time.Now(), View: server.ClusterView{GManager: "i0", BlockSize: 16,
		Instances: []server.InstanceView{{ID: "i0", KVBlocksTotal: 10, KVBlocksFree: 5, Steps: uint64(10 * n)}}}, Tokens: &top.Tokens{Generated: 30 * float64(n)}}
}

// writer ends what is shown after so many writes.
type writer struct {
	text bytes.Buffer
	left int
	end  func()
}

func (w *writer) Write(b []byte) (int, error) {
	if w.left--; w.left == 0 {
		w.end()
	}
	return w.text.Write(b)
}

// shown is what Run writes, so often, in virtual time.
func shown(t *testing.T, times int, answer script, o Options) (text string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := &writer{left: times, end: cancel}
		o.Out, o.Width, o.Source, o.Interval = w, 120, "SERVER", time.Second
		err = Run(ctx, &scripted{answer: answer}, o)
		text = w.text.String()
	})
	return text, err
}

// The server is away, says why, and comes back; rates go on over the time between.
func TestAwayAndBack(t *testing.T) {
	text, err := shown(t, 5, func(n int) (top.Sample, error) {
		if n == 2 || n == 3 {
			return top.Sample{}, errors.New("cannot reach\x1b[2J the server")
		}
		return sample(n), nil
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(text, "\n\ninfinite top  SERVER")
	if strings.Count(text, "infinite top") != 5 || strings.Contains(text, "\x1b") {
		t.Fatalf("%d parts: %q", len(parts), text)
	}
	for i, want := range []string{"tokens/s - in, - out", "tokens/s 0 in, 30 out", "cannot reach?[2J the server\n", "cannot reach?[2J the server\n", "tokens/s 0 in, 30 out"} {
		part := strings.Split(text, "infinite top")[i+1]
		if !strings.Contains(part, want) || strings.Contains(part, "cannot") != strings.HasPrefix(want, "cannot") {
			t.Errorf("the text at %d: no %q in\n%s", i, want, part)
		}
	}
}

func TestJSON(t *testing.T) {
	text, err := shown(t, 3, func(n int) (top.Sample, error) {
		if n == 1 {
			return top.Sample{}, errors.New("no <manager>")
		}
		return sample(n), nil
	}, Options{JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], `"error":"no <manager>"`) || strings.Contains(lines[1], "instances") {
		t.Fatalf("%s", text)
	}
	for i, want := range map[int]top.Rate{0: {}, 2: {Value: 10, Known: true}} {
		var f top.Figures
		if err := json.Unmarshal([]byte(lines[i]), &f); err != nil || len(f.Instances) != 1 || f.Instances[0].Steps != want {
			t.Errorf("line %d: %v in %s", i, err, lines[i])
		}
	}
}

// With Once there are two samples, with rates between them.
func TestOnce(t *testing.T) {
	text, err := shown(t, -1, func(n int) (top.Sample, error) { return sample(n), nil }, Options{Once: true})
	if err != nil || strings.Count(text, "infinite top") != 1 || !strings.Contains(text, "30 out") || strings.HasSuffix(text, "\n\n") {
		t.Errorf("%v: %q", err, text)
	}
	for bad := range 2 {
		text, err = shown(t, -1, func(n int) (top.Sample, error) {
			if n == bad {
				return top.Sample{}, errors.New("away")
			}
			return sample(n), nil
		}, Options{Once: true})
		if err == nil || text != "" {
			t.Errorf("away at %d: %v: %q", bad, err, text)
		}
	}
}

// What does not change by asking again ends it; and so does what cannot be written.
func TestItEnds(t *testing.T) {
	for status, ends := range map[int]bool{401: true, 403: true, 503: false, 404: false} {
		text, err := shown(t, 2, func(n int) (top.Sample, error) {
			if n == 1 {
				return top.Sample{}, fmt.Errorf("cannot look: %w", &openai.ServerError{Status: status, Message: "no"})
			}
			return sample(n), nil
		}, Options{})
		if ends != (err != nil) || ends == strings.Contains(text, "cannot look: no") {
			t.Errorf("status %d: %v: %q", status, err, text)
		}
	}
	err := Run(t.Context(), &scripted{answer: func(n int) (top.Sample, error) { return sample(n), nil }}, Options{Out: broken{}, Interval: time.Hour, Width: 80})
	if err == nil || !strings.Contains(err.Error(), "cannot show the cluster: full") {
		t.Errorf("%v", err)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("full") }

// What panics beside the loop panics in it, which has a terminal to restore.
func TestPanicsAreSeen(t *testing.T) {
	defer func() {
		if v := recover(); v != "wrong" {
			t.Errorf("recovered %v", v)
		}
	}()
	_ = Run(t.Context(), &scripted{answer: func(int) (top.Sample, error) { panic("wrong") }}, Options{Interval: time.Hour})
}

// A server is asked with the key, for both; without /metrics there are no rates of tokens, and without /cluster nothing.
func TestAsk(t *testing.T) {
	statuses := map[string]int{"/cluster": 200, "/metrics": 200}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s without the key", r.URL)
		}
		w.WriteHeader(statuses[r.URL.Path])
		switch r.URL.Path {
		case "/cluster":
			_, _ = w.Write([]byte(`{"gmanager":"i7","instances":[{"id":"i7","steps":5,"new_figure":1}]}`))
		case "/metrics":
			_, _ = w.Write([]byte("infinite_generation_tokens_total 4\ninfinite_prompt_tokens_total 3\n"))
		}
	}))
	client := &openai.Client{URL: s.URL, Key: "secret", HTTP: s.Client()}
	t.Cleanup(s.Close)
	ask := func() (top.Sample, error) { return (&Server{client}).Ask(t.Context()) }
	got, err := ask()
	if err != nil || got.View.GManager != "i7" || got.View.Instances[0].Steps != 5 || got.Tokens == nil || *got.Tokens != (top.Tokens{Prompt: 3, Generated: 4}) || got.At.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	statuses["/metrics"] = 404
	if got, err = ask(); err != nil || got.Tokens != nil || got.View.GManager != "i7" {
		t.Errorf("without /metrics: %+v, %v", got, err)
	}
	statuses["/cluster"] = 503
	var told *openai.ServerError
	if _, err = ask(); !errors.As(err, &told) || told.Status != 503 {
		t.Errorf("without /cluster: %v", err)
	}
}
