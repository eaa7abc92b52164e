package router

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/server"
)

// A request counts against its home until reports count it: one that waits there has a seat, one that begins has blocks.
func TestReportsEndCharges(t *testing.T) {
	members := map[string]cluster.Member{"a": {ID: "a", BlocksTotal: 100}, "b": {ID: "b", BlocksTotal: 100}}
	for _, tc := range []struct {
		name           string
		counted, shown uint64 // the first reports that do; 0: none yet
		load           *clusterpb.Load
		seats, blocks  bool // still are charged
	}{
		{"not taken yet", 0, 0, &clusterpb.Load{Report: 100}, true, true},
		{"an earlier report", 7, 0, &clusterpb.Load{Report: 6}, true, true},
		{"it waits in the report", 7, 0, &clusterpb.Load{Report: 7}, false, true},
		{"begun since", 7, 9, &clusterpb.Load{Report: 8}, false, true},
		{"its blocks are in the report", 7, 9, &clusterpb.Load{Report: 9}, false, false},
		{"a later report", 7, 9, &clusterpb.Load{Report: 1000}, false, false},
		{"reports without numbers", 7, 9, &clusterpb.Load{}, true, true},
		{"no report", 7, 9, nil, true, true},
	} {
		choose := func(free, seats uint32) string {
			loads := map[string]*clusterpb.Load{"b": {KvBlocksFree: 70}}
			if tc.load != nil {
				loads["a"] = &clusterpb.Load{Report: tc.load.Report, KvBlocksFree: free, MaxNumSeqs: seats}
			}
			r := New(nil, Config{Secret: secret, BlockSize: 16})
			c := &charge{router: r, instance: "a", blocks: 40}
			r.charges[c] = true
			c.taken(tc.counted)
			c.begun(tc.shown)
			m, _ := r.pick(members, loads, &want{need: 1})
			return m.ID
		}
		// Less 40 blocks it has fewer than b.
		if got := choose(100, 0); (got == "b") != tc.blocks {
			t.Errorf("%s: %s is chosen by room", tc.name, got)
		}
		// With one more it would be full.
		if got := choose(1000, 1); tc.load != nil && (got == "b") != tc.seats {
			t.Errorf("%s: %s is chosen by seats", tc.name, got)
		}
	}
}

// The next question about a document that is larger than a pool goes to the same home, as soon as there is room.
func TestChargeIsAtMostThePool(t *testing.T) {
	members := map[string]cluster.Member{"a": {ID: "a", BlocksTotal: 60}, "b": {ID: "b", BlocksTotal: 60}}
	r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	req := &engine.Request{Prompt: text(1, 6*placeTokens)} // 96 blocks
	send := func() (string, *charge) {
		w := r.want(req, "")
		m, c := r.pick(members, nil, w)
		r.sent(w, m.ID)
		return m.ID, c
	}
	if home, c := send(); home != "a" || c.blocks != 60 {
		t.Fatalf("%s is charged with %d blocks", home, c.blocks)
	}
	// The pool is taken until that has ended.
	if home, _ := send(); home != "b" {
		t.Fatalf("%s is charged while the first runs", home)
	}
	clear(r.charges)
	if home, _ := send(); home != "a" {
		t.Errorf("%s is charged, where a has the document", home)
	}
}

// Blocks that are only cached are free ones until a request begins with them; those that another request has count once.
func TestSharedBlocksAreChargedOnce(t *testing.T) {
	members := map[string]cluster.Member{"a": {ID: "a", BlocksTotal: 100}, "b": {ID: "b", BlocksTotal: 100}}
	base := text(1, 3*placeTokens) // 48 blocks
	longer := slices.Concat(base, text(7, placeTokens))
	for _, other := range []struct {
		name, at string // "": there is none
		tokens   []int32
		want     int
	}{
		{"none", "", nil, 48 + 16 + 1},
		{"the same beginning", "b", base, 16 + 1},
		{"more of it", "b", slices.Concat(base, text(9, placeTokens)), 16 + 1},
		{"less of it", "b", base[:2*placeTokens], 48 + 16 + 1},
		{"another text", "b", text(2, 3*placeTokens), 48 + 16 + 1},
		{"elsewhere", "a", base, 48 + 16 + 1},
	} {
		r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
		r.sent(r.want(&engine.Request{Prompt: base}, ""), "b")
		r.charges[&charge{router: r, instance: other.at, blocks: 1, hashes: r.places.hashes("", other.tokens)}] = true
		if m, c := r.pick(members, nil, r.want(&engine.Request{Prompt: longer}, "")); m.ID != "b" || c.blocks != other.want {
			t.Errorf("%s: %s is charged with %d blocks, want b with %d", other.name, m.ID, c.blocks, other.want)
		}
		// It has them now.
		if _, c := r.pick(members, nil, r.want(&engine.Request{Prompt: base}, "")); c.blocks != 1 {
			t.Errorf("%s: the next is charged with %d blocks", other.name, c.blocks)
		}
	}
}

// charged sends a request to an instance that does f, as submit does.
func charged(t *testing.T, f submitter, nextReport func() uint64) (*Router, *charge, *stream, *grpc.Server, error) {
	t.Helper()
	r, m, g := reporting(t, f, nextReport)
	m.BlocksTotal = 10
	w := r.want(&engine.Request{}, "")
	r.mu.Lock()
	_, c := r.pick(map[string]cluster.Member{m.ID: m}, nil, w)
	r.mu.Unlock()
	s, err := r.try(timeout(t), m, c, w, &engine.Request{TellBegun: true})
	return r, c, s, g, err
}

func (r *Router) charged() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.charges)
}

// However a request ends, it counts no more, and not before.
func TestStreamsEndCharges(t *testing.T) {
	next := func(ctx context.Context, s engine.Stream) { _, _ = s.Next(ctx) }
	for name, end := range map[string]func(t *testing.T, s *stream, at *fakeStream, g *grpc.Server){
		"it finishes": func(t *testing.T, s *stream, at *fakeStream, _ *grpc.Server) {
			at.ch <- engine.Event{Token: 2, HasToken: true, Finish: "length"}
			next(timeout(t), s)
		},
		"it fails": func(t *testing.T, s *stream, at *fakeStream, _ *grpc.Server) {
			at.ch <- engine.Event{Finish: "error", Err: kindError(server.KindNoRoom)}
			next(timeout(t), s)
		},
		"its home is lost": func(t *testing.T, s *stream, _ *fakeStream, g *grpc.Server) {
			g.Stop()
			next(timeout(t), s)
		},
		"nobody waits for it": func(t *testing.T, s *stream, _ *fakeStream, _ *grpc.Server) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			next(ctx, s)
		},
		"it is closed": func(_ *testing.T, s *stream, _ *fakeStream, _ *grpc.Server) {
			s.Close()
			s.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			at := newStream(engine.Event{Token: 1, HasToken: true})
			r, _, s, g, err := charged(t, takes(at), func() uint64 { return 1 })
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if ev, err := s.Next(timeout(t)); err != nil || ev.Token != 1 || r.charged() != 1 {
				t.Fatalf("%+v %v, %d charges", ev, err, r.charged())
			}
			if end(t, s, at, g); r.charged() != 0 {
				t.Errorf("%d charges", r.charged())
			}
		})
	}
	t.Run("it is refused", func(t *testing.T) {
		r, _, _, _, err := charged(t, func(context.Context, *engine.Request) (engine.Stream, error) {
			return nil, kindError(server.KindQueueFull)
		}, func() uint64 { return 1 })
		if err == nil || r.charged() != 0 {
			t.Errorf("%d charges, %v", r.charged(), err)
		}
	})
}

// The word that a request begins comes with the number of the report that will show it, and its reader does not see it.
func TestBegunIsToldToTheRouter(t *testing.T) {
	var report atomic.Uint64
	report.Store(5)
	at := newStream()
	var asked bool
	r, c, s, _, err := charged(t, func(_ context.Context, req *engine.Request) (engine.Stream, error) {
		asked = req.TellBegun
		return at, nil
	}, report.Load)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := func() []uint64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return []uint64{c.counted, c.shown}
	}
	if got := now(); !asked || s.begun || !slices.Equal(got, []uint64{5, 0}) {
		t.Fatalf("it was asked to tell: %v, begun %v, reports %v", asked, s.begun, got)
	}
	report.Store(8)
	at.ch <- engine.Event{Begun: true, StopToken: -1}
	at.ch <- engine.Event{Token: 1, HasToken: true, Finish: "length"}
	if ev, err := s.Next(timeout(t)); err != nil || !ev.HasToken || ev.Begun {
		t.Errorf("%+v %v", ev, err)
	}
	if got := now(); !s.begun || !slices.Equal(got, []uint64{5, 8}) {
		t.Errorf("begun %v, reports %v", s.begun, got)
	}
	if _, err := s.Next(timeout(t)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}
