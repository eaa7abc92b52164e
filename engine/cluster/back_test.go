package cluster

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infinite-llm/infinite/engine"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// lends has a request of home begun, of which so many blocks lie with i1 and as many with i2.
func lends(t *testing.T, home *instance, blocks int) (engine.Stream, engine.Event) {
	t.Helper()
	s, ev := home.half(1, 200, 250)
	for i, to := range []string{"i1", "i2"} {
		r := home.eng.Requests()[0]
		if err := moveKV(t, home, &pb.MoveKVRequest{Id: r.ID, Number: uint64(r.Request), Blocks: uint32(blocks), Destination: to}); err != nil {
			t.Fatal(err)
		}
		home.step(t, "the blocks are placed", func() bool { return int(home.eng.Stats().PlannedBlocks) == (i+1)*blocks })
		home.step(t, "and the plan is over", func() bool { return home.eng.Requests()[0].Planned == 0 })
	}
	return s, ev
}

// goesOn lets the request of lends end: with the right answer, after so many blocks came home and it was computed anew so often.
func (n *instance) goesOn(t *testing.T, s engine.Stream, ev engine.Event, returned, recoveries uint64) {
	t.Helper()
	n.hold.Store(false)
	sameRest(t, s, ev, 1, 200, 250)
	if st := n.eng.Stats(); st.ReturnedBlocks != returned || st.Recoveries != recoveries {
		t.Errorf("%+v", st)
	}
}

// An instance that is about to leave gives back what others have there, while these go on; then nobody misses it.
func TestBlocksComeHome(t *testing.T) {
	for _, transport := range []rdma.Transport{rdma.SHM, rdma.TCP} {
		t.Run(string(transport), func(t *testing.T) {
			_, _, nodes := startManaged(t, transport, 128, 128, 128)
			home := nodes[0]
			s, ev := lends(t, home, 15)
			nodes[1].rman.Drain()
			home.step(t, "all of them are at home", func() bool { return nodes[1].kv.Counts().Hosted == 0 })
			if c := nodes[2].kv.Counts(); c.Hosted != 15 {
				t.Errorf("the other one has %+v", c)
			}
			nodes[1].stop()
			home.goesOn(t, s, ev, 15, 0)
			settled(t, home, nodes[2])
		})
	}
}

// It lends no more, whoever asks.
func TestOneThatLeavesLendsNoMore(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 60)
	nodes[1].rman.Drain()
	eventually(t, "the other knows", func() bool {
		v := nodes[0].rman.View()
		return v.PeersFree == 0 && slices.Equal(v.Leaving, []string{"i1"})
	})
	p := nodes[1].rman.peerByID("i0")
	got, err := nodes[1].rman.TryMoveKV(t.Context(), &pb.TryMoveKVRequest{Owner: "i0", Blocks: 1, Session: p.serving, Ticket: 1 << 40})
	if err != nil || got.Accepted != 0 || got.Reason != "this instance is about to leave" {
		t.Errorf("%v %v", got, err)
	}
}

// Calls that fail, before they are heard or behind that, cost tries; what has come is not asked for again, and no block is
// left at either end.
func TestReturnsAreLost(t *testing.T) {
	_, _, nodes := startManaged(t, rdma.SHM, 128, 128, 128)
	home := nodes[0]
	s, ev := lends(t, home, 15)
	var calls atomic.Int64
	nodes[1].setFault(func(_ context.Context, method string, served bool) error {
		if method == "ReturnKV" && (!served && calls.Load()%3 == 0 || served && calls.Load()%3 == 1) {
			calls.Add(1)
			return status.Error(codes.Unavailable, "for a test")
		}
		return nil
	})
	nodes[1].rman.Drain()
	home.step(t, "all of them are at home", func() bool { return nodes[1].kv.Counts().Hosted == 0 })
	if calls.Load() < 2 {
		t.Errorf("%d calls failed", calls.Load())
	}
	home.goesOn(t, s, ev, 15, 0)
	settled(t, nodes...)
}

// The one that leaves dies over it: the request is computed anew.
func TestReturnIsCutOff(t *testing.T) {
	_, _, nodes := startManaged(t, rdma.SHM, 128, 128, 128)
	home := nodes[0]
	s, ev := lends(t, home, 15)
	asked := make(chan struct{}, 1)
	nodes[1].setFault(func(ctx context.Context, method string, served bool) error {
		if method == "ReturnKV" && served {
			asked <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	nodes[1].rman.Drain()
	home.step(t, "blocks have come, and no word of it", func() bool {
		select {
		case <-asked:
			return true
		default:
			return false
		}
	})
	nodes[1].stop()
	home.goesOn(t, s, ev, 0, 1)
	settled(t, home, nodes[2])
}

// Whatever asks for blocks that makes no sense is refused, and nothing is read or kept for it.
func TestReturnsThatMakeNoSense(t *testing.T) {
	_, _, nodes := startManaged(t, rdma.SHM, 128, 128, 128)
	home, host := nodes[0], nodes[1]
	s, ev := lends(t, home, 15)
	var h pb.ReturnKVRequest
	for _, x := range host.kv.HostedOf("i0") {
		h.Handle, h.Generation = x.Handle, x.Generation
	}
	p := host.rman.peerByID("i0")
	good := func() *pb.ReturnKVRequest {
		return &pb.ReturnKVRequest{Owner: "i0", Session: p.serving, Back: p.session, Handle: h.Handle, Generation: h.Generation, Blocks: 3, IntoHandle: 4000, IntoGeneration: 1}
	}
	for name, c := range map[string]struct {
		spoil func(q *pb.ReturnKVRequest)
		code  codes.Code
	}{
		"a stranger":           {func(q *pb.ReturnKVRequest) { q.Owner = "i9" }, codes.FailedPrecondition},
		"another one's":        {func(q *pb.ReturnKVRequest) { q.Owner = "i2" }, codes.FailedPrecondition},
		"an old session":       {func(q *pb.ReturnKVRequest) { q.Session-- }, codes.FailedPrecondition},
		"no session":           {func(q *pb.ReturnKVRequest) { q.Session = 0 }, codes.FailedPrecondition},
		"no way back":          {func(q *pb.ReturnKVRequest) { q.Back = 0 }, codes.FailedPrecondition},
		"an old one":           {func(q *pb.ReturnKVRequest) { q.Back++ }, codes.FailedPrecondition},
		"an unknown span":      {func(q *pb.ReturnKVRequest) { q.Handle = 1<<32 - 1 }, codes.FailedPrecondition},
		"an earlier one":       {func(q *pb.ReturnKVRequest) { q.Generation-- }, codes.FailedPrecondition},
		"no block":             {func(q *pb.ReturnKVRequest) { q.Blocks = 0 }, codes.FailedPrecondition},
		"more than it has":     {func(q *pb.ReturnKVRequest) { q.First = 13 }, codes.FailedPrecondition},
		"all that can be said": {func(q *pb.ReturnKVRequest) { q.First, q.Blocks = 1<<32-1, 1<<32-1 }, codes.FailedPrecondition},
		"into nothing":         {func(*pb.ReturnKVRequest) {}, codes.Aborted},
	} {
		req := good()
		c.spoil(req)
		if _, err := host.rman.ReturnKV(t.Context(), req); status.Code(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	home.hold.Store(false)
	sameRest(t, s, ev, 1, 200, 250)
	settled(t, nodes...)
}

// No home has more than a few returns under way, and none begins once this instance ends.
func TestReturnsAreFew(t *testing.T) {
	r, p, _ := withPeer(t)
	for i := range maxGiving {
		if !r.beginGiving(p) {
			t.Fatalf("return %d is refused", i)
		}
	}
	if _, err := r.ReturnKV(t.Context(), &pb.ReturnKVRequest{Owner: "b"}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	r.endGiving(p)
	if _, err := r.ReturnKV(t.Context(), &pb.ReturnKVRequest{Owner: "b"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("one less: %v", err)
	}
	for range maxGiving - 1 {
		r.endGiving(p)
	}
	r.mu.Lock()
	r.closed = true // as Close does first
	r.mu.Unlock()
	if r.beginGiving(p) {
		t.Error("one begins at an instance that ends")
	}
}
