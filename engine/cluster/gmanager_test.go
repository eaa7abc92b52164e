package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/infinite-llm/infinite/engine/arrival"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

func beat(t *testing.T, g *GManager, at time.Time, id string, places ...*pb.Placement) *pb.HeartbeatReply {
	t.Helper()
	r, err := g.Heartbeat(&pb.HeartbeatRequest{Id: id, Load: &pb.Load{KvBlocksTotal: 8}, Requests: places}, "addr-"+id, at)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHeartbeatsMakeTheMap(t *testing.T) {
	g, now := NewGManager(16), time.Unix(100, 0)
	a := &pb.Placement{Id: "a", Tokens: 40, Arrival: 7, Spans: []*pb.Span{{Instance: "i1", Blocks: 2}, {Instance: "i0", Blocks: 1}}}
	b := &pb.Placement{Id: "b", Tokens: 5, Arrival: 3, Spans: []*pb.Span{{Instance: "i1", Blocks: 1}}}
	beat(t, g, now, "i0", a)
	reply := beat(t, g, now, "i1", b)
	if reply.OldestArrival != 3 || len(reply.Instances) != 2 {
		t.Fatalf("reply %v", reply)
	}
	want := []*pb.HomePlacement{{Home: "i0", Placement: a}, {Home: "i1", Placement: b}}
	if diff := cmp.Diff(want, g.State(now, false).Requests, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
	if s := g.State(now, true); len(s.Instances) != 2 || len(s.Requests) != 0 || s.NewestClock != 7 {
		t.Fatalf("instances only: %v", s)
	}
	// The newest clock is not that of the last in the order, whose priority is lower.
	low := &pb.Placement{Id: "c", Arrival: arrival.Of(1, 4)}
	if reply = beat(t, g, now, "i2", low); reply.OldestArrival != 3 || g.State(now, true).NewestClock != 7 {
		t.Fatalf("beside one of a low priority: %v, %v", reply, g.State(now, true))
	}
	if got := beat(t, g, now, "i1").OldestArrival; got != 7 {
		t.Fatalf("after b ended the oldest is %d", got)
	}
}

func TestSilentInstancesLeaveTheMap(t *testing.T) {
	g, now := NewGManager(16), time.Unix(100, 0)
	beat(t, g, now, "i0", &pb.Placement{Id: "a", Arrival: 1})
	beat(t, g, now.Add(staleAfter/2), "i1")
	if s := g.State(now.Add(staleAfter+1), false); len(s.Instances) != 1 || s.Instances[0].Id != "i1" || len(s.Requests) != 0 {
		t.Fatalf("state %v", s)
	}
	g.Forget("i1")
	if s := g.State(now, false); len(s.Instances) != 0 {
		t.Fatalf("state %v", s)
	}
}

func TestBadHeartbeats(t *testing.T) {
	g := NewGManager(16)
	for _, req := range []*pb.HeartbeatRequest{{}, {Id: "i0"}, {Load: &pb.Load{}}} {
		if _, err := g.Heartbeat(req, "", time.Unix(1, 0)); err == nil {
			t.Errorf("took %v", req)
		}
	}
}
