package router

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// chargeFor is how long a new request counts against its home before a heartbeat is sure to show it.
const chargeFor = 500 * time.Millisecond

type charge struct {
	instance string
	blocks   int
	until    time.Time
}

// want is what is known of a request that a home is chosen for.
type want struct {
	need   int             // blocks
	tried  map[string]bool // instances that are out of the question
	hashes []uint64        // of what it begins with
	near   string          // the instance that was last sent a prompt that began alike; "": none had enough of it
	known  int             // tokens that it should have there
}

func (r *Router) want(req *engine.Request, avoid string) *want {
	tokens := len(req.Prompt) + len(req.Answer)
	w := &want{need: (tokens + r.cfg.BlockSize) / r.cfg.BlockSize, tried: map[string]bool{avoid: true}}
	if !r.cfg.PrefixCaching {
		return w
	}
	w.hashes = r.places.hashes(req.CacheSalt, req.Prompt)
	r.mu.Lock()
	defer r.mu.Unlock()
	near, known := r.places.find(w.hashes)
	// Less than a half is no reason to go where there is less room: nearly all prompts may begin alike.
	if 2*known >= tokens && near != avoid {
		w.near, w.known = near, known
	}
	return w
}

// sent notes where a request went. What it should find at another instance stays there.
func (r *Router) sent(w *want, instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	there := w.known / placeTokens
	r.places.put(w.hashes[:there], w.near)
	r.places.put(w.hashes[there:], instance)
}

// found takes an instance's word for how many tokens of a request it had, or had use of where they lie. When they were
// not where they should be, the instance has computed them, and has them now.
func (r *Router) found(w *want, instance string, cached int) {
	if 2*cached >= w.known {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.places.put(w.hashes, instance)
}

// choose picks a member by what the gManager knows of all.
func (r *Router) choose(ctx context.Context, w *want) (cluster.Member, bool) {
	members, _ := r.manager.Directory().Members()
	loads := map[string]*pb.Load{}
	// Without the gManager the pools' sizes and what was sent there lately must do.
	if states, err := r.manager.Loads(ctx); err == nil {
		for _, in := range states {
			loads[in.Id] = in.Load
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune(members)
	return r.pick(members, loads, w, time.Now())
}

// candidate is a member as pick sees it.
type candidate struct {
	cluster.Member
	free int  // blocks, less what was sent there since its last report
	room int  // of these, less what its requests have with others: they will want it back
	busy int  // requests, by that report
	sent int  // requests since
	full bool // it runs as many as it may, so that one more would wait
}

// before orders candidates: those that can begin with it first, then by most room, among equals the one with fewer
// requests, then the lower id.
func (c *candidate) before(o *candidate) bool {
	if c.full != o.full {
		return o.full
	}
	if c.room != o.room {
		return c.room > o.room
	}
	return c.busy < o.busy || c.busy == o.busy && c.ID < o.ID
}

// pick takes the member that is near, if it has room for the rest, whatever lies with others of what is shared, and is
// not much busier than others, else the first in order. It charges what the request takes to it. The caller holds mu.
func (r *Router) pick(members map[string]cluster.Member, loads map[string]*pb.Load, w *want, now time.Time) (cluster.Member, bool) {
	r.charges = slices.DeleteFunc(r.charges, func(c charge) bool { return !now.Before(c.until) })
	charged, sent := map[string]int{}, map[string]int{}
	for _, c := range r.charges {
		charged[c.instance] += c.blocks
		sent[c.instance]++
	}
	var best, near *candidate
	idlest := math.MaxInt
	for id, m := range members {
		if w.tried[id] || m.MemoryOnly {
			continue
		}
		c := &candidate{Member: m, free: m.BlocksTotal - charged[id], sent: sent[id]}
		c.room = c.free
		if l := loads[id]; l != nil {
			c.free, c.busy = int(l.KvBlocksFree)-charged[id], int(l.Running)+int(l.Waiting)
			c.room = c.free - int(l.KvBlocksLent)
			c.full = l.MaxNumSeqs > 0 && c.busy+c.sent >= int(l.MaxNumSeqs)
		}
		idlest = min(idlest, c.busy+c.sent)
		if best == nil || c.before(best) {
			best = c
		}
		if id == w.near {
			near = c
		}
	}
	if best == nil {
		return cluster.Member{}, false
	}
	if _, there := members[w.near]; !there {
		w.near, w.known = "", 0
	}
	blocks, shared := w.need, w.known/r.cfg.BlockSize
	if near != nil && near.free >= w.need-shared && near.busy+near.sent <= 2*idlest+8 {
		best, blocks = near, w.need-shared
	}
	r.charges = append(r.charges, charge{best.ID, blocks, now.Add(chargeFor)})
	return best.Member, true
}
