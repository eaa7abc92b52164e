package cluster

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// Blocks come back from an instance that is about to leave (leave.go). The home opens a span over free blocks of its own, as
// if the other one were its debtor, and asks it to move them there over the links by which that one would borrow.

// bring has blocks of a request come back from an instance.
func (r *RManager) bring(o offload) (placed, error) {
	p := r.peerByID(o.from)
	if p == nil {
		return placed{}, errLost
	}
	r.mu.Lock()
	done, back, life := placed{peer: p, session: p.session}, p.serving, p.life
	r.mu.Unlock()
	if done.session == 0 || back == 0 {
		return placed{}, errLost
	}
	x, began, err := r.beginReturn(p, back, o)
	if done.began = began; err != nil {
		return done, err
	}
	err = r.fetch(life, done, back, x)
	r.endInto(p, x.Into)
	return done, err
}

// beginReturn takes the blocks, and opens a span over them for the peer, which ends with the links that are served now.
func (r *RManager) beginReturn(p *peer, back uint64, o offload) (x kvcache.Return, began bool, err error) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if !r.serves(p, back) {
		return x, false, errLost
	}
	if x, err = r.kv.BeginReturn(o.request, p.id, p.index, o.blocks); err != nil {
		return x, false, err
	}
	if err = r.spans.SpanSet(p.index, x.Into.Handle, x.Into.Generation, x.Into.Blocks); err != nil {
		r.unhost(x.Into, nil)
	}
	return x, true, err
}

// fetch asks for the blocks, and returns when they are here, or will not come: with the links, whose session life is, at once.
func (r *RManager) fetch(life context.Context, done placed, back uint64, x kvcache.Return) error {
	ctx, cancel := context.WithTimeout(life, r.cfg.MoveTimeout)
	defer cancel()
	_, err := done.peer.client.ReturnKV(ctx, &pb.ReturnKVRequest{
		Owner: r.cfg.ID, Session: done.session, Back: back, Handle: x.From.Handle, Generation: x.From.Generation,
		First: uint32(x.First), Blocks: uint32(len(x.Into.Blocks)), IntoHandle: x.Into.Handle, IntoGeneration: x.Into.Generation,
	})
	return err
}

// endInto ends the span that blocks came back into: nobody writes to them any more. With the peer's links it has ended.
func (r *RManager) endInto(p *peer, into kvcache.Hosted) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	for _, h := range r.kv.HandlesOf(p.id) {
		if h.Handle == into.Handle && h.Generation == into.Generation {
			r.unhost(h, nil)
		}
	}
}

// ReturnKV moves blocks that this instance hosts back to their home.
func (r *RManager) ReturnKV(_ context.Context, req *pb.ReturnKVRequest) (*pb.ReturnKVReply, error) {
	p := r.peerByID(req.Owner)
	if p == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot give blocks back: %s does not know %q", r.cfg.ID, req.Owner)
	}
	if !r.beginGiving(p) {
		return nil, status.Errorf(codes.ResourceExhausted, "cannot give blocks back: %d returns of %s are under way, or this instance ends", maxGiving, req.Owner)
	}
	defer r.endGiving(p)
	blocks, err := r.give(p, req)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	defer r.kv.Given(req.Handle)
	into := kvcache.Span{Instance: p.id, Peer: p.index, Handle: req.IntoHandle, Generation: req.IntoGeneration}
	done, err := r.post(creditor{p, req.Back}, into, blocks)
	if err == nil {
		// The device reads the blocks until it reports the move. When the home waits no longer it closes its span, and the next
		// piece is refused; one that says nothing at all is given up by the device.
		err = <-done
	}
	if err != nil {
		return nil, status.Errorf(codes.Aborted, "cannot give blocks back: %v", err)
	}
	return &pb.ReturnKVReply{}, nil
}

// maxGiving is how many returns of a home are under way: it asks for one at a time, and may have given some up.
const maxGiving = 4

// beginGiving lets Close wait for a return; false: it has begun, or there are too many.
func (r *RManager) beginGiving(p *peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || p.giving >= maxGiving {
		return false
	}
	p.giving++
	r.wg.Add(1)
	return true
}

func (r *RManager) endGiving(p *peer) {
	r.mu.Lock()
	p.giving--
	r.mu.Unlock()
	r.wg.Done()
}

// give keeps the blocks that are asked for as they are.
func (r *RManager) give(p *peer, req *pb.ReturnKVRequest) ([]kvcache.BlockID, error) {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	if !r.serves(p, req.Session) {
		return nil, fmt.Errorf("cannot give blocks back: no such link from %s", req.Owner)
	}
	r.mu.Lock()
	same := req.Back != 0 && p.session == req.Back
	r.mu.Unlock()
	if !same {
		return nil, fmt.Errorf("cannot give blocks back: no such link to %s", req.Owner)
	}
	return r.kv.Give(req.Owner, req.Handle, req.Generation, int(req.First), int(req.Blocks))
}
