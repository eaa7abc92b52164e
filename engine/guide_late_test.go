package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// Masks that are dear: each step has time for one that is not there yet. Requests with forms take turns, and others are in
// every step.
func TestLateMasks(t *testing.T) {
	const guidedN, plainN, length = 5, 3, 30
	c := newGuidedSim(t, 1, 64)
	nd := c.nodes[0]
	nd.eng.cfg.MaskTime, nd.eng.cfg.Speculation = time.Nanosecond, Speculation{} // a token a step
	type seen struct{ tags, masked []uint32 }
	var steps []seen // written by the loop; read when all streams have ended
	release := nd.hold(true)
	nd.watch = func(st *batch.Step) {
		var s seen
		for _, q := range st.Seqs[:st.Head.NSeqs] {
			s.tags = append(s.tags, q.Tag)
		}
		for _, r := range st.Rows[:st.Head.NRows] {
			if r.Mask != 0 {
				s.masked = append(s.masked, st.Seqs[r.Seq].Tag)
			}
		}
		steps = append(steps, s)
	}
	var streams []Stream
	for i := range guidedN + plainN {
		r := Request{ID: fmt.Sprint(i), Prompt: prompt(i, 4), MaxTokens: length, Sampling: batch.Sampling{Seed: uint64(i)}}
		if i < guidedN {
			r.Guide = Guide{grammar.Regex, fmt.Sprintf("[a-z]{%d}", length)} // each is compiled anew
		}
		streams = append(streams, submit(t, nd, r))
	}
	release()
	for i, s := range streams {
		got, last := answerOf(t, s)
		if len(got) != length || last.Err != nil {
			t.Errorf("request %d: %d tokens, %s %v", i, len(got), last.Finish, last.Err)
		}
		if i >= guidedN && !slices.Equal(got, want(uint64(i), prompt(i, 4), length)) {
			t.Errorf("request %d: %v", i, got)
		}
	}
	c.settled()
	nd.c.mu.Lock()
	defer nd.c.mu.Unlock()
	for i := range guidedN + plainN {
		tag := batch.Tag(fmt.Sprint(i))
		first, last, n := -1, 0, 0
		for k, s := range steps {
			if slices.Contains(s.tags, tag) {
				if n++; first < 0 {
					first = k
				}
				if gap := k - last; n > 1 && (gap > guidedN || i >= guidedN && gap > 1) {
					t.Errorf("request %d waits for %d steps", i, gap)
				}
				last = k
			}
		}
		if i >= guidedN && last-first+1 != length {
			t.Errorf("request %d takes %d steps for %d tokens", i, last-first+1, length)
		}
	}
	for k, s := range steps {
		if len(s.masked) > 1 {
			t.Errorf("step %d makes %d masks", k, len(s.masked))
		}
	}
}
