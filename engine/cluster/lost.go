package cluster

import (
	"log/slog"
	"time"
)

// monitorLoop notices dead links of peers that no step is waiting for.
func (r *RManager) monitorLoop() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range r.snapshot() {
			r.mu.Lock()
			// The other side of an upgrade ends the old links as soon as it has the new ones; this side is about to.
			up := (p.session != 0 || p.serving != 0) && !p.dropping && !p.upgrading
			r.mu.Unlock()
			if !up {
				continue
			}
			if err := r.links.PeerStatus(p.index); err != nil {
				r.mu.Lock()
				r.dropSoon(p, err)
				r.mu.Unlock()
			}
		}
	}
}

// dropSoon takes a peer down without waiting for it: a step may hold its links for a while. The caller
// holds mu.
func (r *RManager) dropSoon(p *peer, cause error) {
	if p.dropping || p.session == 0 && p.serving == 0 {
		return
	}
	p.dropping = true
	p.busy++
	session, serving := p.session, p.serving
	r.spawn(func() {
		p.hostMu.Lock()
		defer p.hostMu.Unlock()
		r.mu.Lock()
		same := p.session == session && p.serving == serving
		r.mu.Unlock()
		if same { // else others took it down before, or it is looked at again
			r.takeDown(p, 0, cause)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		p.dropping = false
		p.busy--
	})
}

// drop takes a peer down: links, its spans here, and the requests that have spans there; with a session
// only while that one lasts. The step loop hears of it before the peer can come back.
func (r *RManager) drop(p *peer, session uint64, cause error) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.takeDown(p, session, cause)
}

// takeDown is drop for a caller that holds hostMu.
func (r *RManager) takeDown(p *peer, session uint64, cause error) {
	r.mu.Lock()
	if p.session == 0 && p.serving == 0 || session != 0 && p.session != session {
		r.mu.Unlock()
		return
	}
	p.session, p.serving, p.hostable, p.failures, p.owed = 0, 0, 0, 0, debt{}
	p.quiet.end()
	if p.end != nil {
		p.end()
		p.life, p.end = nil, nil
	}
	p.busy++
	r.home.PeerLost(p.id)
	wanted, left := p.upgrading, p.left
	r.mu.Unlock()
	switch {
	case cause != errStopping && left:
		slog.Info("a peer has left", "peer", p.id)
	case cause != errStopping && wanted:
		slog.Info("changing a peer's links", "peer", p.id, "why", cause)
	case cause != errStopping:
		slog.Warn("lost a peer", "peer", p.id, "error", cause)
	}
	if err := r.links.PeerDetach(p.index); err != nil {
		slog.Error("cannot detach a peer", "peer", p.id, "error", err)
	}
	r.unhostAll(p.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	p.busy--
	if time.Since(p.upSince) > lastRetry {
		p.backoff = 0
	}
	p.retry(2*p.backoff, flapRetry)
}
