package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// wire is the way to an etcd that is not this program's own: it can be cut and mended.
type wire struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	to    string // "" while it is cut
	conns []net.Conn
}

func newWire(t *testing.T, endpoint string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l}
	w.lead(endpoint)
	w.wg.Go(w.run)
	t.Cleanup(func() {
		_ = l.Close()
		w.lead("")
		w.wg.Wait()
	})
	return w
}

func (w *wire) endpoint() []string { return []string{"http://" + w.listener.Addr().String()} }

func (w *wire) run() {
	for {
		in, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		var out net.Conn
		if w.to != "" {
			out, err = net.Dial("tcp", w.to)
		}
		if out == nil || err != nil {
			_ = in.Close()
			w.mu.Unlock()
			continue
		}
		w.conns = append(w.conns, in, out)
		w.mu.Unlock()
		for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
			w.wg.Go(func() {
				_, _ = io.Copy(c[0], c[1])
				_, _ = c[0].Close(), c[1].Close()
			})
		}
	}
}

// lead cuts what is connected and leads new connections to an endpoint, "" nowhere.
func (w *wire) lead(endpoint string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = strings.TrimPrefix(endpoint, "http://")
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// While etcd is away, for longer than any lease, instances borrow, give back, lose links and connect anew,
// and hear of each other by heartbeats. When it is back they are members again, and others may join.
func TestEtcdGoesAwayAndComesBack(t *testing.T) {
	t.Run("unreachable", func(t *testing.T) {
		e, direct := startEtcd(t)
		w := newWire(t, e.Endpoint)
		withoutEtcd(t, w.endpoint(), func() {
			w.lead("")
			eventually(t, "the leases have run out", func() bool {
				left, err := direct.Leases(t.Context())
				return err == nil && len(left.Leases) == 0
			})
		}, func() { w.lead(e.Endpoint) })
	})
	t.Run("restarted", func(t *testing.T) {
		limited := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			return ctx
		}
		e, err := StartEtcd(limited(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		w := newWire(t, e.Endpoint)
		withoutEtcd(t, w.endpoint(), func() {
			w.lead("")
			e.end(e.server, againLimit)
			time.Sleep((LeaseSeconds + 1) * time.Second) // clients give their leases up
		}, func() {
			if err := e.start(limited(), "127.0.0.1"); err != nil { // with its data, at another port
				t.Fatal(err)
			}
			w.lead(e.Endpoint)
		})
	})
}

func withoutEtcd(t *testing.T, etcd []string, away, back func()) {
	m, _ := startManager(t, etcd)
	a := startInstance(t, etcd, "a", 20, rdma.SHM)
	b := startInstance(t, etcd, "b", 60, rdma.TCP)
	eventually(t, "connected", func() bool { return a.connected(b) })
	a.hold.Store(true) // it will be in the middle of its answer
	running := a.ask(1, 200, 100)
	if ev, err := running.Next(t.Context()); err != nil || !ev.HasToken {
		t.Fatal(ev, err)
	}
	away()
	a.hold.Store(false)
	rest, err := answer(t, running)
	if want := alone().answer(t, 1, 200, 100); err != nil || !slices.Equal(rest, want[1:]) {
		t.Fatalf("the running request: %d tokens, %v", len(rest), err)
	}
	settled(t, a, b)

	before := a.session("b")
	b.rman.drop(b.rman.peerByID("a"), 0, errors.New("for a test"))
	eventually(t, "connected again", func() bool { return a.connected(b) && a.session("b") != before })
	for seed := 2; seed < 5; seed++ {
		sameAnswer(t, a.ask(seed, 200, 60), seed, 200, 60)
	}
	settled(t, a, b)
	sees := func(ids ...string) bool {
		s, err := m.Cluster(t.Context())
		return err == nil && len(s.Instances) == len(ids) && !slices.ContainsFunc(s.Instances, func(in *pb.InstanceState) bool {
			return !slices.Contains(ids, in.Id)
		})
	}
	eventually(t, "the gManager sees both", func() bool { return sees("a", "b") })
	eventually(t, "the instances hear of it", func() bool { return a.rman.View().PeersFree > 0 && b.rman.View().PeersFree > 0 })

	back()
	eventually(t, "members again", func() bool { return has(m.Directory(), "a") && has(m.Directory(), "b") })
	sameAnswer(t, a.ask(5, 200, 60), 5, 200, 60)
	c := startInstance(t, etcd, "c", 30, rdma.SHM)
	eventually(t, "the newcomer is connected", func() bool { return c.connected(a, b) && sees("a", "b", "c") })
	sameAnswer(t, c.ask(6, 240, 60), 6, 240, 60)
	settled(t, a, b, c)
}

// A candidate that waits for its turn can stop while etcd is away.
func TestCandidateStopsWithoutEtcd(t *testing.T) {
	e, c := startEtcd(t)
	first, _ := startManager(t, []string{e.Endpoint})
	eventually(t, "the first leads", first.leads)
	w := newWire(t, e.Endpoint)
	second, stop := startManager(t, w.endpoint())
	eventually(t, "the second waits", func() bool {
		got, err := c.Get(t.Context(), electionKey(testID), clientv3.WithPrefix())
		return err == nil && len(got.Kvs) == 2
	})
	w.lead("")
	eventually(t, "it has no connection", func() bool { return second.etcd.ActiveConnection().GetState() != connectivity.Ready })
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Fatal("it does not stop")
	}
}

// Two API processes over one etcd: one is the gManager. When it resigns, and when it dies, the other takes
// over and knows what the instances tell it.
func TestGManagerChanges(t *testing.T) {
	e, _ := startEtcd(t)
	etcd := []string{e.Endpoint}
	w := newWire(t, e.Endpoint)
	doomed, kill := startManager(t, w.endpoint())
	eventually(t, "the first leads", doomed.leads)
	second, stopSecond := startManager(t, etcd)
	a := startInstance(t, etcd, "a", 20, rdma.SHM)
	b := startInstance(t, etcd, "b", 60, rdma.SHM)
	eventually(t, "connected", func() bool { return a.connected(b) })
	a.hold.Store(true)
	s := a.ask(1, 200, 60)
	if ev, err := s.Next(t.Context()); err != nil || !ev.HasToken {
		t.Fatal(ev, err)
	}
	knows := func(m *Manager) func() bool {
		return func() bool {
			c, err := m.Cluster(t.Context())
			loads, newest, lerr := m.Loads(t.Context())
			return err == nil && lerr == nil && len(c.Instances) == 2 && len(loads) == 2 && newest != 0 &&
				len(c.Requests) == 1 && c.Requests[0].Home == "a" && c.Requests[0].Placement.Id == "a-1"
		}
	}
	eventually(t, "the gManager knows the request", knows(doomed))
	eventually(t, "the other API process knows it from the gManager", knows(second))
	if second.leads() {
		t.Fatal("two lead")
	}

	// It dies: nothing is resigned, its lease runs out.
	w.lead("")
	kill()
	eventually(t, "the second leads", second.leads)
	eventually(t, "the second knows the request", knows(second))
	eventually(t, "the instances hear of it", func() bool { v := a.rman.View(); return v.OldestArrival != 0 && v.PeersFree != 0 })

	third, _ := startManager(t, etcd)
	eventually(t, "the third knows the request", knows(third))
	stopSecond() // it resigns
	eventually(t, "the third leads", third.leads)
	eventually(t, "the third knows the request itself", knows(third))
	a.hold.Store(false)
	if _, err := answer(t, s); err != nil {
		t.Fatal(err)
	}
	settled(t, a, b)
}
