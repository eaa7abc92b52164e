package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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

// Home is the step loop of this instance.
type Home interface {
	// Moved reports a finished offload: span.Blocks of the request's oldest blocks now lie in span, or err.
	// began says whether blocks were marked as moving.
	Moved(request kvcache.RequestID, span kvcache.Span, began bool, err error)
	// PeerLost says that every span at the instance is gone.
	PeerLost(instance string)
	// Report is what the heartbeat carries.
	Report() (*pb.Load, []*pb.Placement)
}

// Config of an instance's side of the cluster. All durations are limits of single waits.
type Config struct {
	ID        string
	ClusterID string
	Secret    string
	Transport rdma.Transport
	// Slot sizes of the two lanes, in bytes, and the slots of each direction.
	QuerySlotBytes, MoveSlotBytes uint64
	Slots                         int

	Heartbeat   time.Duration // period, default 100 ms
	CallTimeout time.Duration // of one control call, default 1 s
	MoveTimeout time.Duration // of one offload, default 10 s
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
	if c.Slots == 0 {
		c.Slots = 2
	}
}

// View is what the scheduler may know of the rest of the cluster.
type View struct {
	PeersFree     int    // blocks that connected peers would host now
	OldestArrival uint64 // of all unfinished requests, 0 when unknown
	OthersRunning int    // requests that run with another home
}

// limits of the queues below
const (
	maxOffloads = 256
	maxReleases = 1 << 16
)

var errBusy = errors.New("too many moves are queued")

// RManager is one instance's manager of KV blocks towards the rest of the cluster. It lends room to
// debtors (host.go), borrows room from creditors (this file), and keeps the links to both (peers.go).
type RManager struct {
	pb.UnimplementedKVServer
	cfg      Config
	kv       *kvcache.Manager
	spans    Spans
	moves    Moves
	links    Links
	home     Home
	listener *rdma.Listener

	mu      sync.Mutex
	peers   map[string]*peer
	byIndex [256]*peer
	view    *pb.HeartbeatReply
	tickets map[uint64]chan error
	ticket  uint64

	offloads chan offload
	releases chan release
	managers map[string]*grpc.ClientConn // by address; used by the heartbeat goroutine alone
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

type offload struct {
	request kvcache.RequestID
	blocks  int
}

type release struct {
	span  kvcache.Span
	since time.Time
}

// NewRManager wires an instance's manager; Start connects it.
func NewRManager(cfg Config, kv *kvcache.Manager, spans Spans, moves Moves, links Links, listener *rdma.Listener) *RManager {
	cfg.defaults()
	return &RManager{
		cfg: cfg, kv: kv, spans: spans, moves: moves, links: links, listener: listener,
		peers: map[string]*peer{}, tickets: map[uint64]chan error{}, managers: map[string]*grpc.ClientConn{},
		offloads: make(chan offload, maxOffloads), releases: make(chan release, maxReleases),
	}
}

// Start runs the manager's loops until Close.
func (r *RManager) Start(home Home, dir *Directory, leader *Leader) {
	ctx, cancel := context.WithCancel(context.Background())
	r.home, r.cancel = home, cancel
	for _, loop := range []func(context.Context){
		func(ctx context.Context) { r.followMembers(ctx, dir) },
		func(ctx context.Context) { r.acceptLoop(ctx) },
		func(ctx context.Context) { r.monitorLoop(ctx) },
		func(ctx context.Context) { r.heartbeatLoop(ctx, leader) },
		r.moveLoop, r.releaseLoop, r.offloadLoop, r.offloadLoop, r.offloadLoop, r.offloadLoop,
	} {
		r.wg.Add(1)
		go func() { defer r.wg.Done(); loop(ctx) }()
	}
}

// Close ends the loops and the links; what lies at peers is freed by them as they see it.
func (r *RManager) Close() {
	r.cancel()
	r.wg.Wait()
	for _, p := range r.snapshot() {
		r.drop(p, errors.New("this instance is stopping"), false)
		p.close()
	}
	for _, c := range r.managers {
		_ = c.Close()
	}
}

// View of the cluster for the scheduler's next step.
func (r *RManager) View() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := View{OldestArrival: r.view.GetOldestArrival()}
	for _, p := range r.peers {
		if p.attached {
			v.PeersFree += p.hostable
		}
	}
	for _, in := range r.view.GetInstances() {
		if in.Id != r.cfg.ID {
			v.OthersRunning += int(in.Load.GetRunning())
		}
	}
	return v
}

// Offload asks for n of a request's oldest blocks to be placed elsewhere; the outcome goes to Home.Moved.
func (r *RManager) Offload(request kvcache.RequestID, n int) {
	select {
	case r.offloads <- offload{request, n}:
	default:
		go r.home.Moved(request, kvcache.Span{}, false, errBusy)
	}
}

func (r *RManager) offloadLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-r.offloads:
			span, began, err := r.place(ctx, o)
			if err != nil {
				slog.Debug("an offload came to nothing", "request", o.request, "blocks", o.blocks, "error", err)
			}
			r.home.Moved(o.request, span, began, err)
		}
	}
}

// place reserves room with one creditor, marks the blocks as moving and copies them there.
func (r *RManager) place(ctx context.Context, o offload) (span kvcache.Span, began bool, err error) {
	table, err := r.kv.Table(o.request)
	if err != nil {
		return span, false, err
	}
	var last kvcache.Span
	if n := len(table.Spans); n > 0 {
		last = table.Spans[n-1]
	}
	for _, p := range r.creditors(last.Instance) {
		grant, err := r.tryMove(ctx, p, o, last)
		if err != nil {
			slog.Warn("cannot ask a creditor for room", "peer", p.id, "error", err)
			continue
		}
		if grant.Accepted == 0 {
			continue
		}
		span = kvcache.Span{Instance: p.id, Peer: p.index, Handle: grant.Handle, Generation: grant.Generation, Blocks: int(grant.Accepted)}
		blocks, err := r.kv.BeginMove(o.request, span.Blocks)
		if err != nil {
			// The request ended meanwhile, and its spans with it; one that was opened just now would stay.
			if grant.First == 0 {
				r.Release([]kvcache.Span{span})
			}
			return kvcache.Span{}, false, err
		}
		if err = r.copyBlocks(ctx, p, grant, blocks); err != nil {
			r.drop(p, fmt.Errorf("cannot move blocks: %w", err), true)
			return kvcache.Span{}, true, err
		}
		return span, true, nil
	}
	return span, false, fmt.Errorf("cannot place %d blocks: no creditor has room", o.blocks)
}

func (r *RManager) tryMove(ctx context.Context, p *peer, o offload, last kvcache.Span) (*pb.TryMoveKVReply, error) {
	limited, done := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer done()
	req := &pb.TryMoveKVRequest{Owner: r.cfg.ID, Request: uint64(o.request), Blocks: uint32(o.blocks)}
	if last.Instance == p.id && last.Peer == p.index {
		req.Handle, req.Generation = last.Handle, last.Generation
	}
	grant, err := p.client.TryMoveKV(limited, req)
	if err != nil {
		r.setHostable(p, 0)
		return nil, err
	}
	if int(grant.Accepted) > o.blocks {
		return nil, fmt.Errorf("cannot use a grant of %d blocks for %d", grant.Accepted, o.blocks)
	}
	r.setHostable(p, int(grant.Hostable))
	return grant, nil
}

func (r *RManager) copyBlocks(ctx context.Context, p *peer, g *pb.TryMoveKVReply, blocks []int32) error {
	done := make(chan error, 1)
	r.mu.Lock()
	r.ticket++
	ticket := r.ticket
	r.tickets[ticket] = done
	r.mu.Unlock()
	if err := r.moves.MovePost(p.index, g.Handle, g.Generation, g.First, blocks, ticket); err != nil {
		r.mu.Lock()
		delete(r.tickets, ticket)
		r.mu.Unlock()
		return err
	}
	// The device reads the blocks until it reports the move, so nothing but its report ends this wait;
	// its own stall deadline bounds it, and losing the peer's links ends the move at once.
	limit := time.NewTimer(r.cfg.MoveTimeout)
	defer limit.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-limit.C:
			slog.Warn("a move is late; giving its peer up", "peer", p.id, "blocks", len(blocks))
			r.drop(p, fmt.Errorf("a move took longer than %s", r.cfg.MoveTimeout), true)
		}
	}
}

func (r *RManager) moveLoop(ctx context.Context) {
	for {
		ticket, result, ok, err := r.moves.MoveWait(50 * time.Millisecond)
		if err != nil {
			slog.Error("cannot wait for moves", "error", err)
			sleep(ctx, 50*time.Millisecond)
		}
		if ok {
			r.mu.Lock()
			done := r.tickets[ticket]
			delete(r.tickets, ticket)
			r.mu.Unlock()
			if done != nil {
				done <- result
			}
			continue
		}
		if ctx.Err() != nil && r.idle() {
			return
		}
	}
}

func (r *RManager) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tickets) == 0
}

// Release gives spans of ended requests back to their creditors, without waiting.
func (r *RManager) Release(spans []kvcache.Span) {
	for _, s := range spans {
		select {
		case r.releases <- release{s, time.Now()}:
		default:
			// The creditor frees everything when it sees its links end.
			if p := r.peerByID(s.Instance); p != nil {
				go r.drop(p, errors.New("too many releases are queued"), true)
			}
		}
	}
}

func (r *RManager) releaseLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case rel := <-r.releases:
			r.releaseOne(ctx, rel)
		}
	}
}

func (r *RManager) releaseOne(ctx context.Context, rel release) {
	for ctx.Err() == nil {
		p := r.peerByID(rel.span.Instance)
		if p == nil || !r.isAttached(p, rel.span.Peer) {
			return // the creditor freed all of this instance's spans when the links ended
		}
		limited, done := context.WithTimeout(ctx, r.cfg.CallTimeout)
		_, err := p.client.ReleaseKV(limited, &pb.ReleaseKVRequest{
			Owner: r.cfg.ID, Spans: []*pb.SpanHandle{{Handle: rel.span.Handle, Generation: rel.span.Generation}}})
		done()
		if err == nil {
			return
		}
		if time.Since(rel.since) > 5*time.Second {
			r.drop(p, fmt.Errorf("cannot release a span: %w", err), true)
			return
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
