package sched

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

const simBlock = 4

// simCluster is several schedulers with their pools, and what lies between them: heartbeats that make
// views, late ones, and moves that take time and may be refused.
type simCluster struct {
	*rand.Rand
	t                rapid.TB
	nodes            []*simNode
	nextID           kvcache.RequestID
	clock            uint64
	total            int      // blocks
	adopted          int      // tokens that requests began with
	drafted          int      // tokens that were drafts first
	found            int      // requests that began with blocks of other nodes
	inOrder          bool     // tables are in the order of their texts
	ranked           bool     // requests have priorities: who comes later may sort earlier
	mixed            int      // of these, those whose tables are in another order than their texts
	leaving          []string // nodes
	returned, turned int      // blocks that came home, and returns from the middle of a table
}

// simNode is a scheduler with its pool, and what the engine would know of its requests.
type simNode struct {
	name    string
	peer    uint32 // differs for every process
	s       *Scheduler
	kv      *kvcache.Manager
	reqs    map[kvcache.RequestID]*simRequest
	moves   []*simMove
	returns []*simReturn
	// searches are those that were not answered yet; found is what a waiting request may begin with.
	searches []Search
	found    map[kvcache.RequestID][]kvcache.Found
	// starving is what the last plan said, said the last heartbeat, heard what the answer to it said of all.
	starving uint64
	said     report
	heard    map[int]report
}

type report struct {
	hostable, running int
	oldest, starving  uint64
}

type simRequest struct {
	arrival               uint64
	family                int
	tokens, computed, end int
	order                 []int32 // which block of the text a block of the table is, as far as it is not the same
}

// simMove is an offload under way: asked for, or begun into a span at a node.
type simMove struct {
	Offload
	span  kvcache.Span
	n     int
	begun bool
}

func newSim(t rapid.TB, rng *rand.Rand, pools ...int) *simCluster {
	c := &simCluster{Rand: rng, t: t, nodes: make([]*simNode, len(pools)), inOrder: rng.IntN(4) == 0}
	for i, blocks := range pools {
		c.start(i, blocks)
		c.total += blocks
	}
	for i := range c.nodes {
		c.heartbeat(i)
	}
	return c
}

func (c *simCluster) start(i, blocks int) {
	kv, err := kvcache.NewWithOptions(blocks, simBlock, kvcache.Options{MaxSpans: 64, InOrder: c.inOrder})
	if err != nil {
		c.t.Fatal(err)
	}
	seqs := 1 + c.IntN(4)
	s, err := New(Config{MaxNumSeqs: seqs, MaxBatchedTokens: seqs + c.IntN(41), MaxWaiting: 1000, Patience: 300, MinShared: c.IntN(4) * simBlock}, kv)
	if err != nil {
		c.t.Fatal(err)
	}
	c.clock++
	c.nodes[i] = &simNode{
		name: fmt.Sprintf("i%d", i), peer: uint32(c.clock), s: s, kv: kv, reqs: map[kvcache.RequestID]*simRequest{}, heard: map[int]report{},
		found: map[kvcache.RequestID][]kvcache.Found{},
	}
}

// add gives a node a request of so many tokens, which ends with end tokens.
func (c *simCluster) add(i, prompt, end int) kvcache.RequestID {
	family := c.IntN(3)
	if c.IntN(2) == 0 {
		family = 4 + int(c.nextID)
	}
	return c.addOf(i, family, prompt, end)
}

// addOf is add of one of a family.
func (c *simCluster) addOf(i, family, prompt, end int) kvcache.RequestID {
	c.nextID++
	c.clock++
	r := &simRequest{arrival: c.clock, family: family, tokens: prompt, end: end}
	if c.ranked {
		r.arrival |= uint64(1+c.IntN(3)) << 40
	}
	if err := c.nodes[i].s.Add(Request{ID: c.nextID, Arrival: r.arrival, Tokens: prompt, Keys: r.keys(), Near: c.near()}); err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i].reqs[c.nextID] = r
	return c.nextID
}

// keys are of the tokens that the request has; the texts of a family's requests are beginnings of each other.
func (r *simRequest) keys() []kvcache.Key {
	return kvcache.AppendKeys(nil, kvcache.RootKey(fmt.Sprint(r.family)), make([]int32, r.tokens), simBlock)
}

// heartbeat: the node reports, and hears what all others last said.
func (c *simCluster) heartbeat(i int) {
	n := c.nodes[i]
	running, _ := n.s.Counts()
	n.said = report{hostable: n.kv.Hostable(), running: running, starving: n.starving}
	for _, r := range n.reqs {
		if n.said.oldest == 0 || r.arrival < n.said.oldest {
			n.said.oldest = r.arrival
		}
	}
	for j, p := range c.nodes {
		if p != nil {
			n.heard[j] = p.said
		}
	}
}

func (c *simCluster) view(i int) View {
	v := View{Blocks: c.total, Leaving: c.leaving}
	for j, r := range c.nodes[i].heard {
		if r.oldest != 0 && (v.OldestArrival == 0 || r.oldest < v.OldestArrival) {
			v.OldestArrival = r.oldest
		}
		if j != i {
			if !slices.Contains(c.leaving, c.nodes[j].name) {
				v.PeersFree += r.hostable
			}
			v.OthersRunning += r.running
			if r.starving != 0 && (v.Starving == 0 || r.starving < v.Starving) {
				v.Starving = r.starving
			}
		}
	}
	return v
}

// step schedules and computes one step of a node.
func (c *simCluster) step(i int) {
	n := c.nodes[i]
	view := c.view(i)
	p := n.s.Schedule(view)
	n.starving = p.Starving
	c.release(i, p.Release)
	for _, x := range p.Preempted {
		n.reqs[x.Request].computed, n.reqs[x.Request].order = 0, nil
	}
	for _, f := range p.Failed {
		// Every request was made to fit an empty cluster.
		c.t.Fatalf("request %d of %+v failed in a cluster of %d blocks: %v", f.Request, *n.reqs[f.Request], c.total, f.Err)
	}
	for _, o := range p.Offloads {
		n.moves = append(n.moves, &simMove{Offload: o})
	}
	for _, x := range p.Returns {
		n.returns = append(n.returns, &simReturn{Return: x})
	}
	n.searches = append(n.searches, p.Searches...)
	c.began(n, p)
	tokens, rows := c.checkPlan(n, p, view)
	for _, it := range p.Items {
		r := n.reqs[it.Request]
		gain := 0
		if it.Last {
			gain = 1 + c.guess(n, it, &tokens, &rows)
		}
		if err := n.s.Commit(it.Request, gain); err != nil {
			c.t.Fatal(err)
		}
		r.computed = it.Start + it.N + max(0, gain-1)
		if it.First {
			c.adopted += it.Start
		}
		if r.tokens += gain; r.tokens >= r.end {
			c.end(i, it.Request)
			continue
		}
		n.s.Name(it.Request, r.keys())
	}
	c.checkPools()
}

// guess has drafts for a request, of which some turn out right: as many as it returns. The step has room for them, and so
// has the pool.
func (c *simCluster) guess(n *simNode, it Item, tokens, rows *int) int {
	r := n.reqs[it.Request]
	want := min(c.IntN(6), r.end-r.tokens-1)
	got := n.s.Draft(it.Request, want)
	*tokens, *rows = *tokens+got, *rows+got
	if got > max(0, want) || *tokens > n.s.cfg.MaxBatchedTokens || *rows > n.s.cfg.MaxRows || r.tokens+got > n.kv.Capacity(it.Request) {
		c.t.Fatalf("%d drafts for %d: %d tokens, %d rows, request %+v has room for %d", got, want, *tokens, *rows, *r, n.kv.Capacity(it.Request))
	}
	right := c.IntN(got + 1)
	c.drafted += right
	return right
}

// end takes a request out, as an answer's end and a cancellation do.
func (c *simCluster) end(i int, id kvcache.RequestID) {
	n := c.nodes[i]
	spans, ok := n.s.Remove(id)
	if !ok {
		c.t.Fatalf("request %d is unknown", id)
	}
	c.release(i, spans)
	delete(n.reqs, id)
	delete(n.found, id)
	c.checkPools()
}

// restart takes a request's blocks, of which some are lost.
func (c *simCluster) restart(i int, id kvcache.RequestID) {
	n := c.nodes[i]
	spans, ok := n.s.Restart(id)
	if !ok {
		c.t.Fatalf("request %d does not run", id)
	}
	c.release(i, spans)
	n.reqs[id].computed, n.reqs[id].order = 0, nil
	c.checkPools()
}

// release gives spans back; those at processes that died are gone.
func (c *simCluster) release(i int, spans []kvcache.Ended) {
	for _, s := range spans {
		for _, p := range c.nodes {
			if p.peer == s.Peer {
				if err := p.kv.Unhost(c.nodes[i].name, s.Handle, s.Generation, s.Keys); err != nil {
					c.t.Fatalf("release: %v", err)
				}
			}
		}
	}
}

// advance takes a node's move one step further: to a creditor, or to its end. refuse makes either fail.
func (c *simCluster) advance(i int, m *simMove, refuse bool) {
	n := c.nodes[i]
	if !m.begun && !refuse && c.begin(i, m) {
		c.checkPools()
		return
	}
	n.moves = slices.DeleteFunc(n.moves, func(x *simMove) bool { return x == m })
	var orphans []kvcache.Ended
	var err error
	switch {
	case m.begun && refuse:
		// Only the loss of the creditor ends a move under way, and what a request has there as well: one
		// that went on would leave the room reserved behind them unused, as nobody else can have it.
		if slices.Contains(n.kv.RequestsAt(m.span.Instance), m.Request) {
			c.restart(i, m.Request)
		}
		if m.span.Blocks == 0 {
			c.release(i, []kvcache.Ended{{Span: m.span}})
		}
		orphans, err = n.kv.AbortMove(m.Request)
	case m.begun:
		orphans, err = n.kv.CommitMove(m.Request, m.n)
	}
	if err != nil {
		c.t.Fatalf("the end of move %+v: %v", *m, err)
	}
	c.release(i, orphans)
	n.s.Moved(m.Request, m.begun && !refuse)
	c.checkPools()
}

// begin reserves room for a move with the creditor that has most, the last one if it has any.
func (c *simCluster) begin(i int, m *simMove) bool {
	n := c.nodes[i]
	var last kvcache.Span
	if tab, err := n.kv.Table(m.Request); err != nil {
		return false
	} else if k := len(tab.Spans); k > 0 && !tab.Spans[k-1].Shared && !tab.Spans[k-1].Cut {
		last = tab.Spans[k-1]
	}
	creditors := slices.Sorted(maps.Keys(n.heard))
	rank := func(j int) int {
		if c.nodes[j].peer == last.Peer {
			return 1 << 30
		}
		return n.heard[j].hostable
	}
	slices.SortStableFunc(creditors, func(a, b int) int { return cmp.Compare(rank(b), rank(a)) })
	for _, j := range creditors {
		if m.To != "" && c.nodes[j].name != m.To {
			continue
		}
		if j != i && !slices.Contains(c.leaving, c.nodes[j].name) && (n.heard[j].hostable > 0 || m.To != "") && c.reserve(n, c.nodes[j], m, last) {
			m.begun = true
			return true
		}
		heard := n.heard[j]
		heard.hostable = c.nodes[j].kv.Hostable()
		n.heard[j] = heard
	}
	return false
}

func (c *simCluster) reserve(n, p *simNode, m *simMove, last kvcache.Span) bool {
	var h kvcache.Hosted
	var err error
	if m.span = last; last.Peer == p.peer {
		h, err = p.kv.ExtendHost(n.name, last.Handle, last.Generation, last.Blocks, m.Blocks)
	} else {
		h, err = p.kv.Host(n.name, 0, m.Blocks)
		m.span = kvcache.Span{Instance: p.name, Peer: p.peer, Handle: h.Handle, Generation: h.Generation}
	}
	if err != nil {
		return false
	}
	m.n = min(m.Blocks, len(h.Blocks)-m.span.Blocks)
	if _, err = n.kv.BeginMove(m.Request, m.span, m.n); err == nil {
		return true
	}
	// It was preempted and began anew since the plan; now it has fewer blocks.
	if m.span.Blocks == 0 {
		if err := p.kv.Unhost(n.name, h.Handle, h.Generation, nil); err != nil {
			c.t.Fatal(err)
		}
	}
	return false
}

// die ends a node's process with all that it has and hosts; a new one takes its place. The process is gone
// before the others hear of it, one by one: what they free of its requests is in no table any more.
func (c *simCluster) die(d int) {
	name, blocks := c.nodes[d].name, c.nodes[d].kv.Total()
	dead, returns := c.nodes[d].peer, c.nodes[d].returns
	c.start(d, blocks)
	c.leave(d, false)
	for i, n := range c.nodes {
		if i == d {
			continue
		}
		c.lose(i, name)
		for _, m := range slices.Clone(n.moves) {
			if m.begun && m.span.Peer == dead {
				c.advance(i, m, true)
			}
		}
		if c.IntN(2) == 0 { // before or behind what it had here
			c.cutOff(i, dead)
		}
		for _, h := range n.kv.HostedOf(name) {
			if err := n.kv.Unhost(name, h.Handle, h.Generation, nil); err != nil {
				c.t.Fatal(err)
			}
		}
		c.cutOff(i, dead)
		delete(n.heard, d)
	}
	c.givenUp(returns)
	c.checkPools()
}

// checkPlan holds a plan against what every plan must honour, and returns the step's tokens and rows.
func (c *simCluster) checkPlan(n *simNode, p *Plan, view View) (sum, rows int) {
	slots, seen := map[uint32]bool{}, map[kvcache.RequestID]bool{}
	for _, it := range p.Items {
		r := n.reqs[it.Request]
		if r == nil || seen[it.Request] || slots[it.Slot] || int(it.Slot) >= n.s.cfg.MaxNumSeqs || it.N < 1 {
			c.t.Fatalf("item %+v: unknown, twice, or its slot is shared", it)
		}
		seen[it.Request], slots[it.Slot] = true, true
		adopted := it.First && r.computed == 0 && it.Start%simBlock == 0
		if it.Start != r.computed && !adopted || it.First != (r.computed == 0) || it.Start+it.N > r.tokens || it.Last != (it.Start+it.N == r.tokens) {
			c.t.Fatalf("item %+v of %+v", it, *r)
		}
		if n.kv.Capacity(it.Request) < it.Start+it.N {
			c.t.Fatalf("item %+v has room for %d", it, n.kv.Capacity(it.Request))
		}
		if sum += it.N; it.Last {
			rows++
		}
	}
	if sum > n.s.cfg.MaxBatchedTokens {
		c.t.Fatalf("%d tokens in a step", sum)
	}
	for _, x := range p.Preempted {
		// Unless blocks that it found with others keep from it what it lacks: once, since it begins without any then.
		if n.reqs[x.Request].arrival == view.OldestArrival && !n.s.all[x.Request].whole || x.Reason == "" {
			c.t.Fatalf("the cluster's oldest request was preempted, or without reason: %+v", x)
		}
	}
	for _, x := range p.Returns {
		if x.Blocks < 1 || !slices.Contains(view.Leaving, x.From) || x.Blocks > n.kv.Size(x.Request).Spans || x.Blocks > n.kv.Free() {
			c.t.Fatalf("return %+v of %+v with %d free", x, n.kv.Size(x.Request), n.kv.Free())
		}
	}
	for _, o := range p.Offloads {
		if o.Blocks < 1 || o.Blocks > n.kv.Size(o.Request).Movable {
			c.t.Fatalf("offload %+v of %+v", o, n.kv.Size(o.Request))
		}
	}
	return sum, rows
}
