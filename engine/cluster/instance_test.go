package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/sched"
	"github.com/infinite-llm/infinite/rdma"
)

const (
	testBlock  = 4
	testSecret = "s"
	testID     = "test"
	// patience only bounds a failing test.
	patience = 5 * time.Minute
)

// fault is asked about every control call of an instance, before it is served and after. An error takes
// the answer's place.
type fault func(ctx context.Context, method string, served bool) error

// instance is one with everything but a process: device, step loop, managers, links.
type instance struct {
	t      *testing.T
	id     string
	dev    *device.Device
	kv     *kvcache.Manager
	eng    *engine.Engine
	rman   *RManager
	dir    *Directory
	fault  atomic.Pointer[fault]
	model  atomic.Pointer[pb.Model] // reported
	hold   atomic.Bool              // steps that only decode do not end
	pass   atomic.Int64             // as many of them do all the same
	lost   chan string              // what Home.PeerLost heard; never read is fine
	close  func()
	closed sync.Once
}

// The same glue as engine/node's.
type testLender struct{ *RManager }

func (l testLender) Offload(o sched.Offload) { l.RManager.Offload(o.Request, o.Blocks, o.To) }

func (l testLender) Return(x sched.Return) { l.RManager.Return(x.Request, x.From, x.Blocks) }
func (l testLender) Search(s sched.Search) { l.RManager.Search(s.Request, s.Keys, s.Near) }
func (l testLender) FormWave(f sched.Form, x engine.WaveText) {
	l.RManager.FormWave(Form{Request: f.Request, Base: f.Base, Chunk: f.Chunk, Parts: f.Parts, ID: x.ID, Salt: x.Salt, Text: x.Tokens, Arrival: x.Arrival})
}
func (l testLender) View() sched.View { return sched.View(l.RManager.View()) }

// testSteps are a device's whose steps can be held up: a request that is asked while they are gets its first
// token, and is in the middle of its answer until they go on.
type testSteps struct {
	*device.Device
	hold *atomic.Bool
	pass *atomic.Int64
}

func (d testSteps) Wait(timeout time.Duration) (bool, error) {
	if !d.hold.Load() || !d.decodes() {
		return d.Device.Wait(timeout)
	}
	if d.pass.Load() <= 0 {
		time.Sleep(min(timeout, 5*time.Millisecond))
		return false, nil
	}
	done, err := d.Device.Wait(timeout)
	if done {
		d.pass.Add(-1)
	}
	return done, err
}

func (d testSteps) decodes() bool {
	st := d.Step()
	return !slices.ContainsFunc(st.Seqs[:st.Head.NSeqs], func(q batch.Seq) bool { return q.NTokens > 1 })
}

type testMoves struct{ *device.Device }

func (m testMoves) MoveWait(timeout time.Duration) (uint64, error, bool, error) {
	done, ok, err := m.Device.MoveWait(timeout)
	return done.Ticket, done.Err, ok, err
}

type testHome struct{ *instance }

func (h testHome) Moved(o Outcome) { h.eng.Moved(engine.MoveResult(o)) }

func (h testHome) Found(id kvcache.RequestID, f []kvcache.Found) { h.eng.Found(id, f) }

func (h testHome) PeerLost(peer string) {
	select {
	case h.lost <- peer:
	default:
	}
	h.eng.PeerLost(peer)
}

func (h testHome) Place(number kvcache.RequestID, id, to string, blocks int) error {
	return h.eng.Place(engine.Placing{Request: number, ID: id, To: to, Blocks: blocks})
}

func (h testHome) Report() (*pb.Load, []*pb.Placement) {
	c, s := h.kv.Counts(), h.eng.Stats()
	load := &pb.Load{KvBlocksTotal: uint32(c.Total), KvBlocksFree: uint32(c.Free), KvBlocksHosted: uint32(c.Hosted), KvBlocksLent: uint32(c.Lent),
		Running: uint32(s.Running), Waiting: uint32(s.Waiting), PlannedMoves: s.PlannedMoves, PlannedBlocks: s.PlannedBlocks}
	load.Model = h.model.Load()
	var places []*pb.Placement
	for _, r := range h.eng.Requests() {
		p := &pb.Placement{Id: r.ID, Tokens: uint32(r.Tokens), Arrival: r.Arrival, Number: uint64(r.Request), Movable: uint32(r.Movable),
			Planned: uint32(r.Planned), PlannedTo: r.PlannedTo, Running: r.Running}
		for _, s := range append(r.Spans, engine.SpanInfo{Instance: h.id, Blocks: r.Local}) {
			p.Spans = append(p.Spans, &pb.Span{Instance: s.Instance, Blocks: uint32(s.Blocks)})
		}
		places = append(places, p)
	}
	return load, places
}

// openDevice makes a small device with random weights, the same every time.
func openDevice(t *testing.T, blocks int) *device.Device {
	t.Helper()
	m, err := model.Open("../model/testdata/llama")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	d, err := device.LoadModel(m, testDevice(blocks), nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testDevice(blocks int) device.Config {
	return device.Config{DType: device.F32, BlockSize: testBlock, NumBlocks: blocks, MaxTokens: 32, MaxSeqs: 4, MaxRows: 32,
		MaxStepBlocks: blocks, MaxStepSpans: 64, MaxSpans: 64, Threads: 1}
}

// slotBytes are sizes of the lanes' slots that are enough for pools of any size used here.
func slotBytes(t *testing.T) (query, move uint64) {
	t.Helper()
	m, err := model.Open("../model/testdata/llama")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	c := device.ForModel(m.Config, testDevice(1000))
	return device.QuerySlotBytes(c), device.MoveSlotBytes(c)
}

// startInstance brings an instance up and makes it a member of the cluster at the etcd. It caches no prefixes.
func startInstance(t *testing.T, etcd []string, id string, blocks int, transport rdma.Transport) *instance {
	t.Helper()
	return startInstanceWith(t, etcd, id, blocks, transport, func(*engine.Config) {})
}

func startInstanceWith(t *testing.T, etcd []string, id string, blocks int, transport rdma.Transport, change func(*engine.Config)) *instance {
	t.Helper()
	n := &instance{t: t, id: id, dev: openDevice(t, blocks), lost: make(chan string, 64)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	n.kv, err = kvcache.NewWithOptions(blocks, testBlock, kvcache.Options{MaxSpans: 64})
	must(err)
	links, err := rdma.Listen(rdma.ListenConfig{Identity: rdma.Identity{ClusterID: testID, Instance: id, Secret: testSecret}})
	must(err)
	client, err := EtcdClient(etcd, 0)
	must(err)
	dir, err := Watch(t.Context(), client, testID)
	must(err)
	n.dir = dir
	query, move := slotBytes(t)
	session := fmt.Sprint(time.Now().UnixNano())
	n.rman = NewRManager(Config{ID: id, Session: session, ClusterID: testID, Secret: testSecret, Transport: rdma.Choice{Transport: transport}, QuerySlotBytes: query, MoveSlotBytes: move, QuerySlots: device.QuerySlots,
		Heartbeat: 20 * time.Millisecond}, n.kv, Device{Spans: n.dev, Moves: testMoves{n.dev}, Links: n.dev, Rails: n.dev}, links)
	cfg := engine.Config{Sched: sched.Config{MaxNumSeqs: 4, MaxBatchedTokens: 32, MaxWaiting: 64, MaxModelLen: 512, Patience: 5000},
		StallRefresh: 2 * time.Millisecond, PeerTimeout: patience}
	change(&cfg)
	n.eng, err = engine.New(cfg, testSteps{n.dev, &n.hold, &n.pass}, n.kv, testLender{n.rman})
	must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	life, stop := context.WithCancel(context.Background())
	leader := &Leader{}
	var wg sync.WaitGroup
	wg.Go(func() { FollowLeader(life, client, testID, leader) })
	wg.Go(func() {
		if err := n.eng.Run(life); err != nil {
			t.Errorf("%s: run: %v", id, err)
		}
	})
	if cfg.Sched.Waves.Parts > 1 {
		n.rman.Waves(testHome{n}, n.dev)
	}
	n.rman.Start(testHome{n}, dir, leader)
	server := grpc.NewServer(append(ServerOptions(testSecret), grpc.ChainUnaryInterceptor(n.intercept))...)
	pb.RegisterKVServer(server, n.rman)
	wg.Go(func() { _ = server.Serve(l) })
	reg, err := Register(t.Context(), client, testID, Member{ID: id, Address: l.Addr().String(), Endpoint: links.Endpoint(), BlocksTotal: blocks,
		Session: session})
	must(err)
	n.close = func() {
		n.setFault(nil)
		n.hold.Store(false)
		reg.Close()
		server.Stop()
		n.rman.Close()
		stop()
		wg.Wait()
		dir.Close()
		if err := errors.Join(client.Close(), links.Close()); err != nil {
			t.Error(err)
		}
		n.dev.Close()
	}
	t.Cleanup(n.stop)
	return n
}

func (n *instance) stop() { n.closed.Do(n.close) }

func (n *instance) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ask := func(served bool) error {
		if f := n.fault.Load(); f != nil {
			return (*f)(ctx, path.Base(info.FullMethod), served)
		}
		return nil
	}
	if err := ask(false); err != nil {
		return nil, err
	}
	reply, err := next(ctx, req)
	if lost := ask(true); lost != nil {
		return nil, lost
	}
	return reply, err
}

func (n *instance) setFault(f fault) {
	if f == nil {
		n.fault.Store(nil)
		return
	}
	n.fault.Store(&f)
}

// connected says whether n may borrow from all of these, and they from it.
func (n *instance) connected(others ...*instance) bool {
	up := func(a, b *instance) bool {
		a.rman.mu.Lock()
		defer a.rman.mu.Unlock()
		p := a.rman.peers[b.id]
		return p != nil && p.session != 0 && p.serving != 0 && p.shown
	}
	return !slices.ContainsFunc(others, func(o *instance) bool { return !up(n, o) || !up(o, n) })
}

func (n *instance) session(peer string) uint64 {
	n.rman.mu.Lock()
	defer n.rman.mu.Unlock()
	if p := n.rman.peers[peer]; p != nil {
		return p.session
	}
	return 0
}

// idle says whether every block is free and nothing is lent.
func (n *instance) idle() bool {
	c := n.kv.Counts()
	return c.Free == c.Total && c.Lent == 0
}

func settled(t *testing.T, nodes ...*instance) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, n.id+" has all blocks free", n.idle)
	}
}

func prompt(seed, n int) []int32 {
	p := make([]int32, n)
	for i := range p {
		p[i] = int32(3 + (seed*7919+i*31+i*i)%250)
	}
	return p
}

func (n *instance) ask(seed, tokens, answer int) engine.Stream {
	n.t.Helper()
	s, err := n.eng.Submit(context.Background(), &engine.Request{
		ID: fmt.Sprintf("%s-%d", n.id, seed), Prompt: prompt(seed, tokens), MaxTokens: answer, Logprobs: -1, PromptLogprobs: -1,
		Sampling: batch.Sampling{TopP: 1, Repetition: 1},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// answer reads a stream to its end.
func answer(t *testing.T, s engine.Stream) ([]int32, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out []int32
	for {
		ev, err := s.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, errors.New("the stream has no end")
		}
		if err != nil {
			t.Fatalf("after %d tokens: %v", len(out), err)
		}
		if ev.HasToken {
			out = append(out, ev.Token)
		}
		if ev.Finish != "" {
			return out, ev.Err
		}
	}
}

// startManager runs an API process's manager with its own client and port.
func startManager(t *testing.T, etcd []string) (m *Manager, stop func()) {
	t.Helper()
	client, err := EtcdClient(etcd, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m, err = NewManager(t.Context(), ManagerConfig{ClusterID: testID, Address: l.Addr().String(), Secret: testSecret, Etcd: etcd, BlockSize: testBlock}, client)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(ServerOptions(testSecret)...)
	pb.RegisterManagerServer(server, m)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	stop = sync.OnceFunc(func() {
		server.Stop()
		m.Close()
		wg.Wait()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return m, stop
}
