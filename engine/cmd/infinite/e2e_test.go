package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/plan"
	"github.com/infinite-llm/infinite/engine/server"
)

// The tests run the real program: this test binary starts itself as `infinite`, which starts itself as
// instances.
const (
	childEnv = "INFINITE_TEST_MAIN"
	// emptyRemoteEnv makes instances take every remote partial for the empty span.
	emptyRemoteEnv = "INFINITE_TEST_EMPTY_REMOTE"
	// splitEnv makes instances tell that attention is all that their steps take time for, so that it is worth to split a
	// request with an instance that idles.
	splitEnv = "INFINITE_TEST_SPLIT"
	// deviceEnv lets the instances compute on a GPU, as cuda:0. Without the tag cuda INFINITE_CUDA_LIBRARY must
	// name the kernels.
	deviceEnv = "INFINITE_TEST_DEVICE"
	// patience only bounds a failing test.
	patience = 3 * time.Minute
)

func TestMain(m *testing.M) {
	if address := os.Getenv(agentEnv); address != "" {
		_ = os.Unsetenv(agentEnv)
		os.Exit(agent(address))
	}
	if os.Getenv(childEnv) != "" {
		if os.Getenv(emptyRemoteEnv) != "" {
			node.StepFlags = batch.FlagEmptyRemote
		}
		if os.Getenv(splitEnv) != "" {
			node.StepModel = &plan.Model{Base: 1e6, PerToken: 1e3, PerKV: 1e6, Remote: 1e3}
		}
		if os.Getenv(noMasksEnv) != "" {
			node.StepFlags = batch.FlagNoMasks
		}
		if file := os.Getenv(holdEnv); file != "" {
			node.StepDevice = func(d *device.Device) engine.Device { return heldDevice{d, file} }
		}
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// process is a running `infinite`.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	url   string
	join  string
	mu    sync.Mutex
	log   bytes.Buffer
	ended chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) logs() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, args...)
	// On a slow machine a peer may take long without being lost. Plans are for the tests that ask for them: the others
	// know where blocks lie. Likewise for what takes the place of an instance that was killed, and for prompts that several
	// instances compute.
	cmd.Env = append(os.Environ(), childEnv+"=1", "INFINITE_PEER_TIMEOUT=2m", "INFINITE_REBALANCE_INTERVAL=0", "INFINITE_MAX_RESTARTS=0",
		"INFINITE_PREFILL_CONTEXT_PARALLEL_SIZE=1")
	if device := os.Getenv(deviceEnv); device != "" {
		// A GPU's memory may not be known here, and is shared by all that a test starts.
		cmd.Env = append(cmd.Env, "INFINITE_DEVICE="+device, "INFINITE_KV_CACHE_MEMORY=256MiB")
	}
	return cmd
}

// serve starts a cluster with the bundled model and waits until it answers.
func serve(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: command(append([]string{"serve", "--port", "0", "--cluster-port", "0", "--threads", "1"}, args...)...), ended: make(chan struct{})}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p
	if err = p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for (p.url == "" || p.join == "") && lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "serving on "); ok {
			p.url, _, _ = strings.Cut(rest, " ")
		}
		if _, rest, ok := strings.Cut(lines.Text(), "--join "); ok {
			p.join = strings.TrimSpace(rest)
		}
	}
	go func() {
		_, _ = io.Copy(io.Discard, out)
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(patience):
			_ = p.cmd.Process.Kill()
			<-p.ended
			t.Error("the server did not stop on SIGTERM")
		}
		if t.Failed() {
			t.Logf("server log:\n%s", p.logs())
		}
	})
	if p.url == "" {
		t.Fatalf("the server did not start:\n%s", p.logs())
	}
	return p
}

// poll waits until cond holds. What it waits for must last, or it may be over before it is looked at.
func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never saw: %s", what)
		}
	}
}

// logged waits until the log has a match, since lines come later than what they tell of, and returns its groups.
func (p *process) logged(pattern string) (match []string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	poll(p.t, "in the log: "+pattern, func() bool {
		match = re.FindStringSubmatch(p.logs())
		return match != nil
	})
	return match
}

// pid of an instance, from the log.
func (p *process) pid(instance string) int {
	p.t.Helper()
	n, _ := strconv.Atoi(p.logged(`instance=` + instance + ` pid=(\d+)`)[1])
	return n
}

// eventually waits until the placement map is such, which must last as with poll. While a gManager is elected
// there is no map.
func (p *process) eventually(what string, cond func(v server.ClusterView) bool) {
	p.t.Helper()
	var v server.ClusterView
	var err error
	defer func() {
		if p.t.Failed() {
			p.t.Logf("cluster %+v, %v", v, err)
		}
	}()
	poll(p.t, what, func() bool {
		v = server.ClusterView{}
		err = (&openai.Client{URL: p.url}).Get(context.Background(), "/cluster", &v)
		return err == nil && cond(v)
	})
}

// idle is true when no block is in use anywhere.
func idle(v server.ClusterView) bool {
	for _, in := range v.Instances {
		if in.KVBlocksFree != in.KVBlocksTotal || in.KVBlocksHosted != 0 || in.KVBlocksLent != 0 || in.KVBlocksShared != 0 {
			return false
		}
	}
	return len(v.Requests) == 0 && len(v.Instances) > 0
}

// answer of /v1/completions.
type answer struct {
	status  int
	message string // of an error
	text    string
	tokens  []string
	lps     []float64
	ids     []int // where they were asked for
	finish  string
	cached  int               // tokens of the prompt whose KV was there
	lay     []server.SpanView // where the KV lay, where that was asked for
	usage   struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
	}
}

// add reads a JSON answer, or the next event of one.
func (a *answer) add(data []byte) error {
	var got struct {
		Error struct {
			Message string
			Code    int
		}
		Choices []struct {
			Text     string
			Finish   string            `json:"finish_reason"`
			IDs      []int             `json:"token_ids"`
			Lay      []server.SpanView `json:"kv_placement"`
			Logprobs struct {
				Tokens []string
				Lps    []float64 `json:"token_logprobs"`
			}
		}
		Usage struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Details    struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		return fmt.Errorf("%w in %s", err, data)
	}
	if got.Error.Message != "" {
		a.status, a.message = got.Error.Code, got.Error.Message
	}
	a.usage.Prompt, a.usage.Completion, a.cached = got.Usage.Prompt, got.Usage.Completion, got.Usage.Details.Cached
	if len(got.Choices) > 0 {
		c := got.Choices[0]
		a.text, a.finish, a.ids, a.lay = a.text+c.Text, c.Finish, append(a.ids, c.IDs...), append(a.lay, c.Lay...)
		a.tokens, a.lps = append(a.tokens, c.Logprobs.Tokens...), append(a.lps, c.Logprobs.Lps...)
	}
	return nil
}

func (p *process) send(ctx context.Context, path string, body map[string]any) (*http.Response, error) {
	data, _ := json.Marshal(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

func (p *process) post(ctx context.Context, path string, body map[string]any) (answer, error) {
	resp, err := p.send(ctx, path, body)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode}
	data, err := io.ReadAll(resp.Body)
	if err == nil {
		err = a.add(data)
	}
	return a, err
}

// stream is an answer that comes in events, one a token.
type stream struct {
	t      *testing.T
	body   *bufio.Reader
	answer answer // as far as it was read
}

func (p *process) stream(body map[string]any) *stream {
	p.t.Helper()
	body["stream"], body["stream_options"] = true, map[string]any{"include_usage": true}
	resp, err := p.send(context.Background(), "/v1/completions", body)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = resp.Body.Close() })
	return &stream{p.t, bufio.NewReader(resp.Body), answer{status: resp.StatusCode}}
}

// next waits for the next event; false is the end, [DONE].
func (s *stream) next() bool {
	s.t.Helper()
	line, err := s.body.ReadString('\n')
	data, ok := strings.CutPrefix(line, "data: ")
	if err == nil {
		_, err = s.body.Discard(1) // the blank line
	}
	if data == "[DONE]\n" {
		return false
	}
	if err == nil {
		err = s.answer.add([]byte(data))
	}
	if err != nil || !ok {
		s.t.Fatalf("after %d tokens: %q, %v", len(s.answer.tokens), line, err)
	}
	return true
}

// rest reads on to the end.
func (s *stream) rest() answer {
	s.t.Helper()
	for s.next() {
	}
	return s.answer
}

func (p *process) complete(body map[string]any) answer {
	p.t.Helper()
	a, err := p.post(context.Background(), "/v1/completions", body)
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

// prompt is n token ids, different for every seed, the same in every run.
func prompt(n, seed int) []int {
	out := make([]int, n)
	x := uint32(seed)*2654435761 + 12345
	for i := range out {
		x = x*1664525 + 1013904223
		out[i] = 16 + int(x>>8)%200
	}
	return out
}

func body(tokens []int, max int) map[string]any {
	return map[string]any{"prompt": tokens, "max_tokens": max, "temperature": 0, "ignore_eos": true, "logprobs": 1}
}

// poolFlag sizes pools to exactly so many blocks of 16 tokens of the bundled model.
func poolFlag(t *testing.T, blocks int) string {
	t.Helper()
	return "--kv-cache-memory=" + strconv.FormatUint(uint64(blocks)*bundledBlockBytes(t), 10)
}

// sameAnswer compares tokens exactly and log probabilities to 1e-4.
func sameAnswer(t *testing.T, want, got answer) {
	t.Helper()
	sameWithin(t, 1e-4, want, got)
}

func sameWithin(t *testing.T, most float64, want, got answer) {
	t.Helper()
	if got.status != 200 {
		t.Fatalf("status %d: %s", got.status, got.message)
	}
	if fmt.Sprint(want.tokens) != fmt.Sprint(got.tokens) {
		t.Fatalf("tokens differ:\n%q\n%q", want.tokens, got.tokens)
	}
	for i := range want.lps {
		if d := want.lps[i] - got.lps[i]; math.Abs(d) > most {
			t.Fatalf("log probability %d: %g and %g", i, want.lps[i], got.lps[i])
		}
	}
}
