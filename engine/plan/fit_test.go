package plan

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// truth is an instance as it is.
type truth struct {
	Model
	perScore float64
}

func (h truth) took(s Step) time.Duration {
	attention := h.PerKV * float64(s.KV)
	if s.Asked > 0 {
		attention = max(attention, h.Remote+h.PerKV*float64(s.Asked))
	}
	return time.Duration(h.Base + h.PerToken*float64(s.Tokens) + h.perScore*float64(s.Scores) + attention)
}

// gpu is about an 8B model on one H200.
var gpu = truth{Model{Base: 4.7e6, PerToken: 12e3, PerKV: 33, Remote: 1.4e6}, 0.9}

// mixed are steps as an instance has them: decodes of several batches and lengths, and prompts.
func mixed(rng *rand.Rand, n int, h truth, noise float64, f *Fit) {
	for range n {
		batch := 1 + rng.IntN(1<<rng.IntN(6))
		s := Step{Tokens: batch, KV: batch * (100 + rng.IntN(1<<(8+rng.IntN(9))))}
		if rng.IntN(8) == 0 {
			more, at := 64+rng.IntN(448), rng.IntN(1<<14)
			s.Tokens += more
			s.Scores = more * (at + more/2)
		}
		s.Took = time.Duration(float64(h.took(s)) * (1 + noise*rng.NormFloat64()))
		if noise >= 0.1 && rng.IntN(100) == 0 {
			s.Took *= 100
		}
		f.Add(s)
	}
}

func near(got, want, share float64) bool { return math.Abs(got-want) <= share*want }

func checkModel(t rapid.TB, f *Fit, want Model, share float64) {
	t.Helper()
	got, ok := f.Model()
	if !ok || !near(got.Base, want.Base, share) || !near(got.PerToken, want.PerToken, share) || !near(got.PerKV, want.PerKV, share) {
		t.Fatalf("%+v, trusted %v, instead of %+v", got, ok, want)
	}
}

func TestFitKnowsTheAnswer(t *testing.T) {
	for name, h := range map[string]truth{
		"a GPU": gpu, "a small model on a CPU": {Model{Base: 2e5, PerToken: 9e4, PerKV: 120}, 60}, "no prompts": {gpu.Model, 0},
	} {
		var f Fit
		mixed(rand.New(rand.NewPCG(1, 1)), 5000, h, 0, &f)
		t.Run(name, func(t *testing.T) { checkModel(t, &f, h.Model, 0.001) })
	}
}

// Noise, and steps that were held up, do not take it far.
func TestFitUnderNoise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var f Fit
		mixed(rng, 20000, gpu, 0.1, &f)
		checkModel(t, &f, gpu.Model, 0.35)
	})
}

// An instance that becomes slower is measured anew.
func TestFitFollowsChange(t *testing.T) {
	rng, slow := rand.New(rand.NewPCG(1, 1)), gpu
	slow.Base, slow.PerKV = 2*gpu.Base, 3*gpu.PerKV
	var f Fit
	mixed(rng, 5000, gpu, 0.02, &f)
	mixed(rng, 50000, slow, 0.02, &f)
	if m, ok := f.Model(); !ok || !near(m.Base, slow.Base, 0.1) || !near(m.PerKV, slow.PerKV, 0.1) {
		t.Fatalf("%+v, trusted %v, instead of %+v", m, ok, slow.Model)
	}
}

// A long time under one load does not make it forget what it knew of others, until that is too old.
func TestFitKeepsTheSpread(t *testing.T) {
	var f Fit
	mixed(rand.New(rand.NewPCG(1, 1)), 5000, gpu, 0.02, &f)
	s := Step{Tokens: 1, KV: 5000}
	s.Took = gpu.took(s)
	for range forgetAfter / 2 {
		f.Add(s)
	}
	checkModel(t, &f, gpu.Model, 0.1)
	for range forgetAfter {
		f.Add(s)
	}
	if m, ok := f.Model(); ok {
		t.Fatalf("one kind of steps is enough for %+v", m)
	}
}

func TestFitsThatCannotBeTrusted(t *testing.T) {
	for name, fill := range map[string]func(f *Fit, rng *rand.Rand){
		"no step":   func(*Fit, *rand.Rand) {},
		"few steps": func(f *Fit, rng *rand.Rand) { mixed(rng, 20, gpu, 0.02, f) },
		"one request": func(f *Fit, rng *rand.Rand) {
			for kv := 100; kv < 5000; kv++ {
				f.Add(Step{Tokens: 1, KV: kv, Took: gpu.took(Step{Tokens: 1, KV: kv})})
			}
		},
		"all requests of one length": func(f *Fit, rng *rand.Rand) {
			for i := range 5000 {
				s := Step{Tokens: 1 + i%64, KV: (1 + i%64) * 1000}
				s.Took = gpu.took(s)
				f.Add(s)
			}
		},
		"larger batches are faster": func(f *Fit, rng *rand.Rand) {
			mixed(rng, 5000, truth{Model{Base: 9e6, PerToken: -5e3, PerKV: 33}, 0.9}, 0, f)
		},
		"noise alone": func(f *Fit, rng *rand.Rand) {
			for range 5000 {
				f.Add(Step{Tokens: 1 + rng.IntN(64), KV: 1 + rng.IntN(1<<16), Took: time.Duration(1 + rng.ExpFloat64()*1e6)})
			}
		},
		"an instance that hosts": func(f *Fit, rng *rand.Rand) {
			for range 5000 {
				s := Step{Tokens: 1 + rng.IntN(64), KV: 1 + rng.IntN(1<<16), Hosts: true}
				s.Took = gpu.took(s)
				f.Add(s)
			}
		},
		"nonsense": func(f *Fit, rng *rand.Rand) {
			for i := range 5000 {
				f.Add(Step{Tokens: -i, KV: -i, Scores: -i, Took: time.Duration(-i)})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var f Fit
			fill(&f, rand.New(rand.NewPCG(1, 1)))
			if m, ok := f.Model(); ok {
				t.Fatalf("it trusts %+v", m)
			}
		})
	}
}

// decodes are steps of a batch with so many KV tokens here and with one creditor.
func decodes(f *Fit, h truth, n, batch, here, there int) {
	for range n {
		s := Step{Tokens: batch, KV: here, Asked: there}
		s.Took = h.took(s)
		f.Add(s)
	}
	f.Model()
}

func TestRemoteIsMeasured(t *testing.T) {
	var f Fit
	decodes(&f, gpu, 100, 4, 100, 100000)
	if m, ok := f.Model(); ok || f.remote.n != 0 {
		t.Fatalf("it knows %+v before anything else", m)
	}
	mixed(rand.New(rand.NewPCG(1, 1)), 5000, gpu, 0, &f)
	checkModel(t, &f, gpu.Model, 0.001)
	if m, _ := f.Model(); m.Remote != 0 {
		t.Fatalf("nobody was asked, and Remote is %g", m.Remote)
	}
	decodes(&f, gpu, 100, 4, 200000, 100) // all hidden by the own attention
	if m, _ := f.Model(); m.Remote != 0 {
		t.Fatalf("nothing was waited for, and Remote is %g", m.Remote)
	}
	decodes(&f, gpu, 100, 4, 100, 100000)
	if m, _ := f.Model(); !near(m.Remote, gpu.Remote, 0.01) {
		t.Fatalf("Remote is %g instead of %g", m.Remote, gpu.Remote)
	}
	checkModel(t, &f, gpu.Model, 0.001) // what waited had no part in it
	slow := gpu
	slow.Remote *= 4
	decodes(&f, slow, 500, 4, 100, 100000)
	if m, _ := f.Model(); !near(m.Remote, slow.Remote, 0.05) {
		t.Fatalf("Remote is %g instead of %g", m.Remote, slow.Remote)
	}
	// An upper bound shows when all is hidden.
	quick := gpu
	quick.Remote = 1
	decodes(&f, quick, 500, 4, 40000, 100)
	if m, _ := f.Model(); m.Remote > 1.05*gpu.PerKV*40000 {
		t.Fatalf("Remote is %g, and steps show that it is below %g", m.Remote, gpu.PerKV*40000)
	}
}

func TestFitAllocatesNothing(t *testing.T) {
	f := new(Fit)
	rng := rand.New(rand.NewPCG(1, 1))
	if n := testing.AllocsPerRun(100, func() { mixed(rng, 10, gpu, 0.1, f); f.Model() }); n != 0 {
		t.Fatalf("%g allocations", n)
	}
}

func BenchmarkFitAdd(b *testing.B) {
	f := new(Fit)
	for b.Loop() {
		f.Add(Step{Tokens: 8, KV: 9000, Took: 5e6})
	}
}

func BenchmarkFitModel(b *testing.B) {
	f := new(Fit)
	mixed(rand.New(rand.NewPCG(1, 1)), 5000, gpu, 0.1, f)
	for b.Loop() {
		f.Model()
	}
}
