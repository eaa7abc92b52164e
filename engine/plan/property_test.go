package plan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// anyCluster is a cluster as heartbeats may tell of one: n instances, of which some are idle, some full, some borrow.
func anyCluster(rng *rand.Rand, n, most int) *Snapshot {
	s := &Snapshot{BlockSize: 16, Barred: map[Pair]bool{}}
	number := uint64(0)
	for i := range n {
		in := Instance{ID: fmt.Sprintf("i%d", i), Blocks: 500 + rng.IntN(5000), Known: rng.IntN(4) > 0, MaxSeqs: rng.IntN(3) * 32}
		in.Free = in.Blocks
		in.Model = Model{Base: 1e6 * (0.1 + 5*rng.Float64()), PerToken: 1e3 * (1 + 20*rng.Float64()), PerKV: 5 + 50*rng.Float64()}
		if rng.IntN(2) == 0 {
			in.Model.Remote = 2e6 * rng.Float64()
		}
		if rng.IntN(6) == 0 {
			in.Memory = 0.9 + rng.Float64()/10
		}
		for k := rng.IntN(2) * rng.IntN(most+1); k > 0; k-- {
			number++
			size := 1 + rng.IntN(1<<(1+rng.IntN(12)))
			r := Request{Number: number, ID: fmt.Sprint(number), Tokens: size * 16, Running: size <= in.Free && rng.IntN(4) > 0}
			if r.Running {
				r.Local = size
				if rng.IntN(8) == 0 {
					r.Tokens += 16 * rng.IntN(100) // not computed yet
				}
				r.Movable = rng.IntN(size)
				in.Free -= size
			}
			in.Requests = append(in.Requests, r)
		}
		in.Hostable = max(0, in.Free-rng.IntN(20))
		s.Instances = append(s.Instances, in)
	}
	for range rng.IntN(n + 1) { // moves before
		d, c := &s.Instances[rng.IntN(n)], &s.Instances[rng.IntN(n)]
		if d == c || d.Hosted > 0 || c.Lent > 0 || len(d.Requests) == 0 {
			continue
		}
		if r := &d.Requests[rng.IntN(len(d.Requests))]; min(r.Movable, c.Hostable) > 0 {
			carryOut(s, []Move{{Home: d.ID, To: c.ID, Number: r.Number, Blocks: 1 + rng.IntN(min(r.Movable, c.Hostable))}})
		}
	}
	for i := range s.Instances {
		if s.Instances[i].Lent > 0 {
			s.Instances[i].Hostable = 0
		}
	}
	s.Barred[Pair{"i0", "i1"}] = rng.IntN(2) == 0
	return s
}

// Whatever the cluster looks like: every move is one that both sides would agree to, each raises the modelled rate, and in
// the cluster that they have been made in there is nothing more to move.
func TestPlans(t *testing.T) {
	planned, several := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		s := anyCluster(rng, 2+rng.IntN(8), 30)
		moves := Moves(s)
		planned += len(moves)
		if len(moves) > 1 {
			several++
		}
		first := Rate(s)
		for i := range moves {
			checkMove(t, s, &moves[i])
			carryOut(s, moves[i:i+1])
		}
		rate := Rate(s)
		if !(rate >= first) || math.IsInf(rate, 0) {
			t.Fatalf("the rate goes from %g to %g by %+v", first, rate, moves)
		}
		sum := 0.0
		for _, m := range moves {
			if m.Gain <= 0 {
				t.Errorf("a move without gain: %+v", m)
			}
			sum += m.Gain
		}
		if !near(rate-first, sum, 1e-6) && math.Abs(rate-first-sum) > 1e-6*rate {
			t.Fatalf("the rate goes from %g to %g, and the moves claim %g", first, rate, sum)
		}
		if again := Moves(s); len(again) > 0 {
			t.Fatalf("after %+v there is %+v", moves, again)
		}
	})
	if planned == 0 || several == 0 {
		t.Errorf("%d moves in all, several at a time in %d plans: nothing was tested", planned, several)
	}
}

func checkMove(t *rapid.T, s *Snapshot, m *Move) {
	t.Helper()
	find := func(id string) *Instance {
		return &s.Instances[slices.IndexFunc(s.Instances, func(in Instance) bool { return in.ID == id })]
	}
	home, to := find(m.Home), find(m.To)
	at := slices.IndexFunc(home.Requests, func(r Request) bool { return r.Number == m.Number })
	if at < 0 || home == to || s.Barred[Pair{m.Home, m.To}] || home.Requests[at].ID != m.ID {
		t.Fatalf("a move from nowhere, or to where nothing may go: %+v", *m)
	}
	r := home.Requests[at]
	switch {
	case !r.Running || m.Blocks < 1 || m.Blocks > r.Movable || m.Blocks >= r.Local:
		t.Fatalf("%+v moves what may not of %+v", *m, r)
	case to.Lent > 0 || m.Blocks > to.Hostable || to.Memory > fullMemory:
		t.Fatalf("%+v goes where it is not taken: lent %d, hostable %d, memory %g", *m, to.Lent, to.Hostable, to.Memory)
	case !home.Known || home.Hosted > 0:
		t.Fatalf("%+v comes from an instance that is not measured, or hosts", *m)
	}
}

// Figures that make no sense neither stop it nor make it plan nonsense.
func TestNonsense(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		s := anyCluster(rng, 3, 10)
		wild := func() int { return rng.IntN(1<<33) - rng.IntN(1<<33) }
		for i := range s.Instances {
			in := &s.Instances[i]
			for _, p := range []*int{&in.Blocks, &in.Free, &in.Hosted, &in.Lent, &in.Hostable, &in.MaxSeqs} {
				if rng.IntN(3) == 0 {
					*p = wild()
				}
			}
			for _, p := range []*float64{&in.Model.Base, &in.Model.PerToken, &in.Model.PerKV, &in.Model.Remote, &in.Memory} {
				if rng.IntN(3) == 0 {
					*p = []float64{0, -1, math.NaN(), math.Inf(1), 1e300, 1e-300}[rng.IntN(6)]
				}
			}
			for k := range in.Requests {
				r := &in.Requests[k]
				for _, p := range []*int{&r.Tokens, &r.Local, &r.Movable, &r.Planned} {
					if rng.IntN(3) == 0 {
						*p = wild()
					}
				}
				if rng.IntN(3) == 0 {
					r.Spans = append(r.Spans, Span{[]string{"", "i1", "i9", in.ID}[rng.IntN(4)], wild()})
				}
			}
		}
		if rng.IntN(3) == 0 {
			again := s.Instances[1]
			again.ID = "i0"
			s.Instances = append(s.Instances, again, Instance{})
			s.BlockSize = rng.IntN(2) - 1
		}
		for _, m := range Moves(s) {
			if m.Blocks < 1 || m.Home == m.To || m.Home == "" || m.To == "" || !(m.Gain > 0) {
				t.Fatalf("it plans %+v", m)
			}
		}
	})
}

// The largest cluster, with thousands of requests, is planned within a period.
func TestLargestCluster(t *testing.T) {
	s := anyCluster(rand.New(rand.NewPCG(1, 1)), 256, 200)
	began := time.Now()
	moves := Moves(s)
	t.Logf("%d moves in %s", len(moves), time.Since(began))
	if len(moves) < 20 || len(moves) >= maxMoves {
		t.Fatalf("%d moves", len(moves))
	}
	carryOut(s, moves)
	if again := Moves(s); len(again) > 0 {
		t.Fatalf("there is more to move: %+v", again)
	}
}

func BenchmarkLargestCluster(b *testing.B) {
	s := anyCluster(rand.New(rand.NewPCG(1, 1)), 256, 200)
	for b.Loop() {
		Moves(s)
	}
}
