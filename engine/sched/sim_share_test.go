package sched

import (
	"errors"
	"slices"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// near says for about half of the requests that somebody may have their beginning.
func (c *simCluster) near() string {
	if c.IntN(2) == 0 {
		return ""
	}
	return "somebody"
}

// began checks what was found for requests that the plan begins with, and forgets what it lets go of.
func (c *simCluster) began(n *simNode, p *Plan) {
	released := func(f kvcache.Found) bool {
		return slices.ContainsFunc(p.Release, func(e kvcache.Ended) bool { return e.Span == f.Span })
	}
	for id, found := range n.found {
		tab, err := n.kv.Table(id)
		var order []int32
		spans := tab.Spans
		for _, f := range found {
			if err == nil && len(spans) > 0 && spans[0].Handle == f.Handle && spans[0].Peer == f.Peer && spans[0].Blocks <= f.Blocks {
				order = append(order, f.Has[:spans[0].Blocks]...)
				spans = spans[1:]
			} else if !released(f) {
				c.t.Fatalf("%s keeps %v for request %d, which begins with %+v", n.name, f, id, tab)
			}
		}
		if err == nil && len(spans) > 0 {
			c.t.Fatalf("request %d begins with %+v, not with %+v", id, tab, found)
		}
		if len(order) > 0 {
			c.found++
			n.reqs[id].order = c.follows(n, id, order)
		}
		delete(n.found, id)
	}
}

// follows adds what is here of a request's beginning to the order of its table: all that is not in spans.
func (c *simCluster) follows(n *simNode, id kvcache.RequestID, order []int32) []int32 {
	for i := int32(0); (len(order)+1)*simBlock <= n.s.all[id].computed; i++ {
		if !slices.Contains(order, i) {
			order = append(order, i)
		}
	}
	for i := range order {
		if !slices.Contains(order, int32(i)) {
			c.t.Fatalf("request %d begins with %v", id, order)
		}
	}
	if !slices.IsSorted(order) {
		if c.mixed++; c.inOrder {
			c.t.Fatalf("request %d begins with %v", id, order)
		}
	}
	return order
}

// scatter leaves every other run of a family's text with a node, as a wave does.
func (c *simCluster) scatter(i int) {
	c.leaveRuns(i, c.IntN(3), 1+c.IntN(12), 1+c.IntN(3), c.IntN(6))
}

// leaveRuns leaves so many blocks of a family's text, of every other run behind those that it skips.
func (c *simCluster) leaveRuns(i, family, blocks, run, skip int) {
	n := c.nodes[i]
	keys := (&simRequest{family: family, tokens: 40 * simBlock}).keys()
	h, err := n.kv.Host("wave", 0, blocks)
	if err != nil {
		return
	}
	var some []kvcache.Key
	for at := skip; len(some) < len(h.Blocks) && at < len(keys); at++ {
		if (at-skip)/run%2 == 0 {
			some = append(some, keys[at])
		}
	}
	if err := n.kv.Unhost("wave", h.Handle, h.Generation, some); err != nil {
		c.t.Fatal(err)
	}
	c.checkPools()
}

// answer ends a node's oldest search: the others are asked in some order, each for what comes next, until none has it.
func (c *simCluster) answer(i int) {
	n := c.nodes[i]
	if len(n.searches) == 0 {
		return
	}
	q := n.searches[0]
	n.searches = n.searches[1:]
	var found []kvcache.Found
	for _, j := range c.Perm(len(c.nodes)) {
		p := c.nodes[j]
		lacks := n.kv.Lacks(found, q.Keys)
		if j == i || len(lacks) == 0 {
			continue
		}
		asked := make([]kvcache.Key, len(lacks))
		for k, at := range lacks {
			asked[k] = q.Keys[at]
		}
		if h, which, err := p.kv.Share(n.name, 0, asked); err == nil {
			f := kvcache.Found{Span: kvcache.Span{
				Instance: p.name, Peer: p.peer, Handle: h.Handle, Generation: h.Generation, Blocks: len(h.Blocks), Shared: true,
			}}
			for _, k := range which {
				f.Has = append(f.Has, lacks[k])
			}
			found = append(found, f)
		}
	}
	back := n.s.Found(q.Request, found)
	if c.release(i, back); len(back) == 0 && len(found) > 0 {
		n.found[q.Request] = found
	}
	c.checkPools()
}

// lose: an instance is gone, and with it what lay there of the node's requests.
func (c *simCluster) lose(i int, name string) {
	n := c.nodes[i]
	c.release(i, n.s.Lost(name))
	for id, found := range n.found {
		if slices.ContainsFunc(found, func(f kvcache.Found) bool { return f.Instance == name }) {
			delete(n.found, id)
		}
	}
	for _, id := range n.kv.RequestsAt(name) {
		c.restart(i, id)
	}
}

// checkPools: on every node every block is free, in the tables of requests that have the same text in it, moving out
// of a closed one, or hosted in one span; and the spans that requests name are hosted where they say.
func (c *simCluster) checkPools() {
	for _, n := range c.nodes {
		k := n.kv.Counts()
		type part struct{ family, at int } // of a family's text
		used := map[kvcache.BlockID]part{}
		claim := func(b kvcache.BlockID, as part) {
			if other, there := used[b]; there && (as != other || as.family < 0) {
				c.t.Fatalf("%s: block %d is used as %+v and %+v", n.name, b, other, as)
			}
			used[b] = as
		}
		shared := map[bool]int{}
		for id, r := range n.reqs {
			tab, err := n.kv.Table(id)
			if errors.Is(err, kvcache.ErrUnknown) {
				continue // it waits
			}
			at := n.kv.Size(id).Spans
			for i, b := range tab.Local {
				as := part{r.family, at + i}
				if at+i < len(r.order) {
					as.at = int(r.order[at+i])
				}
				if (at+i+1)*simBlock > r.tokens {
					as = part{-1, 0} // not full: nobody else's
				}
				claim(b, as)
			}
			for _, s := range tab.Spans {
				c.checkSpan(n, s)
			}
		}
		for _, found := range n.found {
			for _, f := range found {
				c.checkSpan(n, f.Span)
			}
		}
		for _, p := range c.nodes {
			for _, h := range n.kv.HostedOf(p.name) {
				if shared[h.Shared] += len(h.Blocks); h.Shared {
					continue
				}
				for _, b := range h.Blocks {
					claim(b, part{-1, 0})
				}
			}
		}
		owned := len(used) - shared[false]
		if k.Free+k.Owned+k.Hosted != k.Total || shared[false] != k.Hosted || shared[true] != k.Shared || owned > k.Owned {
			c.t.Fatalf("%s: %+v, tables have %d, spans %v", n.name, k, owned, shared)
		}
	}
}

func (c *simCluster) checkSpan(n *simNode, s kvcache.Span) {
	for _, p := range c.nodes {
		if p.peer != s.Peer {
			continue
		}
		for _, h := range p.kv.HostedOf(n.name) {
			if h.Handle == s.Handle && h.Generation == s.Generation && len(h.Blocks) >= s.Blocks && h.Shared == s.Shared {
				return
			}
		}
		c.t.Fatalf("%s names %+v, which %s does not host", n.name, s, p.name)
	}
}
