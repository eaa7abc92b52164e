package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/plan"
)

const (
	movers      = 8               // MoveKV calls at a time
	moveKVLimit = time.Second     // of one call
	planLimit   = 5 * time.Second // of all calls for a plan, which is old by then
	barPeriods  = 3               // in which nothing is planned between two instances after a call that failed
	// quarters of a period: how often a plan may be made under pressure.
	quarters = 4
)

// rebalancer plans moves while this process is the gManager, and asks their homes for them.
type rebalancer struct {
	g       *GManager
	secret  string
	every   time.Duration
	pressed atomic.Bool // an instance is about to run short

	// Its loop's own.
	barred map[plan.Pair]time.Time // until when
	issued map[string]time.Time    // to which instances moves were issued, from or to them
}

func newRebalancer(g *GManager, secret string, every time.Duration) *rebalancer {
	return &rebalancer{g: g, secret: secret, every: every, barred: map[plan.Pair]time.Time{}, issued: map[string]time.Time{}}
}

// heard looks at a heartbeat: with a twentieth of its pool left an instance should not wait for the period's end.
func (b *rebalancer) heard(l *pb.Load) {
	if l.Running > 0 && uint64(l.KvBlocksFree)*20 < uint64(l.KvBlocksTotal) {
		b.pressed.Store(true)
	}
}

// run plans at every period, and after a quarter of one under pressure, while leads says so, until ctx ends.
func (b *rebalancer) run(ctx context.Context, leads func() bool) {
	tick := time.NewTicker(max(b.every/quarters, time.Millisecond))
	defer tick.Stop()
	for k := 1; ; k++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if pressed := b.pressed.Swap(false); (pressed || k%quarters == 0) && leads() {
			b.plan(ctx, time.Now())
		}
	}
}

// plan makes one plan, and returns when all calls for it were answered, or given up.
func (b *rebalancer) plan(ctx context.Context, now time.Time) {
	s, addresses := b.snapshot(now)
	moves := plan.Moves(s)
	if len(moves) == 0 {
		return
	}
	slog.Debug("moves are planned", "instances", len(s.Instances), "moves", len(moves), "tokens_per_second", plan.Rate(s))
	// A request's first move alone: it has one under way at a time, and the next plan knows how this one went.
	type key struct {
		home   string
		number uint64
	}
	seen := map[key]bool{}
	moves = slices.DeleteFunc(moves, func(m plan.Move) bool {
		k := key{m.Home, m.Number}
		again := seen[k]
		seen[k] = true
		return again
	})
	ctx, end := context.WithTimeout(ctx, planLimit)
	defer end()
	errs := make([]error, len(moves))
	var calls sync.WaitGroup
	places := make(chan struct{}, movers)
	for i := range moves {
		places <- struct{}{}
		calls.Go(func() {
			errs[i] = b.issue(ctx, &moves[i], addresses[moves[i].Home])
			<-places
		})
	}
	calls.Wait()
	done := time.Now()
	for i := range moves {
		b.note(&moves[i], errs[i], done)
	}
}

// snapshot is the cluster as the planner sees it, and the instances' addresses. What was not heard of for a period or so
// has no part in it, nor who was not heard of since a move was issued that changes what it has.
func (b *rebalancer) snapshot(now time.Time) (*plan.Snapshot, map[string]string) {
	for id, at := range b.issued {
		if now.Sub(at) > staleAfter {
			delete(b.issued, id)
		}
	}
	s, addresses := b.g.Snapshot(func(id string, at time.Time) bool {
		return now.Sub(at) <= min(max(b.every, 300*time.Millisecond), staleAfter) && at.After(b.issued[id])
	})
	s.Barred = map[plan.Pair]bool{}
	for pair, until := range b.barred {
		if now.After(until) {
			delete(b.barred, pair)
		} else {
			s.Barred[pair] = true
		}
	}
	return s, addresses
}

func (b *rebalancer) issue(ctx context.Context, m *plan.Move, address string) error {
	if address == "" {
		return errors.New("the home has no address")
	}
	conn, err := grpc.NewClient(address, DialOptions(b.secret)...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	limited, done := context.WithTimeout(ctx, moveKVLimit)
	defer done()
	_, err = pb.NewKVClient(conn).MoveKV(limited, &pb.MoveKVRequest{Id: m.ID, Number: m.Number, Blocks: uint32(m.Blocks), Destination: m.To})
	return err
}

// note remembers how a call went. One whose request has ended says nothing of the instances.
func (b *rebalancer) note(m *plan.Move, err error, now time.Time) {
	if err == nil {
		slog.Info("KV blocks are to move, for the cluster's token rate", "id", m.ID, "home", m.Home, "to", m.To, "blocks", m.Blocks,
			"modelled_gain_tokens_per_second", m.Gain)
		b.issued[m.Home], b.issued[m.To] = now, now
		return
	}
	slog.Debug("a planned move was refused", "id", m.ID, "home", m.Home, "to", m.To, "blocks", m.Blocks, "error", err)
	if status.Code(err) != codes.NotFound {
		b.barred[plan.Pair{Home: m.Home, To: m.To}] = now.Add(barPeriods * b.every)
	}
}

// Snapshot is the map as the planner sees it, of those instances that keep lets in by id and time of the last heartbeat,
// and their addresses.
func (g *GManager) Snapshot(keep func(id string, at time.Time) bool) (*plan.Snapshot, map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, addresses := &plan.Snapshot{BlockSize: g.blockSize}, map[string]string{}
	for id, in := range g.instances {
		if keep(id, in.at) {
			s.Instances = append(s.Instances, planInstance(id, in))
			addresses[id] = in.address
		}
	}
	slices.SortFunc(s.Instances, func(a, b plan.Instance) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return s, addresses
}

// planInstance is an instance by its last heartbeat. Its requests come in the order in which they are served.
func planInstance(id string, in *reported) plan.Instance {
	l := in.load
	out := plan.Instance{
		ID: id, Blocks: int(l.KvBlocksTotal), Free: int(l.KvBlocksFree), Hosted: int(l.KvBlocksHosted), Lent: int(l.KvBlocksLent),
		Hostable: int(l.Hostable), MaxSeqs: int(l.MaxNumSeqs), Requests: make([]plan.Request, 0, len(in.places)),
	}
	if m := l.Model; m != nil {
		out.Known = true
		out.Model = plan.Model{Base: m.BaseNs, PerToken: m.PerTokenNs, PerKV: m.PerKvNs, Remote: m.RemoteNs}
	}
	if total := l.Memory.GetTotalBytes(); total > 0 {
		out.Memory = float64(l.Memory.GetUsedBytes()) / float64(total)
	}
	order := slices.Clone(in.places)
	slices.SortStableFunc(order, func(a, b *pb.Placement) int {
		switch {
		case a.GetArrival() < b.GetArrival():
			return -1
		case a.GetArrival() > b.GetArrival():
			return 1
		}
		return 0
	})
	for _, p := range order {
		r := plan.Request{
			Number: p.GetNumber(), ID: p.GetId(), Tokens: int(p.GetTokens()), Running: p.GetRunning(), Movable: int(p.GetMovable()),
			Planned: int(p.GetPlanned()), PlannedTo: p.GetPlannedTo(),
		}
		for _, s := range p.GetSpans() {
			if s.GetInstance() == id {
				r.Local += int(s.GetBlocks())
			} else {
				r.Spans = append(r.Spans, plan.Span{Instance: s.GetInstance(), Blocks: int(s.GetBlocks())})
			}
		}
		out.Requests = append(out.Requests, r)
	}
	return out
}
