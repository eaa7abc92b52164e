package cluster

import (
	"context"
	"sync"
	"time"

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

// tellEvery is how often those are told that it drains who have not answered, or had no links then.
const tellEvery = time.Second

// Drain has this instance lend no more, and tells the others that it is about to leave, until Close: they have their blocks
// back, as far as they have room. It does not wait for them.
func (r *RManager) Drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drains = true
	r.spawn(func() {
		for r.ctx.Err() == nil {
			r.tell(true)
			sleep(r.ctx, tellEvery)
		}
	})
}

// hostable is how many blocks it would host now.
func (r *RManager) hostable() int {
	if r.isDraining() {
		return 0
	}
	return r.kv.Hostable()
}

func (r *RManager) isDraining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drains
}

// sayGoodbye tells the others that this instance leaves. Who cannot be reached will see for itself.
func (r *RManager) sayGoodbye() { r.tell(false) }

// tell says that it leaves, or drains, to every connected peer that does not know.
func (r *RManager) tell(drains bool) {
	var calls sync.WaitGroup
	for _, p := range r.snapshot() {
		r.mu.Lock()
		up := (p.session != 0 || p.serving != 0) && !(drains && p.knows)
		r.mu.Unlock()
		if !up {
			continue
		}
		calls.Go(func() {
			limited, done := r.call()
			defer done()
			_, err := p.client.Leave(limited, &pb.LeaveRequest{Id: r.cfg.ID, Session: r.cfg.Session, Drains: drains})
			r.mu.Lock()
			defer r.mu.Unlock()
			p.knows = p.knows || drains && err == nil
		})
	}
	calls.Wait()
}
