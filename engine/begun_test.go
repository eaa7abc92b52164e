package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Who asks for it is told of a request's first step: before it, once, and not while the request waits.
func TestBegun(t *testing.T) {
	c := newSim(t, 1, 20, sched.Config{MaxNumSeqs: 2, MaxBatchedTokens: 64, MaxWaiting: 8})
	n := c.nodes[0]
	n.eng.cfg.Speculation = Speculation{} // both grow at one pace
	queue := func(s Stream) []Event {
		q := s.(*stream)
		q.mu.Lock()
		defer q.mu.Unlock()
		return slices.Clone(q.events)
	}
	var streams []Stream // two outgrow the pool, so that one is preempted
	steps, first := 0, make(chan struct{})
	c.mu.Lock() // no step goes out before all are there
	n.watch = func(*batch.Step) {
		steps++
		if steps == 1 && (len(queue(streams[0])) != 1 || len(queue(streams[2])) != 0) {
			t.Error("before the first step others were told than those in it")
		}
		if steps == 1 {
			close(first)
		}
	}
	for i := range 4 {
		streams = append(streams, submit(t, n, Request{ID: fmt.Sprint(i), Prompt: prompt(i, 20), MaxTokens: 150, Sampling: sampling(uint64(i)), TellBegun: i != 3}))
	}
	c.mu.Unlock()
	<-first // nobody reads before
	for i, s := range streams {
		got, events := read(t, s)
		if !slices.Equal(got, want(uint64(i), prompt(i, 20), 150)) {
			t.Errorf("request %d: %d tokens, %+v", i, len(got), last(events))
		}
		begun := 0
		for k, ev := range events {
			if ev.Begun {
				begun++
				if k != 0 || ev.HasToken || ev.Finish != "" {
					t.Errorf("request %d: event %d is %+v", i, k, ev)
				}
			}
		}
		if begun != 1 && i != 3 || begun != 0 && i == 3 {
			t.Errorf("request %d was told %d times that it begins", i, begun)
		}
	}
	c.settled()
	if st := n.eng.Stats(); steps == 0 || st.Preemptions == 0 {
		t.Errorf("%d steps, %d preemptions", steps, st.Preemptions)
	}
}
