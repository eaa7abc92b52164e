package plan

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

const (
	simBlock  = 16
	beatEvery = 100e6 // ns, as all times here
	planEvery = 1000e6
	perBlock  = 0.2e6 // of a move: 2 MB at 10 GB/s
)

// sim is a cluster of real schedulers and pools in virtual time: steps last as the truth says, moves take their time,
// and views and plans are made of heartbeats. Each instance's model is fitted to its own steps.
type sim struct {
	t        testing.TB
	truth    truth
	nodes    []*simNode
	plans    bool
	now      float64
	beat     float64 // the next heartbeats
	due      float64 // the next plan
	lastID   kvcache.RequestID
	moves    int // planned
	snapshot Snapshot

	preempted int
}

type simNode struct {
	name     string
	s        *sched.Scheduler
	kv       *kvcache.Manager
	fit      Fit
	requests map[kvcache.RequestID]*simRequest
	offloads []*simOffload
	step     []sched.Item // in flight
	work     Step
	next     float64            // when it ends, or when it is looked at again
	serves   map[string]float64 // share of its time that each debtor takes
	hostable int                // as its last heartbeat said
	running  int                // likewise
	tokens   int                // generated
}

type simRequest struct{ tokens, end int }

type simOffload struct {
	sched.Offload
	span kvcache.Span
	n    int // 0: it is refused
	ends float64
}

func newSim(t testing.TB, h truth, plans bool, pools ...int) *sim {
	c := &sim{t: t, truth: h, plans: plans, due: planEvery}
	for i, blocks := range pools {
		kv, err := kvcache.New(blocks, simBlock)
		if err != nil {
			t.Fatal(err)
		}
		s, err := sched.New(sched.Config{MaxNumSeqs: 64, MaxBatchedTokens: 2048, MaxWaiting: 1000}, kv)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, &simNode{name: fmt.Sprintf("i%d", i), s: s, kv: kv, requests: map[kvcache.RequestID]*simRequest{}, serves: map[string]float64{}})
	}
	return c
}

func (c *sim) add(i, n, prompt, answer int) {
	for range n {
		c.lastID++
		if err := c.nodes[i].s.Add(sched.Request{ID: c.lastID, Arrival: uint64(c.lastID), Tokens: prompt}); err != nil {
			c.t.Fatal(err)
		}
		c.nodes[i].requests[c.lastID] = &simRequest{prompt, prompt + answer}
	}
}

// run goes on until nothing is left, or the time is over; it returns the tokens generated per second.
func (c *sim) run(limit time.Duration) float64 {
	began, before := c.now, c.tokens()
	for c.busy() && c.now < began+float64(limit) {
		n := slices.MinFunc(c.nodes, func(a, b *simNode) int { return cmp.Compare(a.next, b.next) })
		c.now = max(c.now, n.next)
		for ; c.beat <= c.now; c.beat += beatEvery {
			c.heartbeats()
		}
		c.end(n)
		c.begin(n)
	}
	return float64(c.tokens()-before) / (c.now - began) * 1e9
}

func (c *sim) busy() bool {
	return slices.ContainsFunc(c.nodes, func(n *simNode) bool { return len(n.requests) > 0 })
}

func (c *sim) tokens() (sum int) {
	for _, n := range c.nodes {
		sum += n.tokens
	}
	return sum
}

func (c *sim) node(name string) *simNode {
	return c.nodes[slices.IndexFunc(c.nodes, func(n *simNode) bool { return n.name == name })]
}

// end takes the results of a step, and of moves that are over.
func (c *sim) end(n *simNode) {
	if n.work.Tokens > 0 {
		n.fit.Add(n.work)
	}
	for _, it := range n.step {
		r, gain := n.requests[it.Request], 0
		if it.Last {
			gain = 1
		}
		if err := n.s.Commit(it.Request, gain); err != nil {
			c.t.Fatal(err)
		}
		n.tokens += gain
		if r.tokens += gain; r.tokens >= r.end {
			spans, _ := n.s.Remove(it.Request)
			c.release(n, spans)
			delete(n.requests, it.Request)
		}
	}
	n.step, n.work = n.step[:0], Step{}
	n.offloads = slices.DeleteFunc(n.offloads, func(o *simOffload) bool {
		if o.ends > c.now {
			return false
		}
		if o.n > 0 {
			orphans, err := n.kv.CommitMove(o.Request, o.n)
			if err != nil {
				c.t.Fatal(err)
			}
			c.release(n, orphans)
		}
		n.s.Moved(o.Request, o.n > 0)
		return true
	})
}

func (c *sim) release(n *simNode, spans []kvcache.Ended) {
	for _, s := range spans {
		if err := c.node(s.Instance).kv.Unhost(n.name, s.Handle, s.Generation, s.Keys); err != nil {
			c.t.Fatal(err)
		}
	}
}

// begin starts the next step.
func (c *sim) begin(n *simNode) {
	var view sched.View
	for _, p := range c.nodes {
		if p != n {
			view.PeersFree += p.hostable
			view.OthersRunning += p.running
		}
	}
	p := n.s.Schedule(view)
	if len(p.Failed) > 0 {
		c.t.Fatalf("%s: %+v", n.name, p.Failed)
	}
	c.preempted += len(p.Preempted)
	c.release(n, p.Release)
	for _, o := range p.Offloads {
		n.offloads = append(n.offloads, c.reserve(n, o))
	}
	if len(p.Items) == 0 {
		n.next = c.now + 1e6
		clear(n.serves)
		return
	}
	n.step = append(n.step, p.Items...)
	n.work.Hosts = n.kv.Counts().Hosted > 0
	asked := map[string]int{}
	for _, it := range p.Items {
		table, err := n.kv.Table(it.Request)
		if err != nil {
			c.t.Fatal(err)
		}
		here := it.Start
		for _, s := range table.Spans {
			asked[s.Instance] += s.Blocks * simBlock
			here -= s.Blocks * simBlock
		}
		n.work.Tokens += it.N
		if it.N == 1 {
			n.work.KV += here + 1
		} else {
			n.work.Scores += it.N*here + it.N*(it.N+1)/2
		}
	}
	n.next = c.now + c.last(n, asked)
}

// last is how long the step lasts: what it computes, what it waits for, and what debtors take of the device meanwhile.
func (c *sim) last(n *simNode, asked map[string]int) float64 {
	h := c.truth
	attention := h.PerKV * float64(n.work.KV)
	for _, p := range c.nodes {
		if kv := asked[p.name]; kv > 0 {
			n.work.Asked = max(n.work.Asked, kv)
			part := h.PerKV * float64(kv)
			if len(p.step) > 0 {
				part *= 2
			}
			attention = max(attention, h.Remote+part)
		}
	}
	took := h.Base + h.PerToken*float64(n.work.Tokens) + h.perScore*float64(n.work.Scores) + attention
	taken := 0.0
	for _, p := range c.nodes { // in order, so that a run is the same every time
		taken += n.serves[p.name]
	}
	took /= 1 - min(taken, 0.9)
	for _, p := range c.nodes {
		if p.serves[n.name] = h.PerKV * float64(asked[p.name]) / took; asked[p.name] == 0 {
			delete(p.serves, n.name)
		}
	}
	n.work.Took = time.Duration(took)
	return took
}

// reserve asks for an offload's room: where the request's last blocks are first, then with those who said they have most.
func (c *sim) reserve(n *simNode, o sched.Offload) *simOffload {
	out := &simOffload{Offload: o, ends: c.now + 1e6}
	table, err := n.kv.Table(o.Request)
	if err != nil {
		c.t.Fatal(err)
	}
	var last kvcache.Span
	if k := len(table.Spans); k > 0 {
		last = table.Spans[k-1]
	}
	creditors := slices.Clone(c.nodes)
	slices.SortStableFunc(creditors, func(a, b *simNode) int {
		if (a.name == last.Instance) != (b.name == last.Instance) {
			return cmp.Compare(b2i(b.name == last.Instance), b2i(a.name == last.Instance))
		}
		return cmp.Compare(b.hostable, a.hostable)
	})
	for _, p := range creditors {
		if p == n || o.To != "" && o.To != p.name {
			continue
		}
		span, there := last, last.Blocks
		var h kvcache.Hosted
		if p.name == last.Instance {
			h, err = p.kv.ExtendHost(n.name, last.Handle, last.Generation, there, o.Blocks)
		} else {
			h, err = p.kv.Host(n.name, 0, o.Blocks)
			there = 0
			span = kvcache.Span{Instance: p.name, Handle: h.Handle, Generation: h.Generation}
		}
		if err != nil {
			continue
		}
		out.span, out.n = span, min(o.Blocks, len(h.Blocks)-there)
		if _, err = n.kv.BeginMove(o.Request, span, out.n); err != nil {
			c.t.Fatal(err)
		}
		out.ends += perBlock * float64(out.n)
		return out
	}
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// heartbeats let all hear of all, and the planner plan when that is due.
func (c *sim) heartbeats() {
	c.snapshot = Snapshot{BlockSize: simBlock}
	for _, n := range c.nodes {
		n.hostable = n.kv.Hostable()
		n.running, _ = n.s.Counts()
		k := n.kv.Counts()
		in := Instance{ID: n.name, Blocks: k.Total, Free: k.Free, Hosted: k.Hosted, Lent: k.Lent, Hostable: n.hostable, MaxSeqs: 64}
		in.Model, in.Known = n.fit.Model()
		for id := kvcache.RequestID(1); id <= c.lastID; id++ {
			r := n.requests[id]
			if r == nil {
				continue
			}
			q := Request{Number: uint64(id), Tokens: r.tokens, Planned: n.s.Planned(id)}
			if table, err := n.kv.Table(id); err == nil {
				size := n.kv.Size(id)
				q.Running, q.Local, q.Movable = true, size.Local, max(0, size.Local-1-size.Moving)
				for _, s := range table.Spans {
					q.Spans = append(q.Spans, Span{s.Instance, s.Blocks})
				}
			}
			in.Requests = append(in.Requests, q)
		}
		c.snapshot.Instances = append(c.snapshot.Instances, in)
	}
	if !c.plans || c.beat < c.due {
		return
	}
	c.due = c.beat + planEvery
	seen := map[uint64]bool{}
	for _, m := range Moves(&c.snapshot) {
		if !seen[m.Number] && c.node(m.Home).s.Place(kvcache.RequestID(m.Number), m.To, m.Blocks) == nil {
			c.moves++
		}
		seen[m.Number] = true
	}
}

// warm lets every instance measure itself, and ends with an empty cluster.
func (c *sim) warm() {
	for _, load := range [][3]int{{1, 300, 100}, {1, 3000, 100}, {2, 6000, 60}, {4, 200, 60}, {8, 1500, 60}, {16, 300, 60}, {32, 100, 60}, {1, 20000, 60}} {
		for i := range c.nodes {
			c.add(i, load[0], load[1], load[2])
		}
		c.run(time.Minute)
	}
	for _, n := range c.nodes {
		m, ok := n.fit.Model()
		if !ok || !near(m.Base, c.truth.Base, 0.2) || !near(m.PerKV, c.truth.PerKV, 0.2) {
			c.t.Fatalf("%s has measured %+v, %v", n.name, m, ok)
		}
	}
	if k := c.moves; k > 0 {
		c.t.Fatalf("%d moves while all were loaded alike", k)
	}
}
