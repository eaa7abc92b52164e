package cluster

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// ShareKV opens a span over blocks here of the beginning of a debtor's request, for as long as it wants to read them. That it has none, or not now, is an answer, not an error.
func (r *RManager) ShareKV(ctx context.Context, req *pb.ShareKVRequest) (*pb.ShareKVReply, error) {
	keys, err := keysOf(req.Keys)
	before, err2 := keysOf(req.Before)
	if err != nil || err2 != nil || len(keys) == 0 {
		return nil, status.Error(codes.InvalidArgument, "cannot share blocks without the keys of some")
	}
	text := append(before, keys...) // without what lies between those that are asked for, which makes leads reach further
	p := r.peerByID(req.Owner)
	if p == nil {
		return &pb.ShareKVReply{Reason: "this instance does not know " + req.Owner}, nil
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if !r.serves(p, req.Session) {
		return &pb.ShareKVReply{Reason: "no such link from " + req.Owner}, nil
	}
	if reason, err := r.admits(ctx, p, req.Ticket, true); err != nil {
		return nil, err
	} else if reason != "" {
		return &pb.ShareKVReply{Reason: reason}, nil
	}
	hosted, which, err := r.kv.Share(req.Owner, req.Ticket, keys)
	if err != nil {
		return &pb.ShareKVReply{Reason: err.Error(), Unknown: errors.Is(err, kvcache.ErrUnknown), Next: r.kv.Lead(text, len(before)), Hostable: uint32(r.hostable())}, nil
	}
	if err = r.spans.SpanShare(p.index, hosted.Handle, hosted.Generation, hosted.Blocks); err != nil {
		slog.Error("cannot share blocks", "owner", req.Owner, "error", err)
		r.unhost(hosted, nil)
		return &pb.ShareKVReply{Reason: err.Error()}, nil
	}
	reply := &pb.ShareKVReply{Blocks: uint32(len(which)), Runs: runsOf(which), Handle: hosted.Handle, Generation: hosted.Generation, Hostable: uint32(r.hostable())}
	n := 0 // of the first ones
	for n < len(which) && int(which[n]) == n {
		n++
	}
	if n < len(keys) {
		reply.Next = r.kv.Lead(text, len(before)+n)
	}
	return reply, nil
}

// NameKV takes a debtor's word for what blocks of a span of its hold: they were moved here whole. A span that has ended
// since is no error: its end has said the same.
func (r *RManager) NameKV(_ context.Context, req *pb.NameKVRequest) (*pb.NameKVReply, error) {
	keys, err := keysOf(req.Keys)
	if err != nil {
		return nil, err
	}
	p := r.peerByID(req.Owner)
	if p == nil {
		return &pb.NameKVReply{}, nil
	}
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if !r.serves(p, req.Session) {
		return &pb.NameKVReply{}, nil
	}
	err = r.kv.NameHosted(req.Owner, req.Handle, req.Generation, int(req.First), keys)
	if err != nil && !errors.Is(err, kvcache.ErrUnknown) {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &pb.NameKVReply{}, nil
}

// maxKeys is how many blocks one message may name: 32 MiB of keys.
const maxKeys = 1 << 20

// keysOf reads keys as messages carry them.
func keysOf(b []byte) ([]kvcache.Key, error) {
	const size = len(kvcache.Key{})
	if len(b)%size != 0 || len(b) > maxKeys*size {
		return nil, status.Errorf(codes.InvalidArgument, "cannot read %d bytes as keys of blocks", len(b))
	}
	keys := make([]kvcache.Key, len(b)/size)
	for i := range keys {
		copy(keys[i][:], b[i*size:])
	}
	return keys, nil
}

func bytesOf(keys []kvcache.Key) []byte {
	out := make([]byte, 0, len(keys)*len(kvcache.Key{}))
	for i := range keys {
		out = append(out, keys[i][:]...)
	}
	return out
}
