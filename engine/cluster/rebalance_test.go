package cluster

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/plan"
)

// moveTaker is a home that writes down what it is asked for.
type moveTaker struct {
	pb.UnimplementedKVServer
	address string
	mu      sync.Mutex
	calls   []*pb.MoveKVRequest
	err     error
}

func (h *moveTaker) MoveKV(ctx context.Context, req *pb.MoveKVRequest) (*pb.MoveKVReply, error) {
	if _, limited := ctx.Deadline(); !limited {
		return nil, status.Error(codes.Internal, "a call without a deadline")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, req)
	return &pb.MoveKVReply{}, h.err
}

func (h *moveTaker) take() []*pb.MoveKVRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.calls
	h.calls = nil
	return out
}

func startTaker(t *testing.T) *moveTaker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &moveTaker{address: l.Addr().String()}
	server := grpc.NewServer(ServerOptions(testSecret)...)
	pb.RegisterKVServer(server, h)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	return h
}

// report is a heartbeat of an instance with so many requests of 4,000 tokens, whose first one may give blocks away.
func report(t *testing.T, g *GManager, h *moveTaker, id string, at time.Time, requests int) {
	t.Helper()
	load := &pb.Load{KvBlocksTotal: 2000, KvBlocksFree: uint32(2000 - 250*requests), Hostable: uint32(2000 - 250*requests), Running: uint32(requests),
		Model: &pb.Model{BaseNs: 1e6, PerTokenNs: 1e3, PerKvNs: 1e3, RemoteNs: 1e3}}
	var places []*pb.Placement
	for k := range requests {
		places = append(places, &pb.Placement{Id: id + "-r", Number: uint64(k + 1), Tokens: 4000, Running: true, Movable: 200, Arrival: uint64(k + 1),
			Spans: []*pb.Span{{Instance: id, Blocks: 250}}})
	}
	if _, err := g.Heartbeat(&pb.HeartbeatRequest{Id: id, Load: load, Requests: places}, h.address, at); err != nil {
		t.Fatal(err)
	}
}

func TestPlansBecomeCalls(t *testing.T) {
	h, g, now := startTaker(t), NewGManager(16), time.Now()
	b := newRebalancer(g, testSecret, time.Second)
	all := func(at time.Time) {
		for id, n := range map[string]int{"i0": 1, "i1": 0, "i2": 0} {
			report(t, g, h, id, at, n)
		}
	}
	all(now)
	b.plan(t.Context(), now)
	calls := h.take()
	// Two creditors are worth it, but a request's moves come one after another.
	if len(calls) != 1 || calls[0].Id != "i0-r" || calls[0].Number != 1 || calls[0].Destination != "i1" || calls[0].Blocks < 50 || calls[0].Blocks > 90 {
		t.Fatalf("calls %v", calls)
	}
	// What is not heard of since then has no part, nor what has been silent for a period.
	b.plan(t.Context(), now.Add(time.Millisecond))
	if calls := h.take(); len(calls) != 0 {
		t.Fatalf("by an old view: %v", calls)
	}
	all(time.Now())
	b.plan(t.Context(), time.Now().Add(1100*time.Millisecond))
	if calls := h.take(); len(calls) != 0 {
		t.Fatalf("by a stale view: %v", calls)
	}
	// A pair that does not come together is left alone for some periods; a request that has ended says nothing.
	for _, c := range []struct {
		code codes.Code
		next string
	}{{codes.NotFound, "i1"}, {codes.FailedPrecondition, "i2"}} {
		h.err = status.Error(c.code, "for a test")
		now = time.Now()
		all(now)
		b.plan(t.Context(), now)
		h.take()
		now = now.Add(time.Millisecond)
		all(now)
		b.plan(t.Context(), now)
		if calls := h.take(); len(calls) != 1 || calls[0].Destination != c.next {
			t.Fatalf("after %s: %v", c.code, calls)
		}
	}
	h.err = nil
	now = time.Now().Add(4 * time.Second)
	all(now)
	b.plan(t.Context(), now)
	if calls := h.take(); len(calls) != 1 || calls[0].Destination != "i1" {
		t.Fatalf("after some periods: %v", calls)
	}
	// A home that cannot be reached holds nobody up for ever.
	h.address = ""
	now = now.Add(time.Second)
	report(t, g, h, "i0", now, 1)
	b.plan(t.Context(), now)
}

// Plans are made at every period, and sooner under pressure, by the elected process alone.
func TestWhenPlansAreMade(t *testing.T) {
	h, g := startTaker(t), NewGManager(16)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	leads, asked := false, 0
	b := newRebalancer(g, testSecret, 20*time.Millisecond)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		b.run(ctx, func() bool {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return leads
		})
	})
	round := func(want bool) {
		t.Helper()
		mu.Lock()
		leads, asked = want, 0
		mu.Unlock()
		eventually(t, "some periods have gone by", func() bool {
			for id, n := range map[string]int{"i0": 1, "i1": 0} {
				report(t, g, h, id, time.Now(), n)
			}
			mu.Lock()
			defer mu.Unlock()
			return asked > 3
		})
	}
	round(false)
	if calls := h.take(); len(calls) != 0 {
		t.Fatalf("calls of a process that is not elected: %v", calls)
	}
	round(true)
	eventually(t, "a call", func() bool {
		report(t, g, h, "i0", time.Now(), 1)
		report(t, g, h, "i1", time.Now(), 0)
		return len(h.take()) > 0
	})

	hour := newRebalancer(g, testSecret, time.Hour)
	for _, c := range []struct {
		l       *pb.Load
		pressed bool
	}{
		{&pb.Load{Running: 1, KvBlocksTotal: 100, KvBlocksFree: 5}, false},
		{&pb.Load{KvBlocksTotal: 100, KvBlocksFree: 4}, false},
		{&pb.Load{Running: 1, KvBlocksTotal: 100, KvBlocksFree: 4}, true},
	} {
		if hour.heard(c.l); hour.pressed.Swap(false) != c.pressed {
			t.Errorf("%v is pressure: %v", c.l, !c.pressed)
		}
	}
}

// What heartbeats say arrives at the planner.
func TestSnapshot(t *testing.T) {
	g, now := NewGManager(4), time.Unix(100, 0)
	load := &pb.Load{KvBlocksTotal: 1, KvBlocksFree: 2, KvBlocksHosted: 3, KvBlocksLent: 4, Hostable: 5, MaxNumSeqs: 6, Memory: &pb.Memory{TotalBytes: 100, UsedBytes: 25},
		Model: &pb.Model{BaseNs: 7, PerTokenNs: 8, PerKvNs: 9, RemoteNs: 10}}
	places := []*pb.Placement{
		{Id: "young", Number: 2, Tokens: 50, Arrival: 9},
		{Id: "old", Number: 1, Tokens: 60, Arrival: 8, Running: true, Movable: 11, Planned: 12, PlannedTo: "b",
			Spans: []*pb.Span{{Instance: "b", Blocks: 13}, {Instance: "a", Blocks: 14}}},
	}
	if _, err := g.Heartbeat(&pb.HeartbeatRequest{Id: "a", Load: load, Requests: places}, "there", now); err != nil {
		t.Fatal(err)
	}
	beat(t, g, now, "b")
	beat(t, g, now, "c")
	got, addresses := g.Snapshot(func(id string, at time.Time) bool { return id != "c" && at.Equal(now) })
	want := &plan.Snapshot{BlockSize: 4, Instances: []plan.Instance{
		{ID: "a", Blocks: 1, Free: 2, Hosted: 3, Lent: 4, Hostable: 5, MaxSeqs: 6, Memory: 0.25, Known: true, Model: plan.Model{Base: 7, PerToken: 8, PerKV: 9, Remote: 10},
			Requests: []plan.Request{
				{Number: 1, ID: "old", Tokens: 60, Running: true, Local: 14, Movable: 11, Spans: []plan.Span{{Instance: "b", Blocks: 13}}, Planned: 12, PlannedTo: "b"},
				{Number: 2, ID: "young", Tokens: 50},
			}},
		{ID: "b", Blocks: 8, Requests: []plan.Request{}},
	}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "there", "b": "addr-b"}, addresses); diff != "" {
		t.Error(diff)
	}
}
