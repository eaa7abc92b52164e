package cluster

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// moveKV calls an instance as a gManager does.
func moveKV(t *testing.T, n *instance, req *pb.MoveKVRequest) error {
	t.Helper()
	members, _ := n.dir.Members()
	conn, err := grpc.NewClient(members[n.id].Address, DialOptions(testSecret)...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	limited, done := context.WithTimeout(t.Context(), patience)
	defer done()
	_, err = pb.NewKVClient(conn).MoveKV(limited, req)
	return err
}

// step lets steps that are held end one by one until cond holds, so that they do not outrun what goes on beside them.
func (n *instance) step(t *testing.T, what string, cond func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		if n.pass.Load() <= 0 {
			n.pass.Store(1)
			time.Sleep(10 * time.Millisecond)
		}
		return cond()
	})
}

// Whatever a gManager asks for that makes no sense is answered with an error, and nothing is lost by it.
func TestMovesThatMakeNoSense(t *testing.T) {
	_, _, nodes := startManaged(t, rdma.SHM, 128, 128)
	home := nodes[0]
	s, ev := home.half(1, 200, 60)
	r := home.eng.Requests()[0]
	good := func() *pb.MoveKVRequest {
		return &pb.MoveKVRequest{Id: r.ID, Number: uint64(r.Request), Blocks: 10, Destination: "i1"}
	}
	for name, c := range map[string]struct {
		spoil func(q *pb.MoveKVRequest)
		code  codes.Code
	}{
		"an unknown request":     {func(q *pb.MoveKVRequest) { q.Number += 7 }, codes.NotFound},
		"another one's id":       {func(q *pb.MoveKVRequest) { q.Id = "i1-1" }, codes.NotFound},
		"no block":               {func(q *pb.MoveKVRequest) { q.Blocks = 0 }, codes.InvalidArgument},
		"more than it has":       {func(q *pb.MoveKVRequest) { q.Blocks = 60 }, codes.FailedPrecondition},
		"more than the pool has": {func(q *pb.MoveKVRequest) { q.Blocks = 128 }, codes.InvalidArgument},
		"all that can be said":   {func(q *pb.MoveKVRequest) { q.Blocks = 1<<32 - 1 }, codes.InvalidArgument},
		"an unknown destination": {func(q *pb.MoveKVRequest) { q.Destination = "i9" }, codes.FailedPrecondition},
		"no destination":         {func(q *pb.MoveKVRequest) { q.Destination = "" }, codes.FailedPrecondition},
		"itself":                 {func(q *pb.MoveKVRequest) { q.Destination = "i0" }, codes.InvalidArgument},
		"nothing":                {func(q *pb.MoveKVRequest) { *q = pb.MoveKVRequest{} }, codes.InvalidArgument},
	} {
		req := good()
		c.spoil(req)
		if err := moveKV(t, home, req); status.Code(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := moveKV(t, home, good()); err != nil {
		t.Errorf("what makes sense: %v", err)
	}
	if err := moveKV(t, home, good()); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second one meanwhile: %v", err)
	}
	home.hold.Store(false)
	sameRest(t, s, ev, 1, 200, 60)
	settled(t, nodes...)
	if st := home.eng.Stats(); st.PlannedMoves != 1 || st.Recoveries != 0 {
		t.Errorf("%+v", st)
	}
}

// The gManager splits a long request with an instance that idles, though nobody is short of blocks, and the answer is the
// same. Nothing more is planned then, and nothing while it is not known how long steps take.
func TestPlannedMove(t *testing.T) {
	m, _, nodes := startManaged(t, rdma.SHM, 128, 128)
	home := nodes[0]
	s, ev := home.half(1, 200, 250)
	planned := func() uint64 {
		m.moves.plan(t.Context(), time.Now())
		return home.eng.Stats().PlannedMoves
	}
	eventually(t, "the gManager knows of the request", func() bool { return len(m.g.State(time.Now(), false).Requests) == 1 })
	if planned() != 0 {
		t.Fatal("a move is planned without a model")
	}
	home.model.Store(&pb.Model{BaseNs: 1e6, PerTokenNs: 1e3, PerKvNs: 1e6, RemoteNs: 1e3})
	eventually(t, "a move is planned", func() bool { return planned() == 1 })
	want := home.eng.Requests()[0]
	if want.PlannedTo != "i1" || want.Planned < 20 || want.Planned > 30 {
		t.Errorf("half of 50 blocks should go to the other instance: %+v", want)
	}
	home.step(t, "the blocks are placed", func() bool { return int(home.eng.Stats().PlannedBlocks) == want.Planned })
	if n := nodes[1].kv.Counts().Hosted; n != want.Planned {
		t.Errorf("%d blocks are with the other instance", n)
	}
	home.hold.Store(false)
	sameRest(t, s, ev, 1, 200, 250)
	settled(t, nodes...)
	if st := home.eng.Stats(); int(st.PlannedBlocks) != want.Planned || st.Recoveries != 0 || st.Preemptions != 0 {
		t.Errorf("%d blocks were to be placed: %+v", want.Planned, st)
	}
}

// A destination that refuses, or is lost, costs nothing: the request keeps its blocks, and goes on.
func TestPlannedMoveIsRefused(t *testing.T) {
	_, _, nodes := startManaged(t, rdma.SHM, 128, 128, 128)
	home := nodes[0]
	s, ev := home.half(1, 200, 200)
	refuse := func(_ context.Context, method string, _ bool) error {
		if method == "TryMoveKV" {
			return status.Error(codes.Unavailable, "for a test")
		}
		return nil
	}
	nodes[1].setFault(refuse)
	r := home.eng.Requests()[0]
	if err := moveKV(t, home, &pb.MoveKVRequest{Id: r.ID, Number: uint64(r.Request), Blocks: 20, Destination: "i1"}); err != nil {
		t.Fatal(err)
	}
	home.step(t, "the move is given up", func() bool {
		return home.eng.Stats().RefusedOffloads == 1 && home.eng.Requests()[0].Planned == 0
	})
	home.hold.Store(false)
	sameRest(t, s, ev, 1, 200, 200)
	if st := home.eng.Stats(); st.PlannedBlocks != 0 || st.Recoveries != 0 || nodes[2].kv.Counts().Hosted != 0 {
		t.Errorf("%+v", st)
	}
	settled(t, nodes...)
}
