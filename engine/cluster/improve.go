package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

const (
	improveEvery = time.Second     // a look at links that are up; doubled after what failed or was not there
	improveLimit = 5 * time.Second // at most
	// maxRails is how many ports of a host carry moves to one peer.
	maxRails = 7
)

var errNoBetter = errors.New("no better transport is there")

// railNumber is the device's number of a rail: 0 is the lane that came with the queries, whatever its port.
func railNumber(rail int) uint32 { return uint32(rail) + 1 }

// improveLoop looks after links that are up: moves get a lane on every rail, and get back what was lost; and
// links that had to be made over a worse transport (an RDMA port was down just then) are made anew over the
// better one, when nobody has blocks at the other side.
func (r *RManager) improveLoop() {
	tick := time.NewTicker(improveEvery / 2)
	defer tick.Stop()
	own := rdma.RailNumbers(r.cfg.Transport.Verbs)
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		now := time.Now()
		for _, p := range r.peers {
			if p.session == 0 || p.busy > 0 || p.dropping || p.gone || now.Before(p.improveAt) {
				continue
			}
			p.busy++
			life, session, info := p.life, p.session, p.info
			r.spawn(func() { r.improve(life, p, session, info, own) })
		}
		r.mu.Unlock()
	}
}

// improve tries once, and sets the time of the next try. It ends with life, the session's.
func (r *RManager) improve(life context.Context, p *peer, session uint64, info rdma.Info, own []int) {
	var err error
	switch {
	case info.Transport == rdma.Verbs:
		err = r.addRails(life, p, session, usefulRails(own, info.Rail, p.member.Endpoint.Rails))
	case r.auto():
		err = r.upgrade(life, p, session, info)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.busy--
	if p.session != session {
		return // a new one has times of its own
	}
	if err == nil {
		p.improving = improveEvery
	} else {
		p.improving = min(2*p.improving, improveLimit)
	}
	if err != nil && err != errNoBetter {
		slog.Debug("cannot make a peer's links better", "peer", p.id, "retry_in", p.improving, "error", err)
	}
	p.improveAt = time.Now().Add(p.improving/2 + rand.N(p.improving))
}

// usefulRails are those of own that the peer has as well, but for the first lane's.
func usefulRails(own []int, first, remote int) (rails []int) {
	for _, rail := range own {
		if rail != first && rail < min(remote, maxRails) {
			rails = append(rails, rail)
		}
	}
	return rails
}

// addRails opens a move lane on each of the rails that has none.
func (r *RManager) addRails(life context.Context, p *peer, session uint64, rails []int) error {
	if len(rails) == 0 {
		return nil
	}
	up, _, _ := r.rails.PeerRails(p.index)
	r.mu.Lock()
	lost := p.railsUp &^ up
	p.railsUp = up
	r.mu.Unlock()
	var failed error
	for _, rail := range rails {
		bit := uint32(1) << railNumber(rail)
		if lost&bit != 0 {
			slog.Warn("lost a rail to a peer; its moves go over the others", "peer", p.id, "rail", rail)
		}
		if up&bit != 0 {
			continue
		}
		if life.Err() != nil {
			return errLost
		}
		if err := r.addRail(life, p, session, rail); err != nil {
			failed = fmt.Errorf("cannot use rail %d: %w", rail, err)
		}
	}
	return failed
}

func (r *RManager) addRail(life context.Context, p *peer, session uint64, rail int) error {
	limited, done := context.WithTimeout(life, dialLimit)
	defer done()
	choice := r.cfg.Transport
	choice.Transport = rdma.Verbs
	link, info, err := r.dialLane(limited, p, rdma.LaneRail, rdma.Shape{Slots: MoveSlots, SlotBytes: r.cfg.MoveSlotBytes, Pair: session, Rail: rail}, choice)
	if err != nil {
		return err
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.mu.Lock()
	over := p.session != session
	r.mu.Unlock()
	if over {
		_ = link.Close()
		return errLost
	}
	if err = r.rails.PeerRail(p.index, railNumber(rail), false, link.Take()); err != nil {
		return err
	}
	r.mu.Lock()
	p.railsUp |= 1 << railNumber(rail)
	r.mu.Unlock()
	slog.Info("moves to a peer have one more rail", append([]any{"peer", p.id, "rail", rail}, measured(info)...)...)
	return nil
}

// upgrade connects anew over a better transport than the present one, if that is to be had and nobody has
// blocks at the other side, which would be lost. The query lane shows whether it is to be had before anybody
// is kept from placing blocks.
func (r *RManager) upgrade(life context.Context, p *peer, session uint64, present rdma.Info) error {
	if present.Transport == rdma.SHM || p.member.Endpoint.Rails == 0 && !present.FellBack {
		return errNoBetter
	}
	r.mu.Lock()
	idle := r.idle(p, session)
	r.mu.Unlock()
	if !idle {
		return nil
	}
	choice := r.cfg.Transport
	choice.Transport = rdma.Best(p.member.Endpoint, r.cfg.Transport)
	if choice.Transport == present.Transport || choice.Transport == "" || choice.Transport == rdma.TCP {
		return errNoBetter
	}
	limited, done := context.WithTimeout(life, dialLimit)
	defer done()
	l, err := r.dialQuery(limited, p, choice)
	if err != nil {
		return err
	}
	if !r.beginUpgrade(p, session) {
		_ = l.query.Close()
		return nil
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		p.upgrading = false
	}()
	if err = r.dialMove(limited, p, &l); err != nil {
		return err
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.takeDown(p, session, fmt.Errorf("a better transport is there: %s instead of %s", choice.Transport, present.Transport))
	if err = r.links.PeerAttach(p.index, l.query.Take(), l.move.Take()); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected(p, l.session, l.info)
	return nil
}

// beginUpgrade keeps blocks from going to the peer and from coming from there, if there are none now.
func (r *RManager) beginUpgrade(p *peer, session uint64) bool {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	p.upgrading = r.idle(p, session)
	return p.upgrading
}

// idle says whether the session's links may end now without a loss. The caller holds mu.
func (r *RManager) idle(p *peer, session uint64) bool {
	return p.session == session && p.placing == 0 && !r.kv.Lends(p.id) && len(r.kv.HandlesOf(p.id)) == 0
}

func (r *RManager) upgrades(p *peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.upgrading
}
