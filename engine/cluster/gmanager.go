package cluster

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infinite-llm/infinite/engine/arrival"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// staleAfter is the age at which an instance without a heartbeat leaves the placement map, and at which
// instances count on nothing any more that they were told.
const staleAfter = 2 * time.Second

// maxPlacements bounds the requests that one heartbeat may name.
const maxPlacements = 1 << 16

// GManager is the cluster's view of itself: request -> spans, made of heartbeats alone. Its view may be
// stale; every move is settled by the two instances concerned.
type GManager struct {
	blockSize int

	mu        sync.Mutex
	instances map[string]*reported
}

type reported struct {
	at      time.Time
	address string
	load    *pb.Load
	places  []*pb.Placement
}

// NewGManager returns an empty map.
func NewGManager(blockSize int) *GManager {
	return &GManager{blockSize: blockSize, instances: map[string]*reported{}}
}

// Heartbeat takes an instance's report at a time and answers with the cluster as it is known then.
func (g *GManager) Heartbeat(req *pb.HeartbeatRequest, address string, now time.Time) (*pb.HeartbeatReply, error) {
	if req.Id == "" || req.Load == nil || len(req.Requests) > maxPlacements {
		return nil, status.Error(codes.InvalidArgument, "cannot take a heartbeat without id or load, or with too many requests")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.instances[req.Id] = &reported{at: now, address: address, load: req.Load, places: req.Requests}
	g.expire(now)
	reply := &pb.HeartbeatReply{Instances: g.states()}
	for _, in := range g.instances {
		for _, p := range in.places {
			if p.Arrival != 0 && (reply.OldestArrival == 0 || p.Arrival < reply.OldestArrival) {
				reply.OldestArrival = p.Arrival
			}
		}
	}
	return reply, nil
}

// State is the map at a time, whole or without the requests.
func (g *GManager) State(now time.Time, instancesOnly bool) *pb.ClusterState {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire(now)
	out := &pb.ClusterState{BlockSize: uint32(g.blockSize), Instances: g.states()}
	for _, in := range g.instances {
		for _, p := range in.places {
			out.NewestClock = max(out.NewestClock, arrival.Clock(p.Arrival))
		}
	}
	if instancesOnly {
		return out
	}
	for id, in := range g.instances {
		for _, p := range in.places {
			out.Requests = append(out.Requests, &pb.HomePlacement{Home: id, Placement: p})
		}
	}
	slices.SortFunc(out.Requests, func(a, b *pb.HomePlacement) int { return cmp.Compare(a.Placement.Id, b.Placement.Id) })
	return out
}

// Forget drops an instance that left.
func (g *GManager) Forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.instances, id)
}

func (g *GManager) expire(now time.Time) {
	for id, in := range g.instances {
		if now.Sub(in.at) > staleAfter {
			delete(g.instances, id)
		}
	}
}

func (g *GManager) states() []*pb.InstanceState {
	out := make([]*pb.InstanceState, 0, len(g.instances))
	for id, in := range g.instances {
		out = append(out, &pb.InstanceState{Id: id, Load: in.load, Address: in.address})
	}
	slices.SortFunc(out, func(a, b *pb.InstanceState) int { return cmp.Compare(a.Id, b.Id) })
	return out
}

func electionKey(clusterID string) string { return "/infinite/" + clusterID + "/gmanager" }

// Campaign stands for gManager under an address until ctx ends, again whenever the session is lost.
func Campaign(ctx context.Context, c *clientv3.Client, clusterID, address string) {
	for away := false; ctx.Err() == nil; {
		err := campaignOnce(ctx, c, clusterID, address)
		if err != nil && ctx.Err() == nil && !away {
			slog.Warn("cannot stand for gManager; trying on", "error", err)
		}
		away = err != nil
		sleep(ctx, 200*time.Millisecond)
	}
}

// campaignOnce returns when the session that it opens is lost.
func campaignOnce(ctx context.Context, c *clientv3.Client, clusterID, address string) error {
	limited, done := context.WithTimeout(ctx, etcdLimit)
	defer done()
	lease, err := c.Grant(limited, LeaseSeconds)
	if err != nil {
		return fmt.Errorf("cannot get a lease: %w", err)
	}
	c, forget := briefly(ctx, c)
	defer forget()
	session, err := concurrency.NewSession(c, concurrency.WithLease(lease.ID), concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("cannot open a session: %w", err)
	}
	defer func() { _ = session.Close() }()
	election := concurrency.NewElection(session, electionKey(clusterID))
	// Whoever lost its session has lost its place in the queue, and would wait there for ever.
	wait, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(session.Ctx(), stop)()
	if err = election.Campaign(wait, address); err != nil {
		return fmt.Errorf("cannot campaign: %w", err)
	}
	slog.Debug("elected gManager", "address", address)
	<-wait.Done()
	if ctx.Err() != nil {
		bye, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		return election.Resign(bye)
	}
	return nil
}

// briefly is the client for calls that outlive ctx by no more than a second. A candidate that gives up its place in the
// queue asks etcd to take it off the list for as long as the client lives, and etcd may be away.
func briefly(ctx context.Context, c *clientv3.Client) (*clientv3.Client, func()) {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		sleep(life, time.Second)
		end()
	})
	brief := clientv3.NewCtxClient(life)
	brief.KV, brief.Lease, brief.Watcher = c.KV, c.Lease, c.Watcher
	return brief, func() { stop(); end() }
}

// Leader follows the election: the elected process's address, "" while there is none.
type Leader struct {
	address atomic.Value
}

// FollowLeader runs until ctx ends. While nobody is elected, or etcd is away, the last one stays.
func FollowLeader(ctx context.Context, c *clientv3.Client, clusterID string, l *Leader) {
	prefix := electionKey(clusterID)
	for ctx.Err() == nil {
		limited, done := context.WithTimeout(ctx, etcdLimit)
		got, err := c.Get(limited, prefix, clientv3.WithFirstCreate()...)
		done()
		if err != nil {
			sleep(ctx, 200*time.Millisecond)
			continue
		}
		if len(got.Kvs) == 1 {
			l.address.Store(string(got.Kvs[0].Value))
		}
		// Any change below the prefix may have changed the leader; then it is read again.
		watch, stop := context.WithTimeout(ctx, rereadEvery)
		select {
		case <-c.Watch(watch, prefix, clientv3.WithPrefix(), clientv3.WithRev(got.Header.Revision+1)):
		case <-watch.Done():
		}
		stop()
	}
}

// Address of the gManager, "" when none is known.
func (l *Leader) Address() string {
	a, _ := l.address.Load().(string)
	return a
}
