package cluster

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// TryMoveKV reserves room for a debtor's blocks, first come first served. A refusal is an answer, not
// an error: accepted is 0 and the reason says why.
func (r *RManager) TryMoveKV(ctx context.Context, req *pb.TryMoveKVRequest) (*pb.TryMoveKVReply, error) {
	p := r.peerByID(req.Owner)
	if p == nil {
		return &pb.TryMoveKVReply{Reason: "this instance does not know " + req.Owner}, nil
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	opens := req.Generation == 0
	if !r.serves(p, req.Session) {
		return &pb.TryMoveKVReply{Reason: "no such link from " + req.Owner}, nil
	}
	if reason, err := r.admits(ctx, p, req.Ticket, opens); err != nil {
		return nil, err
	} else if reason != "" {
		return r.refuse(reason), nil
	}
	hosted, err := r.reserve(req)
	if err != nil {
		return r.refuse(err.Error()), nil
	}
	if err = r.spans.SpanSet(p.index, hosted.Handle, hosted.Generation, hosted.Blocks); err != nil {
		slog.Error("cannot open a hosted span", "owner", req.Owner, "error", err)
		if opens {
			r.unhost(hosted, nil) // else the debtor has blocks in it; what was added waits for its next call
		}
		return r.refuse(err.Error()), nil
	}
	return &pb.TryMoveKVReply{
		Accepted: min(req.Blocks, uint32(len(hosted.Blocks))-req.First), Handle: hosted.Handle, Generation: hosted.Generation,
		Hostable: uint32(r.hostable()),
	}, nil
}

// admits says why a debtor's call over links that are served gets no span. The caller holds the peer's hostMu.
func (r *RManager) admits(ctx context.Context, p *peer, ticket uint64, opens bool) (reason string, err error) {
	if r.isDraining() {
		return "this instance is about to leave", nil
	}
	if r.upgrades(p) {
		return "the links to " + p.id + " are being made anew", nil
	}
	if ctx.Err() != nil || opens && ticket <= p.givenUp {
		// The debtor has gone on without an answer; what it opens now it would never use, nor release.
		return "", status.Errorf(codes.Canceled, "cannot open a span: %s does not wait for it any more", p.id)
	}
	return "", nil
}

func (r *RManager) reserve(req *pb.TryMoveKVRequest) (kvcache.Hosted, error) {
	if req.Generation != 0 {
		return r.kv.ExtendHost(req.Owner, req.Handle, req.Generation, int(req.First), int(req.Blocks))
	}
	if req.First != 0 {
		return kvcache.Hosted{}, fmt.Errorf("cannot open a span of which %d blocks are used", req.First)
	}
	return r.kv.Host(req.Owner, req.Ticket, int(req.Blocks))
}

// ReleaseKV ends hosted spans. A span that is not there was released before: releasing is idempotent.
func (r *RManager) ReleaseKV(_ context.Context, req *pb.ReleaseKVRequest) (*pb.ReleaseKVReply, error) {
	if len(req.Spans) > maxRelease || len(req.Tickets) > maxRelease {
		return nil, status.Errorf(codes.InvalidArgument, "cannot release more than %d spans at a time", maxRelease)
	}
	p := r.peerByID(req.Owner)
	if p == nil {
		return &pb.ReleaseKVReply{}, nil
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if !r.serves(p, req.Session) {
		return &pb.ReleaseKVReply{}, nil
	}
	type span struct{ handle, generation uint32 }
	spans, tickets := map[span][]kvcache.Key{}, map[uint64]bool{}
	for _, s := range req.Spans {
		keys, err := keysOf(s.Keys)
		if err != nil {
			return nil, err
		}
		spans[span{s.Handle, s.Generation}] = keys
	}
	for _, t := range req.Tickets {
		tickets[t] = true
		p.givenUp = max(p.givenUp, t)
	}
	for _, h := range r.kv.HandlesOf(req.Owner) {
		if keys, named := spans[span{h.Handle, h.Generation}]; named || tickets[h.Tag] {
			r.unhost(h, keys)
		}
	}
	return &pb.ReleaseKVReply{}, nil
}

// unhost frees a hosted span's blocks once nobody reads or writes them; those that keys name are kept for others to find.
func (r *RManager) unhost(h kvcache.Hosted, keys []kvcache.Key) {
	r.partEnds(h)
	if err := r.spans.SpanClose(h.Handle, h.Generation); err != nil {
		slog.Debug("the device did not know a hosted span", "handle", h.Handle, "error", err)
	}
	if err := r.kv.Unhost(h.Owner, h.Handle, h.Generation, keys); err != nil {
		slog.Error("cannot free a hosted span", "owner", h.Owner, "handle", h.Handle, "error", err)
	}
}

func (r *RManager) unhostAll(owner string) {
	for _, h := range r.kv.HandlesOf(owner) {
		r.unhost(h, nil)
	}
}

func (r *RManager) refuse(reason string) *pb.TryMoveKVReply {
	return &pb.TryMoveKVReply{Reason: reason, Hostable: uint32(r.hostable())}
}
