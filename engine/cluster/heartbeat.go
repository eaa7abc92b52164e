package cluster

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// heartbeatLoop reports to the elected gManager and keeps its answer as the view. While there is none,
// the last view stands; what creditors answer to TryMoveKV corrects it.
func (r *RManager) heartbeatLoop(ctx context.Context, leader *Leader) {
	tick := time.NewTicker(r.cfg.Heartbeat)
	defer tick.Stop()
	var failing time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		address := leader.Address()
		if address == "" {
			continue
		}
		err := r.heartbeat(ctx, address)
		switch {
		case err == nil:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > 5*time.Second:
			slog.Warn("cannot reach the gManager", "address", address, "error", err)
			failing = time.Now()
		}
	}
}

func (r *RManager) heartbeat(ctx context.Context, address string) error {
	conn := r.managers[address]
	if conn == nil {
		var err error
		if conn, err = grpc.NewClient(address, DialOptions(r.cfg.Secret)...); err != nil {
			return err
		}
		r.managers[address] = conn
	}
	load, places := r.home.Report()
	load.Hostable = uint32(r.hostable())
	limited, done := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer done()
	reply, err := pb.NewManagerClient(conn).Heartbeat(limited, &pb.HeartbeatRequest{Id: r.cfg.ID, Load: load, Requests: places})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.view = reply
	for _, in := range reply.Instances {
		if p := r.peers[in.Id]; p != nil && in.Load != nil {
			p.hostable = int(in.Load.Hostable)
		}
	}
	return nil
}
