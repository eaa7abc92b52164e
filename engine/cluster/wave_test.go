package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infinite-llm/infinite/engine"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
	"github.com/infinite-llm/infinite/rdma"
)

func (h testHome) Formed(id kvcache.RequestID, number uint32, c kvcache.Course, spans []kvcache.Span) {
	h.eng.Formed(id, engine.Formation{Number: number, Course: c, Spans: spans})
}

func (h testHome) Started(id kvcache.RequestID, spans []kvcache.Span, err error) {
	h.eng.Started(id, spans, err)
}

func (h testHome) Helps(tokens int) error { return h.eng.Helps(tokens) }

func (h testHome) Assist(ctx context.Context, number uint32, f Form, c kvcache.Course) (kvcache.RequestID, error) {
	return h.eng.Assist(ctx, engine.Assist{Number: number, Course: c, Text: engine.WaveText{ID: f.ID, Tokens: f.Text, Salt: f.Salt, Arrival: f.Arrival}})
}

// startWaves is startCluster of instances that compute prompts of 96 tokens and more together.
func startWaves(t *testing.T, transport rdma.Transport, pools ...int) []*instance {
	t.Helper()
	e, _ := startEtcd(t)
	etcd := []string{e.Endpoint}
	startManager(t, etcd)
	var nodes []*instance
	for i, blocks := range pools {
		nodes = append(nodes, startInstanceWith(t, etcd, fmt.Sprintf("i%d", i), blocks, transport, func(cfg *engine.Config) {
			cfg.Sched.Waves = sched.Waves{Parts: 8, MinTokens: 96}
		}))
	}
	for i, n := range nodes {
		eventually(t, n.id+" is connected", func() bool { return n.connected(nodes[i+1:]...) })
	}
	return nodes
}

// waved is how many prompts several instances computed.
func waved(nodes []*instance) (n uint64) {
	for _, x := range nodes {
		n += x.eng.Stats().Waves
	}
	return n
}

// A prompt that four instances compute has the answer of one, over each transport, and nothing is left of it.
func TestWave(t *testing.T) {
	whole := startWaves(t, rdma.SHM, 256)[0]
	want, err := answer(t, whole.ask(1, 400, 20))
	if err != nil {
		t.Fatal(err)
	}
	for _, transport := range []rdma.Transport{rdma.SHM, rdma.TCP} {
		nodes := startWaves(t, transport, 128, 128, 128, 128)
		for k := range 3 {
			got, err := answer(t, nodes[k].ask(1, 400, 20))
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%v, another answer: %v, not %v", err, got, want)
			}
			settled(t, nodes...)
			if waved(nodes) != uint64(k+1) {
				t.Fatalf("%d of %d prompts were computed together", waved(nodes), k+1)
			}
		}
		for _, n := range nodes {
			n.notHeld()
		}
	}
}

// Calls that are not heard, or whose answers are lost: the prompt is computed all the same, and the next one together again.
func TestLostWaves(t *testing.T) {
	whole := startWaves(t, rdma.SHM, 256)[0]
	want, err := answer(t, whole.ask(1, 400, 20))
	if err != nil {
		t.Fatal(err)
	}
	nodes := startWaves(t, rdma.SHM, 128, 128, 128)
	for _, method := range []string{"JoinWave", "BeginWave"} {
		for _, heard := range []bool{false, true} {
			for nth := int32(1); nth <= 2; nth++ {
				var calls atomic.Int32
				nodes[2].setFault(func(_ context.Context, m string, served bool) error {
					if m != method || served != heard {
						return nil
					}
					if calls.Add(1) == nth {
						return status.Error(codes.Unavailable, "lost, for a test")
					}
					return nil
				})
				got, err := answer(t, nodes[0].ask(1, 400, 20))
				if err != nil || !slices.Equal(got, want) {
					t.Fatalf("%s %d, heard %v: %v, another answer: %v, not %v", method, nth, heard, err, got, want)
				}
				nodes[2].setFault(nil)
				settled(t, nodes...)
				eventually(t, "nobody has a part in a wave", func() bool { return !slices.ContainsFunc(nodes, (*instance).inWave) })
				before := waved(nodes)
				if got, err = answer(t, nodes[1].ask(1, 400, 20)); err != nil || !slices.Equal(got, want) || waved(nodes) != before+1 {
					t.Fatalf("after it: %v, %v, not %v, %d prompts computed together", err, got, want, waved(nodes)-before)
				}
				settled(t, nodes...)
			}
		}
	}
}

func (n *instance) inWave() bool {
	n.rman.mu.Lock()
	defer n.rman.mu.Unlock()
	return n.rman.waves.own != nil || len(n.rman.waves.joined) > 0
}

// An instance stops while it assists, and one whose prompt others assist with.
func TestWaveMemberStops(t *testing.T) {
	whole := startWaves(t, rdma.SHM, 256)[0]
	want, err := answer(t, whole.ask(1, 400, 20))
	if err != nil {
		t.Fatal(err)
	}
	for stops := range 2 {
		nodes := startWaves(t, rdma.SHM, 128, 128, 128)
		var began atomic.Bool
		nodes[1].setFault(func(_ context.Context, m string, served bool) error {
			if m == "BeginWave" && served {
				began.Store(true)
			}
			return nil
		})
		s := nodes[0].ask(1, 400, 20)
		eventually(t, "a wave begins", began.Load)
		nodes[stops].stop()
		got, err := answer(t, s)
		if stops == 0 {
			if err == nil && !slices.Equal(got, want) || err != nil && len(got) > 0 && !slices.Equal(got, want[:len(got)]) {
				t.Errorf("the home stopped: %v, %v, not %v", err, got, want)
			}
		} else if err != nil || !slices.Equal(got, want) {
			t.Errorf("one that assists stopped: %v, %v, not %v", err, got, want)
		}
		left := slices.DeleteFunc(nodes, func(n *instance) bool { return n == nodes[stops] })
		settled(t, left...)
		eventually(t, "nobody has a part in a wave", func() bool { return !slices.ContainsFunc(left, (*instance).inWave) })
	}
}

// kvClient calls an instance as another one does.
func kvClient(t *testing.T, n *instance) pb.KVClient {
	t.Helper()
	members, _ := n.dir.Members()
	conn, err := grpc.NewClient(members[n.id].Address, DialOptions(testSecret)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return pb.NewKVClient(conn)
}

// Whatever a home asks for that makes no sense is refused, and nothing is lost by it.
func TestWavesThatMakeNoSense(t *testing.T) {
	nodes := startWaves(t, rdma.SHM, 64, 64, 64)
	n := nodes[1]
	c := kvClient(t, n)
	ticket := uint64(0)
	good := func() *pb.JoinWaveRequest {
		ticket++
		return &pb.JoinWaveRequest{Owner: "i0", Session: nodes[0].session("i1"), Ticket: 1<<40 + ticket, Id: "r", Tokens: make([]uint32, 100),
			Chunk: 4 * testBlock, PatienceNs: 1e9, Parts: []string{"i1", "i2", "i0"}, Part: 0, Arrival: 7}
	}
	ctx, done := context.WithTimeout(t.Context(), patience)
	defer done()
	for name, spoil := range map[string]func(q *pb.JoinWaveRequest){
		"an unknown owner":             func(q *pb.JoinWaveRequest) { q.Owner = "i9" },
		"an ended session":             func(q *pb.JoinWaveRequest) { q.Session++ },
		"no parts":                     func(q *pb.JoinWaveRequest) { q.Parts = nil },
		"itself alone":                 func(q *pb.JoinWaveRequest) { q.Parts = q.Parts[:1] },
		"an unknown part":              func(q *pb.JoinWaveRequest) { q.Parts[1] = "i9" },
		"one part twice":               func(q *pb.JoinWaveRequest) { q.Parts = []string{"i1", "i1", "i0"} },
		"the owner twice":              func(q *pb.JoinWaveRequest) { q.Parts = []string{"i1", "i0", "i0"} },
		"another's part":               func(q *pb.JoinWaveRequest) { q.Part = 1 },
		"the owner's part":             func(q *pb.JoinWaveRequest) { q.Part = 2 },
		"a part beyond the end":        func(q *pb.JoinWaveRequest) { q.Part = 1<<32 - 1 },
		"the owner not last":           func(q *pb.JoinWaveRequest) { q.Parts = []string{"i1", "i0", "i2"} },
		"legs of no tokens":            func(q *pb.JoinWaveRequest) { q.Chunk = 0 },
		"legs of no whole blocks":      func(q *pb.JoinWaveRequest) { q.Chunk++ },
		"legs beyond the text":         func(q *pb.JoinWaveRequest) { q.Chunk = 1<<32 - testBlock },
		"a beginning of no blocks":     func(q *pb.JoinWaveRequest) { q.Base = 1 },
		"a beginning of all":           func(q *pb.JoinWaveRequest) { q.Base = 96 },
		"no text":                      func(q *pb.JoinWaveRequest) { q.Tokens = nil },
		"tokens below none":            func(q *pb.JoinWaveRequest) { q.Tokens[3] = 1<<32 - 1 },
		"more than a request may have": func(q *pb.JoinWaveRequest) { q.Tokens = make([]uint32, 5000) },
		"no patience":                  func(q *pb.JoinWaveRequest) { q.PatienceNs = 0 },
		"patience for ever":            func(q *pb.JoinWaveRequest) { q.PatienceNs = 1 << 63 },
		"nothing":                      func(q *pb.JoinWaveRequest) { q.Reset(); q.Ticket = 1 << 50 },
	} {
		req := good()
		spoil(req)
		if reply, err := c.JoinWave(ctx, req); err == nil && reply.Reason == "" {
			t.Errorf("%s: joined with %v", name, reply.Spans)
		}
	}
	settled(t, nodes...)
	reply, err := c.JoinWave(ctx, good())
	if err != nil || reply.Reason != "" || len(reply.Spans) != 2 {
		t.Fatalf("what makes sense: %v, %v", reply, err)
	}
	if again, err := c.JoinWave(ctx, good()); err != nil || again.Reason == "" {
		t.Errorf("a second part beside it: %v, %v", again, err)
	}
	own := spanFor(reply.Spans, "i0")
	begin := func(change func(q *pb.BeginWaveRequest)) error {
		q := &pb.BeginWaveRequest{Owner: "i0", Session: nodes[0].session("i1"), Handle: own.Handle, Generation: own.Generation,
			Spans: []*pb.WaveSpan{{Instance: "i2", Handle: 1, Generation: 1}, {Instance: "i0", Handle: 1, Generation: 1}}}
		change(q)
		_, err := c.BeginWave(ctx, q)
		return err
	}
	for name, change := range map[string]func(q *pb.BeginWaveRequest){
		"another owner's":    func(q *pb.BeginWaveRequest) { q.Owner = "i2" },
		"another span":       func(q *pb.BeginWaveRequest) { q.Handle++ },
		"an old span":        func(q *pb.BeginWaveRequest) { q.Generation++ },
		"without the others": func(q *pb.BeginWaveRequest) { q.Spans = q.Spans[:1] },
		"an ended session":   func(q *pb.BeginWaveRequest) { q.Session++ },
		"another's part":     func(q *pb.BeginWaveRequest) { q.Spans[0], q.Spans[1] = q.Spans[1], q.Spans[0] },
		"with unknown ones":  func(q *pb.BeginWaveRequest) { q.Spans[0].Instance = "i9" },
	} {
		if err := begin(change); err == nil {
			t.Errorf("begun: %s", name)
		}
	}
	// Spans that nobody opened: its first leg needs none, the second is refused, and its part is over.
	if err := begin(func(*pb.BeginWaveRequest) {}); err != nil {
		t.Fatal(err)
	}
	if err := begin(func(*pb.BeginWaveRequest) {}); err == nil {
		t.Error("begun twice")
	}
	eventually(t, "its part is over", func() bool {
		n.rman.mu.Lock()
		defer n.rman.mu.Unlock()
		return n.rman.waves.own == nil
	})
	nodes[0].rman.Release([]kvcache.Ended{{Span: kvcache.Span{Instance: "i1", Peer: nodes[0].rman.peerByID("i1").index, Handle: own.Handle, Generation: own.Generation, Shared: true}}})
	settled(t, nodes...)
	eventually(t, "nothing is left of it", func() bool { return !n.inWave() })
}
