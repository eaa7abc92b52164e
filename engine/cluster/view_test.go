package cluster

import (
	"maps"
	"reflect"
	"testing"
	"time"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/rdma"
)

func newView(t *testing.T, peers ...*peer) *RManager {
	t.Helper()
	kv, err := kvcache.New(8, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRManager(Config{ID: "me"}, kv, Device{}, nil)
	for _, p := range peers {
		r.peers[p.id] = p
	}
	return r
}

func TestViewIsWhatIsKnown(t *testing.T) {
	now := time.Now().Add(time.Minute) // it stays fresh, however long the test takes
	r := newView(t,
		&peer{id: "a", session: 1, hostable: 5, told: now, shown: true},
		&peer{id: "b", hostable: 7, told: now, shown: true}, // not connected
		&peer{id: "c", session: 1, hostable: 3, told: now},  // the gManager has not heard of it
		&peer{id: "e", session: 1, serving: 2, hostable: 3, told: now, shown: true, drains: true},
		&peer{id: "f", session: 1, hostable: 3, told: now, shown: true, drains: true}, // it has no links by which blocks could come
	)
	r.viewAt = now
	r.view = &pb.HeartbeatReply{OldestArrival: 10, Instances: []*pb.InstanceState{
		{Id: "me", Load: &pb.Load{Running: 100, Starving: 1, KvBlocksTotal: 8}},
		{Id: "a", Load: &pb.Load{Running: 2, Starving: 30, KvBlocksTotal: 10}},
		{Id: "b", Load: &pb.Load{Running: 1, Starving: 20}},
		{Id: "d"},
	}}
	if got, want := r.View(), (View{PeersFree: 8, OldestArrival: 10, OthersRunning: 4, Starving: 20, Blocks: 18, Leaving: []string{"e"}}); !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
}

// Without the gManager nobody concludes that no other request runs, or that there is no room: a creditor
// that was full long ago is asked again.
func TestOldViewSaysLittle(t *testing.T) {
	long := time.Now().Add(-2 * staleAfter)
	r := newView(t,
		&peer{id: "a", session: 1, hostable: 0, told: long, shown: true},
		&peer{id: "b", session: 1, hostable: 4, told: time.Now().Add(time.Minute), shown: true}, // its answer to a call
		&peer{id: "c", hostable: 9, told: long},
	)
	r.viewAt = long
	r.view = &pb.HeartbeatReply{OldestArrival: 10, Instances: []*pb.InstanceState{{Id: "a", Load: &pb.Load{Running: 0, Starving: 3}}}}
	if got, want := r.View(), (View{PeersFree: 5, OthersRunning: 2}); !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if c := r.creditors("a"); len(c) != 2 || c[0].peer.id != "a" {
		t.Fatalf("creditors %+v", c)
	}
	if got := newView(t).View(); !reflect.DeepEqual(got, View{}) {
		t.Fatalf("alone: %+v", got)
	}
}

// reporter is a home that has something to do while it reports.
type reporter struct {
	Home
	load   pb.Load
	during func()
}

func (h *reporter) Report() (*pb.Load, []*pb.Placement) {
	h.during()
	return &h.load, nil
}

// A report shows what happened before it was asked for: what happens while it is made may be in the next one alone.
func TestReportsAreNumbered(t *testing.T) {
	r := newView(t)
	h := &reporter{}
	r.home = h
	for n := range uint64(3) {
		before, during := r.NextReport(), uint64(0)
		h.during = func() { during = r.NextReport() }
		if err := r.heartbeat("127.0.0.1:1"); err == nil {
			t.Fatal("somebody answered")
		}
		if before != n+1 || h.load.Report != before || during != before+1 || r.NextReport() != during {
			t.Errorf("report %d: what was before it shows in %d, what is during it in %d", h.load.Report, before, during)
		}
	}
	if err := r.manager.Close(); err != nil {
		t.Error(err)
	}
}

// An operator sees over what an instance may borrow; a peer without a session has no links to count.
func TestTransportsAreCounted(t *testing.T) {
	r := newView(t,
		&peer{id: "a", session: 1, info: rdma.Info{Transport: rdma.TCP}}, &peer{id: "b", session: 2, info: rdma.Info{Transport: rdma.SHM}},
		&peer{id: "c", session: 3, info: rdma.Info{Transport: rdma.TCP}}, &peer{id: "d", info: rdma.Info{Transport: rdma.Verbs}})
	if got, want := r.transports(), (map[string]uint32{"tcp": 2, "shm": 1}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// An index names the peer that has it for as long as possible, so that what is late does not mean another.
func TestIndexesAreUsedAgainLate(t *testing.T) {
	r := newView(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[uint32]bool{}
	for range len(r.byIndex) {
		if err := r.addPeer(Member{ID: "a", Address: "127.0.0.1:1"}); err != nil {
			t.Fatal(err)
		}
		p := r.peers["a"]
		if seen[p.index] {
			t.Fatalf("index %d after %d others", p.index, len(seen))
		}
		seen[p.index] = true
		r.forget(p)
	}
}
