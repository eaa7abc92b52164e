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
	for id, spans := range n.found {
		tab, err := n.kv.Table(id)
		if err == nil && !slices.Equal(tab.Spans, spans) {
			c.t.Fatalf("request %d begins with %+v, not with %+v", id, tab, spans)
		}
		if err == nil {
			c.found++
		} else if !slices.ContainsFunc(p.Release, func(e kvcache.Ended) bool { return e.Span == spans[0] }) {
			c.t.Fatalf("%s keeps %v for request %d, which does not run", n.name, spans, id)
		}
		delete(n.found, id)
	}
}

// answer ends a node's oldest search: the others are asked in some order, each for what comes next, until none has it.
func (c *simCluster) answer(i int) {
	n := c.nodes[i]
	if len(n.searches) == 0 {
		return
	}
	q := n.searches[0]
	n.searches = n.searches[1:]
	var spans []kvcache.Span
	keys := q.Keys
	for _, j := range c.Perm(len(c.nodes)) {
		p := c.nodes[j]
		if j == i || len(keys) == 0 {
			continue
		}
		if h, err := p.kv.Share(n.name, 0, keys); err == nil {
			spans = append(spans, kvcache.Span{
				Instance: p.name, Peer: p.peer, Handle: h.Handle, Generation: h.Generation, Blocks: len(h.Blocks), Shared: true,
			})
			keys = keys[len(h.Blocks):]
		}
	}
	back := n.s.Found(q.Request, spans)
	if c.release(i, back); len(back) == 0 && len(spans) > 0 {
		n.found[q.Request] = spans
	}
	c.checkPools()
}

// lose: an instance is gone, and with it what lay there of the node's requests.
func (c *simCluster) lose(i int, name string) {
	n := c.nodes[i]
	c.release(i, n.s.Lost(name))
	for id, spans := range n.found {
		if slices.ContainsFunc(spans, func(s kvcache.Span) bool { return s.Instance == name }) {
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
				if (at+i+1)*simBlock > r.tokens {
					as = part{-1, 0} // not full: nobody else's
				}
				claim(b, as)
			}
			for _, s := range tab.Spans {
				c.checkSpan(n, s)
			}
		}
		for _, spans := range n.found {
			for _, s := range spans {
				c.checkSpan(n, s)
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
