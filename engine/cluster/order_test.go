package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/rdma"
)

// recorder stands for device and step loop, and writes down what they are told.
type recorder struct {
	mu     sync.Mutex
	events []string
	dead   error // PeerStatus
	spans  error // SpanSet
	rails  uint32
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.events
	r.events = nil
	return out
}

func (r *recorder) Place(kvcache.RequestID, string, string, int) error { return kvcache.ErrUnknown }

func (r *recorder) PeerAttach(p uint32, _, _ unsafe.Pointer) error {
	r.note("attach %d", p)
	return nil
}
func (r *recorder) PeerServe(p uint32, _, _ unsafe.Pointer) error { r.note("serve %d", p); return nil }
func (r *recorder) PeerDetach(p uint32) error                     { r.note("detach %d", p); return nil }
func (r *recorder) PeerStatus(uint32) error                       { return r.dead }
func (r *recorder) PeerRails(uint32) (out, puts uint32, noPuts string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rails, r.rails, ""
}

func (r *recorder) PeerRail(p, rail uint32, server bool, _ unsafe.Pointer) error {
	r.note("rail %d of %d, server %v", rail, p, server)
	return nil
}

func (r *recorder) SpanClose(h, g uint32) error         { r.note("close %d.%d", h, g); return nil }
func (r *recorder) PeerLost(id string)                  { r.note("lost %s", id) }
func (r *recorder) Report() (*pb.Load, []*pb.Placement) { return &pb.Load{}, nil }

func (r *recorder) SpanSet(owner, h, g uint32, blocks []int32) error {
	r.note("set %d.%d of %d: %d blocks", h, g, owner, len(blocks))
	return r.spans
}

func (r *recorder) SpanShare(owner, h, g uint32, blocks []int32) error {
	r.note("share %d.%d with %d: %d blocks", h, g, owner, len(blocks))
	return r.spans
}

func (r *recorder) Found(id kvcache.RequestID, found []kvcache.Found) {
	r.note("found %d: %v", id, found)
}

func (r *recorder) Moved(o Outcome) {
	r.note("moved %d: began %v, lost %v", o.Request, o.Began, errors.Is(o.Err, errLost))
}

// withPeer is a manager of 8 blocks with one peer, b, at index 3.
func withPeer(t *testing.T) (*RManager, *peer, *recorder) {
	t.Helper()
	conn, err := grpc.NewClient("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{}
	p := &peer{id: "b", index: 3, conn: conn, client: pb.NewKVClient(conn)}
	r := newView(t, p)
	r.home, r.links, r.spans, r.byIndex[3] = rec, rec, rec, p
	t.Cleanup(r.Close)
	return r, p, rec
}

func wantEvents(t *testing.T, rec *recorder, want ...string) {
	t.Helper()
	if got := rec.take(); !slices.Equal(got, want) {
		t.Errorf("happened: %q, want %q", got, want)
	}
}

// The step loop hears of a loss before the peer can come back, and old links are gone before new ones come.
func TestOldLinksEndFirst(t *testing.T) {
	r, p, rec := withPeer(t)
	connect := func(session uint64) {
		p.busy++
		r.serve(p, session, &rdma.Link{}, &rdma.Link{})
	}
	connect(7)
	wantEvents(t, rec, "serve 3")
	connect(8)
	wantEvents(t, rec, "lost b", "detach 3", "serve 3")
	if !r.serves(p, 8) || r.serves(p, 7) || r.serves(p, 0) {
		t.Error("another session than the last is served")
	}
	// Own links to it died, which nobody has noticed.
	p.serving, p.session = 0, 5
	connect(9)
	wantEvents(t, rec, "serve 3")
	p.serving, rec.dead = 0, errors.New("dead")
	connect(10)
	wantEvents(t, rec, "lost b", "detach 3", "serve 3")
	r.drop(p, 5, errors.New("for a test"))
	wantEvents(t, rec) // that session is over
	r.drop(p, 0, errors.New("for a test"))
	wantEvents(t, rec, "lost b", "detach 3")
	r.drop(p, 0, errors.New("for a test"))
	wantEvents(t, rec)
	if p.busy != 0 {
		t.Errorf("busy %d", p.busy)
	}
}

// Links that end as soon as they begin are tried less and less often; those that lived long, at once.
func TestFlappingLinks(t *testing.T) {
	r, p, _ := withPeer(t)
	fall := func(lived time.Duration) time.Duration {
		p.session, p.upSince = 5, time.Now().Add(-lived)
		r.drop(p, 0, errors.New("for a test"))
		return p.backoff
	}
	var got []time.Duration
	for range 6 {
		got = append(got, fall(0))
	}
	if want := []time.Duration{firstRetry, 2 * firstRetry, 4 * firstRetry, 8 * firstRetry, flapRetry, flapRetry}; !slices.Equal(got, want) {
		t.Errorf("retried after %v, want %v", got, want)
	}
	if got := fall(2 * lastRetry); got != firstRetry {
		t.Errorf("after a long life retried after %v", got)
	}
}

// What was seen of links that were replaced meanwhile does not end the new ones.
func TestLateNewsOfOldLinks(t *testing.T) {
	r, p, rec := withPeer(t)
	p.session, p.serving = 5, 6
	p.hostMu.Lock()
	r.PeerIndexLost(3)
	r.PeerIndexLost(3)
	r.mu.Lock()
	p.serving = 7
	r.mu.Unlock()
	p.hostMu.Unlock()
	eventually(t, "the news is looked at", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return p.busy == 0 && !p.dropping
	})
	wantEvents(t, rec)
	r.PeerIndexLost(3)
	r.PeerIndexLost(200)
	r.PeerIndexLost(-1)
	eventually(t, "it is down", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return p.busy == 0 && p.session == 0
	})
	wantEvents(t, rec, "lost b", "detach 3")
}

// A move whose links ended before its outcome was told came to nothing: the step loop has heard of the loss
// already, and would take the blocks for safe.
func TestMovesOfAnEndedSession(t *testing.T) {
	r, p, rec := withPeer(t)
	p.session = 5
	r.report(offload{request: 1}, placed{peer: p, session: 5, began: true}, nil)
	r.drop(p, 0, errors.New("for a test"))
	r.report(offload{request: 2}, placed{peer: p, session: 5, began: true}, nil)
	p.session = 6
	r.report(offload{request: 3}, placed{peer: p, session: 5, began: true}, nil)
	wantEvents(t, rec, "moved 1: began true, lost false", "lost b", "detach 3", "moved 2: began true, lost true", "moved 3: began true, lost true")
}

// Another process under a peer's id is another peer, also when the links of the old one still live.
func TestAnotherProcessReplacesThePeer(t *testing.T) {
	r, p, rec := withPeer(t)
	listener, err := rdma.Listen(rdma.ListenConfig{Identity: rdma.Identity{Instance: "me"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	r.listener = listener
	p.session, p.serving = 5, 6
	r.reconcile(map[string]Member{"b": {ID: "b", Address: "127.0.0.1:1", Session: "2"}})
	eventually(t, "the old one is down", func() bool {
		r.reconcile(map[string]Member{"b": {ID: "b", Address: "127.0.0.1:1", Session: "2"}})
		return r.peerByID("b") != p
	})
	wantEvents(t, rec, "lost b", "detach 3")
	if now := r.peerByID("b"); now.index == p.index || now.member.Session != "2" {
		t.Errorf("the new one is %+v", now.member)
	}
}

func tryMove(t *testing.T, r *RManager, req *pb.TryMoveKVRequest) *pb.TryMoveKVReply {
	t.Helper()
	req.Owner = "b"
	reply, err := r.TryMoveKV(t.Context(), req)
	if err != nil {
		t.Fatalf("%v: %v", req, err)
	}
	return reply
}

func TestHosting(t *testing.T) {
	r, p, rec := withPeer(t)
	p.serving = 9
	if got := tryMove(t, r, &pb.TryMoveKVRequest{Blocks: 2, Ticket: 1, Session: 8}); got.Accepted != 0 || got.Hostable != 0 || got.Reason == "" {
		t.Errorf("over links that are gone: %v", got)
	}
	if got, err := r.TryMoveKV(t.Context(), &pb.TryMoveKVRequest{Owner: "x", Blocks: 1, Session: 9}); err != nil || got.Accepted != 0 {
		t.Errorf("a stranger: %v %v", got, err)
	}
	for _, req := range []*pb.TryMoveKVRequest{{Blocks: 0, Ticket: 1}, {Blocks: 1, First: 1, Ticket: 1}, {Blocks: 1, Handle: 5, Generation: 1}, {Blocks: 1, Handle: 1 << 31, Generation: 1}} {
		req.Session = 9
		if got := tryMove(t, r, req); got.Accepted != 0 || got.Reason == "" {
			t.Errorf("%v: %v", req, got)
		}
	}
	wantEvents(t, rec)
	open := tryMove(t, r, &pb.TryMoveKVRequest{Blocks: 1 << 31, Ticket: 2, Session: 9})
	if open.Accepted != 8 || open.Hostable != 0 || open.Generation == 0 {
		t.Fatalf("all of it: %v", open)
	}
	wantEvents(t, rec, "set 0.1 of 3: 8 blocks")
	// Of these the home uses two: the others wait behind them for its next call.
	more := &pb.TryMoveKVRequest{Blocks: 4, Handle: open.Handle, Generation: open.Generation, First: 2, Session: 9}
	for range 2 {
		if got := tryMove(t, r, more); got.Accepted != 4 || got.Handle != open.Handle {
			t.Errorf("behind two: %v", got)
		}
	}
	more.First = 1 << 31
	if got := tryMove(t, r, more); got.Accepted != 0 {
		t.Errorf("behind what is not there: %v", got)
	}
	rec.take()
	release := func(req *pb.ReleaseKVRequest) {
		t.Helper()
		req.Owner = "b"
		if _, err := r.ReleaseKV(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	span := []*pb.SpanHandle{{Handle: open.Handle, Generation: open.Generation}}
	release(&pb.ReleaseKVRequest{Session: 8, Spans: span})
	release(&pb.ReleaseKVRequest{Session: 9, Spans: []*pb.SpanHandle{{Handle: 0, Generation: 7}, {Handle: 1 << 31, Generation: 1}}})
	wantEvents(t, rec)
	release(&pb.ReleaseKVRequest{Session: 9, Spans: span})
	release(&pb.ReleaseKVRequest{Session: 9, Spans: span})
	wantEvents(t, rec, "close 0.1")
	if _, err := r.ReleaseKV(t.Context(), &pb.ReleaseKVRequest{Owner: "b", Session: 9, Tickets: make([]uint64, maxRelease+1)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a long list: %v", err)
	}
}

// What a debtor gave up ends, and does not begin any more.
func TestGivenUpCalls(t *testing.T) {
	r, p, rec := withPeer(t)
	p.serving = 9
	tryMove(t, r, &pb.TryMoveKVRequest{Blocks: 3, Ticket: 5, Session: 9})
	if _, err := r.ReleaseKV(t.Context(), &pb.ReleaseKVRequest{Owner: "b", Session: 9, Tickets: []uint64{5, 6}}); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, rec, "set 0.1 of 3: 3 blocks", "close 0.1")
	if _, err := r.TryMoveKV(t.Context(), &pb.TryMoveKVRequest{Owner: "b", Blocks: 3, Ticket: 6, Session: 9}); status.Code(err) != codes.Canceled {
		t.Errorf("a late call: %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.TryMoveKV(over, &pb.TryMoveKVRequest{Owner: "b", Blocks: 3, Ticket: 7, Session: 9}); status.Code(err) != codes.Canceled {
		t.Errorf("a call whose caller is gone: %v", err)
	}
	if got := tryMove(t, r, &pb.TryMoveKVRequest{Blocks: 3, Ticket: 8, Session: 9}); got.Accepted != 3 {
		t.Errorf("the next: %v", got)
	}
	// The device refuses: a new span is gone again, one in use stays as the debtor knows it.
	rec.spans = errors.New("no memory")
	if got := tryMove(t, r, &pb.TryMoveKVRequest{Blocks: 3, Ticket: 9, Session: 9}); got.Accepted != 0 || got.Hostable != 5 {
		t.Errorf("without the device: %v", got)
	}
	more := &pb.TryMoveKVRequest{Blocks: 4, Handle: 0, Generation: 2, First: 2, Session: 9}
	if got := tryMove(t, r, more); got.Accepted != 0 {
		t.Errorf("without the device: %v", got)
	}
	rec.spans = nil
	if got := tryMove(t, r, more); got.Accepted != 4 {
		t.Errorf("in the end: %v", got)
	}
	if h := r.kv.HostedOf("b"); len(h) != 1 || len(h[0].Blocks) != 6 {
		t.Errorf("hosted: %+v", h)
	}
}

// Lanes come in either order, and what belongs to nothing is closed.
func TestAccept(t *testing.T) {
	r, p, rec := withPeer(t)
	r.rails = rec
	p.member.Endpoint.Process = "x"
	lane := func(kind rdma.Lane, pair uint64, rail int) rdma.Accepted {
		return rdma.Accepted{From: "b", Process: "x", Lane: kind, Pair: pair, Rail: rail, Link: &rdma.Link{}}
	}
	take := func(a rdma.Accepted, want ...*rdma.Link) {
		t.Helper()
		if got := r.take(a); !slices.Equal(got, want) {
			t.Errorf("%s of %d: %d links are closed, want %d", a.Lane, a.Pair, len(got), len(want))
		}
	}
	through := func(want ...string) {
		t.Helper()
		eventually(t, "nothing is under way", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return p.busy == 0
		})
		wantEvents(t, rec, want...)
	}
	stranger, old := lane(rdma.LaneQuery, 7, 0), lane(rdma.LaneQuery, 7, 0)
	stranger.Process = "y"
	take(stranger, stranger.Link)
	take(old)
	again := lane(rdma.LaneQuery, 8, 0)
	take(again, old.Link)
	through()
	take(lane(rdma.LaneMove, 8, 0))
	through("serve 3")
	take(lane(rdma.LaneRail, 8, 2))
	through("rail 3 of 3, server true")
	take(lane(rdma.LaneRail, 7, 2)) // of a session that is over
	through()
	far := lane(rdma.LaneRail, 8, maxRails)
	take(far, far.Link)
	take(lane(rdma.LaneMove, 9, 0))
	take(lane(rdma.LaneQuery, 9, 0))
	through("lost b", "detach 3", "serve 3")
	half := lane(rdma.LaneMove, 10, 0)
	take(half)
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	last, rail := lane(rdma.LaneQuery, 10, 0), lane(rdma.LaneRail, 9, 2)
	take(last, last.Link, half.Link)
	take(rail, rail.Link)
}

// What is known of links counts while they are up.
func TestRoundTrip(t *testing.T) {
	r, p, _ := withPeer(t)
	p.info.LatencyP50 = time.Millisecond
	q := &peer{id: "c", index: 4, conn: p.conn, client: p.client, session: 9, info: rdma.Info{LatencyP50: time.Microsecond}}
	r.mu.Lock()
	r.peers["c"] = q
	r.mu.Unlock()
	if d := r.RoundTrip(); d != time.Microsecond {
		t.Errorf("%s with a peer that is not connected", d)
	}
	p.session = 5
	if d := r.RoundTrip(); d != time.Millisecond {
		t.Errorf("%s is not the farthest", d)
	}
}
