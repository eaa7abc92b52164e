package sched

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// simReturn is a return under way: asked for, or begun, from a process of a node.
type simReturn struct {
	Return
	ret   kvcache.Return
	peer  uint32
	begun bool
}

// leave makes others bring home what they have at a node, or not any more.
func (c *simCluster) leave(i int, on bool) {
	name := c.nodes[i].name
	c.leaving = slices.DeleteFunc(c.leaving, func(l string) bool { return l == name })
	if on {
		c.leaving = append(c.leaving, name)
	}
}

// process is a node by what others call its process, nil: it has ended.
func (c *simCluster) process(peer uint32) *simNode {
	if at := slices.IndexFunc(c.nodes, func(n *simNode) bool { return n.peer == peer }); at >= 0 {
		return c.nodes[at]
	}
	return nil
}

// comeBack takes a node's return one step further: to its beginning, or to its end. refuse makes either fail.
func (c *simCluster) comeBack(i int, x *simReturn, refuse bool) {
	n := c.nodes[i]
	if !x.begun && !refuse && c.beginReturn(n, x) {
		c.checkPools()
		return
	}
	n.returns = slices.DeleteFunc(n.returns, func(y *simReturn) bool { return x == y })
	ok := x.begun && !refuse
	if x.begun {
		p := c.process(x.peer)
		if ok = ok && p != nil; p != nil {
			p.kv.Given(x.ret.From.Handle)
		}
		into := x.ret.Into
		if err := n.kv.Unhost(x.From, into.Handle, into.Generation, nil); err != nil && p != nil {
			c.t.Fatal(err)
		}
		before := n.kv.Size(x.Request)
		tab, _ := n.kv.Table(x.Request) // none of one that has ended
		ended, err := n.kv.EndReturn(x.Request, ok)
		if err != nil {
			c.t.Fatal(err)
		}
		if after := n.kv.Size(x.Request); ok && after.Spans < before.Spans {
			c.returned += before.Spans - after.Spans
			c.reorder(n.reqs[x.Request], tab, x.ret, before.Spans)
		}
		c.release(i, ended)
	}
	n.s.Returned(x.Request, ok)
	c.checkPools()
}

func (c *simCluster) beginReturn(n *simNode, x *simReturn) bool {
	at := slices.IndexFunc(c.nodes, func(p *simNode) bool { return p.name == x.From })
	p := c.nodes[at]
	ret, err := n.kv.BeginReturn(x.Request, x.From, p.peer, x.Blocks)
	if err != nil {
		return false // it has ended, or its blocks there have, or others have taken the room
	}
	x.ret, x.peer, x.begun = ret, p.peer, true
	if _, err := p.kv.Give(n.name, ret.From.Handle, ret.From.Generation, ret.First, len(ret.Into.Blocks)); err != nil {
		c.t.Fatal(err)
	}
	return true
}

// reorder follows what came home out of the middle of a table.
func (c *simCluster) reorder(r *simRequest, before kvcache.Table, ret kvcache.Return, inSpans int) {
	at, n := ret.First, len(ret.Into.Blocks)
	for _, s := range before.Spans[:slices.Index(before.Spans, ret.From)] {
		at += s.Blocks
	}
	if at+n == inSpans {
		return
	}
	c.turned++
	for i := len(r.order); i < inSpans; i++ {
		r.order = append(r.order, int32(i))
	}
	r.order = slices.Concat(r.order[:at], r.order[at+n:inSpans], r.order[at:at+n], r.order[inSpans:])
}

// cutOff ends a node's returns from a process that has ended.
func (c *simCluster) cutOff(i int, dead uint32) {
	for _, x := range slices.Clone(c.nodes[i].returns) {
		if x.begun && x.peer == dead {
			c.comeBack(i, x, true)
		}
	}
}

// givenUp lets the others be through with what they gave to a node's process that has ended.
func (c *simCluster) givenUp(returns []*simReturn) {
	for _, x := range returns {
		if p := c.process(x.peer); x.begun && p != nil {
			p.kv.Given(x.ret.From.Handle)
		}
	}
}

// Where there is room at home nothing is left with nodes that are about to leave, and nothing that goes on is computed anew
// when they do.
func TestBlocksComeHome(t *testing.T) {
	returned, turned := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		rng := seed(t)
		c := newSim(t, rng, 60, 40, 40)
		c.ranked = rng.IntN(2) == 0
		for range 1 + rng.IntN(3) {
			c.add(0, 1+rng.IntN(60), 10*60*simBlock)
		}
		for range 10 + rng.IntN(60) {
			c.plan(0)
			c.round()
		}
		leaves := []int{1 + rng.IntN(2)}
		if rng.IntN(3) == 0 {
			leaves = []int{1, 2}
		}
		for _, i := range leaves {
			c.leave(i, true)
		}
		away := func() (n int) {
			for id := range c.nodes[0].reqs {
				tab, _ := c.nodes[0].kv.Table(id) // none of one that waits
				for _, s := range tab.Spans {
					if slices.Contains(c.leaving, s.Instance) {
						n += s.Blocks
					}
				}
			}
			return n
		}
		for k := 0; away() > 0 && !c.inOrder && c.nodes[0].kv.Free() > 20; k++ {
			if k == 300 {
				t.Fatalf("%d blocks never come home, %d are free", away(), c.nodes[0].kv.Free())
			}
			c.round()
		}
		if away() == 0 && len(c.nodes[0].moves) == 0 {
			before := c.nodes[0].kv.Counts()
			for _, i := range leaves {
				c.die(i)
			}
			if after := c.nodes[0].kv.Counts(); after != before {
				t.Fatalf("%+v became %+v", before, after)
			}
		}
		returned, turned = returned+c.returned, turned+c.turned
		for i := range c.nodes {
			for id := range c.nodes[i].reqs {
				c.end(i, id)
			}
		}
		c.finish(1000)
	})
	if returned == 0 || turned == 0 {
		t.Errorf("%d blocks came home, %d times from the middle of a table", returned, turned)
	}
}
