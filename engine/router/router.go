// Package router takes requests to instances: it chooses a home, sends the request there over gRPC and
// brings the tokens back. The API process uses Router, every instance serves Inference (serve.go).
//
//	router.go   Submit: one home after the other is asked
//	choose.go   which instance: by what it has of the prompt, and by room
//	places.go   which prompts were sent where
//	follow.go   a request whose home is lost goes on with another
//	stream.go   a request at another process, as an engine.Stream
//	serve.go    the instance's side
package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/arrival"
	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
	"github.com/infinite-llm/infinite/engine/server"
)

// Error is a failure that the API has a status for.
type Error struct {
	kind string // server.Kind*
	msg  string
}

func (e *Error) Error() string { return e.msg }

// Kind is one of server's kinds.
func (e *Error) Kind() string { return e.kind }

const (
	// searchFor is how long a home is looked for, among all that are there. Many may have died at once, and are members
	// until their leases end; each costs next to nothing, one that is silent openFor.
	searchFor = 30 * time.Second
	newFor    = 20 * time.Second // for a request that is new: its client may be better off elsewhere
	openFor   = 10 * time.Second
	// maxRefusals is how many instances may refuse a request for what it is: others will too.
	maxRefusals = 3
	// fullPause is the time before instances that were full are asked again, or others are looked for.
	fullPause = 500 * time.Millisecond
)

// Router implements server.Backend over the members of a cluster.
type Router struct {
	manager *cluster.Manager
	cfg     Config
	rehomed atomic.Uint64 // requests that another instance went on with

	mu      sync.Mutex
	conns   map[string]*conn // by address; those that nobody uses go when their instance leaves
	charges map[*charge]bool // of the streams that are open, and those about to be
	places  places
	clock   uint64 // of the newest arrival
}

type conn struct {
	*grpc.ClientConn
	users int // streams that are open or about to be; guarded by Router.mu
}

// Config of a Router.
type Config struct {
	Secret        string
	BlockSize     int
	PrefixCaching bool        // a request goes where its beginning was sent last
	Comes         func() bool // an instance runs that is no member at the moment, or is about to; nil: never
}

// New routes to the manager's members.
func New(manager *cluster.Manager, cfg Config) *Router {
	return &Router{manager: manager, cfg: cfg, conns: map[string]*conn{}, charges: map[*charge]bool{}, places: newPlaces()}
}

// Close ends the connections, and with them all streams.
func (r *Router) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
}

// Capacity is how many tokens of KV one request could have: every block of every member but one, which
// the home keeps free to move others out. Without a member that runs requests there is none.
func (r *Router) Capacity() int {
	members, _ := r.manager.Directory().Members()
	return capacity(members, r.cfg.BlockSize)
}

func capacity(members map[string]cluster.Member, blockSize int) int {
	blocks, runs := 0, false
	for _, m := range members {
		blocks += m.BlocksTotal
		runs = runs || !m.MemoryOnly
	}
	if !runs {
		return 0
	}
	return max(0, blocks-1) * blockSize
}

// Submit sends the request to the instance that has what it begins with, or to the one with most room; when its queue
// is full or it cannot be reached, to the next. When the instance is lost later, another one goes on with it.
func (r *Router) Submit(ctx context.Context, req *engine.Request) (engine.Stream, error) {
	own := *req
	own.Arrival, own.TellBegun = 0, true // it arrives when the first home is asked: what others have taken is known by then
	return follow(ctx, &own, r.submit, &r.rehomed)
}

// submit finds a home for a request; the instance named by avoid is the last that is asked.
func (r *Router) submit(ctx context.Context, req *engine.Request, avoid string) (*stream, error) {
	w := r.want(req, avoid)
	return search(ctx, w, avoid, r.cfg.Comes, r.choose, func(m cluster.Member, c *charge) (*stream, error) { return r.try(ctx, m, c, w, req) })
}

// search asks one chosen instance after the other. For a request that had a home, which avoid names, it goes on also with
// instances that were full, which may be of the work for the form of an answer, and waits for one that comes where there is
// none. That one was full is what its client hears, whatever became of others: it may come again.
func search(ctx context.Context, w *want, avoid string, comes func() bool, choose func(context.Context, *want) (cluster.Member, *charge),
	try func(cluster.Member, *charge) (*stream, error),
) (*stream, error) {
	again, limit, begun := avoid != "", newFor, time.Now()
	if again {
		limit = searchFor
	}
	var why error
	var full []string
	for refusals := 0; refusals < maxRefusals && time.Since(begun) < limit; {
		m, charge := choose(ctx, w)
		if charge == nil && avoid != "" {
			delete(w.tried, avoid)
			avoid = ""
			continue
		}
		if charge == nil && again && len(full) > 0 && pause(ctx, fullPause) {
			for _, id := range full {
				delete(w.tried, id)
			}
			full = full[:0]
			continue
		}
		if charge == nil && again && comes != nil && comes() && pause(ctx, fullPause) {
			clear(w.tried)
			continue
		}
		if charge == nil {
			break
		}
		w.tried[m.ID] = true
		s, err := try(m, charge)
		if err == nil {
			return s, nil
		}
		switch kindOf(err) {
		case server.KindQueueFull:
			full = append(full, m.ID)
		case server.KindUnavailable:
		default:
			refusals++
		}
		if why == nil || kindOf(why) != server.KindQueueFull {
			why = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if why == nil {
		why = &Error{server.KindUnavailable, "cannot take the request: no instance is serving"}
	}
	return nil, why
}

// pause says whether ctx goes on behind it.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// try asks a member that is charged with the request.
func (r *Router) try(ctx context.Context, m cluster.Member, c *charge, w *want, req *engine.Request) (*stream, error) {
	if req.Arrival == 0 {
		req.Arrival = r.stamp(req.Priority)
	}
	own := *req
	if own.Near = w.near; m.ID == w.near {
		own.Near = ""
	}
	s, err := r.open(ctx, m, &own)
	if err != nil {
		c.drop()
		return nil, err
	}
	r.sent(w, m.ID)
	c.taken(s.taken)
	s.charge = c
	if !own.Handed { // its first token, which tells, came from another
		s.found = func(cached int) { r.found(w, m.ID, cached) }
	}
	return s, nil
}

// heard takes notice of the clock of an arrival somewhere in the cluster. Other API processes may have clocks that are ahead: without it
// all requests that come here would count as older than theirs, and keep them waiting for as long as the clocks differ.
// The caller holds mu.
func (r *Router) heard(clock uint64) {
	if clock <= arrival.MaxClock {
		r.clock = max(r.clock, clock)
	}
}

// stamp orders requests in the cluster, by a clock that never stands still within each priority. Where it is ahead of the time
// it is also that of other API processes, which have heard of the same request: by chance they hardly ever stamp alike.
func (r *Router) stamp(priority int) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = max(r.clock+1+rand.Uint64N(64), arrival.Now(time.Now()))
	return arrival.Of(priority, r.clock)
}

// prune closes connections to instances that left. Streams may outlive a membership. The caller holds mu.
func (r *Router) prune(members map[string]cluster.Member) {
	current := map[string]bool{}
	for _, m := range members {
		current[m.Address] = true
	}
	for address, c := range r.conns {
		if c.users == 0 && !current[address] {
			_ = c.Close()
			delete(r.conns, address)
		}
	}
}

// use returns the connection to an address, and what to call when it is not needed any more.
func (r *Router) use(address string) (*conn, func(), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.conns[address]
	if c == nil {
		cc, err := grpc.NewClient(address, cluster.DialOptions(r.cfg.Secret)...)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot connect to %s: %w", address, err)
		}
		c = &conn{ClientConn: cc}
		r.conns[address] = c
	}
	c.users++
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		c.users--
	}, nil
}

// Cluster is the placement map as the API shows it.
func (r *Router) Cluster(ctx context.Context) (*server.ClusterView, error) {
	state, err := r.manager.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	view := &server.ClusterView{BlockSize: r.cfg.BlockSize, GManager: state.Gmanager, Rehomed: r.rehomed.Load(), Instances: []server.InstanceView{}, Requests: []server.RequestPlacement{}}
	members, _ := r.manager.Directory().Members()
	for _, in := range state.Instances {
		view.Instances = append(view.Instances, instanceView(in, members[in.Id]))
	}
	for _, q := range state.Requests {
		p := server.RequestPlacement{ID: q.Placement.Id, Home: q.Home, Tokens: int(q.Placement.Tokens), Spans: []server.SpanView{}}
		for _, s := range q.Placement.Spans {
			p.Spans = append(p.Spans, server.SpanView{Instance: s.Instance, Blocks: int(s.Blocks)})
		}
		view.Requests = append(view.Requests, p)
	}
	return view, nil
}

// instanceView is what an instance's heartbeat says, and what it published as a member; that is empty if it just left.
func instanceView(in *pb.InstanceState, m cluster.Member) server.InstanceView {
	l, t, w := in.Load, in.Load.GetTraffic(), in.Load.GetWork()
	return server.InstanceView{
		ID: in.Id, Device: m.Device, MemoryOnly: m.MemoryOnly, KVCacheDType: m.KVDType, Links: l.GetLinks(),
		StepModel:     stepModel(l.GetModel()),
		KVBlocksTotal: int(l.GetKvBlocksTotal()), KVBlocksFree: int(l.GetKvBlocksFree()),
		KVBlocksHosted: int(l.GetKvBlocksHosted()), KVBlocksLent: int(l.GetKvBlocksLent()),
		Running: int(l.GetRunning()), Waiting: int(l.GetWaiting()), TokensPerSecond: l.GetTokensPerSecond(), Preemptions: l.GetPreemptions(), Recoveries: l.GetRecoveries(),
		KVBlocksCached: int(l.GetKvBlocksCached()), PrefixQueries: l.GetPrefixQueries(), PrefixHits: l.GetPrefixHits(),
		PlannedMoves: l.GetPlannedMoves(), PlannedBlocks: l.GetPlannedBlocks(), ReturnedBlocks: l.GetReturnedBlocks(),
		KVBlocksShared: int(l.GetKvBlocksShared()), SharedQueries: l.GetSharedQueries(), SharedHits: l.GetSharedHits(),
		Drafts: l.GetDrafts(), DraftTokens: l.GetDraftTokens(), AcceptedTokens: l.GetAcceptedTokens(),
		Waves: l.GetWaves(), Assists: l.GetAssists(),
		RemoteQueries: t.GetQueries(), RemoteQueryBytes: t.GetQueryBytes(), RemoteAnswers: t.GetAnswers(), RemoteAnswerBytes: t.GetAnswerBytes(),
		AnswerBatches: t.GetAnswerBatches(), KVBlocksMoved: t.GetMovedBlocks(), KVBytesMoved: t.GetMovedBytes(), RefusedMessages: t.GetRefused(),
		Steps: w.GetSteps(), StepSeconds: seconds(w.GetStepNs()), RemoteWaitSeconds: seconds(w.GetRemoteWaitNs()), HalvedSteps: w.GetHalvedSteps(),
		MemoryTotal: l.GetMemory().GetTotalBytes(), MemoryUsed: l.GetMemory().GetUsedBytes(),
	}
}

func stepModel(m *pb.Model) *server.StepModel {
	if m == nil {
		return nil
	}
	return &server.StepModel{Base: m.BaseNs / 1e9, PerToken: m.PerTokenNs / 1e9, PerKVToken: m.PerKvNs / 1e9, Remote: m.RemoteNs / 1e9}
}

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }

// open sends the request to one instance and waits until it is taken.
func (r *Router) open(ctx context.Context, m cluster.Member, req *engine.Request) (*stream, error) {
	conn, unuse, err := r.use(m.Address)
	if err != nil {
		return nil, &Error{server.KindUnavailable, err.Error()}
	}
	life, cancel := context.WithCancel(ctx)
	end := func() { cancel(); unuse() }
	call, err := routerpb.NewInferenceClient(conn).Generate(life, toPB(req))
	if err != nil {
		end()
		return nil, unreachable(m.ID, err)
	}
	// Connection trouble shows at the first message; an instance answers it at once, queued or not.
	timer := time.AfterFunc(openFor, cancel)
	first, err := call.Recv()
	if !timer.Stop() {
		err = fmt.Errorf("it did not answer within %s", openFor)
	}
	if err != nil {
		end()
		return nil, unreachable(m.ID, err)
	}
	if first.Error != "" {
		end()
		return nil, &Error{first.ErrorKind, first.Error}
	}
	tells := req.TellBegun && first.Report != 0
	return &stream{call: call, cancel: cancel, end: sync.OnceFunc(end), instance: m.ID, prompt: len(req.Prompt), taken: first.Report, begun: !tells}, nil
}

func unreachable(instance string, err error) error {
	return &Error{server.KindUnavailable, fmt.Sprintf("cannot reach instance %s: %v", instance, err)}
}
