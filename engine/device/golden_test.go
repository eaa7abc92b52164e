package device

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/model"
)

// logSumExp is the log of the sum of exponentials.
func logSumExp(x []float64) float64 {
	top, sum := slices.Max(x), 0.0
	for _, v := range x {
		sum += math.Exp(v - top)
	}
	return top + math.Log(sum)
}

// The log probability of every token of the vocabulary at the golden's positions, and 64 greedy tokens with
// their alternatives, after a prefill in random chunks.
func TestGoldenF32(t *testing.T) {
	for isa := 1; isa <= 4; isa++ {
		eachGolden(t, func(t *testing.T, m *model.Model, g *golden) {
			c := testConfig()
			c.ISA = isa
			d, err := LoadModel(m, c, nil)
			if err != nil {
				t.Skipf("instruction set %d: %v", isa, err)
			}
			defer d.Close()
			checkGolden(t, d, g, m.Config.VocabSize, 1e-4)
		})
	}
}

// The same by a model that is cut over two ranks, or four where it has the heads; where it has not, it says so.
func TestGoldenRanks(t *testing.T) {
	eachGolden(t, func(t *testing.T, m *model.Model, g *golden) { checkRanks(t, m, g, testConfig(), 1e-4) })
}

func checkRanks(t *testing.T, m *model.Model, g *golden, c Config, tolerance float64) {
	for _, c.TensorParallel = range []int{2, 4} {
		if m.Config.QKNormAll {
			if d, err := LoadModel(m, c, nil); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "norm over all heads") {
				t.Errorf("a norm over all heads on %d ranks: %v, %v", c.TensorParallel, d, err)
			}
		} else if m.Config.NumKVHeads%c.TensorParallel == 0 {
			checkGolden(t, openModel(t, m, c), g, m.Config.VocabSize, tolerance)
		} else if d, err := LoadModel(m, c, nil); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "kv heads over") {
			t.Errorf("%d KV heads on %d ranks: %v, %v", m.Config.NumKVHeads, c.TensorParallel, d, err)
		}
	}
}

func checkGolden(t *testing.T, d *Device, g *golden, vocab int, tolerance float64) {
	rng := rand.New(rand.NewPCG(uint64(len(g.Prompt)), 7))
	r := newRequest(t, d, 1, greedy, g.Prompt, 5, 80)
	rows := g.rows(t, vocab)
	targets := make([]batch.Row, vocab)
	for v := range targets {
		targets[v] = batch.Row{Target: int32(v)}
	}
	checked := 0
	for i, p := range g.Positions {
		if p == len(g.Prompt)-1 {
			break // the decode below feeds the last token
		}
		r.ragged(rng, p)
		lse := logSumExp(rows[i])
		for v, out := range r.feed(1, targets...) {
			if out.Token != int32(v) || !within(tolerance, out.Logprob, rows[i][v]-lse) {
				t.Fatalf("position %d, token %d: %g, want %g", p, v, out.Logprob, rows[i][v]-lse)
			}
			checked++
		}
	}
	if checked < 4*vocab {
		t.Fatalf("only %d log probabilities were compared", checked)
	}
	r.ragged(rng, len(g.Prompt)-1)
	for i, want := range g.Greedy {
		out := r.decode(5)
		if out.Token != want || out.Rank != 1 {
			t.Fatalf("greedy token %d is %d at rank %d, want %d", i, out.Token, out.Rank, want)
		}
		for k, id := range g.Top[i].IDs {
			if out.TopIDs[k] != id || !within(tolerance, out.TopLogprobs[k], g.Top[i].Logprobs[k]) {
				t.Fatalf("token %d, alternative %d: %d at %g, want %d at %g", i, k, out.TopIDs[k], out.TopLogprobs[k],
					id, g.Top[i].Logprobs[k])
			}
		}
	}
}

// bf16 weights and KV: close to the f32 answer, and not the same.
func TestGoldenBF16(t *testing.T) {
	eachGolden(t, func(t *testing.T, m *model.Model, g *golden) {
		c := testConfig()
		c.DType = BF16
		checkClose(t, openModel(t, m, c), g, m.Config.VocabSize, 0.25)
	})
}

// Matrices in 8 bits: close to the f32 answer, and not the same.
func TestGoldenI8(t *testing.T) {
	eachGolden(t, func(t *testing.T, m *model.Model, g *golden) {
		c := testConfig()
		c.Matrices = I8
		checkClose(t, openModel(t, m, c), g, m.Config.VocabSize, 0.3)
	})
}

// Matrices in 4 bits: these models' rows are short and wide, so that their rounding shows more than in large ones.
func TestGoldenI4(t *testing.T) {
	eachGolden(t, func(t *testing.T, m *model.Model, g *golden) {
		c := testConfig()
		c.Matrices = I4
		checkClose(t, openModel(t, m, c), g, m.Config.VocabSize, 4)
	})
}

// checkClose compares the distribution after the prompt by the mean difference of its log probabilities.
func checkClose(t *testing.T, d *Device, g *golden, vocab int, bound float64) {
	t.Helper()
	r := newRequest(t, d, 0, greedy, g.Prompt, 0, 80)
	rows := g.rows(t, vocab)
	last := rows[len(rows)-1]
	targets := make([]batch.Row, len(last))
	for v := range targets {
		targets[v] = batch.Row{Target: int32(v)}
	}
	r.feed(len(g.Prompt) - 1)
	lse, worst, sum := logSumExp(last), 0.0, 0.0
	for v, out := range r.feed(1, targets...) {
		diff := math.Abs(float64(out.Logprob) - (last[v] - lse))
		worst, sum = max(worst, diff), sum+diff
	}
	mean := sum / float64(len(last))
	t.Logf("log probabilities differ by %.3g on average, at most %.3g", mean, worst)
	if worst == 0 || mean > bound {
		t.Errorf("log probabilities differ by %g on average, at most %g", mean, worst)
	}
}
