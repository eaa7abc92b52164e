package cluster

import (
	"context"
	"sync"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// Leave takes a peer's word that its links are about to close. They may do so before etcd tells that it is no member any
// more, and would look like those of one that was killed.
func (r *RManager) Leave(_ context.Context, req *pb.LeaveRequest) (*pb.LeaveReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[req.Id]; p != nil && p.member.Session == req.Session {
		p.left, p.drains = p.left || !req.Drains, p.drains || req.Drains
	}
	return &pb.LeaveReply{}, nil
}

// Drain tells the others that this instance is about to leave: it lends no more from here on, and they have their blocks
// back, as far as they have room.
func (r *RManager) Drain() {
	r.mu.Lock()
	r.drains = true
	r.mu.Unlock()
	r.tell(true)
}

// sayGoodbye tells the others that this instance leaves.
func (r *RManager) sayGoodbye() { r.tell(false) }

// tell says it to every connected peer. Who cannot be reached will see for itself.
func (r *RManager) tell(drains bool) {
	var calls sync.WaitGroup
	for _, p := range r.snapshot() {
		r.mu.Lock()
		up := p.session != 0 || p.serving != 0
		r.mu.Unlock()
		if !up {
			continue
		}
		calls.Go(func() {
			limited, done := r.call()
			defer done()
			_, _ = p.client.Leave(limited, &pb.LeaveRequest{Id: r.cfg.ID, Session: r.cfg.Session, Drains: drains})
		})
	}
	calls.Wait()
}
