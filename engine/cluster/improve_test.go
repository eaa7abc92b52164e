package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// ways stands for rdma.Dial: which transports work, by lane.
type ways struct {
	mu   sync.Mutex
	best rdma.Transport
	fail map[string]error // "query verbs"
	then func(call string)
	log  []string // "query auto"
}

func (w *ways) open(_ context.Context, _ rdma.Identity, _ rdma.Endpoint, lane rdma.Lane, shape rdma.Shape, want rdma.Choice) (*rdma.Link, rdma.Info, error) {
	call := fmt.Sprintf("%s %s", lane, want.Transport)
	if lane == rdma.LaneRail {
		call = fmt.Sprintf("%s %d", lane, shape.Rail)
	}
	w.mu.Lock()
	w.log = append(w.log, call)
	then := w.then
	w.mu.Unlock()
	if then != nil {
		then(call)
	}
	info := rdma.Info{Transport: want.Transport}
	if want.Transport == rdma.Auto {
		info.Transport = w.best
	}
	if err := w.fail[fmt.Sprintf("%s %s", lane, info.Transport)]; err != nil {
		return nil, rdma.Info{}, err
	}
	return &rdma.Link{}, info, nil
}

func (w *ways) wantCalls(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.log, want) {
		t.Errorf("dialled %q, want %q", w.log, want)
	}
	w.log = nil
}

// withWays is withPeer, but links are what w makes of them.
func withWays(t *testing.T, want rdma.Transport, w *ways) (*RManager, *peer, *recorder) {
	t.Helper()
	listener, err := rdma.Listen(rdma.ListenConfig{Identity: rdma.Identity{Instance: "me"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	r, p, rec := withPeer(t)
	r.listener, r.open, r.rails, r.cfg.Transport.Transport = listener, w.open, rec, want
	return r, p, rec
}

// A lane that had to take a worse way than the other one would stay there: nothing looks after a lane alone.
func TestBothLanesGoTheSameWay(t *testing.T) {
	no := errors.New("no")
	for _, c := range []struct {
		name   string
		want   rdma.Transport
		best   rdma.Transport
		fail   map[string]error
		calls  []string
		over   rdma.Transport // "": not connected
		failed bool           // to use the best
	}{
		{name: "both", want: rdma.Auto, best: rdma.Verbs, calls: []string{"query auto", "move verbs"}, over: rdma.Verbs},
		{name: "neither", want: rdma.Auto, best: rdma.TCP, calls: []string{"query auto", "move tcp"}, over: rdma.TCP},
		{name: "the query lane alone", want: rdma.Auto, best: rdma.Verbs, fail: map[string]error{"move verbs": no},
			calls: []string{"query auto", "move verbs", "query tcp", "move tcp"}, over: rdma.TCP, failed: true},
		{name: "nothing else is wanted", want: rdma.Verbs, fail: map[string]error{"move verbs": no}, calls: []string{"query verbs", "move verbs"}},
		{name: "refused", want: rdma.Auto, best: rdma.Verbs, fail: map[string]error{"move verbs": rdma.ErrRefused}, calls: []string{"query auto", "move verbs"}},
		{name: "no move lane at all", want: rdma.Auto, best: rdma.TCP, fail: map[string]error{"move tcp": no}, calls: []string{"query auto", "move tcp"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &ways{best: c.best, fail: c.fail}
			r, p, rec := withWays(t, c.want, w)
			p.busy = 1
			r.dial(p)
			w.wantCalls(t, c.calls...)
			if p.info.Transport != c.over || p.info.FellBack != c.failed || (p.session != 0) != (c.over != "") || p.busy != 0 {
				t.Errorf("session %d, busy %d: %+v", p.session, p.busy, p.info)
			}
			if c.over != "" {
				wantEvents(t, rec, "attach 3")
			}
		})
	}
}

// What cannot be had keeps nobody from placing blocks, and what is to be had waits for those who do.
func TestUpgrade(t *testing.T) {
	no := errors.New("no")
	// A peer on this host: shared memory is better than TCP, and needs no RDMA port.
	here := rdma.Endpoint{Host: rdma.HostID(), UnixPath: "@none"}
	slow := rdma.Info{Transport: rdma.TCP, FellBack: true}
	start := func(t *testing.T, w *ways) (*RManager, *peer, *recorder) {
		r, p, rec := withWays(t, rdma.Auto, w)
		p.member.Endpoint, p.session, p.serving, p.info = here, 5, 6, slow
		return r, p, rec
	}
	refused := func(t *testing.T, r *RManager) bool {
		t.Helper()
		got := tryMove(t, r, &pb.TryMoveKVRequest{Blocks: 1, Ticket: r.nextTicket(), Session: 6})
		if got.Accepted == 0 && got.Hostable != 8 {
			t.Errorf("refused with %v", got)
		}
		return got.Accepted == 0
	}
	t.Run("there", func(t *testing.T) {
		w := &ways{}
		r, p, rec := start(t, w)
		w.then = func(call string) {
			if got := r.hold(creditor{p, 5}); got != (call == "query shm") {
				t.Errorf("at %s placing may begin: %v", call, got)
			} else if got {
				r.unhold(creditor{p, 5})
			} else if !refused(t, r) {
				t.Errorf("at %s room is given", call)
			}
		}
		if err := r.upgrade(t.Context(), p, 5, slow); err != nil {
			t.Fatal(err)
		}
		w.wantCalls(t, "query shm", "move shm")
		wantEvents(t, rec, "lost b", "detach 3", "attach 3")
		if p.upgrading || p.session == 5 || p.session == 0 || p.info.Transport != rdma.SHM {
			t.Errorf("upgrading %v, session %d, %+v", p.upgrading, p.session, p.info)
		}
		if err := r.upgrade(t.Context(), p, p.session, p.info); err != errNoBetter {
			t.Errorf("once more: %v", err)
		}
	})
	t.Run("not there", func(t *testing.T) {
		w := &ways{fail: map[string]error{"query shm": no}}
		r, p, rec := start(t, w)
		w.then = func(string) {
			if r.upgrades(p) {
				t.Error("others wait for what may not be there")
			}
		}
		if err := r.upgrade(t.Context(), p, 5, slow); !errors.Is(err, no) {
			t.Error(err)
		}
		w.fail = map[string]error{"move shm": no}
		w.then = nil
		if err := r.upgrade(t.Context(), p, 5, slow); !errors.Is(err, no) || p.upgrading {
			t.Errorf("upgrading %v: %v", p.upgrading, err)
		}
		w.wantCalls(t, "query shm", "query shm", "move shm")
		wantEvents(t, rec)
		if refused(t, r) || p.session != 5 {
			t.Errorf("session %d", p.session)
		}
	})
	t.Run("the other side was first", func(t *testing.T) {
		w := &ways{}
		r, p, rec := start(t, w)
		rec.dead = errors.New("closed")
		r.mu.Lock()
		r.spawn(r.monitorLoop)
		p.upgrading = true // as between the last lane and the swap
		r.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
		wantEvents(t, rec)
		r.mu.Lock()
		p.upgrading = false
		r.mu.Unlock()
		eventually(t, "a loss is seen once the upgrade is over", func() bool { return slices.Contains(rec.take(), "detach 3") })
	})
	t.Run("in use", func(t *testing.T) {
		w := &ways{}
		r, p, rec := start(t, w)
		w.then = func(string) { r.hold(creditor{p, 5}) }
		if err := r.upgrade(t.Context(), p, 5, slow); err != nil || p.upgrading {
			t.Errorf("upgrading %v: %v", p.upgrading, err)
		}
		w.wantCalls(t, "query shm")
		if err := r.upgrade(t.Context(), p, 5, slow); err != nil {
			t.Error(err)
		}
		r.unhold(creditor{p, 5})
		refused(t, r) // no, it is hosted
		if err := r.upgrade(t.Context(), p, 5, slow); err != nil {
			t.Error(err)
		}
		w.wantCalls(t)
		wantEvents(t, rec, "set 0.1 of 3: 1 blocks")
	})
	t.Run("nothing to look for", func(t *testing.T) {
		w := &ways{}
		r, p, _ := start(t, w)
		p.improving = improveEvery
		for range 4 {
			p.busy++
			r.improve(t.Context(), p, 5, rdma.Info{Transport: rdma.TCP}, nil)
		}
		w.wantCalls(t)
		if p.improving != improveLimit || p.busy != 0 {
			t.Errorf("the next look is %v later, busy %d", p.improving, p.busy)
		}
	})
}

func TestUsefulRails(t *testing.T) {
	for _, c := range []struct {
		own           []int
		first, remote int
		want          []int
	}{
		{[]int{0, 1}, 0, 2, []int{1}},
		{[]int{0, 1}, 1, 2, []int{0}},
		{[]int{2, 3}, 2, 8, []int{3}},
		{[]int{2, 3}, 0, 3, []int{2}}, // none of the preferred ones was there at first
		{[]int{0, 1, 2, 3}, 0, 2, []int{1}},
		{[]int{0}, 0, 8, nil},
		{[]int{0, 1}, 0, 1, nil},
		{[]int{0, 1}, 0, 0, nil},
		{[]int{0, 1, 2, 3, 4, 5, 6, 7, 8}, 0, 9, []int{1, 2, 3, 4, 5, 6}},
		{nil, 0, 9, nil},
	} {
		if got := usefulRails(c.own, c.first, c.remote); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// Rails are added until the session is over: while they are, nobody connects anew.
func TestAddRails(t *testing.T) {
	w := &ways{}
	r, p, rec := withWays(t, rdma.Verbs, w)
	connect := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.connected(p, 5, rdma.Info{Transport: rdma.Verbs, Rail: 1})
		p.member.Endpoint.Rails = 4
	}
	connect()
	own := []int{0, 1, 2, 3}
	rec.rails = 1 | 1<<3 // rail 2 is there
	improve := func() {
		p.busy++
		r.improve(p.life, p, 5, p.info, own)
	}
	improve()
	w.wantCalls(t, "rail 0", "rail 3")
	wantEvents(t, rec, "rail 1 of 3, server false", "rail 4 of 3, server false")
	w.fail = map[string]error{"rail verbs": errors.New("no")}
	improve()
	w.wantCalls(t, "rail 0", "rail 3")
	if p.improving != 2*improveEvery {
		t.Errorf("the next look is %v later", p.improving)
	}
	w.fail = nil
	w.then = func(string) { r.drop(p, 5, errors.New("for a test")) }
	improve()
	w.wantCalls(t, "rail 0")
	wantEvents(t, rec, "lost b", "detach 3")
	if p.busy != 0 || p.life != nil {
		t.Errorf("busy %d, life %v", p.busy, p.life)
	}
	// Whoever dials is told to stop.
	connect()
	w.log, w.then = nil, nil
	asked := make(chan struct{})
	r.open = func(ctx context.Context, _ rdma.Identity, _ rdma.Endpoint, _ rdma.Lane, _ rdma.Shape, _ rdma.Choice) (*rdma.Link, rdma.Info, error) {
		close(asked)
		<-ctx.Done()
		return nil, rdma.Info{}, ctx.Err()
	}
	done := make(chan struct{})
	go func() { defer close(done); improve() }()
	<-asked
	r.drop(p, 5, errors.New("for a test"))
	<-done
}
