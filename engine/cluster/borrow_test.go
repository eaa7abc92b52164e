package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/rdma"
)

// startCluster brings up a manager and instances i0, i1, ... with pools of so many blocks, all connected.
func startCluster(t *testing.T, transport rdma.Transport, pools ...int) ([]string, []*instance) {
	t.Helper()
	e, _ := startEtcd(t)
	etcd := []string{e.Endpoint}
	startManager(t, etcd)
	var nodes []*instance
	for i, blocks := range pools {
		nodes = append(nodes, startInstance(t, etcd, fmt.Sprintf("i%d", i), blocks, transport))
	}
	for i, n := range nodes {
		eventually(t, n.id+" is connected", func() bool { return n.connected(nodes[i+1:]...) })
	}
	return etcd, nodes
}

func TestBorrowAndGiveBack(t *testing.T) {
	for _, transport := range []rdma.Transport{rdma.SHM, rdma.TCP} {
		t.Run(string(transport), func(t *testing.T) {
			_, nodes := startCluster(t, transport, 20, 30, 30)
			// 79 of 80 blocks: 256 + 60 tokens.
			sameAnswer(t, nodes[0].ask(1, 256, 60), 1, 256, 60)
			settled(t, nodes...)
			s := nodes[0].ask(2, 200, 60)
			if ev, err := s.Next(t.Context()); err != nil || !ev.HasToken {
				t.Fatal(ev, err)
			}
			s.Close()
			settled(t, nodes...)
		})
	}
}

// The creditor's answers are lost again and again: it opens spans, and adds to them, that the debtor does
// not hear of. Nothing of it stays, and nobody is given up for it.
func TestLostAnswers(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 60)
	var calls, lost atomic.Int64
	nodes[1].setFault(func(_ context.Context, method string, served bool) error {
		if served && method == "TryMoveKV" && calls.Add(1)%2 == 1 {
			lost.Add(1)
			return status.Error(codes.Unavailable, "the answer is lost")
		}
		return nil
	})
	sameAnswer(t, nodes[0].ask(1, 200, 60), 1, 200, 60)
	settled(t, nodes...)
	if lost.Load() < 3 {
		t.Errorf("only %d answers were lost", lost.Load())
	}
	if len(nodes[0].lost)+len(nodes[1].lost) != 0 {
		t.Error("a peer was given up")
	}
}

// A creditor that does not take spans back holds up no other, and is asked again until it does.
func TestSlowCreditorHoldsUpNobody(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 20, 20)
	var refused atomic.Int64
	slow := func(ctx context.Context, method string, served bool) error {
		if method == "ReleaseKV" && !served {
			refused.Add(1)
			<-ctx.Done() // as long as the caller waits
			return ctx.Err()
		}
		return nil
	}
	nodes[1].setFault(slow)
	sameAnswer(t, nodes[0].ask(1, 160, 60), 1, 160, 60)
	eventually(t, "the other creditor is free", func() bool { return nodes[2].idle() && refused.Load() > 0 })
	if nodes[1].idle() {
		t.Fatal("the slow creditor took no part")
	}
	nodes[1].setFault(nil)
	settled(t, nodes...)
	if len(nodes[0].lost) != 0 {
		t.Error("a peer was given up")
	}
}

// One that never does is given up: it frees everything when the links end.
func TestDeafCreditorIsGivenUp(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 60)
	nodes[1].setFault(func(_ context.Context, method string, served bool) error {
		if method == "ReleaseKV" && !served {
			return status.Error(codes.Unavailable, "deaf")
		}
		return nil
	})
	sameAnswer(t, nodes[0].ask(1, 200, 60), 1, 200, 60)
	settled(t, nodes...)
	if len(nodes[0].lost) == 0 {
		t.Error("nobody was given up")
	}
}

// A process that is started anew under an old id is a new peer: both sides borrow from each other again.
func TestRestartUnderTheSameID(t *testing.T) {
	etcd, nodes := startCluster(t, rdma.TCP, 20, 60)
	s := nodes[0].ask(1, 200, 200)
	if ev, err := s.Next(t.Context()); err != nil || !ev.HasToken {
		t.Fatal(ev, err)
	}
	nodes[1].stop()
	var lost *engine.PeerLostError
	if _, err := answer(t, s); !errors.As(err, &lost) || lost.Instance != "i1" {
		t.Fatalf("the request ended with %v", err)
	}
	for range 3 {
		again := startInstance(t, etcd, "i1", 60, rdma.TCP)
		eventually(t, "connected again", func() bool { return nodes[0].connected(again) })
		sameAnswer(t, nodes[0].ask(2, 200, 60), 2, 200, 60)
		sameAnswer(t, again.ask(3, 240, 60), 3, 240, 60)
		settled(t, nodes[0], again)
		again.stop()
	}
}

// Links that one side gives up end the requests with spans there, and no others; then they come back.
func TestLinksEndAndComeBack(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 40, 40)
	for round := range 3 {
		s := nodes[0].ask(1, 130, 300)
		if ev, err := s.Next(t.Context()); err != nil || !ev.HasToken {
			t.Fatal(ev, err)
		}
		holder, other := nodes[1], nodes[2]
		if nodes[1].kv.Counts().Hosted == 0 {
			holder, other = other, holder
		}
		short := other.ask(10+round, 40, 60)
		before := nodes[0].session(holder.id)
		// Either side may be the one.
		a, b := nodes[0], holder
		if round == 1 {
			a, b = b, a
		}
		a.rman.drop(a.rman.peerByID(b.id), 0, errors.New("for a test"))
		var lost *engine.PeerLostError
		if _, err := answer(t, s); !errors.As(err, &lost) || lost.Instance != holder.id || !strings.Contains(err.Error(), holder.id) {
			t.Fatalf("the request ended with %v", err)
		}
		sameAnswer(t, short, 10+round, 40, 60)
		settled(t, nodes...)
		eventually(t, "connected again", func() bool {
			return nodes[0].connected(holder, other) && nodes[0].session(holder.id) != before
		})
	}
	sameAnswer(t, nodes[0].ask(1, 200, 60), 1, 200, 60)
	settled(t, nodes...)
}
