package engine

import (
	"errors"

	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Offload, Search, Release, View, PeerIndexLost: the lender.
func (n *simNode) Offload(o sched.Offload) {
	n.c.wg.Add(1)
	go func() {
		defer n.c.wg.Done()
		n.eng.Moved(n.place(o))
	}()
}

var errNoCreditor = errors.New("no creditor has room")

func (n *simNode) place(o sched.Offload) MoveResult {
	res := MoveResult{Request: o.Request}
	t, err := n.kv.Table(o.Request)
	if err != nil {
		res.Err = err
		return res
	}
	last := kvcache.Span{Peer: uint32(n.index)}
	if k := len(t.Spans); k > 0 && !t.Spans[k-1].Shared && !t.Spans[k-1].Cut {
		last = t.Spans[k-1]
	}
	for k := range n.c.nodes {
		p := n.c.nodes[(int(last.Peer)+k)%len(n.c.nodes)]
		if p == n || p.isDead() || p.isLeaving() || o.To != "" && p.name() != o.To {
			continue
		}
		h, first, err := p.host(n.name(), last, o.Blocks)
		if err != nil {
			continue
		}
		to := kvcache.Span{Instance: p.name(), Peer: uint32(p.index), Handle: h.Handle, Generation: h.Generation, Blocks: first}
		blocks, err := n.kv.BeginMove(o.Request, to, min(o.Blocks, len(h.Blocks)-first))
		if err != nil {
			if first == 0 {
				_ = p.kv.Unhost(n.name(), h.Handle, h.Generation, nil)
			}
			res.Err = err
			return res
		}
		n.c.mu.Lock()
		for i, b := range blocks {
			copy(p.mem[int(h.Blocks[first+i])*blockSize:][:blockSize], n.mem[int(b)*blockSize:][:blockSize])
		}
		n.c.mu.Unlock()
		res.Began = true
		res.Span = to
		res.Span.Blocks = len(blocks)
		return res
	}
	res.Err = errNoCreditor
	return res
}

func (n *simNode) host(owner string, last kvcache.Span, blocks int) (kvcache.Hosted, int, error) {
	if last.Instance == n.name() {
		h, err := n.kv.ExtendHost(owner, last.Handle, last.Generation, last.Blocks, blocks)
		return h, last.Blocks, err
	}
	h, err := n.kv.Host(owner, 0, blocks)
	return h, 0, err
}

// Search asks all others for what is missing, until none has any of it.
func (n *simNode) Search(s sched.Search) {
	n.c.wg.Add(1)
	go func() {
		defer n.c.wg.Done()
		var found []kvcache.Found
		for more := true; more; {
			more = false
			for _, p := range n.c.nodes {
				lacks := n.kv.Lacks(found, s.Keys)
				if p == n || p.isDead() || len(lacks) == 0 {
					continue
				}
				asked := make([]kvcache.Key, len(lacks))
				for i, at := range lacks {
					asked[i] = s.Keys[at]
				}
				h, which, err := p.kv.Share(n.name(), 0, asked)
				if err != nil {
					continue
				}
				f := kvcache.Found{Span: kvcache.Span{
					Instance: p.name(), Peer: uint32(p.index), Handle: h.Handle, Generation: h.Generation, Blocks: len(h.Blocks), Shared: true,
				}}
				for _, i := range which {
					f.Has = append(f.Has, lacks[i])
				}
				found, more = append(found, f), true
			}
		}
		n.eng.Found(s.Request, found)
	}()
}

func (n *simNode) Release(spans []kvcache.Ended) {
	for _, s := range spans {
		n.c.nodes[s.Peer].abandon(n.name(), s)
		if err := n.c.nodes[s.Peer].kv.Unhost(n.name(), s.Handle, s.Generation, s.Keys); err != nil && !n.c.nodes[s.Peer].isDead() {
			n.c.t.Errorf("release: %v", err)
		}
	}
}

func (n *simNode) View() sched.View {
	var v sched.View
	for _, p := range n.c.nodes {
		for _, r := range p.eng.Requests() {
			if v.OldestArrival == 0 || r.Arrival < v.OldestArrival {
				v.OldestArrival = r.Arrival
			}
		}
		if !p.isDead() {
			v.Blocks += p.kv.Counts().Total
		}
		if p != n && p.isLeaving() && !p.isDead() {
			v.Leaving = append(v.Leaving, p.name())
		} else if p != n && !p.isDead() {
			v.PeersFree += p.kv.Hostable()
			v.OthersRunning += p.eng.Stats().Running
			v.Helpers++
		}
	}
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for _, p := range n.c.nodes {
		if p != n && p.hungry != 0 && (v.Starving == 0 || p.hungry < v.Starving) {
			v.Starving = p.hungry
		}
	}
	return v
}

func (n *simNode) isDead() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.dead
}

func (n *simNode) die() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.dead = true
	n.waves.failAll()
	n.c.moved.Broadcast()
}

func (n *simNode) Starving(arrival uint64) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.hungry = arrival
}

func (n *simNode) PeerIndexLost(peer int) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.lost = append(n.lost, peer)
}
