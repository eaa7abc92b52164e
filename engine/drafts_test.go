package engine

import (
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// undrafted is a cluster of one whose steps give one token of a request each.
func undrafted(t *testing.T) *simNode {
	c := newGuidedSim(t, 1, 200)
	c.nodes[0].eng.cfg.Speculation = Speculation{}
	return c.nodes[0]
}

// An answer does not show what of it was guessed: tokens, log probabilities, its end, and what ends it.
func TestDraftsDoNotShow(t *testing.T) {
	plain := undrafted(t)
	c := newGuidedSim(t, 1, 200)
	n := c.nodes[0]
	n.eng.cfg.MaskTime = patience // so that steps do not depend on it
	p := prompt(4, 60)
	full := want(3, p, 300)
	for _, x := range []struct {
		name string
		r    Request
	}{
		{"all", Request{MaxTokens: 300}},
		{"log probabilities", Request{MaxTokens: 200, Logprobs: 3, PromptLogprobs: 2}},
		{"one token", Request{MaxTokens: 1}},
		{"two tokens", Request{MaxTokens: 2}},
		{"the longest", Request{MaxTokens: 1900, Sampling: sampling(8)}},
		{"a stop token", Request{MaxTokens: 300, StopTokens: []int32{full[133]}}},
		{"not before the least", Request{MaxTokens: 300, MinTokens: 150, StopTokens: []int32{full[101], full[160], full[201]}}},
		{"goes on", Request{MaxTokens: 300, Answer: full[:140]}},
		{"a form", Request{MaxTokens: 200, Guide: Guide{grammar.Regex, "(?:abc[0-9]){30}"}}},
		{"a form that may end", Request{MaxTokens: 200, StopTokens: []int32{fakeEOS}, MinTokens: 60, Guide: Guide{grammar.Regex, "(?:[ab]cd)+"}}},
		{"the form's end", Request{MaxTokens: 200, IgnoreEOS: true, Guide: Guide{grammar.Regex, "[ab]{3}(?:wxyz){20}"}}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.r.Prompt = p
			if x.r.Sampling.TopP == 0 {
				x.r.Sampling = sampling(3)
			}
			tokens, events := read(t, submit(t, plain, x.r))
			before := n.eng.Stats()
			got, drafted := read(t, submit(t, n, x.r))
			after := n.eng.Stats()
			if !slices.Equal(got, tokens) || len(drafted) != len(events) {
				t.Fatalf("%d tokens in %d events, or others than the %d in %d", len(got), len(drafted), len(tokens), len(events))
			}
			for i, ev := range drafted {
				e := events[i]
				if ev.Finish != e.Finish || ev.StopToken != e.StopToken || (ev.Logprob == nil) != (e.Logprob == nil) || len(ev.Prompt) != len(e.Prompt) {
					t.Errorf("event %d of %d: %+v, not %+v", i, len(events), ev, e)
				}
				if ev.Logprob != nil && (ev.Logprob.Token != ev.Token || ev.Logprob.Logprob != e.Logprob.Logprob) {
					t.Errorf("event %d: %+v, not %+v", i, ev.Logprob, e.Logprob)
				}
			}
			steps, generated := after.Steps-before.Steps, after.GeneratedTokens-before.GeneratedTokens
			if int(generated) != len(tokens) || after.AcceptedTokens-before.AcceptedTokens > after.DraftTokens-before.DraftTokens {
				t.Errorf("%d tokens of %d generated, %+v", generated, len(tokens), after)
			}
			if len(tokens) > 100 && int(steps) > len(tokens)*2/3 {
				t.Errorf("%d steps for %d tokens", steps, len(tokens))
			}
		})
	}
	c.settled()
}

// Many at once share the room that a step has left for drafts, and the masks.
func TestDraftsOfMany(t *testing.T) {
	c := newGuidedSim(t, 2, 60)
	n := c.nodes[0]
	most := 0
	n.watch = func(st *batch.Step) { most = max(most, int(st.Head.NRows)-int(st.Head.NSeqs)) }
	var streams []Stream
	for i := range 8 {
		r := Request{Prompt: prompt(i, 60), MaxTokens: 150, Sampling: sampling(uint64(i))}
		if i%2 == 1 {
			r.Guide = Guide{grammar.Regex, "(?:[xyz]abcdef){40}"}
		}
		streams = append(streams, submit(t, n, r))
	}
	plain := undrafted(t)
	for i, s := range streams {
		got, _ := read(t, s)
		r := Request{Prompt: prompt(i, 60), MaxTokens: 150, Sampling: sampling(uint64(i))}
		if i%2 == 1 {
			r.Guide = Guide{grammar.Regex, "(?:[xyz]abcdef){40}"}
		}
		if whole, _ := read(t, submit(t, plain, r)); !slices.Equal(got, whole) {
			t.Errorf("request %d: %d tokens, or others than the %d", i, len(got), len(whole))
		}
	}
	c.settled()
	if st := n.eng.Stats(); most == 0 || st.AcceptedTokens == 0 || st.Offloads == 0 {
		t.Errorf("%d drafts in a step at most, %+v", most, st)
	}
}

func TestSpeculationIsChecked(t *testing.T) {
	for _, s := range []Speculation{{-1, 1, 1}, {batch.MaxDrafts + 1, 1, 1}, {1, 0, 1}, {1, 3, 2}} {
		if s.check() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}
