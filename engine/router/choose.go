package router

import (
	"context"
	"math"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// charge is what a request counts against its home, beside what the home reports, until a report is sure to show it; it
// ends with the request's stream there. Its methods do nothing on nil.
type charge struct {
	router   *Router
	instance string
	blocks   int      // at most the home's pool: more lies with others
	hashes   []uint64 // of what the request begins with
	// The home's first reports that are sure to count it among the requests there, and its blocks among those that are
	// taken or due. 0: there is none yet. Guarded by Router.mu.
	counted, shown uint64
}

// taken says that the request waits at its home.
func (c *charge) taken(report uint64) {
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	c.counted = report
}

// begun says that its first step comes, so that its blocks are taken there.
func (c *charge) begun(report uint64) {
	if c == nil {
		return
	}
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	c.shown = report
}

func (c *charge) drop() {
	if c == nil {
		return
	}
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	delete(c.router.charges, c)
}

// shows says whether a load is of the report of that number, or a later one.
func shows(l *pb.Load, report uint64) bool { return report != 0 && l.GetReport() >= report }

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

// choose picks a member by what the gManager knows of all, and charges it. Without a charge there is none.
func (r *Router) choose(ctx context.Context, w *want) (cluster.Member, *charge) {
	members, _ := r.manager.Directory().Members()
	loads := map[string]*pb.Load{}
	// Without the gManager the pools' sizes and what was sent there must do.
	states, newest, err := r.manager.Loads(ctx)
	if err == nil {
		for _, in := range states {
			loads[in.Id] = in.Load
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard(newest)
	r.prune(members)
	return r.pick(members, loads, w)
}

// uses says whether a request that began alike is at the instance that is near, so that its blocks are counted already. The
// caller holds mu.
func (r *Router) uses(w *want) bool {
	last := w.known/placeTokens - 1
	for c := range r.charges {
		if c.instance == w.near && len(c.hashes) > last && c.hashes[last] == w.hashes[last] {
			return true
		}
	}
	return false
}

// candidate is a member as pick sees it.
type candidate struct {
	cluster.Member
	free int  // blocks, less those that requests there will take soon
	room int  // of these, less what its requests have with others: they will want it back
	busy int  // requests, by that report
	sent int  // requests that the report does not count
	full bool // it runs as many as it may, so that one more would wait
}

// before orders candidates: those that can begin with it first, by most room, among equals the one with fewer requests, then
// the lower id. Of those where it would wait for others to end, whatever room there is, it is the one with fewest of them.
func (c *candidate) before(o *candidate) bool {
	if c.full != o.full {
		return o.full
	}
	if mine, theirs := c.busy+c.sent, o.busy+o.sent; c.full && mine != theirs {
		return mine < theirs
	}
	if c.room != o.room {
		return c.room > o.room
	}
	return c.busy < o.busy || c.busy == o.busy && c.ID < o.ID
}

// pick takes the member that is near, if it has room for the rest, whatever lies with others of what is shared, and is
// not much busier than others, else the first in order. It charges what the request takes to it. The caller holds mu.
func (r *Router) pick(members map[string]cluster.Member, loads map[string]*pb.Load, w *want) (cluster.Member, *charge) {
	charged, sent := map[string]int{}, map[string]int{}
	for c := range r.charges {
		if !shows(loads[c.instance], c.shown) {
			charged[c.instance] += c.blocks
		}
		if !shows(loads[c.instance], c.counted) {
			sent[c.instance]++
		}
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
			c.free, c.busy = int(l.KvBlocksFree)-int(l.KvBlocksDue)-charged[id], int(l.Running)+int(l.Waiting)
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
		return cluster.Member{}, nil
	}
	if _, there := members[w.near]; !there {
		w.near, w.known = "", 0
	}
	blocks, shared := w.need, w.known/r.cfg.BlockSize
	if near != nil && near.free >= w.need-shared && near.busy+near.sent <= 2*idlest+8 {
		if best = near; r.uses(w) {
			blocks -= shared // else they are among its free ones until then
		}
	}
	c := &charge{router: r, instance: best.ID, blocks: min(blocks, best.BlocksTotal), hashes: w.hashes}
	r.charges[c] = true
	return best.Member, c
}
