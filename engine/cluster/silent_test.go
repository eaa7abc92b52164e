package cluster

import (
	"context"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

// An instance that lost its place among the members keeps what it has with others as long as it answers; one that does
// not is given up, though its links say nothing.
func TestSilentStrangerIsGivenUp(t *testing.T) {
	etcd, nodes := startCluster(t, rdma.SHM, 20, 60)
	s, _ := nodes[0].half(1, 200, 100)
	defer s.Close()
	c, err := EtcdClient(etcd, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err = c.Delete(t.Context(), memberPrefix(testID)+"i0"); err != nil {
		t.Fatal(err)
	}
	p := nodes[1].rman.peerByID("i0")
	gone := func() bool {
		nodes[1].rman.mu.Lock()
		defer nodes[1].rman.mu.Unlock()
		return p.gone && !p.askAt.IsZero()
	}
	eventually(t, "i0 is no member, and is asked", gone)
	time.Sleep(deafAfter + 2*askEvery)
	if k := nodes[1].kv.Counts(); k.Hosted == 0 {
		t.Fatalf("an instance that answers lost its blocks: %+v", k)
	}
	nodes[0].setFault(func(ctx context.Context, _ string, _ bool) error {
		<-ctx.Done()
		return ctx.Err()
	})
	eventually(t, "its blocks are free", func() bool { return nodes[1].kv.Counts().Hosted == 0 })
	nodes[0].hold.Store(false)
}
