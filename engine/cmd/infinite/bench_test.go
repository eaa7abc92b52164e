package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/loadgen"
)

// figures reads a report.
func figures(t *testing.T, raw []byte) loadgen.Report {
	t.Helper()
	var r loadgen.Report
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return r
}

// counters are the server's own counts.
type counters struct{ requests, prompt, generated int }

func (p *process) counters() counters {
	p.t.Helper()
	return counters{
		requests: p.metric(`infinite_request_success_total{finished_reason="length"}`),
		prompt:   p.metric("infinite_prompt_tokens_total"), generated: p.metric("infinite_generation_tokens_total"),
	}
}

// metric is one of the server's figures.
func (p *process) metric(name string) int {
	p.t.Helper()
	resp, err := http.Get(p.url + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
	if m == nil {
		p.t.Fatalf("no %s in\n%s", name, text)
	}
	x, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return int(x)
}

// A load's sums are what the server counts, over either endpoint, in either form of prompts.
func TestBench(t *testing.T) {
	p := serve(t, "--instances", "2", "--api-key", "secret", "--served-model-name", "small")
	t.Setenv("INFINITE_API_KEY", "secret")
	dataset := filepath.Join(t.TempDir(), "prompts.jsonl")
	if err := os.WriteFile(dataset, []byte(`{"prompt":"What is this?","output_tokens":3}`+"\n"+`{"prompt":"And that?"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name              string
		args              []string
		points, requests  int // requests of a point
		output, input     int // tokens of a point; input 0: not known before
		leastIn, leastOut int
	}{
		{"token ids", []string{"--num-prompts", "9", "--prompt-format", "tokens", "--vocab", "2048", "--input-len", "30", "--prefix-len", "5", "--output-len", "7", "--max-concurrency", "1,4"},
			2, 9, 63, 315, 0, 0},
		{"text", []string{"--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--request-rate", "200"}, 1, 6, 30, 0, 120, 0},
		{"chat", []string{"--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--endpoint", "chat", "--max-concurrency", "3"}, 1, 6, 30, 0, 120, 0},
		{"lengths that vary", []string{"--num-prompts", "8", "--prompt-format", "tokens", "--input-len", "20", "--output-len", "10", "--range-ratio", "0.5"}, 1, 8, 0, 0, 80, 40},
		{"data set", []string{"--dataset", dataset, "--output-len", "4", "--max-concurrency", "1"}, 1, 2, 7, 0, 4, 0},
		{"part of a data set, again and again", []string{"--dataset", dataset, "--num-prompts", "5", "--output-len", "4"}, 1, 5, 17, 0, 10, 0},
	} {
		before := p.counters()
		out, err := command(append([]string{"bench", "--url", p.url + "/v1", "--json", "-", "--strict"}, c.args...)...).Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, out)
		}
		r := figures(t, out)
		after := p.counters()
		var sum counters
		for _, x := range r.Points {
			sum.requests, sum.prompt, sum.generated = sum.requests+x.OK, sum.prompt+x.Input, sum.generated+x.Output
			if x.OK != c.requests || x.Failed+x.Stopped+x.Unsent+x.Uncounted != 0 || c.output > 0 && x.Output != c.output || c.input > 0 && x.Input != c.input ||
				x.Input < c.leastIn || x.Output < c.leastOut || x.Concurrency > 0 && x.Peak > x.Concurrency {
				t.Errorf("%s: %+v", c.name, x)
			}
			for name, y := range map[string]loadgen.Times{"ttft": x.TTFT, "tpot": x.TPOT, "e2el": x.E2EL, "itl": x.ITL} {
				if !slices.IsSorted([]float64{0, y.P50, y.P90, y.P99, y.Max}) || y.Mean <= 0 || y.Mean > y.Max || name != "itl" && y.Count != c.requests {
					t.Errorf("%s: %s is %+v", c.name, name, y)
				}
			}
			if x.TTFT.Mean > x.E2EL.Mean || x.E2EL.Max > 1000*x.Seconds || x.ITL.Count > x.Output-x.OK {
				t.Errorf("%s: %+v", c.name, x)
			}
		}
		if got := (counters{after.requests - before.requests, after.prompt - before.prompt, after.generated - before.generated}); got != sum || len(r.Points) != c.points {
			t.Errorf("%s: the server counts %+v, the report's %d points have %+v", c.name, got, len(r.Points), sum)
		}
		if r.Model != "small" || r.Interrupted || strings.Contains(string(out), "secret") {
			t.Errorf("%s: the report is %s", c.name, out)
		}
	}
	p.benchForPeople()
}

// benchForPeople looks at the tables, at the file beside them, and at the warm-up, which is not counted.
func (p *process) benchForPeople() {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "report.json")
	before := p.counters().requests
	out, err := command("bench", "--url", p.url, "--num-prompts", "4", "--input-len", "10", "--output-len", "3", "--max-concurrency", "1,2", "--warmup", "3",
		"--json", file, "--goodput", "ttft:1h,tpot:1h").Output()
	if sent := p.counters().requests - before; err != nil || sent != 11 {
		p.t.Errorf("%d requests: %v: %s", sent, err, out)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	if r := figures(p.t, raw); len(r.Points) != 2 || r.Points[1].OK != 4 || r.Points[1].Good.Requests != 4 || r.Warmup != 3 {
		p.t.Errorf("the file has %s", raw)
	}
	for _, want := range []string{`(?m)^ *1 +inf +4 +0 `, `(?m)^ *2 +inf +4 +0 `, `(?m)^ *TTFT +1 +inf( +[0-9.]+){5}$`, `(?m)^ *E2EL +2 +inf( +[0-9.]+){5}$`, "good req/s"} {
		if !regexp.MustCompile(want).Match(out) {
			p.t.Errorf("no %s in\n%s", want, out)
		}
	}
	out, err = command("bench", "--url", p.url, "--api-key", "wrong", "--model", "small", "--num-prompts", "2").Output()
	if err == nil || !strings.Contains(string(out), "error, 2 times") || !strings.Contains(string(out), "401") {
		p.t.Errorf("with a wrong key: %v: %s", err, out)
	}
}

// Ctrl-C ends it at once, with what there was.
func TestBenchIsInterrupted(t *testing.T) {
	stalled := make(chan struct{}, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, "data: {\"choices\":[{\"text\":\"x\"}]}\n\n")
		if !strings.Contains(string(body), "quick") {
			_ = http.NewResponseController(w).Flush()
			stalled <- struct{}{}
			<-r.Context().Done()
		}
		fmt.Fprint(w, "data: [DONE]\n\n")
	}))
	defer s.Close()
	dataset := filepath.Join(t.TempDir(), "prompts.jsonl")
	if err := os.WriteFile(dataset, []byte("{\"prompt\":\"quick\"}\n{\"prompt\":\"slow\"}\n{\"prompt\":\"never\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := command("bench", "--url", s.URL, "--model", "m", "--dataset", dataset, "--max-concurrency", "1", "--json", "-")
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	ended := running(t, cmd)
	select {
	case <-stalled:
	case <-time.After(patience):
		t.Fatal("no request came")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var status *exec.ExitError
	if err := soon(t, ended); !errors.As(err, &status) || status.ExitCode() != 1 || !strings.Contains(log.String(), "it was interrupted") {
		t.Errorf("it ended with %v: %s", err, log.String())
	}
	if r := figures(t, out.Bytes()); !r.Interrupted || len(r.Points) != 1 || r.Points[0].OK != 1 || r.Points[0].Stopped != 1 || r.Points[0].Unsent != 1 {
		t.Errorf("the report is %s", out.String())
	}
}

func TestBenchSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want string
		args []string
	}{
		{"cannot ask for the model's name", []string{"--url", "127.0.0.1:1"}},
		{"cannot use --url: it must be like HOST:PORT or http://HOST:PORT\n", []string{"--url", "http://me:word@host"}},
		{`cannot use --max-concurrency: "x" is not a whole number or a list such as 1,4,16`, []string{"--max-concurrency", "x"}},
		{`cannot use --max-concurrency: "1,,2" is not a whole number`, []string{"--max-concurrency", "1,,2"}},
		{`cannot use --num-prompts: "many" is not a whole number`, []string{"--num-prompts", "many"}},
		{`cannot use --seed: "-1" is not a whole number from 0`, []string{"--seed", "-1"}},
		{`cannot use --range-ratio: "half" is not a number such as 0.5`, []string{"--range-ratio", "half"}},
		{`cannot use --timeout: "5" is not a duration such as 500ms or 10s`, []string{"--timeout", "5"}},
		{`cannot use --ignore-eos: "no" is not true or false`, []string{"--ignore-eos=no"}},
		{"cannot use --request-rate", []string{"--request-rate", "1,0"}},
		{"cannot use --goodput", []string{"--goodput", "speed:1s"}},
		{"cannot load the endpoint", []string{"--endpoint", "embeddings"}},
		{"cannot send token ids", []string{"--endpoint", "chat", "--prompt-format", "tokens"}},
		{"cannot send -1 requests at once", []string{"--max-concurrency", "2,-1"}},
		{"cannot read the data set", []string{"--dataset", "/nonexistent"}},
		{"cannot use --dataset", []string{"--dataset", "/dev/null", "--prompt-format", "tokens"}},
		{"without prompts", []string{"--dataset", "/dev/null"}},
		{"cannot ask for the model's name", []string{"--url", "http://127.0.0.1:1"}},
		{"cannot warm up", []string{"--url", "http://127.0.0.1:1", "--model", "m", "--warmup", "1"}},
		{"2 of 2 requests failed", []string{"--url", "http://127.0.0.1:1", "--model", "m", "--num-prompts", "2"}},
	} {
		out, err := command(append([]string{"bench"}, c.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) || strings.Contains(string(out), "word@") || strings.Contains(string(out), "strconv") {
			t.Errorf("%v: %v: %s", c.args, err, out)
		}
	}
}
