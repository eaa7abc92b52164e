package engine

import (
	"slices"
	"sync"
	"testing"

	"github.com/infinite-llm/infinite/engine/arrival"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/sched"
)

// stepsOf notes what the steps of an instance are of, in their order.
func stepsOf(n *simNode, ids ...string) func() []string {
	var mu sync.Mutex
	var seen []string
	names := map[uint32]string{}
	for _, id := range ids {
		names[batch.Tag(id)] = id
	}
	n.watch = func(st *batch.Step) {
		mu.Lock()
		defer mu.Unlock()
		for i := range st.Head.NSeqs {
			seen = append(seen, names[st.Seqs[i].Tag])
		}
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Compact(slices.Clone(seen))
	}
}

// With one slot, requests run in the order of their priorities, and of their arrival within one.
func TestPrioritiesWait(t *testing.T) {
	c := newSim(t, 1, 40, sched.Config{MaxNumSeqs: 1, MaxBatchedTokens: 32, MaxWaiting: 8})
	n := c.nodes[0]
	release := n.hold(true)
	order := stepsOf(n, "running", "low", "first", "urgent", "second", "lowest")
	var streams []Stream
	for _, r := range []Request{
		{ID: "running", Priority: 100},
		{ID: "lowest", Priority: arrival.MaxPriority}, {ID: "low", Priority: 3}, {ID: "first"}, {ID: "urgent", Priority: arrival.MinPriority}, {ID: "second"},
	} {
		r.Prompt, r.MaxTokens = prompt(len(streams), 20), 5
		streams = append(streams, submit(t, n, r))
		if r.ID == "running" {
			n.until(func() bool { return len(order()) > 0 })
		}
	}
	release()
	for i, s := range streams {
		if got, _ := read(t, s); !slices.Equal(got, want(0, prompt(i, 20), 5)) {
			t.Errorf("request %d: another answer: %v", i, got)
		}
	}
	if got, want := order(), []string{"running", "urgent", "first", "second", "low", "lowest"}; !slices.Equal(got, want) {
		t.Errorf("the steps were of %q, not %q", got, want)
	}
	c.settled()
}

// Where there is no room for two, it is the one of the lower priority that is preempted, though it was there first.
func TestPrioritiesPreempt(t *testing.T) {
	for _, second := range []int{0, -1} {
		c := newSim(t, 1, 20, sched.Config{MaxNumSeqs: 2, MaxBatchedTokens: 64, MaxWaiting: 8})
		n := c.nodes[0]
		n.eng.cfg.Speculation = Speculation{}
		release := n.hold(true)
		order := stepsOf(n, "a", "b")
		a := submit(t, n, Request{ID: "a", Prompt: prompt(1, 20), MaxTokens: 13 * blockSize})
		n.until(func() bool { return len(order()) > 0 })
		b := submit(t, n, Request{ID: "b", Prompt: prompt(2, 20), MaxTokens: 13 * blockSize, Priority: second})
		n.until(func() bool { return slices.Contains(order(), "b") })
		release()
		for i, s := range []Stream{a, b} {
			if got, _ := read(t, s); !slices.Equal(got, want(0, prompt(i+1, 20), 13*blockSize)) {
				t.Errorf("request %d: another answer", i)
			}
		}
		steps := order()
		if last := steps[len(steps)-1]; n.eng.Stats().Preemptions == 0 || last != map[int]string{0: "b", -1: "a"}[second] {
			t.Errorf("priority %d: %d preemptions, the last step was of %q", second, n.eng.Stats().Preemptions, last)
		}
		c.settled()
	}
}
