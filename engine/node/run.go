package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/config"
)

// watchEvery is how often an instance that is cut off from its cluster asks whether there is another one now.
const watchEvery = time.Second

// ErrMoved says that the cluster ended, and another one answers where it was.
var ErrMoved = errors.New("the cluster was started anew")

// Run serves as an instance until ctx ends or something fails that a new start of the process would not mend. Once hurry
// ends, requests that still run are cut short.
//
// When the cluster that it joined has ended and another one answers at cfg.Join, since the API process there was
// restarted, or when another process has its id, the instance joins anew. It does so from the start, with the id, checks and
// links of that cluster and an empty pool: nothing that it holds means anything there. Requests that still run are
// finished first; those of a head that died ended with it.
func Run(ctx, hurry context.Context, cfg config.Config) error {
	log := slog.Default()
	for anew := false; ; anew = true {
		slog.SetDefault(log) // without the id of the last time
		n, err := startAnew(ctx, cfg, anew)
		if err != nil && anew && ctx.Err() != nil {
			return nil // told to end while it was no member of anything
		}
		if err != nil {
			return err
		}
		var lost, failed error
		select {
		case <-ctx.Done():
		case failed = <-n.Failed():
			n.broken = true
		case lost = <-n.Lost():
			n.broken = true
			slog.Warn("this instance is cut off from its cluster and joins anew", "address", cfg.Join, "why", lost)
		}
		drain, done := context.WithTimeout(hurry, cfg.DrainTimeout)
		n.Close(drain)
		done()
		if lost == nil || ctx.Err() != nil {
			return failed
		}
	}
}

// startAnew is Start, which when it is not the first one waits for a cluster that is away.
func startAnew(ctx context.Context, cfg config.Config, anew bool) (*Node, error) {
	for {
		n, err := Start(ctx, cfg)
		if err == nil || !anew {
			return n, err
		}
		if !errors.Is(err, ErrAway) || ctx.Err() != nil {
			return nil, fmt.Errorf("cannot join anew: %w", err)
		}
		slog.Warn("cannot join anew yet; trying on", "error", err)
		select {
		case <-time.After(watchEvery):
		case <-ctx.Done():
		}
	}
}

// Lost reports that this instance is no member any more and cannot be one again. Whoever reads it then calls Close.
func (n *Node) Lost() <-chan error { return n.lost }

// watchMembership finds out when the instance is no member any more. What it was told at its start, hello, holds as long
// as the cluster lives: while etcd or the gManager is only away, it waits for them.
func (n *Node) watchMembership(ctx context.Context, hello *pb.JoinReply) {
	conn, err := grpc.NewClient(n.cfg.Join, cluster.DialOptions(n.cfg.ClusterSecret)...)
	if err != nil {
		slog.Error("cannot watch over the membership", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-n.reg.Lost():
			n.lost <- err
			return
		case <-tick.C:
		}
		if !n.reg.Away() && !n.rman.Refused() {
			continue
		}
		is, err := moved(ctx, pb.NewManagerClient(conn), hello.Etcd)
		if is {
			n.lost <- ErrMoved
			return
		}
		if err != nil {
			slog.Debug("cannot ask for the cluster's etcd", "address", n.cfg.Join, "error", err)
		}
	}
}
