package engine

import (
	"context"
	"errors"
	"testing"

	"github.com/infinite-llm/infinite/engine/sched"
)

func TestDrain(t *testing.T) {
	c := newSim(t, 1, 40, small)
	n := c.nodes[0]
	release := n.hold(true)
	s := submit(t, n, Request{ID: "a", Prompt: prompt(1, 100), MaxTokens: 50, Sampling: sampling(1)})
	drained := make(chan error, 1)
	go func() { drained <- n.eng.Drain(t.Context()) }()
	eventually(t, "it drains", func() bool {
		n.eng.mu.Lock()
		defer n.eng.mu.Unlock()
		return n.eng.draining
	})
	release()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	checkAnswer(t, s, 1, prompt(1, 100), 50)
	if _, err := n.eng.Submit(t.Context(), &Request{Prompt: prompt(1, 3), MaxTokens: 1, Logprobs: -1, PromptLogprobs: -1}); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
}

// An instance that stops hands on at once what it has no room for, since nobody tells it of room any more; what runs ends here.
func TestDrainHandsOnWhatWaits(t *testing.T) {
	c := newSim(t, 1, 40, sched.Config{MaxNumSeqs: 1, MaxBatchedTokens: 32, MaxWaiting: 4})
	n := c.nodes[0]
	release := n.hold(true)
	running := submit(t, n, Request{ID: "running", Prompt: prompt(1, 20), MaxTokens: 50, Sampling: sampling(1)})
	n.gate <- struct{}{} // it runs
	waiting := submit(t, n, Request{ID: "waiting", Prompt: prompt(2, 20), MaxTokens: 5, Sampling: sampling(2)})
	drained := make(chan error, 1)
	go func() { drained <- n.eng.Drain(t.Context()) }()
	n.until(func() bool { return n.eng.Stats().Cancelled == 1 })
	if _, events := read(t, waiting); len(events) != 1 || events[0].Finish != "abort" || !errors.Is(events[0].Err, ErrStopped) {
		t.Errorf("what waits gets %+v", events)
	}
	release()
	checkAnswer(t, running, 1, prompt(1, 20), 50)
	if err := <-drained; err != nil {
		t.Error(err)
	}
	c.settled()
}

func TestDrainCutsShort(t *testing.T) {
	c := newSim(t, 1, 40, small)
	n := c.nodes[0]
	release := n.hold(true)
	s := submit(t, n, Request{ID: "a", Prompt: prompt(1, 600), MaxTokens: 1 << 20, Sampling: sampling(1)})
	// In a step, or the loop could take the abort along with the request, before it is looked for.
	eventually(t, "it runs", func() bool { return n.eng.Requests()[0].Running })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	drained := make(chan error, 1)
	go func() { drained <- n.eng.Drain(ctx) }()
	eventually(t, "the abort is asked for", func() bool {
		n.eng.mu.Lock()
		defer n.eng.mu.Unlock()
		return n.eng.inbox.abort
	})
	release()
	if err := <-drained; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, events := read(t, s); len(events) != 1 || last(events).Finish != "abort" {
		t.Fatalf("%+v", events)
	}
	c.settled()
}
