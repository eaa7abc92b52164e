package engine

import (
	"context"
	"errors"
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
			r.Guide = Guide{Kind: grammar.Regex, Source: fmt.Sprintf("[a-z]{%d}", length)} // each is compiled anew
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

// keptGuides lets a test see the guides that were got.
type keptGuides struct {
	fakeGuides
	got  *grammar.Guide
	then func()
}

func (k *keptGuides) Get(ctx context.Context, kind, source string) (u *grammar.Guide, err error) {
	if k.got, err = k.fakeGuides.Get(ctx, kind, source); k.then != nil {
		k.then()
	}
	return k.got, err
}

// However a request ends, its form is let go of.
func TestGuidesAreClosed(t *testing.T) {
	for _, x := range []struct {
		name, pattern string
		answer        []int32
		finish        string
		err           bool
	}{
		{"its end", "[ab]{3}", nil, "stop", false}, {"cut", "[ab]{90}", nil, "length", false}, {"no token goes on", "a\nb", nil, "error", false},
		{"another answer", "[ab]{3}", []int32{'x'}, "", true}, {"an answer at its end", "[ab]{3}", []int32{'a', 'a', 'b'}, "", true},
		{"cancelled", "[ab]{900}", nil, "abort", false}, {"the engine stops meanwhile", "[ab]{3}", nil, "", true},
	} {
		c := newGuidedSim(t, 1, 64)
		eng, k := c.nodes[0].eng, &keptGuides{}
		eng.cfg.Guides = k
		if x.name == "the engine stops meanwhile" {
			k.then = func() {
				eng.mu.Lock()
				defer eng.mu.Unlock()
				eng.draining = true
			}
		}
		r := Request{Prompt: prompt(3, 20), Answer: x.answer, MaxTokens: 50, Logprobs: -1, PromptLogprobs: -1, Guide: Guide{Kind: grammar.Regex, Source: x.pattern}}
		if x.finish == "abort" {
			r.MaxTokens = 900
		}
		s, err := eng.Submit(t.Context(), &r)
		if (err != nil) != x.err {
			t.Fatalf("%s: %v", x.name, err)
		}
		if !x.err {
			if !k.got.InUse() && x.finish == "abort" {
				t.Error("it is not in use before its end")
			}
			if x.finish == "abort" {
				s.Close()
				eventually(t, "the form is not in use", func() bool { return !k.got.InUse() })
			} else if _, last := answerOf(t, s); last.Finish != x.finish {
				t.Errorf("%s: %s %v", x.name, last.Finish, last.Err)
			}
		}
		if k.got.InUse() {
			t.Errorf("%s: the form is still in use", x.name)
		}
	}
}

// busyGuides have no room.
type busyGuides struct{}

func (busyGuides) Get(context.Context, string, string) (*grammar.Guide, error) {
	return nil, grammar.ErrBusy
}

// A form that there is no room for is one of a full queue.
func TestGuidesAreBusy(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	c.nodes[0].eng.cfg.Guides = busyGuides{}
	var e *Error
	r := Request{Prompt: prompt(3, 20), MaxTokens: 5, Logprobs: -1, PromptLogprobs: -1, Guide: Guide{Kind: grammar.Regex, Source: "a"}}
	if _, err := c.nodes[0].eng.Submit(t.Context(), &r); !errors.As(err, &e) || e.Kind() != "queue_full" {
		t.Error(err)
	}
}
