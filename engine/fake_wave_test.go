package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// simWaves is a node's device and manager as far as waves go. Guarded by the cluster's mu.
type simWaves struct {
	last   uint32
	open   map[uint32]*simWave
	spans  map[[2]uint32]*simWave // by handle and generation
	homes  map[[2]uint32]*simWave // of them, those of the wave's home: when it is released, who assists is not needed
	joined map[kvcache.RequestID]*simWave
	refuse bool // to assist
	broken bool // others cannot be told to start
}

type simWave struct {
	number  uint32
	request kvcache.RequestID
	tokens  int  // that are there
	over    bool // no more come
	helpers []simHelper
	course  kvcache.Course
}

type simHelper struct {
	node *simNode
	id   kvcache.RequestID
	part int
}

func (w *simWaves) begin(request kvcache.RequestID, c kvcache.Course) *simWave {
	if w.open == nil {
		w.open, w.spans, w.homes, w.joined = map[uint32]*simWave{}, map[[2]uint32]*simWave{}, map[[2]uint32]*simWave{}, map[kvcache.RequestID]*simWave{}
	}
	w.last = w.last%batch.MaxWaves + 1
	x := &simWave{number: w.last, request: request, course: c}
	w.open[w.last], w.joined[request] = x, x
	return x
}

func (w *simWaves) busy() bool { return len(w.open) > 0 }

func (w *simWaves) reach(number uint32, tokens int) bool {
	if x := w.open[number]; x != nil && !x.over {
		x.tokens = max(x.tokens, tokens)
		return true
	}
	return false
}

func (w *simWaves) fail(number uint32) {
	if x := w.open[number]; x != nil {
		x.over = true
	}
}

func (w *simWaves) failAll() {
	for number := range w.open {
		w.fail(number)
	}
}

// awaitWave waits until what the seq wants of others' waves is there; the peer of one where it never will be, or -1.
func (n *simNode) awaitWave(q *batch.Seq) int {
	for _, s := range n.st.Spans[q.SpanOff : q.SpanOff+q.NSpans] {
		p := n.c.nodes[s.Peer]
		for {
			x := p.waves.spans[[2]uint32{s.Handle, s.Generation}]
			if x == nil || x.tokens >= int(s.NTokens) || p.dead {
				break
			}
			if x.over {
				return p.index
			}
			n.c.moved.Wait()
		}
	}
	return -1
}

// FormWave asks all others in order.
func (n *simNode) FormWave(f sched.Form, text WaveText) {
	n.c.wg.Add(1)
	go func() {
		defer n.c.wg.Done()
		n.eng.Formed(f.Request, n.gather(f, text))
	}()
}

func (n *simNode) gather(f sched.Form, text WaveText) (none Formation) {
	n.c.mu.Lock()
	if n.waves.busy() {
		n.c.mu.Unlock()
		return none
	}
	own := n.waves.begin(f.Request, kvcache.Course{})
	n.c.mu.Unlock()
	var willing []*simNode
	for _, p := range n.c.nodes {
		n.c.mu.Lock()
		if p != n && !p.dead && !p.waves.refuse && !p.waves.busy() && len(willing) < f.Parts-1 {
			willing = append(willing, p)
		}
		n.c.mu.Unlock()
	}
	parts := len(willing) + 1
	var spans []kvcache.Span
	for i, p := range willing {
		c := kvcache.Cut(f.Base, f.Tokens, f.Chunk, parts, i)
		n.c.mu.Lock()
		x := p.waves.begin(0, c)
		n.c.mu.Unlock()
		id, err := p.eng.Assist(context.Background(), Assist{Text: text, Course: c, Number: x.number})
		if err != nil {
			n.c.mu.Lock()
			delete(p.waves.open, x.number)
			n.c.mu.Unlock()
			n.Release(kvcache.EndedOf(spans))
			return none
		}
		h, err := p.kv.ShareWave(id, n.name(), 0)
		if err != nil {
			p.eng.Started(id, nil, err)
			n.Release(kvcache.EndedOf(spans))
			return none
		}
		n.c.mu.Lock()
		x.request = id
		p.waves.joined[id] = x
		p.waves.spans[[2]uint32{h.Handle, h.Generation}], p.waves.homes[[2]uint32{h.Handle, h.Generation}] = x, x
		own.helpers = append(own.helpers, simHelper{p, id, i})
		n.c.mu.Unlock()
		spans = append(spans, kvcache.Span{Instance: p.name(), Peer: uint32(p.index), Handle: h.Handle, Generation: h.Generation, Shared: true})
	}
	own.course = kvcache.Cut(f.Base, f.Tokens, f.Chunk, parts, parts-1)
	return Formation{Number: own.number, Course: own.course, Spans: spans}
}

// StartWave gives each helper spans at all the others.
func (n *simNode) StartWave(id kvcache.RequestID) {
	n.c.wg.Add(1)
	go func() {
		defer n.c.wg.Done()
		n.eng.Started(id, nil, n.startAll(id))
	}()
}

var (
	errBroken    = errors.New("nobody hears")
	errAbandoned = errors.New("the wave came to nothing")
)

func (n *simNode) startAll(id kvcache.RequestID) error {
	n.c.mu.Lock()
	own := n.waves.joined[id]
	broken := n.waves.broken
	n.c.mu.Unlock()
	if own == nil {
		return errBroken // it has ended
	}
	all := append(slices.Clone(own.helpers), simHelper{n, id, len(own.helpers)})
	for _, h := range own.helpers {
		var spans []kvcache.Span
		for _, other := range all {
			if other.node == h.node {
				continue
			}
			s, err := other.node.kv.ShareWave(other.id, h.node.name(), 0)
			if err != nil || broken {
				if err == nil {
					_ = other.node.kv.Unhost(h.node.name(), s.Handle, s.Generation, nil)
				}
				h.node.Release(kvcache.EndedOf(spans))
				return errBroken
			}
			n.c.mu.Lock()
			other.node.waves.spans[[2]uint32{s.Handle, s.Generation}] = other.node.waves.joined[other.id]
			n.c.mu.Unlock()
			spans = append(spans, kvcache.Span{Instance: other.node.name(), Peer: uint32(other.node.index), Handle: s.Handle, Generation: s.Generation, Shared: true})
		}
		h.node.eng.Started(h.id, spans, nil)
	}
	return nil
}

// EndWave: no more is computed of it here.
func (n *simNode) EndWave(id kvcache.RequestID) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if x := n.waves.joined[id]; x != nil {
		x.over = true
		delete(n.waves.open, x.number)
		delete(n.waves.joined, id)
		n.c.moved.Broadcast()
	}
}

// abandon: the wave's home wants nothing any more of a request that assists here.
func (n *simNode) abandon(owner string, s kvcache.Ended) {
	n.c.mu.Lock()
	x := n.waves.homes[[2]uint32{s.Handle, s.Generation}]
	delete(n.waves.homes, [2]uint32{s.Handle, s.Generation})
	n.c.mu.Unlock()
	if x != nil {
		n.eng.Started(x.request, nil, errAbandoned)
	}
}
