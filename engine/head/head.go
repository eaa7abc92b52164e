// Package head puts an API process together: etcd, manager, instances, router, server.
// Start and Close read as the list of parts; left.go ends it when nobody is left who serves.
package head

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/router"
	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// startLimit bounds the time in which all instances must have joined. Loading is what takes long.
const startLimit = 10 * time.Minute

// childLimit bounds the time in which all instances must have stopped, beyond that in which they finish
// requests that came from other API processes.
const childLimit = 5 * time.Second

// hurryLimit bounds it when nobody waits any more.
const hurryLimit = time.Second

// Head is a running API process.
type Head struct {
	cfg      config.Config
	hurry    context.Context // when it ends Close waits for nobody
	name     string
	api      net.Listener
	control  net.Listener
	embedded *cluster.Etcd
	etcd     *clientv3.Client
	manager  *cluster.Manager
	grpc     *grpc.Server
	slots    []*slot // of those who watch since Start has returned
	router   *router.Router
	server   *server.Server
	ended    chan struct{} // an instance has
	restarts atomic.Int64  // instances that were started in the place of others
	missing  atomic.Int64  // slots whose instance has died and is not replaced yet
	comes    atomic.Bool   // one of this process's runs, or is about to
	unwatch  func()
	failed   chan error
}

// Start brings everything up and returns when the API answers. The ports are opened first, so that one
// that is taken is the first error. Once hurry ends, Close cuts short what still runs.
func Start(ctx, hurry context.Context, cfg config.Config) (_ *Head, err error) {
	h := &Head{cfg: cfg, hurry: hurry, ended: make(chan struct{}, 1), failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if err = node.CheckFiles(cfg, 0); err != nil {
		return nil, err
	}
	if h.api, err = listen(cfg.Host, cfg.Port); err != nil {
		return nil, fmt.Errorf("cannot listen for the API: %w", err)
	}
	if h.control, err = listen(cfg.ClusterHost, cfg.ClusterPort); err != nil {
		return nil, fmt.Errorf("cannot listen for the control plane: %w", err)
	}
	m, tok, err := openModel(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.Close() }()
	h.name = modelName(cfg)
	settled, err := node.Settle(cfg, m.Config)
	if err != nil {
		return nil, err
	}
	if err = node.CheckTransport(cfg); err != nil {
		return nil, err
	}
	h.cfg.MaxModelLen = settled.MaxModelLen
	if err = h.startControl(ctx, m, settled.DType); err != nil {
		return nil, err
	}
	if err = h.startInstances(ctx, settled.Places); err != nil {
		return nil, err
	}
	h.router = router.New(h.manager, router.Config{Secret: cfg.ClusterSecret, BlockSize: cfg.BlockSize, PrefixCaching: cfg.EnablePrefixCaching, Comes: h.comes.Load})
	h.comes.Store(true)
	if h.server, err = server.New(h.serverConfig(m, tok), tok, h.router); err != nil {
		return nil, err
	}
	h.server.Serve(h.api)
	h.watch()
	return h, nil
}

// startInstances returns when all are members.
func (h *Head) startInstances(ctx context.Context, places []node.Place) error {
	for _, place := range places {
		id, err := h.manager.NewID(ctx)
		if err != nil {
			return fmt.Errorf("cannot name an instance: %w", err)
		}
		s := &slot{place: place}
		if err = h.fill(s, id); err != nil {
			return err
		}
		h.slots = append(h.slots, s)
	}
	return h.waitForInstances(ctx)
}

// startControl brings up etcd, unless there is one, and the manager's gRPC.
func (h *Head) startControl(ctx context.Context, m *model.Model, dtype string) (err error) {
	endpoints, id := h.cfg.EtcdEndpoints, uint64(0)
	if len(endpoints) == 0 {
		if h.embedded, err = cluster.StartEtcd(ctx, h.cfg.ClusterHost); err != nil {
			return err
		}
		go func() {
			for err := range h.embedded.Err() {
				h.fail(fmt.Errorf("cannot go on without etcd: %w", err))
			}
		}()
		endpoints, id = []string{h.embedded.Endpoint}, h.embedded.ID
	}
	if h.etcd, err = cluster.EtcdClient(endpoints, id); err != nil {
		return err
	}
	h.manager, err = cluster.NewManager(ctx, cluster.ManagerConfig{
		ClusterID: h.cfg.ClusterID, Address: h.ControlAddress(), Secret: h.cfg.ClusterSecret, Etcd: endpoints, EtcdID: id,
		BlockSize: h.cfg.BlockSize, Fingerprint: node.Fingerprint(h.cfg, m), DType: dtype, KVDType: node.KVDType(h.cfg.KVCacheDType, dtype), Quantization: h.cfg.Quantization,
		MaxNumBatchedTokens: h.cfg.MaxNumBatchedTokens, MaxNumSeqs: h.cfg.MaxNumSeqs, MaxModelLen: h.cfg.MaxModelLen,
		Rebalance: h.cfg.RebalanceInterval,
	}, h.etcd)
	if err != nil {
		return err
	}
	h.grpc = grpc.NewServer(cluster.ServerOptions(h.cfg.ClusterSecret)...)
	pb.RegisterManagerServer(h.grpc, h.manager)
	go func() {
		if err := h.grpc.Serve(h.control); err != nil {
			h.fail(fmt.Errorf("cannot serve the control plane: %w", err))
		}
	}()
	return nil
}

// fail reports an error that the process cannot go on after; the first counts.
func (h *Head) fail(err error) {
	select {
	case h.failed <- err:
	default:
	}
}

// waitForInstances returns when every started instance is a member.
func (h *Head) waitForInstances(ctx context.Context) error {
	bar := newProgress("starting instances", len(h.slots))
	defer bar.stop()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	for {
		members, changed := h.manager.Directory().Members()
		up := 0
		for _, c := range h.slots {
			if _, ok := members[c.id]; ok {
				up++
			}
		}
		bar.set(up)
		if up == len(h.slots) {
			return nil
		}
		for _, c := range h.slots {
			if err := c.ended(); err != nil {
				return fmt.Errorf("cannot start instance %s: %w", c.id, err)
			}
		}
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		case err := <-h.failed:
			return err
		case <-limit.C:
			return fmt.Errorf("cannot start: %d of %d instances joined within %s", up, len(h.slots), startLimit)
		case <-ctx.Done():
			return fmt.Errorf("cannot start: %w", context.Cause(ctx))
		}
	}
}

// Close drains the API, then stops the instances, then what they need. Every step has a limit.
func (h *Head) Close() {
	if h.unwatch != nil {
		h.unwatch()
	}
	h.comes.Store(false) // nobody starts another one any more
	drain, done := context.WithTimeout(h.hurry, h.cfg.DrainTimeout)
	defer done()
	if h.server != nil {
		if err := h.server.Shutdown(drain); err != nil {
			slog.Warn("cut requests that did not finish in time", "error", err)
		}
	} else if h.api != nil {
		_ = h.api.Close()
	}
	if h.router != nil {
		h.router.Close()
	}
	h.stopInstances()
	if h.grpc != nil {
		h.grpc.Stop()
	} else if h.control != nil {
		_ = h.control.Close()
	}
	if h.manager != nil {
		h.manager.Close()
	}
	if h.etcd != nil {
		_ = h.etcd.Close()
	}
	if h.embedded != nil {
		h.embedded.Close()
	}
}

func (h *Head) stopInstances() {
	var running []*slot
	for _, c := range h.slots {
		if c.ended() == nil {
			running = append(running, c)
		}
		c.terminate()
	}
	stopped, stop := context.WithTimeout(context.Background(), h.cfg.DrainTimeout+childLimit)
	defer stop()
	unhurry := context.AfterFunc(h.hurry, func() {
		time.Sleep(50 * time.Millisecond) // of two signals at once an instance may get the later one first
		for _, c := range h.slots {
			c.hurry()
		}
		time.AfterFunc(hurryLimit, stop)
	})
	defer unhurry()
	for _, c := range h.slots {
		c.wait(stopped)
	}
	for _, c := range running {
		// One that was killed is in the log; and after a start that failed it would say again what the first one said.
		if err := c.ended(); err != errStopped && h.server != nil && stopped.Err() == nil {
			slog.Warn("an instance did not end in order", "instance", c.id, "why", err)
		}
	}
}

// URL of the API.
func (h *Head) URL() string { return "http://" + h.api.Addr().String() }

// ControlAddress is what --join takes.
func (h *Head) ControlAddress() string { return h.control.Addr().String() }

// ModelName is the first name the API knows the model by.
func (h *Head) ModelName() string { return h.name }

// Capacity is how many tokens of KV one request could have.
func (h *Head) Capacity() int { return h.router.Capacity() }

// Failed reports an error that ends the process.
func (h *Head) Failed() <-chan error { return h.failed }

func listen(host string, port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
}

func openModel(cfg config.Config) (*model.Model, *tokenizer.Tokenizer, error) {
	m, err := node.OpenModel(cfg)
	if err != nil {
		return nil, nil, err
	}
	tok, err := node.OpenTokenizer(cfg.Model)
	if err == nil && cfg.ChatTemplate != "" {
		tok, err = tok.WithChatTemplateFile(cfg.ChatTemplate)
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, tok, nil
}

func modelName(cfg config.Config) string {
	switch {
	case len(cfg.ServedModelName) > 0:
		return cfg.ServedModelName[0]
	case cfg.Model == "":
		return "bundled"
	}
	return filepath.Base(filepath.Clean(cfg.Model))
}

func (h *Head) serverConfig(m *model.Model, tok *tokenizer.Tokenizer) server.Config {
	cfg := h.cfg
	names := cfg.ServedModelName
	if len(names) == 0 {
		names = []string{h.name}
	}
	g := m.Generation
	d := server.Defaults{Temperature: 1, TopP: 1, RepetitionPenalty: 1, EOS: m.Config.EOS, VocabSize: m.Config.VocabSize}
	if g.Temperature != nil {
		d.Temperature = *g.Temperature
	}
	if g.TopP != nil {
		d.TopP = *g.TopP
	}
	if g.TopK != nil {
		d.TopK = *g.TopK
	}
	if g.RepetitionPenalty != nil {
		d.RepetitionPenalty = *g.RepetitionPenalty
	}
	return server.Config{
		ModelNames: names, APIKey: cfg.APIKey, MaxBodySize: int(cfg.MaxBodySize), MaxModelLen: cfg.MaxModelLen, Seed: cfg.Seed, Defaults: d, Priorities: cfg.SchedulingPolicy == "priority",
		ToolCallParser: cfg.ToolCallParser, ReasoningParser: cfg.ReasoningParser, MaxRequests: cfg.Instances * (cfg.MaxNumSeqs + cfg.MaxNumWaiting), Keeper: h,
	}
}
