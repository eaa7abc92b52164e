package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/grammar"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
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
	thought := firstOf(full, 80, func(t int32) bool { return t >= ' ' && t < 128 })
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
		{"a form", Request{MaxTokens: 200, Guide: Guide{Kind: grammar.Regex, Source: "(?:abc[0-9]){30}"}}},
		{"a form that may end", Request{MaxTokens: 200, StopTokens: []int32{fakeEOS}, MinTokens: 60, Guide: Guide{Kind: grammar.Regex, Source: "(?:[ab]cd)+"}}},
		{"the form's end", Request{MaxTokens: 200, IgnoreEOS: true, Guide: Guide{Kind: grammar.Regex, Source: "[ab]{3}(?:wxyz){20}"}}},
		{"thoughts before a form", Request{MaxTokens: 300, Guide: Guide{grammar.Regex, "(?:abc[0-9]){30}", Thoughts{Opened: true, Close: string(rune(full[thought])), CloseToken: -1}}}},
		{"thoughts that a token opens", Request{MaxTokens: 300, Guide: Guide{grammar.Regex, "(?:abc[0-9]){30}", Thoughts{Open: full[0], Close: "</think>", CloseToken: full[thought]}}}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.r.Prompt = p
			if x.r.Sampling.TopP == 0 {
				x.r.Sampling = sampling(3)
			}
			tokens, events := read(t, submit(t, plain, x.r))
			before := n.eng.Stats()
			got, drafted := read(t, submit(t, n, x.r))
			eventually(t, "the last step is counted", func() bool { return n.eng.Stats().Running == 0 })
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
	release := n.hold(true) // so that they run beside each other
	for i := range 8 {
		r := Request{Prompt: prompt(i, 60), MaxTokens: 150, Sampling: sampling(uint64(i))}
		if i%2 == 1 {
			r.Guide = Guide{Kind: grammar.Regex, Source: "(?:[xyz]abcdef){40}"}
		}
		streams = append(streams, submit(t, n, r))
	}
	release()
	plain := undrafted(t)
	for i, s := range streams {
		got, _ := read(t, s)
		r := Request{Prompt: prompt(i, 60), MaxTokens: 150, Sampling: sampling(uint64(i))}
		if i%2 == 1 {
			r.Guide = Guide{Kind: grammar.Regex, Source: "(?:[xyz]abcdef){40}"}
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

// What a step takes into indexes is bounded, however many long texts begin at once.
func TestIndexesAreMadeInTurn(t *testing.T) {
	const n = 4
	e := newGuidedSim(t, 1, 64).nodes[0].eng
	e.cfg.Speculation = Speculation{4, 1, 3}
	var all []*request
	for i := range n {
		r := &request{Request: &Request{MaxTokens: 2 * mostIndexed}, id: kvcache.RequestID(1000 + i), tokens: make([]int32, mostIndexed+10)}
		all = append(all, r)
	}
	has := func(r *request) int {
		if r.drafting == nil {
			return 0
		}
		return r.drafting.index.Len()
	}
	for step := 0; slices.ContainsFunc(all, func(r *request) bool { return has(r) < len(r.tokens)-1 }); step++ {
		if step > n+1 {
			t.Fatal("some are never indexed")
		}
		e.spareIndex = mostIndexed
		before, after := 0, 0
		for _, r := range all {
			before += has(r)
			_ = e.draft(r, sched.Item{Last: true})
			after += has(r)
		}
		if after-before > mostIndexed+n*alwaysIndexed {
			t.Errorf("step %d takes %d tokens", step, after-before)
		}
	}
}

// To follow drafts through a form takes of the step's time for masks.
func TestFormsAheadTakeTime(t *testing.T) {
	u, err := fakeGuides{}.Get(t.Context(), grammar.Regex, "(?:abc){30}")
	if err != nil {
		t.Fatal(err)
	}
	drafts := []int32{'a', 'b', 'c', 'a', 'b'}
	for _, x := range []struct {
		left time.Duration
		most int
	}{{patience, 5}, {patience, 5}, {1, 1}, {0, 0}} { // the masks are there from the second time on
		g := guided{m: u.Matcher()}
		if err := g.look(); err != nil {
			t.Fatal(err)
		}
		left := x.left
		if got := g.ahead(drafts, &left); len(got) != x.most || len(g.places) < len(got)+1 {
			t.Errorf("in %s %d drafts and %d places, not %d", x.left, len(got), len(g.places), x.most)
		}
	}
}

// An answer that cannot go on behind drafts that were right has what was right.
func TestDraftsBeforeAnError(t *testing.T) {
	c := newGuidedSim(t, 1, 200)
	n := c.nodes[0]
	n.eng.cfg.MaskTime = patience
	known := 0
	n.watch = func(st *batch.Step) {
		// The row behind the first draft loses its mask, once.
		if st.Head.NRows > 1 && known == 0 {
			st.Rows[1].Mask = 0
			known = int(st.Seqs[0].Pos0+st.Seqs[0].NTokens-st.Head.NRows) + 1
		}
	}
	p := prompt(4, 60)
	tokens, last := answerOf(t, submit(t, n, Request{Prompt: p, MaxTokens: 200, Sampling: sampling(3), Guide: Guide{Kind: grammar.Regex, Source: "(?:abc[0-9]){30}"}}))
	c.settled()
	if last.Err == nil || len(p)+len(tokens) != known+1 {
		t.Errorf("%d tokens behind %d, not one more than %d: %v", len(tokens), len(p), known, last.Err)
	}
}

func TestSpeculationIsChecked(t *testing.T) {
	for _, s := range []Speculation{{-1, 1, 1}, {batch.MaxDrafts + 1, 1, 1}, {1, 0, 1}, {1, 3, 2}} {
		if s.check() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}
