package cluster

import (
	"fmt"
	"time"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

const (
	maxRelease = 4096            // spans or tickets of one call
	deafAfter  = 5 * time.Second // how long a peer may leave calls unanswered
)

// debt is what a creditor was not told yet. It holds at most what the creditor granted over this session.
type debt struct {
	spans   []kvcache.Ended
	tickets []uint64
}

// Release gives spans of ended requests back to their creditors, without waiting.
func (r *RManager) Release(spans []kvcache.Ended) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range spans {
		r.owe(s)
	}
}

// owe is Release of one span. The caller holds mu.
func (r *RManager) owe(s kvcache.Ended) {
	// Without the links over which it was lent the creditor has freed it.
	if p := r.peers[s.Instance]; p != nil && p.session != 0 && p.index == s.Peer {
		if s.Shared {
			s.Keys = nil // the creditor knows
		}
		s.Keys = s.Keys[:min(len(s.Keys), maxKeys)]
		p.owed.spans = append(p.owed.spans, s)
		r.startRelease(p)
	}
}

// giveUp tells a creditor that nobody waits for the answer to a TryMoveKV call.
func (r *RManager) giveUp(c creditor, ticket uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := c.peer; p.session == c.session {
		p.owed.tickets = append(p.owed.tickets, ticket)
		r.startRelease(p)
	}
}

// startRelease makes sure that a goroutine pays what is owed to a peer: one per peer, so that a peer that
// does not answer holds up no other. The caller holds mu.
func (r *RManager) startRelease(p *peer) {
	if !p.releasing {
		p.releasing = true
		r.spawn(func() { r.payBack(p) })
	}
}

// releasable is how many of the first spans go into one message.
func releasable(spans []kvcache.Ended) (n int) {
	keys := 0
	for n < min(maxRelease, len(spans)) {
		if keys += len(spans[n].Keys); n > 0 && keys > maxKeys {
			break
		}
		n++
	}
	return n
}

func (r *RManager) payBack(p *peer) {
	var quiet silence
	for {
		r.mu.Lock()
		req := &pb.ReleaseKVRequest{Owner: r.cfg.ID, Session: p.session}
		spans := p.owed.spans[:releasable(p.owed.spans)]
		req.Tickets = p.owed.tickets[:min(maxRelease, len(p.owed.tickets))]
		if r.closed || len(spans)+len(req.Tickets) == 0 {
			p.releasing = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		for _, s := range spans {
			req.Spans = append(req.Spans, &pb.SpanHandle{Handle: s.Handle, Generation: s.Generation, Keys: bytesOf(s.Keys)})
		}
		limited, done := r.call()
		_, err := p.client.ReleaseKV(limited, req)
		done()
		if err == nil {
			quiet.end()
			r.mu.Lock()
			if p.session == req.Session {
				p.owed.spans, p.owed.tickets = p.owed.spans[len(spans):], p.owed.tickets[len(req.Tickets):]
			}
			r.mu.Unlock()
			continue
		}
		if quiet.lasts(time.Now()) > deafAfter {
			// The creditor frees everything when it sees its links end.
			r.drop(p, req.Session, fmt.Errorf("cannot release spans: %w", err))
		}
		sleep(r.ctx, 50*time.Millisecond)
	}
}
