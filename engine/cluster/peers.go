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

const (
	dialLimit  = 5 * time.Second        // of one attempt to open both lanes
	firstRetry = 100 * time.Millisecond // after a loss or a failed attempt; then doubled
	lastRetry  = 5 * time.Second
	flapRetry  = time.Second // longest for a peer that answers, but is lost again soon
)

// peer is a process of another instance as this one sees it; a process that is started anew under an old
// id is another peer. It is up or down as one: when a lane that came with a session dies, all of its links are
// closed, its spans here are freed and spans there are given up, and both sides connect anew. A rail that was
// added dies alone: moves go over the others, and it is opened anew.
type peer struct {
	id     string
	index  uint32 // the device's number for it
	member Member
	conn   *grpc.ClientConn
	client pb.KVClient

	// hostMu is held while links of this peer are attached or taken down, and while its spans are opened or
	// ended, so that none of these can overtake another.
	hostMu  sync.Mutex
	givenUp uint64 // latest TryMoveKV call that its debtor gave up; guarded by hostMu

	// Guarded by RManager.mu. session and serving change under hostMu as well.
	session   uint64         // of the client links, 0: this instance may not borrow there
	serving   uint64         // of the server links, 0: the peer may not borrow here
	half      *rdma.Accepted // a lane whose other lane has not come yet
	busy      int            // goroutines that attach links or take them down; the peer stays until they are through
	dropping  bool           // one of them is to take it down
	gone      bool           // no member any more, or another process under its id
	left      bool           // it said that it leaves
	drains    bool           // it said that it will
	knows     bool           // it was told that this instance will
	giving    int            // returns to it that are under way
	hostable  int            // blocks it said it would host
	told      time.Time      // when it said so
	shown     bool           // it was in the gManager's last answer
	failures  int            // calls for room in a row without an answer
	quiet     silence        // since the first of them
	owed      debt
	releasing bool               // a goroutine pays what is owed
	info      rdma.Info          // of the client links
	life      context.Context    // of the client links' session, nil without one
	end       context.CancelFunc // likewise
	railsUp   uint32             // of the client's, as they were last; a bit each
	waySaid   bool               // likewise: the log has how blocks get there
	placing   int                // goroutines that ask for room there and have not marked blocks as moving yet
	upgrading bool               // no new blocks go there or come from there
	improveAt time.Time
	improving time.Duration // until the next try
	upSince   time.Time
	retryAt   time.Time
	backoff   time.Duration
	// silent.go: whether it is asked if it lives, when it may be next, and how long it has not answered that.
	asking    bool
	askAt     time.Time
	goneQuiet silence
}

// creditor is a peer over one session of its links.
type creditor struct {
	peer    *peer
	session uint64
}

// room is how many blocks the peer would host, as far as is known. What it said long ago is worth a
// question: it would answer with what it has now.
func (p *peer) room(now time.Time) int {
	if now.Sub(p.told) > staleAfter {
		return max(1, p.hostable)
	}
	return p.hostable
}

// retry sets the time of the next dial, about after a while.
func (p *peer) retry(after, limit time.Duration) {
	p.backoff = min(max(after, firstRetry), limit)
	p.retryAt = time.Now().Add(p.backoff/2 + rand.N(p.backoff))
}

func (r *RManager) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.ctx, r.cfg.CallTimeout)
}

func (r *RManager) followMembers(dir *Directory) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		members, changed := dir.Members()
		r.reconcile(members)
		select {
		case <-r.ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// reconcile makes the table of peers follow the members and starts the dials that are due.
func (r *RManager) reconcile(members map[string]Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for id, p := range r.peers {
		m, ok := members[id]
		p.gone = !ok || m.Session != p.member.Session
		// Links decide whether a peer lives: one that only left the list (its lease ran out while etcd
		// was away) keeps its spans. One that was started anew under its id is another one.
		if ok && p.gone {
			r.dropSoon(p, fmt.Errorf("instance %s was started anew", id))
		}
		if !ok {
			r.askGone(p, now)
		} else {
			p.goneQuiet.end()
		}
		if p.gone && p.session == 0 && p.serving == 0 && p.busy == 0 {
			r.forget(p)
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
	for _, p := range r.peers {
		if p.session == 0 && !p.gone && !p.left && p.busy == 0 && now.After(p.retryAt) {
			p.busy++
			r.spawn(func() { r.dial(p) })
		}
	}
}

func (r *RManager) forget(p *peer) {
	delete(r.peers, p.id)
	r.byIndex[p.index] = nil
	if p.half != nil {
		_ = p.half.Link.Close()
		p.half = nil
	}
	_ = p.conn.Close()
}

// addPeer gives the peer the index whose last use is longest ago, so that what still names the peer that
// had it before does not mean this one.
func (r *RManager) addPeer(m Member) error {
	for k := range r.byIndex {
		i := (r.lastIndex + 1 + k) % len(r.byIndex)
		if r.byIndex[i] != nil {
			continue
		}
		conn, err := grpc.NewClient(m.Address, DialOptions(r.cfg.Secret)...)
		if err != nil {
			return err
		}
		p := &peer{id: m.ID, index: uint32(i), member: m, conn: conn, client: pb.NewKVClient(conn)}
		r.peers[m.ID], r.byIndex[i], r.lastIndex = p, p, i
		return nil
	}
	return fmt.Errorf("cannot have more than %d peers", len(r.byIndex))
}

// creditors lists connected peers with room, prefer first, then by most room.
func (r *RManager) creditors(prefer string) []creditor {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var peers []*peer
	for _, p := range r.peers {
		if p.session != 0 && !p.upgrading && !p.drains && p.room(now) > 0 {
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, func(a, b *peer) int {
		if (a.id == prefer) != (b.id == prefer) {
			if a.id == prefer {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.hostable, a.hostable), cmp.Compare(a.id, b.id))
	})
	out := make([]creditor, len(peers))
	for i, p := range peers {
		out[i] = creditor{p, p.session}
	}
	return out
}

// creditorsFor lists those that are asked for an offload's room: where it has a destination that alone, whatever room it
// was last heard to have.
func (r *RManager) creditorsFor(o offload, prefer string) []creditor {
	if o.to == "" {
		return r.creditors(prefer)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[o.to]; p != nil && p.session != 0 && !p.upgrading && !p.drains {
		return []creditor{{p, p.session}}
	}
	return nil
}

// RoundTrip is that of a short message to the farthest peer that this instance may borrow from, as it was measured when
// its links came; 0 without any.
func (r *RManager) RoundTrip() (longest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		if p.session != 0 {
			longest = max(longest, p.info.LatencyP50)
		}
	}
	return longest
}

// hold keeps the creditor's links from being replaced until unhold; false if they are over, or about to be.
func (r *RManager) hold(c creditor) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.peer.upgrading || c.peer.session != c.session {
		return false
	}
	c.peer.placing++
	return true
}

func (r *RManager) unhold(c creditor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.peer.placing--
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
		r.dropSoon(r.byIndex[index], errors.New("a step could not reach it"))
	}
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
