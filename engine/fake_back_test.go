package engine

import (
	"errors"
	"slices"

	"github.com/infinite-llm/infinite/engine/sched"
)

// leave makes others have back what they have with the instance.
func (n *simNode) leave() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.leaves = true
}

func (n *simNode) isLeaving() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.leaves
}

// Return is the lender's.
func (n *simNode) Return(x sched.Return) {
	n.c.wg.Add(1)
	go func() {
		defer n.c.wg.Done()
		n.eng.Moved(n.bring(x))
	}()
}

func (n *simNode) bring(x sched.Return) MoveResult {
	res := MoveResult{Request: x.Request, Back: true}
	p := n.c.nodes[slices.IndexFunc(n.c.nodes, func(p *simNode) bool { return p.name() == x.From })]
	if n.c.fails(p) {
		res.Err = errors.New("it does not answer")
		return res
	}
	ret, err := n.kv.BeginReturn(x.Request, p.name(), uint32(p.index), x.Blocks)
	if err != nil {
		res.Err = err
		return res
	}
	res.Began = true
	given, err := p.kv.Give(n.name(), ret.From.Handle, ret.From.Generation, ret.First, len(ret.Into.Blocks))
	if err != nil {
		n.c.t.Errorf("give: %v", err)
	}
	n.c.mu.Lock()
	for i, b := range given {
		copy(n.mem[int(ret.Into.Blocks[i])*blockSize:][:blockSize], p.mem[int(b)*blockSize:][:blockSize])
	}
	n.c.mu.Unlock()
	if err == nil {
		p.kv.Given(ret.From.Handle)
	}
	if err := n.kv.Unhost(p.name(), ret.Into.Handle, ret.Into.Generation, nil); err != nil {
		n.c.t.Errorf("unhost: %v", err)
	}
	if n.c.fails(p) {
		res.Err = errors.New("it was cut off")
	}
	return res
}

// fails makes some of what is asked of an instance fail, where the test wants that: of each five calls the first, which is a
// return's beginning, and the third, which is the end of one that began.
func (c *simCluster) fails(p *simNode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.calls++
	return p.unsure && (p.calls%5 == 1 || p.calls%5 == 3)
}
