package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/rdma"
)

// startCluster brings up a manager and instances i0, i1, ... with pools of so many blocks, all connected.
func startCluster(t *testing.T, transport rdma.Transport, pools ...int) ([]string, []*instance) {
	t.Helper()
	_, etcd, nodes := startManaged(t, transport, pools...)
	return etcd, nodes
}

// startManaged is startCluster with the manager.
func startManaged(t *testing.T, transport rdma.Transport, pools ...int) (*Manager, []string, []*instance) {
	t.Helper()
	e, _ := startEtcd(t)
	etcd := []string{e.Endpoint}
	m, _ := startManager(t, etcd)
	var nodes []*instance
	for i, blocks := range pools {
		nodes = append(nodes, startInstance(t, etcd, fmt.Sprintf("i%d", i), blocks, transport))
	}
	for i, n := range nodes {
		eventually(t, n.id+" is connected", func() bool { return n.connected(nodes[i+1:]...) })
	}
	return m, etcd, nodes
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
	var refused atomic.Pointer[time.Time] // first
	slow := func(ctx context.Context, method string, served bool) error {
		if method == "ReleaseKV" && !served {
			now := time.Now()
			refused.CompareAndSwap(nil, &now)
			<-ctx.Done() // as long as the caller waits
			return ctx.Err()
		}
		return nil
	}
	nodes[1].setFault(slow)
	sameAnswer(t, nodes[0].ask(1, 160, 60), 1, 160, 60)
	eventually(t, "the other creditor is free", func() bool { return nodes[2].idle() && refused.Load() != nil })
	if nodes[1].idle() {
		t.Fatal("the slow creditor took no part")
	}
	nodes[1].setFault(nil)
	deaf := time.Since(*refused.Load())
	settled(t, nodes...)
	if len(nodes[0].lost) != 0 && deaf < deafAfter {
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

// A process that is started anew under an old id is a new peer: both sides borrow from each other again, and the
// request that lost its blocks there waits for the room and is computed anew.
func TestRestartUnderTheSameID(t *testing.T) {
	etcd, nodes := startCluster(t, rdma.TCP, 20, 60)
	s, ev := nodes[0].half(1, 200, 100)
	nodes[1].stop()
	nodes[0].hold.Store(false)
	for round := range 3 {
		again := startInstance(t, etcd, "i1", 60, rdma.TCP)
		eventually(t, "connected again", func() bool { return nodes[0].connected(again) })
		if round == 0 {
			sameRest(t, s, ev, 1, 200, 100)
			if k := nodes[0].eng.Stats().Recoveries; k != 1 {
				t.Errorf("%d requests were computed anew", k)
			}
		}
		sameAnswer(t, nodes[0].ask(2, 200, 60), 2, 200, 60)
		sameAnswer(t, again.ask(3, 240, 60), 3, 240, 60)
		settled(t, nodes[0], again)
		again.stop()
	}
}

// half asks and reads the first token; then steps that only decode are held, so that the answer is not over before
// something has happened to it. hold ends it.
func (n *instance) half(seed, tokens, answer int) (engine.Stream, engine.Event) {
	n.t.Helper()
	n.hold.Store(true)
	s := n.ask(seed, tokens, answer)
	ev, err := s.Next(n.t.Context())
	if err != nil || !ev.HasToken {
		n.t.Fatal(ev, err)
	}
	return s, ev
}

func sameRest(t *testing.T, s engine.Stream, first engine.Event, seed, tokens, n int) {
	t.Helper()
	got, err := answer(t, s)
	if want := alone().answer(t, seed, tokens, n); err != nil || !slices.Equal(slices.Insert(got, 0, first.Token), want) {
		t.Fatalf("request %d: %d of %d tokens: %v", seed, len(got), n, err)
	}
}

// Links that one side gives up take the requests with spans there back to their start, and no others; then they come back.
func TestLinksEndAndComeBack(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 40, 40)
	for round := range 3 {
		s, ev := nodes[0].half(1, 130, 100)
		holder, other := nodes[1], nodes[2]
		if nodes[1].kv.Counts().Hosted == 0 {
			holder, other = other, holder
		}
		short := other.ask(10+round, 40, 60)
		before, computed := nodes[0].session(holder.id), nodes[0].eng.Stats().Recoveries
		// Either side may be the one.
		a, b := nodes[0], holder
		if round == 1 {
			a, b = b, a
		}
		a.rman.drop(a.rman.peerByID(b.id), 0, errors.New("for a test"))
		nodes[0].hold.Store(false)
		sameRest(t, s, ev, 1, 130, 100)
		if k := nodes[0].eng.Stats().Recoveries; k != computed+1 {
			t.Errorf("%d requests were computed anew", k-computed)
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

// Everything at once: more requests than the cluster holds, some cancelled, calls that fail before they are
// served and after, links that end. Every answer is right or says that instances were lost too often, and in the
// end nothing is left anywhere.
func TestStorm(t *testing.T) {
	_, nodes := startCluster(t, rdma.SHM, 20, 24, 30)
	kinds := [][3]int{{1, 10, 20}, {2, 60, 40}, {3, 130, 30}, {4, 200, 50}, {5, 90, 120}}
	for _, k := range kinds {
		alone().answer(t, k[0], k[1], k[2])
	}
	var calls atomic.Int64
	for _, n := range nodes {
		n.setFault(func(_ context.Context, _ string, served bool) error {
			if k := calls.Add(1); k%7 == 0 || k%11 == 0 && served {
				return status.Error(codes.Unavailable, "a fault")
			}
			return nil
		})
	}
	// Links end after every few answers, not every so often: some answers come between, however long they take.
	ended := make(chan struct{}, 3*3*5)
	var wg, drops sync.WaitGroup
	drops.Go(func() {
		n := 0
		for range ended {
			if n++; n%4 != 0 {
				continue
			}
			k := n / 4
			a, b := nodes[k%3], nodes[(k+1+k%2)%3]
			if p := a.rman.peerByID(b.id); p != nil {
				a.rman.drop(p, 0, errors.New("for a test"))
			}
		}
	})
	var right, lost, cancelled atomic.Int64
	for i, n := range nodes {
		for client := range 3 {
			wg.Go(func() {
				for round := range 5 {
					k := kinds[(i+client+round)%len(kinds)]
					s := n.ask(k[0], k[1], k[2])
					if (client+round)%5 == 4 {
						_, _ = s.Next(t.Context())
						s.Close()
						cancelled.Add(1)
						ended <- struct{}{}
						continue
					}
					got, err := answer(t, s)
					var gone *engine.PeerLostError
					switch {
					case err == nil && slices.Equal(got, alone().answer(t, k[0], k[1], k[2])):
						right.Add(1)
					case errors.As(err, &gone):
						lost.Add(1)
					default:
						t.Errorf("%s: request %v ended with %d tokens: %v", n.id, k, len(got), err)
					}
					ended <- struct{}{}
				}
			})
		}
	}
	wg.Wait()
	close(ended)
	drops.Wait()
	settled(t, nodes...)
	t.Logf("%d right, %d lost, %d cancelled", right.Load(), lost.Load(), cancelled.Load())
	if right.Load() == 0 {
		t.Error("no request came through")
	}
}
