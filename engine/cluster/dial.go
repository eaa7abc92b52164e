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

// MoveSlots is how many slots each direction of a move lane has, the least that a link can have.
const MoveSlots = 2

// dial sets up the client ends of both lanes.
func (r *RManager) dial(p *peer) {
	limited, done := context.WithTimeout(r.ctx, dialLimit)
	defer done()
	l, err := r.dialLanes(limited, p)
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if err == nil {
		r.clear(p, false)
		if err = r.links.PeerAttach(p.index, l.query.Take(), l.move.Take()); err != nil {
			err = fmt.Errorf("cannot attach: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.busy--
	if err != nil {
		p.retry(2*p.backoff, lastRetry)
		// The first attempts may come before the peer has heard of this instance.
		if level := slog.LevelDebug; !p.gone && !r.closed {
			if p.backoff >= time.Second {
				level = slog.LevelWarn
			}
			slog.Log(r.ctx, level, "cannot connect to a peer", "peer", p.id, "retry_in", p.backoff, "error", err)
		}
		return
	}
	r.connected(p, l.session, l.info)
}

// connected notes client links that are attached, and says what they are. The caller holds mu.
func (r *RManager) connected(p *peer, session uint64, info rdma.Info) {
	p.session, p.info, p.upSince = session, info, time.Now()
	p.life, p.end = context.WithCancel(r.ctx)
	p.railsUp, p.waySaid, p.improving = 1, false, improveEvery
	p.improveAt = p.upSince.Add(improveEvery)
	words := append([]any{"peer", p.id, "transport", string(info.Transport)}, measured(info)...)
	level := slog.LevelInfo
	if info.FellBack {
		level = slog.LevelWarn
	}
	if info.Transport == rdma.Verbs {
		how := "put from pool to pool"
		if _, puts, why := r.rails.PeerRails(p.index); puts&1 == 0 {
			how, level = "copied through messages: "+why, slog.LevelWarn
		}
		words = append(words, "blocks", how)
	}
	slog.Log(context.Background(), level, "connected to a peer", words...)
}

// measured is what the log says of a link.
func measured(info rdma.Info) []any {
	return []any{"why", info.Reason, "latency", info.LatencyP50, "gigabytes_per_second", fmt.Sprintf("%.2f", info.BandwidthBytesPerSec/1e9)}
}

// lanes are the client ends of both lanes of a session, over one transport.
type lanes struct {
	session     uint64
	query, move *rdma.Link
	info        rdma.Info // of the query lane
}

// dialLanes opens both lanes the best way that works for both: one alone that had to take a worse way would be
// there for good.
func (r *RManager) dialLanes(ctx context.Context, p *peer) (lanes, error) {
	l, err := r.dialQuery(ctx, p, r.cfg.Transport)
	if err != nil {
		return l, err
	}
	err = r.dialMove(ctx, p, &l)
	if err == nil || !r.auto() || l.info.Transport == rdma.TCP || errors.Is(err, rdma.ErrRefused) || ctx.Err() != nil {
		return l, err
	}
	why := fmt.Sprintf("%s failed: %v", l.info.Transport, err)
	choice := r.cfg.Transport
	choice.Transport = rdma.TCP
	if l, err = r.dialQuery(ctx, p, choice); err != nil {
		return l, err
	}
	l.info.Reason, l.info.FellBack = why, true
	return l, r.dialMove(ctx, p, &l)
}

// dialQuery begins a session with its query lane.
func (r *RManager) dialQuery(ctx context.Context, p *peer, want rdma.Choice) (l lanes, err error) {
	l.session = rand.Uint64() | 1
	if l.query, l.info, err = r.dialLane(ctx, p, rdma.LaneQuery, rdma.Shape{Slots: uint32(r.cfg.QuerySlots), SlotBytes: r.cfg.QuerySlotBytes, Pair: l.session}, want); err != nil {
		return l, fmt.Errorf("cannot open the query lane: %w", err)
	}
	return l, nil
}

// dialMove opens the move lane that belongs to the query lane, over the same transport, or closes that one.
func (r *RManager) dialMove(ctx context.Context, p *peer, l *lanes) (err error) {
	choice := r.cfg.Transport
	choice.Transport = l.info.Transport
	if l.move, _, err = r.dialLane(ctx, p, rdma.LaneMove, rdma.Shape{Slots: MoveSlots, SlotBytes: r.cfg.MoveSlotBytes, Pair: l.session}, choice); err != nil {
		_ = l.query.Close()
		return fmt.Errorf("cannot open the move lane: %w", err)
	}
	return nil
}

func (r *RManager) dialLane(ctx context.Context, p *peer, lane rdma.Lane, shape rdma.Shape, want rdma.Choice) (*rdma.Link, rdma.Info, error) {
	want.Via = r.via(p)
	self := rdma.Identity{ClusterID: r.cfg.ClusterID, Instance: r.cfg.ID, Process: r.listener.Process(), Secret: r.cfg.Secret}
	shape.Peer = int32(p.index)
	return r.open(ctx, self, p.member.Endpoint, lane, shape, want)
}

// auto says whether a link may take another way than the best.
func (r *RManager) auto() bool {
	return r.cfg.Transport.Transport == rdma.Auto || r.cfg.Transport.Transport == ""
}
