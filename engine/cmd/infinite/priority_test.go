package main

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// One request runs at a time; of those that wait, the one that came last goes first by its priority. Without the policy the
// field is refused.
func TestPriority(t *testing.T) {
	h := holdSteps(t, 0)
	defer h.release()
	p := serve(t, "--max-num-seqs", "1", "--scheduling-policy", "priority", poolFlag(t, 300), "--dtype", "float32")
	var mu sync.Mutex
	var wg sync.WaitGroup
	var ended []int
	priorities := []int{7, 5, 0, -5}
	for i, priority := range priorities {
		b := body(prompt(100, i), 100)
		b["priority"] = priority
		wg.Go(func() {
			got, err := p.post(context.Background(), "/v1/completions", b)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || got.status != 200 || len(got.tokens) != 100 {
				t.Errorf("priority %d: %v, status %d, %d tokens: %s", priority, err, got.status, len(got.tokens), got.message)
			}
			ended = append(ended, priority)
		})
		p.eventually("the request is taken, and the first one runs", func(v server.ClusterView) bool {
			return len(v.Requests) == i+1 && v.Instances[0].Running == 1
		})
	}
	h.release()
	wg.Wait()
	if want := []int{7, -5, 0, 5}; !slices.Equal(ended, want) {
		t.Errorf("they ended in the order %v, not %v", ended, want)
	}
	b := body(prompt(10, 1), 1)
	b["priority"] = 1
	if got := serve(t, poolFlag(t, 20), "--dtype", "float32").complete(b); got.status != 400 {
		t.Errorf("a server without priorities says %d: %s", got.status, got.message)
	}
}
