package cluster

import (
	"context"
	"fmt"
	"time"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

const (
	maxSearches = 256             // that are queued
	searchers   = 4               // at a time
	maxAsked    = 32              // calls of one search
	searchLimit = 2 * time.Second // of one search, in the queue too: its request waits
)

// search asks for the first blocks that keys name, which lie near an instance perhaps.
type search struct {
	request kvcache.RequestID
	keys    []kvcache.Key
	near    string
	until   time.Time
}

// Search looks with other instances for the first blocks that keys name; the outcome goes to Home.Found. near names one
// that may have some, or know who has; "" where only this instance may know.
func (r *RManager) Search(request kvcache.RequestID, keys []kvcache.Key, near string) {
	select {
	case r.searches <- search{request, keys, near, time.Now().Add(searchLimit)}:
	default:
		r.home.Found(request, nil)
	}
}

func (r *RManager) searchLoop() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case s := <-r.searches:
			r.find(s)
		}
	}
}

// found is a span that another instance has opened, over one session with it.
type found struct {
	creditor
	span kvcache.Span
}

// find follows the blocks from instance to instance and reports the spans that they opened. The links to those are kept
// as they are until then.
func (r *RManager) find(s search) {
	ctx, done := context.WithDeadline(r.ctx, s.until)
	defer done()
	var all []found
	t := trail{keys: s.keys, near: s.near, kv: r.kv, asked: map[string]bool{}}
	for range maxAsked {
		who := t.next()
		if who == "" || who == r.cfg.ID || ctx.Err() != nil {
			break
		}
		f, reply := r.askToShare(ctx, who, s.keys[t.at:])
		if f.span.Blocks > 0 && !t.worth(f.span.Blocks) {
			r.unhold(f.creditor)
			r.Release([]kvcache.Ended{{Span: f.span}})
			break
		}
		if f.span.Blocks > 0 {
			all = append(all, f)
		}
		t.answer(who, reply)
	}
	r.deliver(s.request, all)
}

// deliver reports what a search has found. Spans over a session that ended meanwhile are gone, and those behind them are
// of no use.
func (r *RManager) deliver(request kvcache.RequestID, all []found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var spans []kvcache.Span
	whole := true
	for _, f := range all {
		f.peer.placing--
		if whole = whole && f.peer.session == f.session; whole {
			spans = append(spans, f.span)
		} else {
			r.owe(kvcache.Ended{Span: f.span}) // its links may live
		}
	}
	r.home.Found(request, spans)
}

// askToShare asks one instance for the first blocks that keys name. With blocks the creditor is held; without an answer
// that can be used the reply is empty.
func (r *RManager) askToShare(ctx context.Context, who string, keys []kvcache.Key) (found, *pb.ShareKVReply) {
	c, known := r.creditorByID(who)
	if c.session == 0 || !r.hold(c) {
		return found{}, &pb.ShareKVReply{Unknown: !known}
	}
	limited, done := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer done()
	keys = keys[:min(len(keys), maxKeys)]
	req := &pb.ShareKVRequest{Owner: r.cfg.ID, Keys: bytesOf(keys), Session: c.session, Ticket: r.nextTicket()}
	reply, err := c.peer.client.ShareKV(limited, req)
	if err == nil && (int64(reply.Blocks) > int64(len(keys)) || reply.Blocks > 0 && reply.Generation == 0) {
		err = fmt.Errorf("cannot use a share of %d blocks in span %d.%d of %d", reply.Blocks, reply.Handle, reply.Generation, len(keys))
	}
	if err != nil {
		r.unhold(c)
		r.unanswered(c, err)
		r.giveUp(c, req.Ticket) // the call may have been heard
		return found{}, &pb.ShareKVReply{}
	}
	r.answered(c.peer, int(reply.Hostable))
	if reply.Blocks == 0 {
		r.unhold(c)
		return found{}, reply
	}
	return found{c, kvcache.Span{
		Instance: c.peer.id, Peer: c.peer.index, Handle: reply.Handle, Generation: reply.Generation, Blocks: int(reply.Blocks), Shared: true,
	}}, reply
}

// creditorByID is a peer by its name, without a session while there are no links to it.
func (r *RManager) creditorByID(id string) (c creditor, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[id]; p != nil {
		return creditor{p, p.session}, true
	}
	return creditor{}, false
}

// leads is what the pool knows of blocks.
type leads interface {
	Run(keys []kvcache.Key) int
	Lead(k kvcache.Key) string
	DropLead(k kvcache.Key, instance string)
}

// trail is whom to ask for the block at position at, by what was answered so far.
type trail struct {
	keys  []kvcache.Key
	near  string
	kv    leads
	at    int
	told  string          // by the last answer
	asked map[string]bool // about the block at at
}

// next names the instance to ask, "" at the end of the trail. It ends where all that is left is here: own blocks come
// last in a request's table.
func (t *trail) next() string {
	left := t.keys[t.at:]
	if len(left) == 0 || t.at > 0 && t.kv.Run(left) == len(left) {
		return ""
	}
	for _, who := range []string{t.told, t.kv.Lead(left[0]), t.near} {
		if who != "" && !t.asked[who] {
			return who
		}
	}
	return ""
}

// worth says whether blocks of an instance reach further than those that follow here.
func (t *trail) worth(blocks int) bool { return t.at == 0 || blocks > t.kv.Run(t.keys[t.at:]) }

// answer takes what an instance said: how many blocks it has, and who may have the next.
func (t *trail) answer(who string, reply *pb.ShareKVReply) {
	t.told = reply.Next
	switch {
	case reply.Blocks > 0:
		t.at += int(reply.Blocks)
		t.asked = map[string]bool{}
	case reply.Unknown:
		t.kv.DropLead(t.keys[t.at], who)
	}
	t.asked[who] = true
}
