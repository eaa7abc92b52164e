package sched

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

const simBlock = 4

// simInstance is a scheduler with its pool, and what the engine would know of its requests.
type simInstance struct {
	s     *Scheduler
	kv    *kvcache.Manager
	reqs  map[kvcache.RequestID]*simRequest
	moves []Offload
}

type simRequest struct {
	arrival               uint64
	tokens, computed, end int
}

// simCluster moves blocks between the pools, as rManagers do, but at once.
type simCluster struct {
	t     *rapid.T
	nodes []*simInstance
}

func (c *simCluster) view(i int) View {
	var v View
	for j, n := range c.nodes {
		for _, r := range n.reqs {
			if v.OldestArrival == 0 || r.arrival < v.OldestArrival {
				v.OldestArrival = r.arrival
			}
		}
		if j != i {
			v.PeersFree += n.kv.Hostable()
			running, _ := n.s.Counts()
			v.OthersRunning += running
		}
	}
	return v
}

func instance(i int) string { return string(rune('a' + i)) }

func (c *simCluster) release(i int, spans []kvcache.Span) {
	for _, s := range spans {
		if err := c.nodes[s.Peer].kv.Unhost(instance(i), s.Handle, s.Generation); err != nil {
			c.t.Fatalf("release: %v", err)
		}
	}
}

// place settles an offload with the first instance that has room.
func (c *simCluster) place(i int, o Offload) {
	n := c.nodes[i]
	for j, p := range c.nodes {
		if j == i {
			continue
		}
		h, err := p.kv.Host(instance(i), o.Blocks)
		if err != nil {
			continue
		}
		if _, err := n.kv.BeginMove(o.Request, len(h.Blocks)); err != nil {
			c.release(i, []kvcache.Span{{Peer: uint32(j), Handle: h.Handle, Generation: h.Generation}})
			break
		}
		orphans, err := n.kv.CommitMove(o.Request, kvcache.Span{Instance: instance(j), Peer: uint32(j), Handle: h.Handle, Generation: h.Generation, Blocks: len(h.Blocks)})
		if err != nil {
			c.t.Fatalf("commit: %v", err)
		}
		c.release(i, orphans)
		n.s.Moved(o.Request, true)
		return
	}
	n.s.Moved(o.Request, false)
}

// step schedules and computes one step of an instance. settle says whether moves end before it.
func (c *simCluster) step(i int, settle bool) {
	n := c.nodes[i]
	if settle {
		for _, o := range n.moves {
			c.place(i, o)
		}
		n.moves = nil
	}
	p := n.s.Schedule(c.view(i))
	c.release(i, p.Release)
	for _, x := range p.Preempted {
		n.reqs[x.Request].computed = 0
	}
	for _, f := range p.Failed {
		r := n.reqs[f.Request]
		if !errors.Is(f.Err, ErrNoRoom) {
			c.t.Fatalf("request %d failed: %v", f.Request, f.Err)
		}
		total := 0
		for _, m := range c.nodes {
			total += m.kv.Total()
		}
		// Every request was made to fit an empty cluster.
		c.t.Fatalf("request %d of %d tokens (end %d) failed in a cluster of %d blocks: %v", f.Request, r.tokens, r.end, total, f.Err)
	}
	n.moves = append(n.moves, p.Offloads...)
	c.check(i, p)
	for _, it := range p.Items {
		r := n.reqs[it.Request]
		gain := 0
		if it.Last {
			gain = 1
		}
		if err := n.s.Commit(it.Request, gain); err != nil {
			c.t.Fatal(err)
		}
		r.computed += it.N
		if r.tokens += gain; r.tokens >= r.end {
			c.end(i, it.Request)
		}
	}
}

// check holds a plan against what every plan must honour.
func (c *simCluster) check(i int, p *Plan) {
	n := c.nodes[i]
	sum, slots, seen := 0, map[uint32]bool{}, map[kvcache.RequestID]bool{}
	for _, it := range p.Items {
		r := n.reqs[it.Request]
		if r == nil || seen[it.Request] || slots[it.Slot] || int(it.Slot) >= n.s.cfg.MaxNumSeqs || it.N < 1 {
			c.t.Fatalf("item %+v: unknown, twice, or its slot is shared", it)
			return
		}
		seen[it.Request], slots[it.Slot] = true, true
		if it.Start != r.computed || it.Start+it.N > r.tokens || it.Last != (it.Start+it.N == r.tokens) {
			c.t.Fatalf("item %+v of %+v", it, *r)
		}
		if n.kv.Capacity(it.Request) < it.Start+it.N {
			c.t.Fatalf("item %+v has room for %d", it, n.kv.Capacity(it.Request))
		}
		sum += it.N
	}
	if sum > n.s.cfg.MaxBatchedTokens {
		c.t.Fatalf("%d tokens in a step", sum)
	}
	oldest := c.view(i).OldestArrival
	for _, x := range p.Preempted {
		if n.reqs[x.Request].arrival == oldest || x.Reason == "" {
			c.t.Fatalf("the cluster's oldest request was preempted, or without reason: %+v", x)
		}
	}
	flight := map[kvcache.RequestID]int{}
	for _, o := range n.moves {
		if flight[o.Request]++; flight[o.Request] > 1 || o.Blocks < 1 {
			c.t.Fatalf("offload %+v beside another", o)
		}
	}
	k := n.kv.Counts()
	if k.Free+k.Owned+k.Hosted != k.Total {
		c.t.Fatalf("%+v", k)
	}
}

func (c *simCluster) end(i int, id kvcache.RequestID) {
	n := c.nodes[i]
	spans, ok := n.s.Remove(id)
	if !ok {
		c.t.Fatalf("request %d is unknown", id)
	}
	c.release(i, spans)
	delete(n.reqs, id)
}

// Whatever comes, in whatever order the instances run: nothing overruns, everything ends.
func TestEverythingFinishes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &simCluster{t: t}
		total := 0
		for range rapid.IntRange(1, 4).Draw(t, "instances") {
			blocks := rapid.IntRange(3, 30).Draw(t, "blocks")
			kv, err := kvcache.New(blocks, simBlock)
			if err != nil {
				t.Fatal(err)
			}
			seqs := rapid.IntRange(1, 4).Draw(t, "seqs")
			s, err := New(Config{MaxNumSeqs: seqs, MaxBatchedTokens: seqs + rapid.IntRange(0, 40).Draw(t, "tokens"), MaxWaiting: 100, Patience: 1000}, kv)
			if err != nil {
				t.Fatal(err)
			}
			c.nodes = append(c.nodes, &simInstance{s: s, kv: kv, reqs: map[kvcache.RequestID]*simRequest{}})
			total += blocks
		}
		n := rapid.IntRange(1, 12).Draw(t, "requests")
		for k := range n {
			node := c.nodes[rapid.IntRange(0, len(c.nodes)-1).Draw(t, "home")]
			// One block less than the cluster has, as the API promises.
			end := rapid.IntRange(2, (total-1)*simBlock).Draw(t, "end")
			r := &simRequest{arrival: uint64(k + 1), tokens: rapid.IntRange(1, end-1).Draw(t, "prompt"), end: end}
			if err := node.s.Add(Request{ID: kvcache.RequestID(k), Arrival: r.arrival, Tokens: r.tokens}); err != nil {
				t.Fatal(err)
			}
			node.reqs[kvcache.RequestID(k)] = r
		}
		for range rapid.IntRange(0, 60).Draw(t, "random steps") {
			i := rapid.IntRange(0, len(c.nodes)-1).Draw(t, "instance")
			c.step(i, rapid.Bool().Draw(t, "settle"))
			if rapid.IntRange(0, 9).Draw(t, "cancel") == 0 {
				for k := range n {
					if _, ok := c.nodes[i].reqs[kvcache.RequestID(k)]; ok {
						c.end(i, kvcache.RequestID(k))
						break
					}
				}
			}
		}
		c.finish()
	})
}

// finish runs all instances in turn until nothing is left, and counts the blocks.
func (c *simCluster) finish() {
	for round := 0; ; round++ {
		left := 0
		for i, n := range c.nodes {
			c.step(i, true)
			left += len(n.reqs) + len(n.moves)
		}
		if left == 0 {
			break
		}
		if round == 200000 {
			for i, n := range c.nodes {
				c.t.Logf("instance %d: %+v", i, n.kv.Counts())
				for id, r := range n.reqs {
					c.t.Logf("request %d: %+v, %+v", id, *r, n.kv.Size(id))
				}
			}
			c.t.Fatalf("%d requests and moves never end", left)
		}
	}
	for i, n := range c.nodes {
		c.step(i, true)
		if k := n.kv.Counts(); k.Free != k.Total || k.Lent != 0 || n.kv.Hostable() != k.Total || !n.s.Idle() || len(n.s.slots) != n.s.cfg.MaxNumSeqs {
			c.t.Fatalf("instance %d ends with %+v", i, k)
		}
	}
}
