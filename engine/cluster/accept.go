package cluster

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/infinite-llm/infinite/rdma"
)

// acceptLoop takes server links until the listener or this manager is closed.
func (r *RManager) acceptLoop() {
	for {
		a, err := r.listener.Accept(r.ctx)
		if err != nil {
			return
		}
		r.accept(a)
	}
}

// admit decides on a caller. The member list may be behind; then the debtor tries again.
func (r *RManager) admit(from, process string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[from]; p == nil || p.member.Endpoint.Process != process {
		return fmt.Errorf("%s does not know this process of %s", r.cfg.ID, from)
	}
	return nil
}

// accept keeps a lane until the other one of its pair comes, in either order, and then serves both. What nobody
// needs is closed outside of mu: that may take a while.
func (r *RManager) accept(a rdma.Accepted) {
	for _, l := range r.take(a) {
		_ = l.Close()
	}
}

// take returns the links that are to be closed.
func (r *RManager) take(a rdma.Accepted) []*rdma.Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[a.From]
	if p == nil || p.member.Endpoint.Process != a.Process || a.Pair == 0 {
		return []*rdma.Link{a.Link} // it left since it was admitted
	}
	if a.Lane == rdma.LaneRail {
		if r.closed || a.Rail >= maxRails {
			return []*rdma.Link{a.Link}
		}
		p.busy++
		r.spawn(func() { r.serveRail(p, a) })
		return nil
	}
	other := p.half
	if other == nil || other.Pair != a.Pair || other.Lane == a.Lane {
		p.half = &a
		if other != nil {
			return []*rdma.Link{other.Link} // of an attempt that the debtor has given up
		}
		return nil
	}
	p.half = nil
	query, move := other.Link, a.Link
	if a.Lane == rdma.LaneQuery {
		query, move = move, query
	}
	if r.closed {
		return []*rdma.Link{query, move}
	}
	p.busy++
	r.spawn(func() { r.serve(p, a.Pair, query, move) })
	return nil
}

// serveRail serves one more move lane of a session that is served.
func (r *RManager) serveRail(p *peer, a rdma.Accepted) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	err := errLost
	if r.serves(p, a.Pair) {
		err = r.rails.PeerRail(p.index, railNumber(a.Rail), true, a.Link.Take())
	} else {
		_ = a.Link.Close()
	}
	if err != nil {
		slog.Warn("cannot serve a peer's rail", "peer", p.id, "rail", a.Rail, "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.busy--
}

// serve answers a debtor over a pair of links. With links left from before, the debtor gave those up before
// this side saw them die; its old spans end first.
func (r *RManager) serve(p *peer, session uint64, query, move *rdma.Link) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.mu.Lock()
	again := p.serving != 0
	r.mu.Unlock()
	r.clear(p, again)
	err := r.links.PeerServe(p.index, query.Take(), move.Take())
	r.mu.Lock()
	defer r.mu.Unlock()
	p.busy--
	if err != nil {
		slog.Warn("cannot serve a peer", "peer", p.id, "error", err)
		return
	}
	p.serving, p.givenUp = session, 0
}

// clear takes old links down before new ones come: those that are replaced, and those that are dead with
// nobody having noticed. The caller holds hostMu.
func (r *RManager) clear(p *peer, replaced bool) {
	r.mu.Lock()
	up := p.session != 0 || p.serving != 0
	r.mu.Unlock()
	if replaced || up && r.links.PeerStatus(p.index) != nil {
		r.takeDown(p, 0, errors.New("the peer connected anew"))
	}
}

// serves says whether the session is the one that the peer borrows over.
func (r *RManager) serves(p *peer, session uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return session != 0 && p.serving == session
}
