package main

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// A request that was taken is not at fault when the cluster shrinks under it: it may come again. One that comes later
// and does not fit is.
func TestClusterShrinksUnderARequest(t *testing.T) {
	h := holdSteps(t, 0)
	defer h.release()
	p := serve(t, "--dtype", "float32", "--instances", "2", "--max-num-seqs", "1", poolFlag(t, 30))
	ask := func(body map[string]any) <-chan answer {
		got := make(chan answer, 1)
		go func() {
			a, err := p.post(context.Background(), "/v1/completions", body)
			if err != nil {
				t.Error(err)
			}
			got <- a
		}()
		return got
	}
	first := ask(body(prompt(50, 1), 4))
	p.eventually("the first request runs", func(v server.ClusterView) bool {
		return slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.Running == 1 })
	})
	second := ask(body(prompt(50, 2), 4))
	large := body(prompt(16*45, 3), 16)
	p.eventually("both instances are busy", func(v server.ClusterView) bool {
		return !slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.Running != 1 })
	})
	queued := ask(large)
	var other string
	p.eventually("the large one waits", func(v server.ClusterView) bool {
		at := slices.IndexFunc(v.Requests, func(r server.RequestPlacement) bool { return r.Tokens == 16*45 })
		if at < 0 || len(v.Instances) != 2 {
			return false
		}
		other = v.Instances[0].ID
		if other == v.Requests[at].Home {
			other = v.Instances[1].ID
		}
		return true
	})
	if err := syscall.Kill(p.pid(other), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.instances(1)
	h.release()
	got := <-queued
	if got.status != http.StatusServiceUnavailable || !strings.Contains(got.message, "cannot fit a request of 720 tokens") {
		t.Errorf("the request that was taken got %d %q", got.status, got.message)
	}
	if got = p.complete(large); got.status != http.StatusBadRequest {
		t.Errorf("the same again got %d %q", got.status, got.message)
	}
	<-first
	<-second
	p.eventually("all blocks free", idle)
}
