package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

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
