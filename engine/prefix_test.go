package engine

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/infinite-llm/infinite/engine/sched"
)

// cached reads a stream and returns what its first token says was in the cache.
func cached(t *testing.T, s Stream, seed uint64, p []int32, n int) int {
	t.Helper()
	got, events := read(t, s)
	if !slices.Equal(got, want(seed, p, n)) {
		t.Fatalf("prompt of %d: got %d of %d tokens, or other ones; %+v", len(p), len(got), n, last(events))
	}
	return events[0].Cached
}

// A request begins with the full blocks of those before it that began alike: of prompts, and of answers as well. The
// simulated model reads every position's KV back, so that a block with another text would give another answer.
func TestPrefixesAreFound(t *testing.T) {
	c := newSim(t, 1, 100, small)
	n := c.nodes[0]
	p := prompt(1, 100)
	if k := cached(t, submit(t, n, Request{ID: "first", Prompt: p, MaxTokens: 50, Sampling: sampling(1)}), 1, p, 50); k != 0 {
		t.Errorf("the first request finds %d tokens", k)
	}
	for _, tc := range []struct {
		name string
		r    Request
		want int
	}{
		{"the same", Request{Prompt: p, MaxTokens: 50}, 96},
		{"another answer", Request{Prompt: p, MaxTokens: 50, Sampling: sampling(2)}, 96},
		{"the conversation goes on", Request{Prompt: slices.Concat(p, want(1, p, 50), prompt(2, 20)), MaxTokens: 9}, 144}, // the last token has no KV
		{"another end", Request{Prompt: slices.Concat(p[:50], prompt(3, 50)), MaxTokens: 5}, 48},
		{"another beginning", Request{Prompt: append([]int32{9}, p...), MaxTokens: 5}, 0},
		{"full blocks only", Request{Prompt: p[:96], MaxTokens: 5}, 80},
		{"another salt", Request{Prompt: p, MaxTokens: 5, CacheSalt: "x"}, 0},
		{"the same salt", Request{Prompt: p, MaxTokens: 5, CacheSalt: "x"}, 96},
		{"rows of the prompt", Request{Prompt: p, MaxTokens: 5, PromptLogprobs: 1}, 0},
		{"only the prompt", Request{Prompt: p, PromptLogprobs: -1, Logprobs: -1}, 96},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.r.Sampling.TopP == 0 {
				tc.r.Sampling = sampling(1)
			}
			before := n.eng.Stats()
			if k := cached(t, submit(t, n, tc.r), tc.r.Sampling.Seed, tc.r.Prompt, tc.r.MaxTokens); k != tc.want {
				t.Errorf("finds %d tokens, not %d", k, tc.want)
			}
			eventually(t, "what is found is counted", func() bool {
				st := n.eng.Stats()
				return st.PrefixHits-before.PrefixHits == uint64(tc.want) && st.PrefixQueries-before.PrefixQueries == uint64(len(tc.r.Prompt)) &&
					st.PromptTokens-before.PromptTokens == uint64(len(tc.r.Prompt)-tc.want)
			})
		})
	}
	c.settled()
	// A block that holds something else than its name says is read all the same: the checks above see what they should.
	n.c.mu.Lock()
	for i := range n.mem {
		n.mem[i].token++
	}
	n.c.mu.Unlock()
	n.wrong = true
	if got, _ := read(t, submit(t, n, Request{Prompt: p, MaxTokens: 5, Sampling: sampling(1)})); slices.Equal(got, want(1, p, 5)) {
		t.Error("the answer does not depend on what is in the cache")
	}
}

// Requests that run beside each other share what they begin with: ten of 20 blocks in a pool of 40.
func TestPrefixesAreShared(t *testing.T) {
	c := newSim(t, 1, 40, sched.Config{MaxNumSeqs: 16, MaxBatchedTokens: 512, MaxWaiting: 64})
	n := c.nodes[0]
	p := prompt(1, 300)
	first := submit(t, n, Request{ID: "first", Prompt: p, MaxTokens: 10, Sampling: sampling(1)})
	checkAnswer(t, first, 1, p, 10)
	release := n.hold(true)
	var streams []Stream
	var prompts [][]int32
	for i := range 10 {
		prompts = append(prompts, append(slices.Clone(p), int32(i)))
		streams = append(streams, submit(t, n, Request{ID: fmt.Sprint(i), Prompt: prompts[i], MaxTokens: 10, Sampling: sampling(1)}))
	}
	n.until(func() bool { return n.eng.Stats().Running == 10 })
	release()
	for i, s := range streams {
		if k := cached(t, s, 1, prompts[i], 10); k != 288 {
			t.Errorf("request %d finds %d tokens", i, k)
		}
	}
	if n.eng.Stats().Preemptions > 0 {
		t.Errorf("%+v", n.eng.Stats())
	}
	c.settled()
}

// Many requests of few beginnings on a cluster that holds a part of them, some cancelled, with moves, preemptions and
// lost peers: every answer is right, and prefixes are found.
func TestPrefixesUnderPressure(t *testing.T) {
	c := newSim(t, 3, 24, small)
	var wg sync.WaitGroup
	for i := range 60 {
		seed := uint64(i % 4)
		p := prompt(int(seed), 60+i*4)
		if i%3 == 0 {
			p = append(slices.Clone(p[:50]), prompt(i, 40)...)
		}
		n := c.nodes[i%3]
		s := submit(t, n, Request{ID: fmt.Sprint(i), Prompt: p, MaxTokens: 10 + i, Sampling: sampling(seed)})
		wg.Go(func() {
			if i%10 == 9 {
				_, _ = s.Next(t.Context())
				s.Close()
				n.eng.PeerLost(c.nodes[(i+1)%3].name())
				return
			}
			got, events := read(t, s)
			if len(events) == 0 || last(events).Finish != "length" || !slices.Equal(got, want(seed, p, 10+i)) {
				t.Errorf("request %d: %d of %d tokens, %+v", i, len(got), 10+i, events)
			}
		})
	}
	wg.Wait()
	c.settled()
	hits := uint64(0)
	for _, n := range c.nodes {
		hits += n.eng.Stats().PrefixHits
	}
	if hits == 0 {
		t.Error("nothing was found")
	}
}
