package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/rdma"
)

// startSharing is startCluster of instances that cache prefixes and search for what saves 32 tokens.
func startSharing(t *testing.T, transport rdma.Transport, pools ...int) []*instance {
	t.Helper()
	e, _ := startEtcd(t)
	etcd := []string{e.Endpoint}
	startManager(t, etcd)
	var nodes []*instance
	for i, blocks := range pools {
		nodes = append(nodes, startInstanceWith(t, etcd, fmt.Sprintf("i%d", i), blocks, transport, func(cfg *engine.Config) {
			cfg.PrefixCaching, cfg.Sched.MinShared = true, 32
		}))
	}
	for i, n := range nodes {
		eventually(t, n.id+" is connected", func() bool { return n.connected(nodes[i+1:]...) })
	}
	return nodes
}

// notHeld: no link is kept from being replaced any more.
func (n *instance) notHeld() {
	n.t.Helper()
	eventually(n.t, n.id+" holds no peer's links", func() bool {
		n.rman.mu.Lock()
		defer n.rman.mu.Unlock()
		for _, p := range n.rman.peers {
			if p.placing != 0 {
				return false
			}
		}
		return true
	})
}

// askNear is ask of an instance that is told whom to search.
func (n *instance) askNear(near string, seed, tokens, answer int) engine.Stream {
	n.t.Helper()
	s, err := n.eng.Submit(context.Background(), &engine.Request{
		ID: fmt.Sprintf("%s-%d", n.id, seed), Prompt: prompt(seed, tokens), MaxTokens: answer, Logprobs: -1, PromptLogprobs: -1,
		Sampling: batch.Sampling{TopP: 1, Repetition: 1}, Near: near,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// A prompt that no pool has room for is asked again, of its home and of another instance: most of its KV is used where
// it lies, and the answers are those of one large instance.
func TestSharedPrefix(t *testing.T) {
	for _, transport := range []rdma.Transport{rdma.SHM, rdma.TCP} {
		t.Run(string(transport), func(t *testing.T) {
			nodes := startSharing(t, transport, 24, 40, 40)
			sameAnswer(t, nodes[0].ask(1, 200, 40), 1, 200, 40)
			settled(t, nodes...)
			for _, tc := range []struct {
				home *instance
				near string
			}{{nodes[0], ""}, {nodes[0], "i2"}, {nodes[2], "i0"}, {nodes[2], ""}} {
				before := tc.home.eng.Stats()
				sameAnswer(t, tc.home.askNear(tc.near, 1, 200, 40), 1, 200, 40)
				after := tc.home.eng.Stats()
				if hits, shared := after.PrefixHits-before.PrefixHits, after.SharedHits-before.SharedHits; hits < 150 || shared > hits || tc.home == nodes[0] && shared < 32 {
					t.Errorf("%s near %q: %d of 200 tokens are found, %d of them with others", tc.home.id, tc.near, hits, shared)
				}
				settled(t, nodes...)
			}
			for _, n := range nodes {
				n.notHeld()
				if c := n.kv.Counts(); c.Shared != 0 || len(n.lost) != 0 {
					t.Errorf("%s: %+v, lost %d peers", n.id, c, len(n.lost))
				}
			}
		})
	}
}

// Who has the beginning of a text itself finds what follows, with one that nobody has named for just that block.
func TestOwnBeginning(t *testing.T) {
	nodes := startSharing(t, rdma.SHM, 24, 60, 50)
	sameAnswer(t, nodes[2].ask(1, 40, 5), 1, 40, 5)
	settled(t, nodes...)
	sameAnswer(t, nodes[0].ask(1, 200, 10), 1, 200, 10) // what it has no room for goes to the second
	settled(t, nodes...)
	keys := keysOfPrompt(1, 200)
	if a, b := nodes[1].kv.Run(keys), nodes[2].kv.Run(keys); a < 20 || b < 10 || b >= a {
		t.Fatalf("%d and %d of the first blocks are with the others", a, b)
	}
	before := nodes[2].eng.Stats()
	sameAnswer(t, nodes[2].askNear("i0", 1, 200, 10), 1, 200, 10)
	after := nodes[2].eng.Stats()
	if hits, shared := after.PrefixHits-before.PrefixHits, after.SharedHits-before.SharedHits; hits < 190 || shared < 140 || shared > 160 {
		t.Errorf("%d of 200 tokens are found, %d of them with others", hits, shared)
	}
	settled(t, nodes...)
}

// Answers to searches are lost, or do not come at all: their requests compute what they cannot have, nothing stays open,
// and nobody is given up.
func TestLostSearches(t *testing.T) {
	for _, how := range []string{"lost", "late"} {
		t.Run(how, func(t *testing.T) {
			nodes := startSharing(t, rdma.SHM, 80, 80)
			sameAnswer(t, nodes[0].ask(1, 200, 10), 1, 200, 10)
			settled(t, nodes...)
			var calls atomic.Int64
			nodes[0].setFault(func(ctx context.Context, method string, served bool) error {
				switch {
				case method != "ShareKV" || how == "late" && served || how != "late" && !served:
					return nil
				}
				if calls.Add(1); how == "late" {
					<-ctx.Done()
				}
				return status.Error(codes.Unavailable, "the answer is lost")
			})
			sameAnswer(t, nodes[1].askNear("i0", 1, 200, 10), 1, 200, 10)
			settled(t, nodes...)
			if st := nodes[1].eng.Stats(); calls.Load() == 0 || st.SharedHits != 0 {
				t.Errorf("%d calls were lost, %+v", calls.Load(), st)
			}
			eventually(t, "nothing is shared", func() bool { return nodes[0].kv.Counts().Shared == 0 })
			if len(nodes[0].lost)+len(nodes[1].lost) != 0 {
				t.Error("a peer was given up")
			}
			nodes[1].notHeld()
		})
	}
}

// An instance whose blocks are used by another one's request stops: the request is computed anew.
func TestSharingInstanceStops(t *testing.T) {
	nodes := startSharing(t, rdma.SHM, 80, 80)
	sameAnswer(t, nodes[0].ask(1, 200, 10), 1, 200, 10)
	nodes[1].hold.Store(true)
	s := nodes[1].askNear("i0", 1, 200, 60)
	first, err := s.Next(t.Context())
	if err != nil || first.Cached < 150 || nodes[0].kv.Counts().Shared == 0 {
		t.Fatal(first, err)
	}
	nodes[0].stop()
	nodes[1].hold.Store(false)
	got, err := answer(t, s)
	if want := alone().answer(t, 1, 200, 60); err != nil || !slices.Equal(append([]int32{first.Token}, got...), want) {
		t.Fatalf("%d tokens: %v", len(got), err)
	}
	if st := nodes[1].eng.Stats(); st.Recoveries != 1 {
		t.Errorf("%+v", st)
	}
	settled(t, nodes[1])
}

// named is a manager of 8 blocks with one peer, b, that has the KV of 5 blocks which nobody uses.
func named(t *testing.T) (*RManager, *peer, *recorder, []kvcache.Key) {
	t.Helper()
	r, p, rec := withPeer(t)
	p.serving = 7
	keys := kvcache.AppendKeys(nil, kvcache.RootKey(""), prompt(1, 5*r.kv.BlockSize()), r.kv.BlockSize())
	if err := errors.Join(r.kv.Open(1), r.kv.Grow(1, 5*r.kv.BlockSize()), r.kv.SetComputed(1, 5*r.kv.BlockSize())); err != nil {
		t.Fatal(err)
	}
	r.kv.Name(1, keys)
	r.kv.Close(1)
	return r, p, rec, keys
}

func TestShareKV(t *testing.T) {
	r, p, rec, keys := named(t)
	other := kvcache.AppendKeys(nil, kvcache.RootKey("x"), prompt(1, 20), r.kv.BlockSize())
	ask := func(req *pb.ShareKVRequest) (*pb.ShareKVReply, codes.Code) {
		t.Helper()
		reply, err := r.ShareKV(t.Context(), req)
		return reply, status.Code(err)
	}
	all := bytesOf(keys)
	for _, tc := range []struct {
		name string
		req  *pb.ShareKVRequest
		code codes.Code
		want string
	}{
		{"stranger", &pb.ShareKVRequest{Owner: "z", Keys: all, Session: 7, Ticket: 1}, codes.OK, "this instance does not know z"},
		{"other session", &pb.ShareKVRequest{Owner: "b", Keys: all, Session: 8, Ticket: 1}, codes.OK, "no such link from b"},
		{"no keys", &pb.ShareKVRequest{Owner: "b", Session: 7, Ticket: 1}, codes.InvalidArgument, ""},
		{"half a key", &pb.ShareKVRequest{Owner: "b", Keys: all[:33], Session: 7, Ticket: 1}, codes.InvalidArgument, ""},
		{"too many", &pb.ShareKVRequest{Owner: "b", Keys: make([]byte, 32*(maxKeys+1)), Session: 7, Ticket: 1}, codes.InvalidArgument, ""},
		{"not here", &pb.ShareKVRequest{Owner: "b", Keys: bytesOf(other), Session: 7, Ticket: 1}, codes.OK,
			"cannot share blocks with b: the first is not here: unknown to the KV pool"},
	} {
		reply, code := ask(tc.req)
		if code != tc.code || code == codes.OK && (reply.Blocks != 0 || reply.Reason != tc.want || reply.Unknown != (tc.name == "not here")) {
			t.Errorf("%s: %v %v", tc.name, reply, code)
		}
	}
	wantEvents(t, rec)

	got, code := ask(&pb.ShareKVRequest{Owner: "b", Keys: append(bytesOf(keys[:3]), bytesOf(other)...), Session: 7, Ticket: 2})
	if code != codes.OK || got.Blocks != 3 || got.Generation == 0 {
		t.Fatal(got, code)
	}
	wantEvents(t, rec, "share 0.1 with 3: 3 blocks")
	if c := r.kv.Counts(); c.Shared != 3 || c.Owned != 3 || c.Cached != 2 {
		t.Errorf("%+v", c)
	}
	// Nothing is added to it, and its end leaves the blocks as they were.
	extend, err := r.TryMoveKV(t.Context(), &pb.TryMoveKVRequest{Owner: "b", Blocks: 1, Handle: got.Handle, Generation: got.Generation, First: 3, Session: 7, Ticket: 3})
	if err != nil || extend.Accepted != 0 {
		t.Errorf("extended: %v %v", extend, err)
	}
	release := &pb.ReleaseKVRequest{Owner: "b", Session: 7, Spans: []*pb.SpanHandle{{Handle: got.Handle, Generation: got.Generation, Keys: bytesOf(other)}}}
	if _, err := r.ReleaseKV(t.Context(), release); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, rec, "close 0.1")
	if c := r.kv.Counts(); c.Shared != 0 || c.Cached != 5 || r.kv.Run(other) != 0 {
		t.Errorf("%+v", c)
	}
	// A call that was given up is refused when it comes late; what one that was heard opened ends with its ticket.
	if got, _ = ask(&pb.ShareKVRequest{Owner: "b", Keys: all, Session: 7, Ticket: 4}); got.Blocks != 5 {
		t.Fatal(got)
	}
	if _, err := r.ReleaseKV(t.Context(), &pb.ReleaseKVRequest{Owner: "b", Session: 7, Tickets: []uint64{4}}); err != nil || r.kv.Counts().Shared != 0 {
		t.Fatal(err, r.kv.Counts())
	}
	if _, code = ask(&pb.ShareKVRequest{Owner: "b", Keys: all, Session: 7, Ticket: 4}); code != codes.Canceled {
		t.Error(code)
	}
	// What is not here is left out, and who may have the first of that is told.
	if err := r.kv.Open(2); err != nil {
		t.Fatal(err)
	}
	lead := kvcache.Found{Span: kvcache.Span{Instance: "c", Blocks: 3, Shared: true}, Has: []int32{0, 1, 2}}
	if tokens, _ := r.kv.Adopt(2, []kvcache.Found{lead}, other); tokens != 3*r.kv.BlockSize() || len(r.kv.Close(2)) != 1 {
		t.Fatal(tokens)
	}
	mixed := []kvcache.Key{keys[0], keys[1], other[0], keys[2], other[1], keys[3], keys[4]}
	got, _ = ask(&pb.ShareKVRequest{Owner: "b", Keys: bytesOf(mixed), Session: 7, Ticket: 40})
	if got.Blocks != 5 || !slices.Equal(got.Runs, []uint32{0, 2, 3, 1, 5, 2}) || got.Next != "c" {
		t.Fatal(got)
	}
	if _, err := r.ReleaseKV(t.Context(), &pb.ReleaseKVRequest{Owner: "b", Session: 7, Tickets: []uint64{40}}); err != nil || r.kv.Counts().Shared != 0 {
		t.Fatal(err, r.kv.Counts())
	}
	// Who had those before it may have it.
	for n, next := range []string{"c", "c", "c", ""} {
		got, code = ask(&pb.ShareKVRequest{Owner: "b", Keys: bytesOf(other[n : n+1]), Before: bytesOf(other[:n]), Session: 7, Ticket: 41})
		if code != codes.OK || !got.Unknown || got.Next != next {
			t.Errorf("block %d: %v %v", n, got, code)
		}
	}
	if _, code = ask(&pb.ShareKVRequest{Owner: "b", Keys: all, Before: all[:33], Session: 7, Ticket: 42}); code != codes.InvalidArgument {
		t.Error(code)
	}
	// What the device does not take is not shared; a lost peer's uses end.
	rec.spans = errors.New("for a test")
	if got, _ = ask(&pb.ShareKVRequest{Owner: "b", Keys: all, Session: 7, Ticket: 50}); got.Blocks != 0 || r.kv.Counts().Shared != 0 {
		t.Error(got, r.kv.Counts())
	}
	rec.spans = nil
	if got, _ = ask(&pb.ShareKVRequest{Owner: "b", Keys: all, Session: 7, Ticket: 60}); got.Blocks != 5 {
		t.Fatal(got)
	}
	r.drop(p, 0, errors.New("for a test"))
	if c := r.kv.Counts(); c.Shared != 0 || c.Free != c.Total {
		t.Errorf("%+v", c)
	}
}

// What was moved here is kept when its owner says what it is, and only as far as it says.
func TestReleasedBlocksAreKept(t *testing.T) {
	r, _, _, _ := named(t)
	keys := kvcache.AppendKeys(nil, kvcache.RootKey("moved"), prompt(1, 3*r.kv.BlockSize()), r.kv.BlockSize())
	grant, err := r.TryMoveKV(t.Context(), &pb.TryMoveKVRequest{Owner: "b", Blocks: 3, Session: 7, Ticket: 1})
	if err != nil || grant.Accepted != 3 {
		t.Fatal(grant, err)
	}
	release := &pb.ReleaseKVRequest{Owner: "b", Session: 7, Spans: []*pb.SpanHandle{{Handle: grant.Handle, Generation: grant.Generation, Keys: bytesOf(keys)[:33]}}}
	if _, err := r.ReleaseKV(t.Context(), release); status.Code(err) != codes.InvalidArgument || r.kv.Counts().Hosted != 3 {
		t.Fatal(err, r.kv.Counts())
	}
	release.Spans[0].Keys = bytesOf(keys[:2])
	if _, err := r.ReleaseKV(t.Context(), release); err != nil || r.kv.Run(keys) != 2 || r.kv.Counts().Hosted != 0 {
		t.Fatal(err, r.kv.Run(keys), r.kv.Counts())
	}
}

// What is moved here may be used by others as soon as its owner has said what it is.
func TestNamedBlocksAreShared(t *testing.T) {
	r, p, _, _ := named(t)
	keys := kvcache.AppendKeys(nil, kvcache.RootKey("moved"), prompt(1, 3*r.kv.BlockSize()), r.kv.BlockSize())
	grant, err := r.TryMoveKV(t.Context(), &pb.TryMoveKVRequest{Owner: "b", Blocks: 3, Session: 7, Ticket: 1})
	if err != nil || grant.Accepted != 3 {
		t.Fatal(grant, err)
	}
	for _, tc := range []struct {
		name string
		req  *pb.NameKVRequest
		code codes.Code
		run  int
	}{
		{"stranger", &pb.NameKVRequest{Owner: "z", Keys: bytesOf(keys), Session: 7}, codes.OK, 0},
		{"other session", &pb.NameKVRequest{Owner: "b", Keys: bytesOf(keys), Session: 8}, codes.OK, 0},
		{"other span", &pb.NameKVRequest{Owner: "b", Handle: 5, Keys: bytesOf(keys), Session: 7}, codes.OK, 0},
		{"half a key", &pb.NameKVRequest{Owner: "b", Keys: bytesOf(keys)[:40], Session: 7}, codes.InvalidArgument, 0},
		{"too many", &pb.NameKVRequest{Owner: "b", Keys: bytesOf(keys), First: 1, Session: 7}, codes.InvalidArgument, 0},
		{"far away", &pb.NameKVRequest{Owner: "b", Keys: bytesOf(keys), First: 1 << 31, Session: 7}, codes.InvalidArgument, 0},
		{"two", &pb.NameKVRequest{Owner: "b", Keys: bytesOf(keys[:2]), Session: 7}, codes.OK, 2},
		{"the third", &pb.NameKVRequest{Owner: "b", Keys: bytesOf(keys[2:]), First: 2, Session: 7}, codes.OK, 3},
	} {
		if tc.name != "other span" {
			tc.req.Handle = grant.Handle
		}
		tc.req.Generation = grant.Generation
		if _, err := r.NameKV(t.Context(), tc.req); status.Code(err) != tc.code || r.kv.Run(keys) != tc.run {
			t.Errorf("%s: %v, %d blocks are found", tc.name, err, r.kv.Run(keys))
		}
	}
	// They outlive their owner's span while others use them, and its loss.
	got, err := r.ShareKV(t.Context(), &pb.ShareKVRequest{Owner: "b", Keys: bytesOf(keys), Session: 7, Ticket: 2})
	if err != nil || got.Blocks != 3 || r.kv.Counts().Owned != 0 {
		t.Fatal(got, err, r.kv.Counts())
	}
	release := &pb.ReleaseKVRequest{Owner: "b", Session: 7, Spans: []*pb.SpanHandle{{Handle: grant.Handle, Generation: grant.Generation}}}
	if _, err := r.ReleaseKV(t.Context(), release); err != nil || r.kv.Counts().Owned != 3 || r.kv.Counts().Hosted != 0 {
		t.Fatal(err, r.kv.Counts())
	}
	r.drop(p, 0, errors.New("for a test"))
	if c := r.kv.Counts(); c.Free != c.Total || r.kv.Run(keys) != 3 {
		t.Errorf("%+v", c)
	}
}

// Two requests about a text that no pool has room for run at once, each at a home of its own: the second uses what the
// first has moved away, while it runs, and what it has.
func TestSharedWithOneThatRuns(t *testing.T) {
	nodes := startSharing(t, rdma.SHM, 30, 44, 30)
	nodes[0].hold.Store(true)
	first := nodes[0].ask(1, 200, 20)
	if ev, err := first.Next(t.Context()); err != nil || !ev.HasToken {
		t.Fatal(ev, err)
	}
	// The prompt leaves 20 blocks to others and the held step's token one more. What has moved and is not named yet is
	// found nowhere, nor what lies behind it.
	eventually(t, "what was moved is named", func() bool {
		named, hosted := 0, 0
		for _, n := range nodes[1:] {
			named += n.kv.Run(keysOfPrompt(1, 200))
			hosted += n.kv.Counts().Hosted
		}
		return named > 20 && named == hosted
	})
	sameAnswer(t, nodes[2].askNear("i0", 1, 200, 20), 1, 200, 20)
	if st := nodes[2].eng.Stats(); st.SharedHits < 100 {
		t.Errorf("%+v", st)
	}
	nodes[0].hold.Store(false)
	got, err := answer(t, first)
	if want := alone().answer(t, 1, 200, 20); err != nil || !slices.Equal(got, want[1:]) {
		t.Fatalf("%d tokens: %v", len(got), err)
	}
	settled(t, nodes...)
}

func keysOfPrompt(seed, n int) []kvcache.Key {
	return kvcache.AppendKeys(nil, kvcache.RootKey(""), prompt(seed, n), testBlock)
}

// A search whose instance was lost meanwhile has found nothing there. What is missing then makes spans behind it useless,
// and no others.
func TestSearchOverAnEndedSession(t *testing.T) {
	r, p, rec := withPeer(t)
	q := &peer{id: "c", index: 4, conn: p.conn, client: p.client, session: 9}
	r.peers["c"] = q
	span := func(p *peer, handle uint32, has ...int32) found {
		p.placing++
		return found{creditor{p, 5}, kvcache.Found{Has: has,
			Span: kvcache.Span{Instance: p.id, Peer: p.index, Handle: handle, Generation: 1, Blocks: len(has), Shared: true}}}
	}
	p.session = 5
	s := func(request kvcache.RequestID) search {
		return search{request: request, keys: keysOfPrompt(1, 6*testBlock)}
	}
	r.deliver(s(1), []found{span(p, 1, 0, 1), span(p, 2, 2, 3)})
	r.deliver(s(2), []found{span(p, 1, 0, 1), span(q, 1, 2, 3), span(p, 3, 4, 5)})
	r.deliver(s(3), nil)
	r.deliver(s(4), []found{span(p, 4, 1, 4), span(q, 2, 3), span(p, 5, 0, 2), span(p, 6, 5)})
	wantEvents(t, rec, "found 1: [{{b 3 1 1 2 true false} [0 1]} {{b 3 2 1 2 true false} [2 3]}]", "found 2: [{{b 3 1 1 2 true false} [0 1]}]", "found 3: []",
		"found 4: [{{b 3 4 1 2 true false} [1 4]} {{b 3 5 1 2 true false} [0 2]}]")
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.placing != 0 || q.placing != 0 || len(p.owed.spans) != 2 || p.owed.spans[0].Handle != 3 || p.owed.spans[1].Handle != 6 {
		t.Errorf("%d and %d are held, owed is %+v", p.placing, q.placing, p.owed)
	}
}
