package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"google.golang.org/grpc"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/rdma"
)

// Spans is the device's table of hosted spans.
type Spans interface {
	SpanSet(owner, handle, generation uint32, blocks []int32) error
	SpanShare(owner, handle, generation uint32, blocks []int32) error
	SpanClose(handle, generation uint32) error
}

// Moves copies own blocks into spans that peers host.
type Moves interface {
	MovePost(peer, handle, generation, first uint32, blocks []int32, ticket uint64) error
	// MoveWait returns the next finished move; ok is false after the timeout.
	MoveWait(timeout time.Duration) (ticket uint64, result error, ok bool, err error)
}

// Links takes over both lanes of a peer, as their client or as their server.
type Links interface {
	PeerAttach(peer uint32, query, move unsafe.Pointer) error
	PeerServe(peer uint32, query, move unsafe.Pointer) error
	PeerDetach(peer uint32) error
	PeerStatus(peer uint32) error
}

// Rails takes over more move lanes of a peer.
type Rails interface {
	PeerRail(peer, rail uint32, server bool, move unsafe.Pointer) error
	// PeerRails has a bit for each rail towards the peer that lives, and for each of them that puts blocks
	// from pool to pool; noPuts says why some do not.
	PeerRails(peer uint32) (out, puts uint32, noPuts string)
}

// Device is what the manager does with its instance's device.
type Device struct {
	Spans Spans
	Moves Moves
	Links Links
	Rails Rails
}

// Home is the step loop of this instance. Moved, Found and PeerLost come in the order in which things happened;
// they are called under the manager's lock, so they neither wait nor call back.
type Home interface {
	// Moved reports a finished offload, or a finished return.
	Moved(o Outcome)
	// Found reports the end of a search: spans that hold, with what is here, the request's first blocks, or none.
	Found(request kvcache.RequestID, found []kvcache.Found)
	// PeerLost says that every span that Moved or Found has reported at the instance is gone.
	PeerLost(instance string)
	// Place asks for so many of a running request's oldest blocks to be placed with an instance. It does not wait for
	// that. An error is kvcache.ErrUnknown, also where number's request has another id, or kvcache.ErrState.
	Place(number kvcache.RequestID, id, to string, blocks int) error
	// Report is what the heartbeat carries; it may wait and call back.
	Report() (*pb.Load, []*pb.Placement)
}

// Outcome is what became of an offload: Span.Blocks of the request's oldest blocks now lie in Span, or Err. Or, with Back, of
// a return: the blocks are here, or Err.
type Outcome struct {
	Request kvcache.RequestID
	Span    kvcache.Span // of an offload
	Back    bool
	Began   bool // blocks were marked by kvcache's BeginMove or BeginReturn; always so without Err
	Err     error
}

// Config of an instance's side of the cluster. All durations are limits of single waits.
type Config struct {
	ID        string
	Session   string // the Member's
	ClusterID string
	Secret    string
	Transport rdma.Choice
	// Slot sizes of the two lanes, in bytes, and how many slots each direction of a query lane has.
	QuerySlotBytes, MoveSlotBytes uint64
	QuerySlots                    int

	Heartbeat   time.Duration // period, default 100 ms
	CallTimeout time.Duration // of one control call, default 1 s
	MoveTimeout time.Duration // of one offload, default 10 s
	// WavePatience is how long a query waits for what is still being computed; default 5 s.
	WavePatience time.Duration
}

func (c *Config) defaults() {
	if c.Heartbeat == 0 {
		c.Heartbeat = 100 * time.Millisecond
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = time.Second
	}
	if c.MoveTimeout == 0 {
		c.MoveTimeout = 10 * time.Second
	}
	if c.WavePatience == 0 {
		c.WavePatience = 5 * time.Second
	}
}

// View is what the scheduler may know of the rest of the cluster.
type View struct {
	PeersFree     int      // blocks that connected peers would host now
	OldestArrival uint64   // of all unfinished requests, 0 when unknown
	OthersRunning int      // requests that run with another home, or may for all that is known
	Starving      uint64   // arrival of the oldest request elsewhere that has long waited for room; 0 none
	Blocks        int      // of all pools, 0 when unknown
	Helpers       int      // instances that may take part in a wave
	Leaving       []string // instances that are about to leave, and lend until then
}

// RManager is one instance's manager of KV blocks towards the rest of the cluster. It lends room to
// debtors (host.go), borrows room from creditors (borrow.go), gives it back (release.go), has blocks back from those that are
// about to leave (back.go), finds beginnings of requests
// with others (search.go) and lets others use those here (share.go), and keeps the links to both (peers.go, accept.go, improve.go).
//
// Locks are taken in this order: a peer's hostMu, mu, those of Home and of the KV pool.
type RManager struct {
	pb.UnimplementedKVServer
	cfg      Config
	kv       *kvcache.Manager
	spans    Spans
	moves    Moves
	links    Links
	rails    Rails
	home     Home
	listener *rdma.Listener
	open     openLink

	mu        sync.Mutex
	peers     map[string]*peer
	byIndex   [256]*peer
	lastIndex int // given to a peer last; a freed one is used again as late as possible
	waves     waves
	view      *pb.HeartbeatReply
	viewAt    time.Time
	starving  uint64
	tickets   map[uint64]chan error // moves that the device has not reported yet
	number    uint64                // the last ticket: of moves and of calls
	closed    bool
	drains    bool // it is about to leave

	offloads  chan offload
	returns   chan offload
	searches  chan search
	manager   *grpc.ClientConn // to managerAt; both are the heartbeat goroutine's alone
	managerAt string
	refused   atomic.Bool   // by the gManager's last answer
	reports   atomic.Uint64 // that were begun

	ctx        context.Context // until Close
	cancel     context.CancelFunc
	wg         sync.WaitGroup // all goroutines but moveLoop, and calls that move blocks
	carriers   sync.WaitGroup // of the set-up of verbs links; they end with these
	movesEnded chan struct{}  // closed when nobody waits for a move any more
	moveLoop   sync.WaitGroup
}

// openLink is rdma.Dial.
type openLink func(context.Context, rdma.Identity, rdma.Endpoint, rdma.Lane, rdma.Shape, rdma.Choice) (*rdma.Link, rdma.Info, error)

// NewRManager wires an instance's manager; Start connects it.
func NewRManager(cfg Config, kv *kvcache.Manager, dev Device, listener *rdma.Listener) *RManager {
	cfg.defaults()
	r := &RManager{
		cfg: cfg, kv: kv, spans: dev.Spans, moves: dev.Moves, links: dev.Links, rails: dev.Rails, listener: listener, open: rdma.Dial,
		peers: map[string]*peer{}, tickets: map[uint64]chan error{}, offloads: make(chan offload, maxOffloads), returns: make(chan offload, maxReturns), searches: make(chan search, maxSearches), movesEnded: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start runs the manager's loops until Close.
func (r *RManager) Start(home Home, dir *Directory, leader *Leader) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.home = home
	r.listener.Admit(r.admit)
	r.moveLoop.Go(r.takeMoves)
	for range placers {
		r.spawn(r.offloadLoop)
	}
	r.spawn(r.returnLoop)
	for range searchers {
		r.spawn(r.searchLoop)
	}
	r.spawn(func() { r.followMembers(dir) })
	r.spawn(r.acceptLoop)
	r.spawn(r.monitorLoop)
	r.spawn(r.improveLoop)
	r.spawn(func() { r.heartbeatLoop(leader) })
}

// spawn runs f on a goroutine that Close waits for; after Close it does not. The caller holds mu.
func (r *RManager) spawn(f func()) {
	if !r.closed {
		r.wg.Go(f)
	}
}

// Close ends the loops and the links; what lies at peers is freed by them as they see it.
func (r *RManager) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.sayGoodbye()
	r.cancel()
	down := func() {
		for _, p := range r.snapshot() {
			r.drop(p, 0, errStopping)
		}
	}
	down() // this ends the moves under way
	r.wg.Wait()
	down() // what a dial under way has connected
	r.carriers.Wait()
	close(r.movesEnded)
	r.moveLoop.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		r.forget(p)
	}
	if r.manager != nil {
		_ = r.manager.Close()
	}
}

var errStopping = errors.New("this instance is stopping")

// View of the cluster for the scheduler's next step. What the gManager said counts for a while; then
// little is known, and nothing may be concluded from it: a connected peer may run anything, and may have
// room, which asking it will show.
func (r *RManager) View() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var v View
	fresh := now.Sub(r.viewAt) < staleAfter
	if fresh {
		v.OldestArrival = r.view.GetOldestArrival()
		for _, in := range r.view.GetInstances() {
			v.Blocks += int(in.Load.GetKvBlocksTotal())
			if in.Id == r.cfg.ID {
				continue
			}
			v.OthersRunning += int(in.Load.GetRunning())
			if s := in.Load.GetStarving(); s != 0 && (v.Starving == 0 || s < v.Starving) {
				v.Starving = s
			}
		}
	}
	for _, p := range r.peers {
		if p.session == 0 {
			continue
		}
		if p.drains && p.serving != 0 {
			v.Leaving = append(v.Leaving, p.id)
		} else if !p.drains {
			v.PeersFree += p.room(now)
		}
		if p.mayAssist() && r.waves.home != nil && r.waves.own == nil {
			v.Helpers++
		}
		if !fresh || !p.shown {
			v.OthersRunning++
		}
	}
	return v
}

// Starving tells the cluster that the request of this arrival has long waited for room here, 0: none has.
func (r *RManager) Starving(arrival uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starving = arrival
}
