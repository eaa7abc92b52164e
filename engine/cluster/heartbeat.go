package cluster

import (
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// heartbeatLoop reports to the elected gManager and keeps its answer as the view.
func (r *RManager) heartbeatLoop(leader *Leader) {
	tick := time.NewTicker(r.cfg.Heartbeat)
	defer tick.Stop()
	var quiet silence
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		address := leader.Address()
		if address == "" {
			continue
		}
		err := r.heartbeat(address)
		switch { // after any other error the last word counts
		case err == nil:
			r.refused.Store(false)
		case status.Code(err) == codes.NotFound:
			r.refused.Store(true)
		}
		if err == nil {
			quiet.end()
		} else if quiet.lasts(time.Now()) > deafAfter {
			slog.Warn("cannot report to the gManager", "address", address, "error", err)
			quiet.end() // and again after as long
		}
	}
}

// Refused says that the gManager does not have this process on its list, by its last answer.
func (r *RManager) Refused() bool { return r.refused.Load() }

func (r *RManager) heartbeat(address string) error {
	if r.managerAt != address {
		conn, err := grpc.NewClient(address, DialOptions(r.cfg.Secret)...)
		if err != nil {
			return err
		}
		if r.manager != nil {
			_ = r.manager.Close()
		}
		r.manager, r.managerAt = conn, address
	}
	number := r.reports.Add(1)
	load, places := r.home.Report()
	load.Report, load.Hostable = number, uint32(r.hostable())
	r.mu.Lock()
	load.Starving, load.Links = r.starving, r.transports()
	r.mu.Unlock()
	limited, done := r.call()
	defer done()
	// The first are the oldest, which matter most.
	req := &pb.HeartbeatRequest{Id: r.cfg.ID, Session: r.cfg.Session, Load: load, Requests: places[:min(len(places), maxPlacements)]}
	reply, err := pb.NewManagerClient(r.manager).Heartbeat(limited, req)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.view, r.viewAt = reply, time.Now()
	for _, p := range r.peers {
		p.shown = false
	}
	for _, in := range reply.Instances {
		if p := r.peers[in.Id]; p != nil && in.Load != nil {
			p.hostable, p.told, p.shown = int(in.Load.Hostable), r.viewAt, true
		}
	}
	return nil
}

// NextReport is the number of the first report that is sure to show what has happened until now: none of it was asked for
// yet.
func (r *RManager) NextReport() uint64 { return r.reports.Load() + 1 }

// transports counts the connected peers by what their links are. The caller holds mu.
func (r *RManager) transports() map[string]uint32 {
	n := map[string]uint32{}
	for _, p := range r.peers {
		if p.session != 0 {
			n[string(p.info.Transport)]++
		}
	}
	return n
}
