package cluster

import (
	"context"
	"fmt"
	"log/slog"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// TryMoveKV reserves room for a debtor's blocks, first come first served. A refusal is an answer, not
// an error: accepted is 0 and the reason says why.
func (r *RManager) TryMoveKV(_ context.Context, req *pb.TryMoveKVRequest) (*pb.TryMoveKVReply, error) {
	p := r.peerByID(req.Owner)
	if p == nil {
		return r.refuse("this instance does not know " + req.Owner), nil
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if !r.isServing(p) {
		return r.refuse("no link from " + req.Owner), nil
	}
	n := min(int(req.Blocks), r.hostable())
	if n <= 0 {
		return r.refuse("no room"), nil
	}
	hosted, first, err := r.reserve(req, n)
	if err != nil {
		return r.refuse(err.Error()), nil
	}
	if err = r.spans.SpanSet(p.index, hosted.Handle, hosted.Generation, hosted.Blocks); err != nil {
		slog.Error("cannot open a hosted span", "owner", req.Owner, "error", err)
		r.unhost(hosted)
		return r.refuse(err.Error()), nil
	}
	return &pb.TryMoveKVReply{
		Accepted: uint32(len(hosted.Blocks) - first), Handle: hosted.Handle, Generation: hosted.Generation,
		First: uint32(first), Hostable: uint32(r.hostable()),
	}, nil
}

func (r *RManager) reserve(req *pb.TryMoveKVRequest, n int) (kvcache.Hosted, int, error) {
	if req.Generation == 0 {
		h, err := r.kv.Host(req.Owner, n)
		return h, 0, err
	}
	before := -1
	for _, h := range r.kv.HostedOf(req.Owner) {
		if h.Handle == req.Handle && h.Generation == req.Generation {
			before = len(h.Blocks)
		}
	}
	if before < 0 {
		return kvcache.Hosted{}, 0, fmt.Errorf("cannot extend span %d.%d: it is not hosted here", req.Handle, req.Generation)
	}
	h, err := r.kv.ExtendHost(req.Owner, req.Handle, req.Generation, n)
	return h, before, err
}

// ReleaseKV ends hosted spans. A span that is not there was released before: releasing is idempotent.
func (r *RManager) ReleaseKV(_ context.Context, req *pb.ReleaseKVRequest) (*pb.ReleaseKVReply, error) {
	p := r.peerByID(req.Owner)
	if p == nil {
		return &pb.ReleaseKVReply{}, nil
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	for _, s := range req.Spans {
		for _, h := range r.kv.HostedOf(req.Owner) {
			if h.Handle == s.Handle && h.Generation == s.Generation {
				r.unhost(h)
			}
		}
	}
	return &pb.ReleaseKVReply{}, nil
}

// unhost frees a hosted span's blocks once nobody reads or writes them.
func (r *RManager) unhost(h kvcache.Hosted) {
	if err := r.spans.SpanClose(h.Handle, h.Generation); err != nil {
		slog.Debug("the device did not know a hosted span", "handle", h.Handle, "error", err)
	}
	if err := r.kv.Unhost(h.Owner, h.Handle, h.Generation); err != nil {
		slog.Error("cannot free a hosted span", "owner", h.Owner, "handle", h.Handle, "error", err)
	}
}

func (r *RManager) unhostAll(owner string) {
	for _, h := range r.kv.HostedOf(owner) {
		r.unhost(h)
	}
}

func (r *RManager) refuse(reason string) *pb.TryMoveKVReply {
	return &pb.TryMoveKVReply{Reason: reason, Hostable: uint32(r.hostable())}
}

// hostable is the number of blocks this instance would host now.
func (r *RManager) hostable() int { return r.kv.Hostable() }
