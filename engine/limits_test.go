package engine

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// mayCome tells, in another way than masks do, whether a token may follow an answer.
func mayCome(l Limits, answer []int32, token int32) bool {
	if len(l.Allowed) > 0 && !slices.Contains(l.Allowed, token) {
		return false
	}
	text := append(slices.Clone(answer), token)
	for _, seq := range l.Bad {
		if len(text) >= len(seq) && slices.Equal(text[len(text)-len(seq):], seq) {
			return false
		}
	}
	return true
}

// wantWithin is the simulated instances' answer to a prompt, within limits.
func wantWithin(seed uint64, prompt []int32, n int, l Limits) []int32 {
	h := slices.Clone(prompt)
	for range n {
		t := next(seed, h)
		for !mayCome(l, h[len(prompt):], t) {
			t = (t + 1) % fakeVocab
		}
		h = append(h, t)
	}
	return h[len(prompt):]
}

// someLimits break the answer that there would be without them, some of them again and again.
func someLimits(rng *rand.Rand, free []int32) Limits {
	var l Limits
	if rng.IntN(2) == 0 {
		for range 1 + rng.IntN(40) {
			l.Allowed = append(l.Allowed, int32(rng.IntN(fakeVocab)))
		}
	}
	for range rng.IntN(6) {
		at := rng.IntN(len(free))
		seq := slices.Clone(free[at:min(len(free), at+1+rng.IntN(4))])
		if len(l.Allowed) > 0 && len(seq) < 2 {
			continue // not all that is allowed
		}
		l.Bad = append(l.Bad, seq)
	}
	return l
}

// answers compares what requests get with what they are to get, and says how many drafts were right.
func (c *simCluster) answers(t *testing.T, seed int, streams []Stream, wanted [][]int32) (drafts uint64) {
	for k, s := range streams {
		if got, events := read(t, s); !slices.Equal(got, wanted[k]) || last(events).Finish != "length" {
			t.Errorf("seed %d, request %d: another answer: %v, not %v, %+v", seed, k, got, wanted[k], last(events))
		}
	}
	for _, n := range c.nodes {
		drafts += n.eng.Stats().AcceptedTokens
	}
	c.settled()
	return drafts
}

// TestLimits: with drafts, in small pools, over two instances, beside others, an answer is what is left of the vocabulary's order.
func TestLimits(t *testing.T) {
	cut, drafts := 0, uint64(0)
	for seed := range 12 {
		rng := rand.New(rand.NewPCG(uint64(seed), 9))
		c := newSim(t, 2, 30, small)
		var streams []Stream
		var wanted [][]int32
		for k := range 12 {
			p, n := prompt(seed*100+k, 1+rng.IntN(60)), 20+rng.IntN(80)
			free := want(uint64(k), p, n)
			l := Limits{}
			if k%4 != 3 {
				l = someLimits(rng, free)
			}
			w := wantWithin(uint64(k), p, n, l)
			if !slices.Equal(w, free) {
				cut++
			}
			r := Request{Prompt: p, MaxTokens: n, Sampling: sampling(uint64(k)), Limits: l}
			if k%5 == 4 { // another home had it
				r.Answer, r.Handed = w[:n/2], true
			}
			wanted = append(wanted, w[len(r.Answer):])
			streams = append(streams, submit(t, c.nodes[k%2], r))
		}
		drafts += c.answers(t, seed, streams, wanted)
	}
	if cut < 50 || drafts < 100 {
		t.Errorf("%d answers are others for their limits, %d drafts were right", cut, drafts)
	}
}

// A form and limits hold together; what no token is left for ends with an error, and nobody else's.
func TestLimitsAndForms(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	n := c.nodes[0]
	guide := Guide{Kind: "regex", Source: "[a-f]{30}"}
	tokens, ev := answerOf(t, submit(t, n, Request{Prompt: prompt(1, 9), MaxTokens: 90, Guide: guide, Sampling: sampling(1),
		Limits: Limits{Allowed: []int32{'a', 'b', 'z'}, Bad: [][]int32{{'a', 'b'}}}}))
	if text := textOf(tokens); len(text) != 30 || strings.Contains(text, "ab") || strings.Trim(text, "ab") != "" || ev.Finish != "stop" {
		t.Errorf("%q, %+v", text, ev)
	}
	beside := submit(t, n, Request{Prompt: prompt(2, 9), MaxTokens: 60, Sampling: sampling(2)})
	for _, l := range []Limits{{Allowed: []int32{'z'}}, {Allowed: []int32{'a'}, Bad: [][]int32{{'a'}}}, {Allowed: []int32{'a'}, Bad: [][]int32{{'a', 'a', 'a'}}}} {
		_, ev := answerOf(t, submit(t, n, Request{Prompt: prompt(1, 9), MaxTokens: 90, Guide: guide, Sampling: sampling(1), Limits: l}))
		if !errors.Is(ev.Err, errNoneLeft) {
			t.Errorf("%v: %+v", l, ev)
		}
	}
	checkAnswer(t, beside, 2, prompt(2, 9), 60)
	for _, l := range []Limits{{Allowed: []int32{-1}}, {Allowed: []int32{1 << 20}}, {Bad: [][]int32{{}}}, {Bad: [][]int32{{5, 1 << 20}}}} {
		if _, err := n.eng.Submit(t.Context(), &Request{Prompt: prompt(1, 9), MaxTokens: 5, Sampling: sampling(1), Logprobs: -1, PromptLogprobs: -1, Limits: l}); err == nil {
			t.Errorf("%v are taken", l)
		}
	}
}
