package engine

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// wantThought is the simulated instances' answer to a prompt, with bounded thoughts and other limits.
func wantThought(seed uint64, prompt []int32, n int, l Limits) []int32 {
	h := slices.Clone(prompt)
	th := *l.Thought
	for range n {
		answer := h[len(prompt):]
		token := next(seed, h)
		for !mayCome(l, answer, token) {
			token = (token + 1) % fakeVocab
		}
		switch {
		case slices.Contains(answer, th.Close): // they have ended
		case th.Opened && len(answer) >= th.Most, !th.Opened && len(answer) > th.Most && answer[0] == th.Open:
			token = th.Close
		}
		h = append(h, token)
	}
	return h[len(prompt):]
}

// Thoughts end where they have come to their limit, by the token that ends them, and never begin anew; with guesses ahead, over
// two instances, beside other limits, which that token need not keep, and where another home had the beginning.
func TestThoughtLimits(t *testing.T) {
	cut, ended, drafts := 0, 0, uint64(0)
	for seed := range 10 {
		rng := rand.New(rand.NewPCG(uint64(seed), 3))
		c := newSim(t, 2, 30, small)
		var streams []Stream
		var wanted [][]int32
		for k := range 12 {
			p, n := prompt(seed*100+k, 1+rng.IntN(60)), 20+rng.IntN(80)
			free := want(uint64(k), p, n)
			l := Limits{}
			if k%3 == 0 {
				l = someLimits(rng, free)
			}
			l.Thought = &ThoughtLimit{Most: rng.IntN(60), Close: free[rng.IntN(n)], Opened: rng.IntN(2) == 0, Open: []int32{free[0], -1, free[1]}[rng.IntN(3)]}
			if rng.IntN(2) == 0 {
				l.Thought.Close = int32(rng.IntN(fakeVocab))
			}
			w := wantThought(uint64(k), p, n, l)
			none := l
			none.Thought = nil
			if !slices.Equal(w, wantWithin(uint64(k), p, n, none)) {
				cut++
			} else if slices.Contains(w, l.Thought.Close) {
				ended++
			}
			r := Request{Prompt: p, MaxTokens: n, Sampling: sampling(uint64(k)), Limits: l}
			if k%5 == 4 {
				r.Answer, r.Handed = w[:n/2], true
			}
			wanted = append(wanted, w[len(r.Answer):])
			streams = append(streams, submit(t, c.nodes[k%2], r))
		}
		drafts += c.answers(t, seed, streams, wanted)
	}
	if cut < 20 || ended < 10 || drafts < 100 {
		t.Errorf("%d answers are others for their limits, %d kept them by themselves, %d drafts were right", cut, ended, drafts)
	}
	for _, bad := range []ThoughtLimit{{Most: -1}, {Close: -1}, {Close: 1 << 20}} {
		if _, err := newSim(t, 1, 30, small).nodes[0].eng.Submit(t.Context(), &Request{Prompt: prompt(1, 9), MaxTokens: 5, Logprobs: -1, PromptLogprobs: -1, Limits: Limits{Thought: &bad}}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// A step without masks has none that it needed, however many of its drafts are right; and where thoughts have ended, or are far
// from their limit, there are none.
func TestMasksNearThoughtLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := rapid.Int32Range(0, 5)
		l := ThoughtLimit{Most: rapid.IntRange(0, 20).Draw(t, "most"), Close: token.Draw(t, "close"), Opened: rapid.Bool().Draw(t, "opened"), Open: token.Draw(t, "open") - 1}
		most := rapid.IntRange(0, 6).Draw(t, "drafts at most")
		answer := rapid.SliceOfN(token, 0, 30).Draw(t, "answer")
		drafts := rapid.SliceOfN(token, 0, most).Draw(t, "drafts")
		over := (&thoughtLimit{ThoughtLimit: l, drafts: most}).over(answer, drafts)
		near := (&thoughtLimit{ThoughtLimit: l, drafts: most}).near(answer)
		if over && !near {
			t.Fatalf("%+v: over behind %v and %v, not near behind %v", l, answer, drafts, answer)
		}
		if near && (slices.Contains(answer, l.Close) || len(answer)+most < l.Most) {
			t.Fatalf("%+v: near behind %v", l, answer)
		}
	})
}
