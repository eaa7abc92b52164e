package plan

import (
	"testing"
	"time"
)

// scenario is four instances, of which one generates for a very long request and gets short ones, and by how much plans must
// raise the token rate over what pressure alone brings, in a while after they came.
type scenario struct {
	name          string
	pool          int // blocks of each
	long          int // tokens
	short, answer int // requests of 800 tokens, and the tokens of their answers
	others        int // requests that each of the other instances has
	while         time.Duration
	least         float64
}

var scenarios = []scenario{
	// The paper's: the others have next to nothing. The short requests' every step has the long one's attention in it.
	{"a queue behind a very long request", 20000, 250000, 400, 400, 1, 20 * time.Second, 1.15},
	{"a very long request that nearly fills its pool", 16000, 250000, 800, 200, 1, 20 * time.Second, 1.08},
	// Nobody is short of blocks, so pressure does nothing.
	{"a very long request among a few", 20000, 250000, 8, 4000, 0, 20 * time.Second, 1.3},
	// One that is short, in a small pool: pressure does all that there is to do, and plans do no harm.
	{"a long request that fills a small pool", 2200, 32000, 120, 200, 1, 5 * time.Second, 0.98},
}

// rates runs a scenario without plans and with.
func (s *scenario) rates(t testing.TB) (without, with float64, moves int) {
	run := func(plans bool) (float64, int) {
		c := newSim(t, gpu, plans, s.pool, s.pool, s.pool, s.pool)
		c.warm()
		c.add(0, 1, s.long, 1<<20)
		for long := c.nodes[0].requests[c.lastID]; long.tokens == s.long; {
			c.run(10 * time.Millisecond)
		}
		c.add(0, s.short, 800, s.answer)
		for i := range c.nodes[1:] {
			c.add(i+1, s.others, 500, 1<<20)
		}
		before := c.moves
		return c.run(s.while), c.moves - before
	}
	without, _ = run(false)
	with, moves = run(true)
	return without, with, moves
}

// Plans raise the token rate of a cluster in which one instance has much more to do than the others.
func TestPlansRaiseTheRate(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			without, with, moves := s.rates(t)
			t.Logf("%.0f tokens/s with %d planned moves, %.0f without: %.2f times", with, moves, without, with/without)
			if with < s.least*without || s.least > 1 && moves == 0 {
				t.Errorf("%d moves, %.2f times, instead of at least %.2f", moves, with/without, s.least)
			}
		})
	}
}

// A cluster whose instances have alike to do is left alone.
func TestBalancedClusterIsLeftAlone(t *testing.T) {
	c := newSim(t, gpu, true, 2200, 2200, 2200)
	c.warm()
	for i := range c.nodes {
		c.add(i, 10, 2000, 400)
	}
	if c.run(10 * time.Minute); c.moves != 0 || c.busy() {
		t.Fatalf("%d moves, over %v", c.moves, !c.busy())
	}
}

func BenchmarkPlans(b *testing.B) {
	for _, s := range scenarios {
		b.Run(s.name, func(b *testing.B) {
			for b.Loop() {
				without, with, moves := s.rates(b)
				b.ReportMetric(with, "tokens/s")
				b.ReportMetric(with/without, "times-pressure-alone")
				b.ReportMetric(float64(moves), "moves")
			}
		})
	}
}
