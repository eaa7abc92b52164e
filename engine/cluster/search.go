package cluster

import (
	"context"
	"fmt"
	"slices"
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

// search asks for the blocks that keys name, which lie near an instance perhaps.
type search struct {
	request kvcache.RequestID
	keys    []kvcache.Key
	near    string
	until   time.Time
}

// Search looks with other instances for what is missing here of the blocks that keys name; the outcome goes to Home.Found.
// near names one that may have some, or know who has; "" where only this instance may know.
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
	kvcache.Found
}

// find follows the blocks from instance to instance and reports the spans that they opened. The links to those are kept
// as they are until then.
func (r *RManager) find(s search) {
	ctx, done := context.WithDeadline(r.ctx, s.until)
	defer done()
	var all []found
	t := trail{me: r.cfg.ID, keys: s.keys, near: s.near, kv: r.kv, asked: map[string]bool{}}
	for range maxAsked {
		who := t.next()
		if who == "" || ctx.Err() != nil {
			break
		}
		f, reply := r.askToShare(ctx, who, s.keys, t.lacks)
		if f.Blocks > 0 && !t.worth(f.Found) {
			r.unhold(f.creditor)
			r.Release([]kvcache.Ended{{Span: f.Span}})
			break
		}
		if f.Blocks > 0 {
			all = append(all, f)
		}
		t.answer(who, f.Found, reply)
	}
	r.deliver(s, all)
}

// deliver reports what a search has found. Spans over a session that ended meanwhile are gone, and those that lie behind what
// is missing then are of no use.
func (r *RManager) deliver(s search, all []found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var live []kvcache.Found
	for _, f := range all {
		if f.peer.placing--; f.peer.session == f.session {
			live = append(live, f.Found)
		} else {
			r.owe(kvcache.Ended{Span: f.Span}) // its links may live
		}
	}
	reach := int32(r.kv.Begins(live, s.keys).Blocks)
	useful := live[:0]
	for _, f := range live {
		if f.Has[0] < reach {
			useful = append(useful, f)
		} else {
			r.owe(kvcache.Ended{Span: f.Span})
		}
	}
	r.home.Found(s.request, useful)
}

// askToShare asks one instance for those blocks of keys that are lacking. With blocks the creditor is held; without an answer
// that can be used the reply is empty.
func (r *RManager) askToShare(ctx context.Context, who string, keys []kvcache.Key, lacks []int32) (found, *pb.ShareKVReply) {
	c, known := r.creditorByID(who)
	if c.session == 0 || !r.hold(c) {
		return found{}, &pb.ShareKVReply{Unknown: !known}
	}
	limited, done := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer done()
	lacks = lacks[:min(len(lacks), maxKeys)]
	asked := make([]kvcache.Key, len(lacks))
	for i, at := range lacks {
		asked[i] = keys[at]
	}
	first := int(lacks[0])
	before := keys[max(0, first-(maxKeys-len(lacks))):first]
	req := &pb.ShareKVRequest{Owner: r.cfg.ID, Keys: bytesOf(asked), Before: bytesOf(before), Session: c.session, Ticket: r.nextTicket()}
	reply, err := c.peer.client.ShareKV(limited, req)
	var has []int32
	if err == nil {
		has, err = whichOf(reply, lacks)
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
	return found{c, kvcache.Found{Span: kvcache.Span{
		Instance: c.peer.id, Peer: c.peer.index, Handle: reply.Handle, Generation: reply.Generation, Blocks: len(has), Shared: true,
	}, Has: has}}, reply
}

// runsOf is ascending numbers as a reply carries them: the first of each run and how many they are, in turn. The first ones
// alone need no words.
func runsOf(which []int32) (runs []uint32) {
	for i, at := range which {
		if i > 0 && at == which[i-1]+1 {
			runs[len(runs)-1]++
		} else {
			runs = append(runs, uint32(at), 1)
		}
	}
	if len(runs) == 2 && runs[0] == 0 {
		return nil
	}
	return runs
}

// whichOf reads which of the blocks that were asked for a reply shares. The first is one of them.
func whichOf(reply *pb.ShareKVReply, asked []int32) ([]int32, error) {
	if reply.Blocks == 0 {
		return nil, nil
	}
	runs := reply.Runs
	if len(runs) == 0 {
		runs = []uint32{0, reply.Blocks}
	}
	bad := func() ([]int32, error) {
		return nil, fmt.Errorf("cannot use a share of %d blocks in span %d.%d of %d, which are %d runs", reply.Blocks, reply.Handle, reply.Generation, len(asked), len(runs)/2)
	}
	if reply.Generation == 0 || int64(reply.Blocks) > int64(len(asked)) || len(runs)%2 != 0 || runs[0] != 0 {
		return bad()
	}
	has, end := make([]int32, 0, reply.Blocks), uint64(0)
	for i := 0; i < len(runs); i += 2 {
		start := uint64(runs[i])
		if start < end || runs[i+1] == 0 {
			return bad()
		}
		if end = start + uint64(runs[i+1]); end > uint64(len(asked)) {
			return bad()
		}
		has = append(has, asked[start:end]...)
	}
	if len(has) != int(reply.Blocks) {
		return bad()
	}
	return has, nil
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
	Lacks(found []kvcache.Found, keys []kvcache.Key) []int32
	Begins(found []kvcache.Found, keys []kvcache.Key) kvcache.Beginning
	Lead(keys []kvcache.Key, at int) string
	DropLead(keys []kvcache.Key, at int, instance string)
}

// trail is whom to ask for the first block that is missing, and with it for all others, by what was answered so far.
type trail struct {
	me    string // who asks; others may name it
	keys  []kvcache.Key
	near  string
	kv    leads
	found []kvcache.Found
	lacks []int32         // what is missing, since next
	first int32           // of lacks, at the last answer
	last  string          // who gave that
	told  string          // by it
	asked map[string]bool // about lacks[0]
}

// next names the instance to ask for what is missing, "" at the end of the trail.
func (t *trail) next() string {
	if t.lacks = t.kv.Lacks(t.found, t.keys); len(t.lacks) == 0 {
		return ""
	}
	if t.lacks[0] != t.first {
		t.first, t.asked = t.lacks[0], map[string]bool{t.last: true}
	}
	for _, who := range []string{t.told, t.kv.Lead(t.keys, int(t.lacks[0])), t.near} {
		if who != "" && who != t.me && !t.asked[who] {
			return who
		}
	}
	return ""
}

// worth says whether blocks of an instance reach further than those that follow here.
func (t *trail) worth(f kvcache.Found) bool {
	more := append(slices.Clip(t.found), f)
	return len(t.found) == 0 || t.kv.Begins(more, t.keys).Blocks > t.kv.Begins(t.found, t.keys).Blocks
}

// answer takes what an instance said: which blocks it has, and who may have the first that it has not.
func (t *trail) answer(who string, f kvcache.Found, reply *pb.ShareKVReply) {
	t.last, t.told = who, reply.Next
	switch {
	case f.Blocks > 0:
		t.found = append(t.found, f)
	case reply.Unknown:
		t.kv.DropLead(t.keys, int(t.lacks[0]), who)
	}
	t.asked[who] = true
}
