package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/sched"
)

func waveConfig(parts int) sched.Config {
	return sched.Config{MaxNumSeqs: 8, MaxBatchedTokens: 64, MaxRows: 64, MaxWaiting: 64, Waves: sched.Waves{Parts: parts, MinTokens: 256}}
}

// computed counts the prompt tokens that each node's steps compute.
func (c *simCluster) computed() []int {
	out := make([]int, len(c.nodes))
	for i, n := range c.nodes {
		out[i] = int(n.eng.Stats().PromptTokens)
	}
	return out
}

// TestWave: three instances compute a prompt together, each its part of it, and the answer is that of one.
func TestWave(t *testing.T) {
	for _, tokens := range []int{256, 257, 700, 1024, 1500} {
		c := newSim(t, 3, 200, waveConfig(3))
		p := prompt(tokens, tokens)
		got, events := read(t, submit(t, c.nodes[1], Request{ID: "r", Prompt: p, MaxTokens: 40, Sampling: batch.Sampling{Seed: 5}}))
		if !slices.Equal(got, want(5, p, 40)) {
			t.Fatalf("%d tokens: another answer: %v", tokens, got)
		}
		c.settled() // also those that assist
		done := c.computed()
		if sum := done[0] + done[1] + done[2]; sum != tokens || tokens >= 700 && (slices.Min(done) < tokens/5 || slices.Max(done) > tokens/2) {
			t.Errorf("%d tokens: the instances computed %v", tokens, done)
		}
		if ev := last(events); len(ev.Spans) < 2 || ev.Finish != "length" {
			t.Errorf("%d tokens: the KV lay in %v, finish %q", tokens, ev.Spans, ev.Finish)
		}
		for i, n := range c.nodes {
			if s := n.eng.Stats(); s.Requests != uint64(i%2) || s.Finished != uint64(i%2) || s.Failed+s.Cancelled != 0 {
				t.Errorf("%d tokens: %s counts %+v", tokens, n.name(), s)
			}
		}
	}
}

// TestWavesComeToNothing: whatever fails, the answer is that of one instance, and nothing is left behind.
func TestWavesComeToNothing(t *testing.T) {
	for name, breaks := range map[string]func(c *simCluster){
		"nobody helps":          func(c *simCluster) { c.nodes[0].waves.refuse, c.nodes[2].waves.refuse = true, true },
		"one helps":             func(c *simCluster) { c.nodes[0].waves.refuse = true },
		"they are told nothing": func(c *simCluster) { c.nodes[1].waves.broken = true },
		"one dies at once": func(c *simCluster) {
			c.nodes[0].watch = func(*batch.Step) { c.nodes[0].dead = true; c.nodes[0].waves.failAll(); c.moved.Broadcast() }
		},
		"one dies later": func(c *simCluster) {
			steps := 0
			c.nodes[2].watch = func(*batch.Step) {
				if steps++; steps == 3 {
					c.nodes[2].dead = true
					c.nodes[2].waves.failAll()
					c.moved.Broadcast()
				}
			}
		},
		"one has no room": func(c *simCluster) {
			if _, err := c.nodes[0].kv.Host("other", 0, 190); err != nil {
				c.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newSim(t, 3, 200, waveConfig(3))
			c.mu.Lock()
			breaks(c)
			c.mu.Unlock()
			p := prompt(3, 1200)
			got, events := read(t, submit(t, c.nodes[1], Request{ID: "r", Prompt: p, MaxTokens: 20, Sampling: batch.Sampling{Seed: 5}}))
			if !slices.Equal(got, want(5, p, 20)) {
				t.Fatalf("another answer, of %d tokens: %+v", len(got), last(events))
			}
			for _, h := range c.nodes[0].kv.HostedOf("other") {
				_ = c.nodes[0].kv.Unhost("other", h.Handle, h.Generation, nil)
			}
			c.settled()
			eventually(t, "no wave is open", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return !c.nodes[0].waves.busy() && !c.nodes[1].waves.busy() && !c.nodes[2].waves.busy()
			})
		})
	}
}

// TestManyWaves: prompts of all lengths at all instances, some of which are cancelled, beside each other. The first has
// the cluster to itself until it is a wave: whether the others find an instance idle is chance.
func TestManyWaves(t *testing.T) {
	waves := 0
	for seed := range 6 {
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		c := newSim(t, 4, 300, waveConfig(2+seed%3))
		before := waves
		for _, n := range c.nodes {
			n.watch = func(st *batch.Step) {
				for i := range st.Head.NSeqs {
					if st.Seqs[i].Wave != 0 {
						waves++
					}
				}
			}
		}
		var wg sync.WaitGroup
		for k := range 24 {
			n, p := c.nodes[rng.IntN(4)], prompt(seed*100+k, 1+rng.IntN(1400))
			if k == 0 {
				p = prompt(seed, 1400)
			}
			s := submit(t, n, Request{ID: fmt.Sprint(k), Prompt: p, MaxTokens: 1 + rng.IntN(30), Sampling: batch.Sampling{Seed: uint64(k)}})
			if k == 0 {
				eventually(t, "a wave", func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return waves > before
				})
			} else if rng.IntN(5) == 0 {
				wait := time.Duration(rng.IntN(3000)) * time.Microsecond
				wg.Go(func() { time.Sleep(wait); s.Close() })
				continue
			}
			wg.Go(func() {
				got, events := read(t, s)
				if w := want(uint64(k), p, len(got)); !slices.Equal(got, w) || last(events).Finish != "length" {
					t.Errorf("seed %d, prompt %d of %d tokens: %v, not %v; %+v", seed, k, len(p), got, w, last(events))
				}
			})
		}
		wg.Wait()
		c.settled()
	}
}
