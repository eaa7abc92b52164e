package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// peer is another instance as this one sees it. It is up or down as one: when any link of it dies, all
// of them are closed, its spans here are freed and spans there are given up, and both sides connect anew.
type peer struct {
	id     string
	index  uint32 // the device's number for it
	member Member
	conn   *grpc.ClientConn
	client pb.KVClient

	// Guarded by RManager.mu.
	attached bool // client links are up: this instance may borrow there
	serving  bool // server links are up: the peer may borrow here
	gone     bool // no member any more
	hostable int  // blocks it said it would host
	dialing  bool
	retryAt  time.Time
	backoff  time.Duration
	info     rdma.Info

	// hostMu is held while spans of this peer are opened or ended, so that the loss of a peer and a
	// reservation for it cannot overtake each other. Taken before RManager.mu.
	hostMu sync.Mutex
	// waiting is a query lane whose move lane has not come yet. Used by the accept loop alone.
	waiting *rdma.Link
}

func (p *peer) close() {
	if p.waiting != nil {
		_ = p.waiting.Close()
	}
	_ = p.conn.Close()
}

func (r *RManager) followMembers(ctx context.Context, dir *Directory) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		members, changed := dir.Members()
		r.reconcile(ctx, members)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// reconcile makes the table of peers follow the members and starts the dials that are due.
func (r *RManager) reconcile(ctx context.Context, members map[string]Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.peers {
		m, ok := members[id]
		p.gone = !ok
		// Links decide whether a peer lives: one that only left the list (its lease ran out while etcd
		// was away) keeps its spans. Without links, or started anew under its id, it is forgotten.
		if (!ok || m.Session != p.member.Session) && !p.attached && !p.serving && !p.dialing {
			delete(r.peers, id)
			r.byIndex[p.index] = nil
			p.close()
		}
	}
	for id, m := range members {
		if id == r.cfg.ID || r.peers[id] != nil {
			continue
		}
		if err := r.addPeer(m); err != nil {
			slog.Error("cannot take a peer in", "peer", id, "error", err)
		}
	}
	now := time.Now()
	for _, p := range r.peers {
		if !p.attached && !p.gone && !p.dialing && now.After(p.retryAt) {
			p.dialing = true
			r.wg.Add(1)
			go func() { defer r.wg.Done(); r.dial(ctx, p) }()
		}
	}
}

func (r *RManager) addPeer(m Member) error {
	for i := range r.byIndex {
		if r.byIndex[i] != nil {
			continue
		}
		conn, err := grpc.NewClient(m.Address, DialOptions(r.cfg.Secret)...)
		if err != nil {
			return err
		}
		p := &peer{id: m.ID, index: uint32(i), member: m, conn: conn, client: pb.NewKVClient(conn)}
		r.peers[m.ID], r.byIndex[i] = p, p
		return nil
	}
	return fmt.Errorf("cannot have more than %d peers", len(r.byIndex))
}

// dial sets up the client ends of both lanes.
func (r *RManager) dial(ctx context.Context, p *peer) {
	limited, done := context.WithTimeout(ctx, 5*time.Second)
	defer done()
	query, move, info, err := r.dialLanes(limited, p)
	if err == nil {
		if err = r.links.PeerAttach(p.index, query.Take(), move.Take()); err != nil {
			err = fmt.Errorf("cannot attach: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.dialing = false
	if err != nil {
		p.backoff = min(max(2*p.backoff, 100*time.Millisecond), 5*time.Second)
		p.retryAt = time.Now().Add(p.backoff/2 + rand.N(p.backoff))
		if !p.gone && ctx.Err() == nil {
			slog.Warn("cannot connect to a peer", "peer", p.id, "retry_in", p.backoff, "error", err)
		}
		return
	}
	p.attached, p.backoff, p.info = true, 0, info
	slog.Info("connected to a peer", "peer", p.id, "transport", string(info.Transport), "why", info.Reason,
		"latency", info.LatencyP50, "gigabytes_per_second", fmt.Sprintf("%.2f", info.BandwidthBytesPerSec/1e9))
}

func (r *RManager) dialLanes(ctx context.Context, p *peer) (query, move *rdma.Link, info rdma.Info, err error) {
	self := rdma.Identity{ClusterID: r.cfg.ClusterID, Instance: r.cfg.ID, Secret: r.cfg.Secret}
	shape := rdma.Shape{Slots: uint32(r.cfg.Slots), SlotBytes: r.cfg.QuerySlotBytes, Peer: int32(p.index)}
	if query, info, err = rdma.Dial(ctx, self, p.member.Endpoint, rdma.LaneQuery, shape, r.cfg.Transport); err != nil {
		return nil, nil, info, fmt.Errorf("cannot open the query lane: %w", err)
	}
	shape.SlotBytes = r.cfg.MoveSlotBytes
	if move, _, err = rdma.Dial(ctx, self, p.member.Endpoint, rdma.LaneMove, shape, r.cfg.Transport); err != nil {
		_ = query.Close()
		return nil, nil, info, fmt.Errorf("cannot open the move lane: %w", err)
	}
	return query, move, info, nil
}

// acceptLoop takes server links; a debtor opens its query lane first, then its move lane.
func (r *RManager) acceptLoop(ctx context.Context) {
	for {
		a, err := r.listener.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, rdma.ErrClosed) {
				return
			}
			slog.Warn("cannot accept a link", "error", err)
			continue
		}
		p := r.peerByID(a.From)
		if p == nil {
			// The member list is behind; the debtor tries again.
			_ = a.Link.Close()
			continue
		}
		if a.Lane == rdma.LaneQuery {
			if p.waiting != nil {
				_ = p.waiting.Close()
			}
			p.waiting = a.Link
			continue
		}
		if p.waiting == nil {
			_ = a.Link.Close()
			continue
		}
		query := p.waiting
		p.waiting = nil
		r.serve(p, query, a.Link)
	}
}

func (r *RManager) serve(p *peer, query, move *rdma.Link) {
	r.mu.Lock()
	again := p.serving
	r.mu.Unlock()
	if again {
		// The debtor gave the old links up before this side saw them die; its old spans end first.
		r.drop(p, errors.New("the peer connected anew"), true)
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if err := r.links.PeerServe(p.index, query.Take(), move.Take()); err != nil {
		slog.Warn("cannot serve a peer", "peer", p.id, "error", err)
		return
	}
	r.mu.Lock()
	p.serving = true
	r.mu.Unlock()
}

// monitorLoop notices dead links of peers that no step is waiting for.
func (r *RManager) monitorLoop(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range r.snapshot() {
			r.mu.Lock()
			up := p.attached || p.serving
			r.mu.Unlock()
			if !up {
				continue
			}
			if err := r.links.PeerStatus(p.index); err != nil {
				r.drop(p, err, true)
			}
		}
	}
}

// drop takes a peer down: links, its spans here, and the requests that have spans there.
func (r *RManager) drop(p *peer, cause error, tell bool) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.mu.Lock()
	was := p.attached || p.serving
	p.attached, p.serving, p.hostable = false, false, 0
	p.backoff = max(p.backoff, 100*time.Millisecond)
	p.retryAt = time.Now().Add(p.backoff)
	r.mu.Unlock()
	if !was {
		return
	}
	if tell {
		slog.Warn("lost a peer", "peer", p.id, "error", cause)
	}
	if err := r.links.PeerDetach(p.index); err != nil {
		slog.Error("cannot detach a peer", "peer", p.id, "error", err)
	}
	r.unhostAll(p.id)
	r.home.PeerLost(p.id)
}

// creditors lists attached peers with room, prefer first, then by most room.
func (r *RManager) creditors(prefer string) []*peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*peer
	for _, p := range r.peers {
		if p.attached && p.hostable > 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *peer) int {
		if (a.id == prefer) != (b.id == prefer) {
			if a.id == prefer {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.hostable, a.hostable), cmp.Compare(a.id, b.id))
	})
	return out
}

func (r *RManager) setHostable(p *peer, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.hostable = n
}

func (r *RManager) peerByID(id string) *peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.peers[id]
}

// PeerIndexLost says that a step saw the peer behind a device's index fail. It does not wait.
func (r *RManager) PeerIndexLost(index int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if index >= 0 && index < len(r.byIndex) && r.byIndex[index] != nil {
		p := r.byIndex[index]
		go r.drop(p, errors.New("a step could not reach it"), true)
	}
}

func (r *RManager) isAttached(p *peer, index uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.attached && p.index == index
}

func (r *RManager) isServing(p *peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.serving
}

func (r *RManager) snapshot() []*peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*peer, 0, len(r.peers))
	for _, p := range r.peers {
		out = append(out, p)
	}
	return out
}

// LinkReport is one line of the start-up table: the transport to a peer, why, and what was measured.
type LinkReport struct {
	Peer string
	rdma.Info
}

// LinkReports lists the attached peers' links by peer.
func (r *RManager) LinkReports() []LinkReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []LinkReport
	for _, p := range r.peers {
		if p.attached {
			out = append(out, LinkReport{p.id, p.info})
		}
	}
	slices.SortFunc(out, func(a, b LinkReport) int { return cmp.Compare(a.Peer, b.Peer) })
	return out
}
