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

// waveSharing is waveConfig of instances that search for what others have.
func waveSharing(parts int) sched.Config {
	cfg := waveConfig(parts)
	cfg.MinShared = 64
	return cfg
}

// What a wave leaves behind lies in legs, here and there. Whoever is asked for more of that text, and knows whom to ask,
// computes the rest alone.
func TestWaveIsFound(t *testing.T) {
	for _, tokens := range []int{700, 1024, 1500} {
		for home := range 3 {
			t.Run(fmt.Sprintf("%d tokens at n%d", tokens, home), func(t *testing.T) {
				c := newSim(t, 3, 200, waveSharing(3))
				p := prompt(tokens, tokens)
				_ = cached(t, submit(t, c.nodes[1], Request{ID: "r", Prompt: p, MaxTokens: 20, Sampling: sampling(5)}), 5, p, 20)
				c.lend()
				if done := c.computed(); slices.Min(done) < tokens/5 {
					t.Fatalf("the instances computed %v", done)
				}
				n := c.nodes[home]
				for turn := range 3 { // also of what came of the first ones
					before := c.computed()
					again := slices.Concat(p, prompt(7+turn, 50+turn))
					got := cached(t, submit(t, n, Request{ID: fmt.Sprint(turn), Prompt: again, MaxTokens: 9, Sampling: sampling(6), Near: "n1"}), 6, again, 9)
					if got != tokens/blockSize*blockSize {
						t.Errorf("turn %d: %d of %d tokens are found", turn, got, tokens)
					}
					c.lend()
					after := c.computed()
					for i := range after {
						if k := after[i] - before[i]; i != home && k != 0 || i == home && k != len(again)-got {
							t.Errorf("turn %d: n%d computed %d tokens of %d", turn, i, k, len(again))
						}
					}
				}
				if st := n.eng.Stats(); st.SharedHits < uint64(tokens) || st.SharedHits > st.PrefixHits {
					t.Errorf("%+v", st)
				}
				// A block with another text would give another answer, wherever it is.
				c.mu.Lock()
				for _, p := range c.nodes {
					if p != n {
						for i := range p.mem {
							p.mem[i].token++
						}
					}
				}
				c.mu.Unlock()
				n.wrong = true
				s := submit(t, n, Request{ID: "wrong", Prompt: p, MaxTokens: 60, Sampling: sampling(6), Near: "n1"})
				if got, _ := read(t, s); slices.Equal(got, want(6, p, 60)) {
					t.Error("the answer does not depend on what lies with others")
				}
				c.settled()
			})
		}
	}
}

// One that has used the same legs with others often enough computes them itself, and in no wave, which would leave them with
// others again.
func TestPopularLegsAreComputedOnce(t *testing.T) {
	c := newSim(t, 3, 500, waveSharing(3))
	n, p := c.nodes[1], prompt(1, 800)
	var computed []int
	for turn := range 14 {
		before := c.computed()
		_ = cached(t, submit(t, n, Request{ID: fmt.Sprint(turn), Prompt: p, MaxTokens: 5, Sampling: sampling(2)}), 2, p, 5)
		c.lend()
		after := c.computed()
		computed = append(computed, after[0]+after[1]+after[2]-before[0]-before[1]-before[2])
		if turn > 0 && (after[0] != before[0] || after[2] != before[2]) {
			t.Fatalf("turn %d was a wave again: %v", turn, after)
		}
	}
	whole := 0
	for _, k := range computed {
		if k > 100 {
			whole++
		}
	}
	if whole != 2 || computed[0] != 800 || computed[len(computed)-1] > 32 {
		t.Errorf("the turns computed %v tokens", computed)
	}
}

// Prompts of few beginnings at all instances, in waves and not, some cancelled, in pools that are small for them.
func TestWavesOfOneText(t *testing.T) {
	waves, hits := 0, uint64(0)
	for seed := range 6 {
		rng := rand.New(rand.NewPCG(uint64(seed), 2))
		c := newSim(t, 4, 120, waveSharing(2+seed%3))
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
		for k := range 40 {
			family := rng.IntN(3)
			p := prompt(seed*10+family, 200+rng.IntN(900))
			if rng.IntN(2) == 0 {
				p = append(p, prompt(1000+k, 1+rng.IntN(60))...)
			}
			n := c.nodes[rng.IntN(4)]
			s := submit(t, n, Request{ID: fmt.Sprint(k), Prompt: p, MaxTokens: 1 + rng.IntN(30), Sampling: batch.Sampling{Seed: uint64(k)},
				Near: c.nodes[rng.IntN(4)].name()})
			if rng.IntN(6) == 0 {
				wait := time.Duration(rng.IntN(3000)) * time.Microsecond
				wg.Go(func() { time.Sleep(wait); s.Close() })
				continue
			}
			ask := func() {
				got, events := read(t, s)
				if w := want(uint64(k), p, len(got)); !slices.Equal(got, w) || last(events).Finish != "length" {
					t.Errorf("seed %d, prompt %d of %d tokens: %v, not %v; %+v", seed, k, len(p), got, w, last(events))
				}
			}
			if wg.Go(ask); k%4 == 3 {
				wg.Wait()
			}
		}
		wg.Wait()
		c.settled()
		for _, n := range c.nodes {
			hits += n.eng.Stats().SharedHits
		}
	}
	if waves == 0 || hits == 0 {
		t.Errorf("%d shares of steps were of waves, and %d tokens were found with others", waves, hits)
	}
}
