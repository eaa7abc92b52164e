// Package node puts one instance together: model, device, KV pool, step loop, rManager, gRPC.
// Start and Close read as the list of parts; check.go says beforehand what cannot be used; run.go starts anew what is cut off
// from its cluster.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/router"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
	"github.com/infinite-llm/infinite/engine/sched"
	"github.com/infinite-llm/infinite/rdma"
)

// Node is one running instance.
type Node struct {
	ID string

	cfg      config.Config
	dev      *device.Device
	meter    *meter
	kv       *kvcache.Manager
	etcd     *clientv3.Client
	dir      *cluster.Directory
	links    *rdma.Listener
	rman     *cluster.RManager
	eng      *engine.Engine // nil with --memory-only
	waves    sched.Waves
	grpc     *grpc.Server
	reg      *cluster.Registration
	stop     context.CancelFunc
	finished chan error
	lost     chan error
	loops    sync.WaitGroup // that end with stop
	broken   bool           // it ends since it cannot go on, or its cluster is gone: nobody can have KV back
}

// Start joins the cluster at cfg.Join and serves there until Close.
func Start(ctx context.Context, cfg config.Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, finished: make(chan error, 1), lost: make(chan error, 1)}
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	if err = CheckFiles(cfg, 0); err != nil {
		return nil, err
	}
	m, err := OpenModel(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.Close() }()
	settled, err := Settle(cfg, m.Config)
	if err != nil {
		return nil, err
	}
	if err = CheckTransport(cfg); err != nil {
		return nil, err
	}
	place, dtype := settled.Places[0], settled.DType
	cfg.MaxModelLen = settled.MaxModelLen
	slog.Info("this instance computes on", "device", place.Name(), "why", place.Why, "tensor_parallel_size", cfg.TensorParallelSize)
	choice := linkChoice(cfg, place)
	kvDType := KVDType(cfg.KVCacheDType, dtype)
	hello, err := join(ctx, cfg, m, dtype, kvDType)
	if err != nil {
		return nil, err
	}
	n.ID, n.cfg.BlockSize, n.cfg.MaxModelLen = hello.Id, int(hello.BlockSize), int(hello.MaxModelLen)
	slog.SetDefault(slog.Default().With("instance", n.ID))

	n.meter = newMeter(nvml.New(), place)
	shape, err := DeviceConfig(n.cfg, m, dtype, place)
	if err != nil {
		return nil, err
	}
	if n.dev, err = openDevice(shape, m); err != nil {
		return nil, err
	}
	if n.kv, err = kvcache.NewWithOptions(shape.NumBlocks, shape.BlockSize, kvcache.Options{InOrder: windowed(m.Config)}); err != nil {
		return nil, err
	}
	if n.links, err = rdma.Listen(rdma.ListenConfig{
		Identity: rdma.Identity{ClusterID: hello.Etcd.GetClusterId(), Instance: n.ID, Secret: cfg.ClusterSecret}, Host: cfg.ClusterHost,
		Verbs: choice.Verbs,
	}); err != nil {
		return nil, err
	}
	sharePool(n.dev, choice, hello.Etcd.GetClusterId())
	if n.etcd, err = cluster.EtcdClient(hello.Etcd.GetEndpoints(), hello.Etcd.GetId()); err != nil {
		return nil, err
	}
	if n.dir, err = cluster.Watch(ctx, n.etcd, hello.Etcd.GetClusterId()); err != nil {
		return nil, away{err}
	}
	members, _ := n.dir.Members()
	if err = CheckFiles(cfg, len(members)); err != nil {
		return nil, err
	}
	member := cluster.Member{
		ID: n.ID, Session: fmt.Sprintf("%d", time.Now().UnixNano()), Fingerprint: Fingerprint(cfg, m), KVDType: kvDType, BlocksTotal: shape.NumBlocks, Device: place.Name(),
		MaxModelLen: n.cfg.MaxModelLen, MemoryOnly: cfg.MemoryOnly,
	}
	n.rman = cluster.NewRManager(cluster.Config{
		ID: n.ID, Session: member.Session, ClusterID: hello.Etcd.GetClusterId(), Secret: cfg.ClusterSecret, Transport: choice,
		QuerySlotBytes: device.QuerySlotBytes(shape), MoveSlotBytes: device.MoveSlotBytes(shape), QuerySlots: device.QuerySlots,
		WavePatience: cfg.PeerTimeout * 3 / 4,
	}, n.kv, cluster.Device{Spans: n.dev, Moves: moves{n.dev}, Links: n.dev, Rails: n.dev}, n.links)
	if n.waves = waves(n.cfg, m.Config, place); !cfg.MemoryOnly {
		if n.eng, err = engine.New(n.engineConfig(m, place), StepDevice(n.dev), n.kv, lender{n.rman}); err != nil {
			return nil, err
		}
	}
	return n, n.serve(ctx, hello, member)
}

// serve starts what runs: step loop, rManager, gRPC; last the entry that makes others see this instance, of which m has
// what the caller knows.
func (n *Node) serve(ctx context.Context, hello *pb.JoinReply, m cluster.Member) error {
	l, err := net.Listen("tcp", net.JoinHostPort(n.cfg.ClusterHost, "0"))
	if err != nil {
		return fmt.Errorf("cannot listen for the control plane: %w", err)
	}
	life, stop := context.WithCancel(context.Background())
	n.stop = stop
	leader := &cluster.Leader{}
	n.loops.Go(func() { cluster.FollowLeader(life, n.etcd, hello.Etcd.GetClusterId(), leader) })
	n.grpc = grpc.NewServer(cluster.ServerOptions(n.cfg.ClusterSecret)...)
	pb.RegisterKVServer(n.grpc, n.rman)
	own := pool{kv: n.kv, dev: n.dev, id: n.ID, memory: n.meter.memory}
	if n.eng != nil {
		go func() { n.finished <- n.eng.Run(life); close(n.finished) }()
		h := &home{pool: own, eng: n.eng, maxSeqs: n.cfg.MaxNumSeqs, layers: n.dev.Config().Layers, roundTrip: n.rman.RoundTrip}
		if n.waves.Parts > 1 {
			n.rman.Waves(h, n.dev)
		}
		n.rman.Start(h, n.dir, leader)
		routerpb.RegisterInferenceServer(n.grpc, router.NewInference(n.eng, n.rman.NextReport))
	} else {
		go func() { n.finished <- watchDevice(life, n.dev); close(n.finished) }()
		n.rman.Start(&keeper{own}, n.dir, leader)
	}
	go func() { _ = n.grpc.Serve(l) }()

	m.Address, m.Endpoint = l.Addr().String(), n.links.Endpoint()
	n.reg, err = cluster.Register(ctx, n.etcd, hello.Etcd.GetClusterId(), m)
	if err != nil {
		n.Close(ctx)
		if !errors.Is(err, cluster.ErrTaken) {
			err = away{err}
		}
		return err
	}
	n.loops.Go(func() { n.watchMembership(life, hello) })
	slog.Info("instance is serving", "address", m.Address, "kv_blocks", m.BlocksTotal, "block_size", n.cfg.BlockSize,
		"kv_tokens", m.BlocksTotal*n.cfg.BlockSize, "kv_dtype", m.KVDType, "isa", n.dev.ISA())
	return nil
}

// Failed reports an error that ended the step loop. Whoever reads it then calls Close.
func (n *Node) Failed() <-chan error { return n.finished }

// Close leaves the cluster, finishes running requests and lets others have their KV back until ctx ends, and frees
// everything.
func (n *Node) Close(ctx context.Context) {
	if n.reg != nil {
		n.reg.Close()
	}
	if !n.broken {
		n.rman.Drain()
	}
	if n.eng != nil {
		if err := n.eng.Drain(ctx); err != nil {
			slog.Warn("cannot finish all requests", "error", err)
		}
	}
	if n.eng == nil || !n.broken {
		waitUntilUnused(ctx, n.kv)
	}
	// Before gRPC: the calls that carry links last as long as these, and cutting them would look like lost peers.
	n.rman.Close()
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	go func() { n.grpc.GracefulStop(); done() }()
	<-grace.Done()
	n.grpc.Stop()
	done()
	n.stop()
	if err := <-n.finished; err != nil && !errors.Is(err, context.Canceled) {
		slog.Error("the step loop ended with an error", "error", err)
	}
	n.loops.Wait()
	n.release()
}

// release frees what holds no goroutine of ours any more.
func (n *Node) release() {
	if n.dir != nil {
		n.dir.Close()
	}
	if n.etcd != nil {
		_ = n.etcd.Close()
	}
	if n.links != nil {
		_ = n.links.Close()
	}
	if n.dev != nil {
		n.dev.Close()
	}
	n.meter.close()
}
