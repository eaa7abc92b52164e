package node

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// keeper is the home of an instance with --memory-only: it runs no requests, so nothing of its own is ever moved,
// searched for or lost.
type keeper struct{ pool }

func (k *keeper) Moved(cluster.Outcome)                    {}
func (k *keeper) Found(kvcache.RequestID, []kvcache.Found) {}
func (k *keeper) PeerLost(string)                          {}

// Place is never asked for: there is no request here.
func (k *keeper) Place(kvcache.RequestID, string, string, int) error { return kvcache.ErrUnknown }

// Report is what the heartbeat carries.
func (k *keeper) Report() (*pb.Load, []*pb.Placement) { return k.load(), nil }

// watchDevice looks after a device that runs no steps, which would tell how it is, until ctx ends or it is over.
func watchDevice(ctx context.Context, d *device.Device) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := d.Err(); err != nil {
			return fmt.Errorf("the device failed in work for others: %w", err)
		}
	}
}

// waitUntilUnused waits until ctx ends for requests of others that have blocks here to end, or to have them back; those that
// go on are computed anew.
func waitUntilUnused(ctx context.Context, kv *kvcache.Manager) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c := kv.Counts()
		if c.Hosted+c.Shared == 0 {
			return
		}
		select {
		case <-ctx.Done():
			slog.Warn("blocks of others are given up: the time to wait for their requests is over", "hosted", c.Hosted, "shared", c.Shared)
			return
		case <-tick.C:
		}
	}
}
