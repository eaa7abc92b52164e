package sched

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

func seed(t *rapid.T) *rand.Rand { return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)) }

// Whatever comes, in whatever order the nodes run, however late they hear of each other: the books are
// right after every operation, nothing overruns, and every request that is not cancelled finishes.
func TestEverythingFinishes(t *testing.T) {
	adopted, drafted, found, placed := 0, 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		rng := seed(t)
		pools := make([]int, 1+rng.IntN(4))
		for i := range pools {
			pools[i] = 3 + rng.IntN(28)
		}
		c := newSim(t, rng, pools...)
		c.ranked = rng.IntN(2) == 0
		for range 1 + rng.IntN(16) {
			c.addRandom(rng.IntN(len(pools)))
		}
		for range rapid.IntRange(0, 400).Draw(t, "operations") {
			c.operate()
		}
		c.finish(200000)
		adopted += c.adopted
		drafted += c.drafted
		found += c.found
		for _, n := range c.nodes {
			placed += int(n.s.Placed()) // by those that have not died
		}
	})
	if adopted == 0 || drafted == 0 || found == 0 || placed == 0 {
		t.Errorf("requests began with %d tokens of others, %d with some of another node's, %d tokens were drafts, and plans placed %d blocks", adopted, found, drafted, placed)
	}
}

// Texts of which every other run lies with each of two nodes are asked for at a third: requests begin with blocks that lie in
// another order than in the text, where tables need not be in it.
func TestScatteredTextsAreFound(t *testing.T) {
	mixed := 0
	rapid.Check(t, func(t *rapid.T) {
		rng := seed(t)
		c := newSim(t, rng, 40, 40, 40)
		c.ranked = rng.IntN(2) == 0
		for family := range 3 {
			run := 1 + rng.IntN(3)
			c.leaveRuns(1, family, 8, run, 0)
			c.leaveRuns(2, family, 8, run, run)
			c.addOf(0, family, 50, 60+rng.IntN(20))
			for range 12 {
				c.step(0)
				c.heartbeat(rng.IntN(3))
				c.answer(0)
			}
		}
		mixed += c.mixed
		c.finish(200000)
	})
	if mixed == 0 {
		t.Error("no request began with blocks in another order")
	}
	t.Logf("%d requests began with blocks in another order", mixed)
}

// addRandom adds a request of at most one block less than the cluster has, as the API promises.
func (c *simCluster) addRandom(i int) {
	end := 2 + c.IntN((c.total-1)*simBlock-1)
	if c.IntN(2) == 0 {
		end = min(end, 2+c.IntN(20))
	}
	c.add(i, 1+c.IntN(end-1), end)
}

// operate does one of the things that happen.
func (c *simCluster) operate() {
	i := c.IntN(len(c.nodes))
	n := c.nodes[i]
	switch k := c.IntN(100); {
	case k < 55:
		c.step(i)
	case k < 75:
		c.heartbeat(i)
	case k < 91:
		if len(n.moves) > 0 {
			c.advance(i, n.moves[c.IntN(len(n.moves))], c.IntN(4) == 0)
		}
	case k < 92:
		if len(n.returns) > 0 {
			c.comeBack(i, n.returns[c.IntN(len(n.returns))], c.IntN(4) == 0)
		} else {
			c.leave(i, c.IntN(4) == 0)
		}
	case k < 94:
		c.answer(i)
	case k < 95:
		c.addRandom(i)
	case k < 98:
		if ids := slices.Sorted(maps.Keys(n.reqs)); len(ids) > 0 {
			c.end(i, ids[c.IntN(len(ids))])
		}
	case k < 99:
		c.die(i)
		c.scatter(c.IntN(len(c.nodes)))
	default:
		c.plan(i)
	}
}

// plan wants blocks of a node's requests with another node, whatever both are doing.
func (c *simCluster) plan(i int) {
	n, to := c.nodes[i], c.nodes[c.IntN(len(c.nodes))].name
	for _, id := range slices.Sorted(maps.Keys(n.reqs)) {
		if to != n.name && c.IntN(2) == 0 {
			_ = n.s.Place(id, to, 1+c.IntN(8)) // one that waits is refused
		}
	}
}

// round lets every node run a step and some of its moves go on; heartbeats come every few rounds.
func (c *simCluster) round() {
	for i, n := range c.nodes {
		c.step(i)
		if c.IntN(10) == 0 {
			c.plan(i)
		}
		if c.IntN(10) == 0 {
			c.scatter(i)
		}
		for _, x := range slices.Clone(n.returns) {
			if c.IntN(3) > 0 {
				c.comeBack(i, x, false)
			}
		}
		for _, m := range slices.Clone(n.moves) {
			if c.IntN(3) > 0 {
				c.advance(i, m, false)
			}
		}
		if c.IntN(3) == 0 {
			c.heartbeat(i)
		}
		if c.IntN(2) == 0 {
			c.answer(i)
		}
	}
}

// finish runs all nodes until nothing is left, and counts the blocks.
func (c *simCluster) finish(limit int) {
	for k := 0; c.busy(); k++ {
		if k == 50 {
			c.leaving = nil // else there may never be room enough
		}
		if k == limit {
			for _, n := range c.nodes {
				c.t.Logf("%s: %+v, hears %+v", n.name, n.kv.Counts(), n.heard)
				for id, r := range n.reqs {
					c.t.Logf("request %d: %+v, %+v", id, *r, n.kv.Size(id))
				}
			}
			c.t.Fatal("some requests and moves never end")
		}
		c.round()
	}
	for i, n := range c.nodes {
		c.step(i)
		if k := n.kv.Counts(); k.Free != k.Total || k.Lent != 0 || k.Shared != 0 || n.kv.Hostable() != k.Total || !n.s.Idle() || len(n.s.slots) != n.s.cfg.MaxNumSeqs {
			c.t.Fatalf("%s ends with %+v", n.name, k)
		}
	}
}

func (c *simCluster) busy() bool {
	return slices.ContainsFunc(c.nodes, func(n *simNode) bool { return len(n.reqs)+len(n.moves)+len(n.returns)+len(n.searches) > 0 })
}

// A request is served in the end however many younger ones come after it, here and elsewhere.
func TestOldRequestsAreNotStarved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := seed(t)
		c := newSim(t, rng, 6+rng.IntN(12), 6+rng.IntN(12), 6+rng.IntN(12))
		c.ranked = rng.IntN(2) == 0
		crowd := func() {
			for i, n := range c.nodes {
				for _, waiting := n.s.Counts(); waiting < 3; waiting++ {
					end := 2 + rng.IntN(n.kv.Total()*simBlock/2)
					c.add(i, max(1, end-1-rng.IntN(end/2)), end)
				}
			}
		}
		for range 50 {
			crowd()
			c.round()
		}
		end := (c.total-1)*simBlock - rng.IntN(c.total*simBlock/2)
		id := c.add(0, end-1-rng.IntN(end/2), end)
		for k := 0; c.nodes[0].reqs[id] != nil; k++ {
			if k == 20000 {
				t.Fatalf("a request of %d tokens in a cluster for %d never ends: %+v", end, c.total*simBlock, *c.nodes[0].reqs[id])
			}
			crowd()
			c.round()
		}
		c.finish(200000)
	})
}

// A process dies that borrows and lends: its creditor hears of it, and frees its spans, before its debtor
// takes back the request that has lost blocks with it. The books are right in between as well.
func TestDebtorAndCreditorDies(t *testing.T) {
	c := newSim(t, rand.New(rand.NewPCG(1, 1)), 16, 16, 16)
	c.borrow(2, 0)
	c.borrow(0, 1)
	c.checkPools()
	c.die(0)
	if k := c.nodes[1].kv.Counts(); len(c.nodes[0].reqs) > 0 || k.Hosted > 0 {
		t.Fatalf("requests %v are left, and %+v", c.nodes[0].reqs, k)
	}
	c.waitsAnew(2)
	c.finish(1000)
}

// A creditor is lost while a request's span there grows: the request waits again, and the room behind the span is free.
func TestCreditorIsLostInAMove(t *testing.T) {
	c := newSim(t, rand.New(rand.NewPCG(1, 1)), 16, 16)
	m := c.borrow(0, 1)
	tab, err := c.nodes[0].kv.Table(m.Request)
	if err != nil {
		t.Fatal(err)
	}
	c.lend(0, 1, m, tab.Spans[0])
	c.advance(0, m, true)
	if k := c.nodes[1].kv.Counts(); k.Hosted > 0 {
		t.Fatalf("a pool has %+v", k)
	}
	c.waitsAnew(0)
	c.finish(1000)
}

// waitsAnew: the node's one request waits, and has no block.
func (c *simCluster) waitsAnew(i int) {
	c.t.Helper()
	n := c.nodes[i]
	running, waiting := n.s.Counts()
	if k := n.kv.Counts(); running != 0 || waiting != 1 || len(n.reqs) != 1 || k.Owned > 0 || k.Lent > 0 {
		c.t.Fatalf("%d requests run and %d wait, of %v; %+v", running, waiting, n.reqs, k)
	}
}

// borrow gives a node a request of which one block lies with the creditor, and returns the move that took it there.
func (c *simCluster) borrow(i, creditor int) *simMove {
	n := c.nodes[i]
	m := &simMove{Offload: Offload{Request: c.add(i, 4*simBlock, 6*simBlock), Blocks: 1}}
	for n.kv.Size(m.Request).Movable < 2 {
		c.step(i)
	}
	c.lend(i, creditor, m, kvcache.Span{})
	c.advance(i, m, false)
	return m
}

// lend begins a move to a creditor, behind the request's last span if that is given.
func (c *simCluster) lend(i, creditor int, m *simMove, last kvcache.Span) {
	if !c.reserve(c.nodes[i], c.nodes[creditor], m, last) {
		c.t.Fatalf("%s does not lend to %s", c.nodes[creditor].name, c.nodes[i].name)
	}
	m.begun = true
}
