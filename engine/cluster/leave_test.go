package cluster

import (
	"testing"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// An instance that ends in order tells its peers first; only its own word counts.
func TestPeersHearThatAnInstanceLeaves(t *testing.T) {
	e, _ := startEtcd(t)
	etcd := []string{e.Endpoint}
	startManager(t, etcd)
	a := startInstance(t, etcd, "a", 20, rdma.SHM)
	b := startInstance(t, etcd, "b", 20, rdma.SHM)
	eventually(t, "connected", func() bool { return a.connected(b) })
	said := func() bool {
		a.rman.mu.Lock()
		defer a.rman.mu.Unlock()
		p := a.rman.peers["b"]
		return p != nil && p.left
	}
	for _, other := range []*pb.LeaveRequest{{Id: "b"}, {Id: "b", Session: "another"}, {Id: "c", Session: b.rman.cfg.Session}} {
		if _, err := a.rman.Leave(t.Context(), other); err != nil || said() {
			t.Fatalf("%v was taken for b: %v", other, err)
		}
	}
	b.rman.sayGoodbye()
	if !said() {
		t.Fatal("a did not hear that b leaves")
	}
	b.stop()
	if lost := <-a.lost; lost != "b" {
		t.Fatalf("a lost %s", lost)
	}
}
