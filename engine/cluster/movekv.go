package cluster

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// MoveKV takes a planned move of a request that this instance is the home of. The gManager's view may be old, so all of it
// is checked here and by the step loop; what becomes of it is the scheduler's to decide, and the destination's.
func (r *RManager) MoveKV(_ context.Context, req *pb.MoveKVRequest) (*pb.MoveKVReply, error) {
	if n := r.kv.Total(); req.Blocks < 1 || int64(req.Blocks) >= int64(n) {
		return nil, status.Errorf(codes.InvalidArgument, "cannot move %d blocks of a request: the pool has %d, of which it keeps one", req.Blocks, n)
	}
	if req.Destination == r.cfg.ID {
		return nil, status.Errorf(codes.InvalidArgument, "cannot move blocks of a request to %s: they are there", req.Destination)
	}
	if !r.borrowsFrom(req.Destination) {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot move blocks to %q: %s may not borrow there", req.Destination, r.cfg.ID)
	}
	err := r.home.Place(kvcache.RequestID(req.Number), req.Id, req.Destination, int(req.Blocks))
	switch {
	case errors.Is(err, kvcache.ErrUnknown):
		return nil, status.Error(codes.NotFound, err.Error())
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &pb.MoveKVReply{}, nil
}

// borrowsFrom says whether this instance has the links to borrow from another one.
func (r *RManager) borrowsFrom(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[id]
	return p != nil && p.session != 0 && !p.gone
}
