package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/server"
)

func bundledBlockBytes(t *testing.T) uint64 {
	t.Helper()
	m, err := node.OpenModel(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	b, err := node.BlockBytes(config.Default(), m.Config, "float32")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// One request fills nearly every block of the cluster and is answered as by one large instance.
func TestOneRequestFillsTheCluster(t *testing.T) {
	const pool = 40
	cases := []struct {
		instances int
		transport string
		share     float64 // of a pool's blocks that the request takes
	}{{2, "shm", 1.95}, {2, "tcp", 1.95}, {8, "shm", 7.8}, {8, "tcp", 7.8}}
	single := serve(t, "--dtype", "float32", poolFlag(t, 8*pool))
	for _, tc := range cases {
		t.Run(fmt.Sprintf("%d instances over %s", tc.instances, tc.transport), func(t *testing.T) {
			tokens := int(tc.share * pool * 16)
			req := body(prompt(tokens-24, 1), 24)
			p := serve(t, "--dtype", "float32", "--instances", fmt.Sprint(tc.instances), "--transport", tc.transport, poolFlag(t, pool))
			got := p.complete(req)
			if got.usage.Prompt+got.usage.Completion != tokens {
				t.Fatalf("%d + %d tokens instead of %d: %s", got.usage.Prompt, got.usage.Completion, tokens, got.message)
			}
			sameAnswer(t, single.complete(req), got)
			p.eventually("all blocks free", idle)
		})
	}
}

func TestTooLongIsRefusedWithTheLimit(t *testing.T) {
	p := serve(t, "--instances", "2", poolFlag(t, 20), "--dtype", "float32")
	got := p.complete(body(prompt(16*39, 1), 1))
	if got.status != http.StatusBadRequest || !strings.Contains(got.message, fmt.Sprint(39*16)) {
		t.Fatalf("status %d: %s", got.status, got.message)
	}
	if ok := p.complete(body(prompt(16*38, 1), 16)); ok.status != 200 {
		t.Fatalf("what fits got %d: %s", ok.status, ok.message)
	}
}

// More than the cluster holds at once: requests wait, or are preempted and computed again, and all are
// answered as if alone.
func TestCrowdIsServedInTurn(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 400))
	p := serve(t, "--dtype", "float32", "--instances", "2", poolFlag(t, 40))
	const n = 8
	var wg sync.WaitGroup
	got := make([]answer, n)
	for i := range n {
		wg.Add(1)
		go func() { defer wg.Done(); got[i] = p.complete(body(prompt(400+20*i, i), 60)) }()
	}
	wg.Wait()
	for i := range n {
		sameAnswer(t, single.complete(body(prompt(400+20*i, i), 60)), got[i])
	}
	p.eventually("all blocks free", idle)
}

func TestJoin(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 400))
	p := serve(t, "--dtype", "float32", poolFlag(t, 30))
	req := body(prompt(16*45, 1), 16)
	if got := p.complete(req); got.status != http.StatusBadRequest {
		t.Fatalf("one instance took it: %d", got.status)
	}
	log := &process{t: t}
	joined := command("serve", "--join", p.join, "--dtype", "float32", "--threads", "1", poolFlag(t, 30))
	startBeside(t, joined, log)
	p.eventually("two instances", func(v server.ClusterView) bool { return len(v.Instances) == 2 })
	sameAnswer(t, single.complete(req), p.complete(req))
	if err := joined.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := joined.Wait(); err != nil {
		t.Fatalf("the joined instance did not end well: %v\n%s", err, log.logs())
	}
	p.eventually("one instance", func(v server.ClusterView) bool { return len(v.Instances) == 1 })
	if got := p.complete(body(prompt(50, 1), 8)); got.status != 200 {
		t.Fatalf("after the leave: %d %s", got.status, got.message)
	}
	p.logged("a peer has left")
	if strings.Contains(p.logs(), "lost a peer") {
		t.Errorf("an orderly leave looks like a loss:\n%s", p.logs())
	}
}

// Pools of different sizes, also small ones, are one.
func TestJoinWithAnotherPool(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 400))
	p := serve(t, "--dtype", "float32", poolFlag(t, 12))
	startBeside(t, command("serve", "--join", p.join, "--dtype", "float32", "--threads", "1", poolFlag(t, 60)), &process{t: t})
	p.linked(2)
	req := body(prompt(16*65, 1), 16)
	sameAnswer(t, single.complete(req), p.complete(req))
}

// An instance whose device is over ends, with an error, also when it has no request of its own: it leaves the
// cluster, and what comes after it is served.
func TestDeviceIsOver(t *testing.T) {
	p := serve(t, "--dtype", "float32", poolFlag(t, 30))
	h := holdSteps(t, 0) // what starts from here on
	h.release()
	log := &process{t: t}
	joined := command("serve", "--join", p.join, "--dtype", "float32", "--threads", "1", poolFlag(t, 30))
	startBeside(t, joined, log)
	kill := time.AfterFunc(patience, func() { _ = joined.Process.Kill() })
	defer kill.Stop()
	p.eventually("two instances", func(v server.ClusterView) bool { return len(v.Instances) == 2 })
	if got := p.complete(body(prompt(16*45, 1), 16)); got.status != 200 {
		t.Fatalf("both together: %d %s", got.status, got.message)
	}
	h.fail()
	err := joined.Wait()
	if why := "the device failed in work for others: no device any more"; err == nil || joined.ProcessState.ExitCode() != 1 || !strings.Contains(log.logs(), why) {
		t.Fatalf("%v\n%s", err, log.logs())
	}
	p.eventually("one instance", func(v server.ClusterView) bool { return len(v.Instances) == 1 })
	if got := p.complete(body(prompt(50, 1), 8)); got.status != 200 {
		t.Fatalf("after the loss: %d %s", got.status, got.message)
	}
}

// An instance that would run with other limits of a step is refused by the flag's name.
func TestJoinWithOtherLimits(t *testing.T) {
	p := serve(t, "--max-model-len", "1000")
	for _, tc := range []struct{ flag, value, cluster string }{{"--max-num-batched-tokens", "256", "512"}, {"--max-num-seqs", "32", "64"}, {"--max-model-len", "256", "1000"}, {"--quantization", "int8", "none"}} {
		cmd := command("serve", "--join", p.join, "--threads", "1", tc.flag, tc.value)
		kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }) // it was taken in
		out, err := cmd.CombinedOutput()
		kill.Stop()
		message := fmt.Sprintf("cannot join the cluster at "+p.join+": the cluster runs with %s %s, this instance with %s", tc.flag, tc.cluster, tc.value)
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), message) {
			t.Errorf("%s: %v: %s", tc.flag, err, out)
		}
	}
	p.eventually("one instance", func(v server.ClusterView) bool { return len(v.Instances) == 1 })
}

// Who does not ask for another length takes over the cluster's, so that its answers end where those of all do.
func TestJoinTakesOverTheLength(t *testing.T) {
	p := serve(t, "--max-model-len", "100")
	log := &process{t: t}
	startBeside(t, command("serve", "--join", p.join, "--threads", "1"), log)
	p.instances(2)
	startBeside(t, command("serve", "--join", p.join, "--threads", "1", "--max-model-len", "100"), log)
	p.instances(3) // it found no other length than its own
}

// A client that goes away frees its request: in decode, in prefill and in the queue.
func TestClientsThatLeave(t *testing.T) {
	for _, decode := range []bool{false, true} {
		t.Run(fmt.Sprintf("in decode %v", decode), func(t *testing.T) {
			h := holdSteps(t, 0)
			defer h.release()
			p := serve(t, "--instances", "2", "--max-num-seqs", "2", poolFlag(t, 300), "--dtype", "float32")
			ctx, leave := context.WithCancel(context.Background())
			defer leave()
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if _, err := p.post(ctx, "/v1/completions", body(prompt(1500, i), 2000)); err == nil {
						t.Error("an answer came before the client left")
					}
				})
			}
			p.eventually("all are taken, and some run", func(v server.ClusterView) bool {
				return len(v.Requests) == 8 && slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.Running > 0 })
			})
			if decode {
				h.from(1)
				p.eventually("some decode and some wait", func(v server.ClusterView) bool {
					return slices.ContainsFunc(v.Requests, func(r server.RequestPlacement) bool { return r.Tokens > 1500 }) &&
						slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.Waiting > 0 })
				})
			}
			leave()
			wg.Wait()
			h.release()
			p.eventually("all blocks free", idle)
		})
	}
}

func TestQueueLimit(t *testing.T) {
	defer holdSteps(t, 0).release()
	p := serve(t, "--max-num-seqs", "1", "--max-num-waiting", "1", poolFlag(t, 300), "--dtype", "float32")
	ctx, leave := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer leave()
	for i := range 2 {
		wg.Go(func() { _, _ = p.post(ctx, "/v1/completions", body(prompt(100, i), 4600)) })
		p.eventually("the request is taken, and the first one runs", func(v server.ClusterView) bool {
			return len(v.Requests) == i+1 && v.Instances[0].Running == 1
		})
	}
	if got := p.complete(body(prompt(10, 9), 1)); got.status != http.StatusTooManyRequests {
		t.Fatalf("status %d: %s", got.status, got.message)
	}
}

// SIGTERM lets running requests finish and exits 0.
func TestDrain(t *testing.T) {
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--instances", "2", poolFlag(t, 100), "--dtype", "float32", "--drain-timeout", "10m")
	s := p.stream(body(prompt(200, 1), 300))
	s.next()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	poll(t, "no new connections are taken", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	h.release()
	if got := s.rest(); got.status != 200 || got.usage.Completion != 300 || len(got.tokens) != 300 {
		t.Fatalf("the running request got %d with %d tokens: %s", got.status, len(got.tokens), got.message)
	}
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("exit status %d", code)
	}
}

// One request may have more choices than may wait. Another one that comes meanwhile is told to come again.
func TestMoreChoicesThanMayWait(t *testing.T) {
	p := serve(t, "--instances", "2", "--max-num-seqs", "2", "--max-num-waiting", "3", poolFlag(t, 100))
	var all [][]int
	for i := range 60 {
		all = append(all, prompt(20, i))
	}
	many := map[string]any{"prompt": all, "n": 2, "max_tokens": 30, "ignore_eos": true}
	ended := make(chan error, 1)
	go func() {
		got, err := p.post(context.Background(), "/v1/completions", many)
		if err == nil && (got.status != 200 || got.usage.Completion != 120*30) {
			err = fmt.Errorf("status %d, %d tokens: %s", got.status, got.usage.Completion, got.message)
		}
		ended <- err
	}()
	refused := 0
	for {
		select {
		case err := <-ended:
			if err != nil || refused == 0 {
				t.Errorf("%v; others were refused %d times", err, refused)
			}
			p.eventually("all blocks free", idle)
			if got := p.complete(body(prompt(10, 99), 1)); got.status != 200 {
				t.Errorf("after it another request gets %d: %s", got.status, got.message)
			}
			return
		default:
		}
		if got := p.complete(body(prompt(10, 99), 1)); got.status == 429 {
			refused++
		}
	}
}

// Beyond what the model is made for nothing starts, neither a cluster nor what would join one.
func TestLengthBeyondTheModel(t *testing.T) {
	for _, more := range [][]string{{"--port", "0", "--cluster-port", "0"}, {"--join", "127.0.0.1:1"}} {
		cmd := command(append([]string{"serve", "--max-model-len", "16385"}, more...)...)
		kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }) // it started
		out, err := cmd.CombinedOutput()
		kill.Stop()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "cannot use --max-model-len 16385: the model is made for 16384 tokens") {
			t.Errorf("%v: %v: %s", more, err, out)
		}
	}
}

func TestBadFlagsNameTheirSource(t *testing.T) {
	path := t.TempDir() + "/infinite.yaml"
	if err := os.WriteFile(path, []byte("port: 0\nblock-size: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := command("serve", "--config", path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), path+":2:1") {
		t.Fatalf("%v: %s", err, out)
	}
}
