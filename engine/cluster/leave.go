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
		p.left = true
	}
	return &pb.LeaveReply{}, nil
}

// sayGoodbye tells every connected peer that this instance leaves. Who cannot be reached will see for itself.
func (r *RManager) sayGoodbye() {
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
			_, _ = p.client.Leave(limited, &pb.LeaveRequest{Id: r.cfg.ID, Session: r.cfg.Session})
		})
	}
	calls.Wait()
}
