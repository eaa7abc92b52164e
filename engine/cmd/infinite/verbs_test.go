package main

import (
	"bufio"
	"context"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/rdma"
)

// verbsCluster starts three instances that talk over verbs, each on an RDMA device of its own, so that
// every packet crosses a wire. It needs three devices: the guest with Soft-RoCE has them. A reference model
// is small enough for its emulated CPU.
func verbsCluster(t *testing.T, r *reference, blocks int) (p *process, joined map[string]*exec.Cmd) {
	t.Helper()
	ports, err := rdma.VerbsPorts(rdma.VerbsConfig{}, nil)
	if len(ports) < 3 {
		t.Skipf("%d RDMA ports are usable, three are needed: %v", len(ports), err)
	}
	args := func(i int, more ...string) []string {
		// Over verbs a peer's silence may be all that tells of its end.
		return append(more, "--transport", "verbs", "--rdma-device", ports[i].Device, "--peer-timeout", "10s")
	}
	p = r.serve(t, 1, blocks, args(0)...)
	joined = map[string]*exec.Cmd{}
	for i, id := range []string{"j1", "j2"} {
		cmd := command(args(i+1, append([]string{"serve", "--join", p.join, "--threads", "1", "--instance-id", id}, r.flags(t, blocks)...)...)...)
		logs, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err = cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(p, bufio.NewReader(logs)) }()
		joined[id] = cmd
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		})
	}
	p.eventually("three instances, each connected to each", func(v server.ClusterView) bool {
		return len(v.Instances) == 3 && strings.Count(p.logs(), "transport=verbs") >= 6
	})
	return p, joined
}

// guest runs a function of the guest's library, e.g. guest_loss 2%.
func guest(t *testing.T, call string) {
	t.Helper()
	lib := os.Getenv("GUEST_LIB")
	if lib == "" {
		t.Skip("not in the guest")
	}
	if out, err := exec.Command("sh", "-c", `. "$GUEST_LIB"; `+call).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", call, err, out)
	}
}

// A request that needs every block of three instances is answered as transformers does, also while packets
// are lost.
func TestVerbsExactness(t *testing.T) {
	r := references(t)[0]
	p, _ := verbsCluster(t, r, exactBlocks/3)
	req := r.request(exactTokens - len(r.Prompt))
	got := p.complete(req)
	r.checkReference(t, got)
	p.eventually("all blocks free", idle)
	t.Run("with 2 % loss", func(t *testing.T) {
		guest(t, "guest_loss 2%")
		defer guest(t, "guest_loss 0%")
		sameAnswer(t, got, p.complete(req))
	})
	p.eventually("all blocks free", idle)
}

// SIGKILL of a creditor over verbs: an error that names it, soon, and what is left serves on.
func TestVerbsCreditorIsKilled(t *testing.T) {
	r := references(t)[0]
	h := holdSteps(t, 2*exactTokens/3) // more than an instance holds
	defer h.release()
	p, joined := verbsCluster(t, r, exactBlocks/3)
	type result struct {
		answer
		at time.Time
	}
	done := make(chan result, 1)
	go func() {
		a, _ := p.post(context.Background(), "/v1/completions", r.request(exactTokens-len(r.Prompt)))
		done <- result{a, time.Now()}
	}()
	var creditor string
	p.eventually("spans at a creditor, in decode", func(v server.ClusterView) bool {
		for _, q := range v.Requests {
			for _, s := range q.Spans[:max(0, len(q.Spans)-1)] {
				if joined[s.Instance] != nil && q.Tokens > len(r.Prompt) {
					creditor = s.Instance
				}
			}
		}
		return creditor != ""
	})
	killed := time.Now()
	if err := joined[creditor].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.release()
	got := <-done
	if got.status != http.StatusInternalServerError || !strings.Contains(got.message, creditor) {
		t.Fatalf("the debtor's request got %d %q", got.status, got.message)
	}
	t.Logf("the error came %s after the kill", got.at.Sub(killed).Round(time.Millisecond))
	p.eventually("two instances", func(v server.ClusterView) bool { return len(v.Instances) == 2 })
	short := p.complete(r.request(20))
	for i, want := range r.Greedy[:20] {
		if lp := r.Top[i].Logprobs[0]; short.status != 200 || math.Abs(short.lps[i]-lp) > 1e-4*max(1, math.Abs(lp)) {
			t.Fatalf("afterwards: status %d, token %d at %g, want %d at %g", short.status, i, short.lps[i], want, lp)
		}
	}
}
