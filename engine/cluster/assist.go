package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// slotID names a hosted span of an owner.
type slotID struct {
	owner              string
	handle, generation uint32
}

// JoinWave takes a part in a wave of another instance's request.
func (r *RManager) JoinWave(ctx context.Context, req *pb.JoinWaveRequest) (*pb.JoinWaveReply, error) {
	refuse := func(err error) (*pb.JoinWaveReply, error) { return &pb.JoinWaveReply{Reason: err.Error()}, nil }
	home := r.peerByID(req.Owner)
	if home == nil || !r.serves(home, req.Session) {
		return refuse(fmt.Errorf("there is no such link from %s", req.Owner))
	}
	if req.Ticket == 0 {
		return &pb.JoinWaveReply{Reason: r.keepPart(home, int(req.Blocks)*r.kv.BlockSize())}, nil
	}
	f, c, others, err := r.readWave(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	w := r.keptPart(home)
	if w == nil {
		return refuse(errBusyWave)
	}
	w.course, w.patience = c, min(r.cfg.WavePatience, time.Duration(req.PatienceNs))
	for _, p := range others {
		w.others = append(w.others, p.id)
	}
	if err := r.join(ctx, w, f, home, others, req); err != nil {
		r.leaveWave(w, err)
		return refuse(err)
	}
	reply := &pb.JoinWaveReply{}
	for _, h := range w.slots {
		reply.Spans = append(reply.Spans, &pb.WaveSpan{Instance: h.Owner, Handle: h.Handle, Generation: h.Generation})
	}
	return reply, nil
}

// keepPart keeps this instance's part for a home that is about to form a wave, for a while; or says why not.
func (r *RManager) keepPart(home *peer, tokens int) (reason string) {
	w := r.takePart(0)
	if w == nil {
		return errBusyWave.Error()
	}
	if err := r.waves.home.Helps(tokens); err != nil {
		r.endPart(w)
		return err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w.keptFor = home
	time.AfterFunc(waveAnswer, func() {
		r.mu.Lock()
		over := w.keptFor != nil
		r.mu.Unlock()
		if over {
			r.endPart(w)
		}
	})
	return ""
}

// keptPart is the part that was kept for a home, or another one if there is none.
func (r *RManager) keptPart(home *peer) *wavePart {
	r.mu.Lock()
	w := r.waves.own
	kept := w != nil && w.keptFor == home
	if kept {
		w.keptFor = nil
	}
	r.mu.Unlock()
	if kept {
		return w
	}
	return r.takePart(0)
}

// readWave checks what a home says of its wave. others are the other parts' peers, in order.
func (r *RManager) readWave(req *pb.JoinWaveRequest) (f Form, c kvcache.Course, others []*peer, err error) {
	n, bs := len(req.Parts), r.kv.BlockSize()
	bad := func(format string, args ...any) (Form, kvcache.Course, []*peer, error) {
		return Form{}, kvcache.Course{}, nil, fmt.Errorf("cannot join a wave "+format, args...)
	}
	chunk, base := int64(req.Chunk), int64(req.Base)
	switch {
	case n < 2 || n > maxParts || int64(req.Part) >= int64(n-1) || req.Parts[n-1] != req.Owner || req.Parts[req.Part] != r.cfg.ID:
		return bad("of %d parts as its part %d", n, req.Part)
	case req.PatienceNs < 1 || req.PatienceNs > uint64(time.Hour):
		return bad("whose queries wait for %d ns", req.PatienceNs)
	case chunk < 1 || chunk%int64(bs) != 0 || base%int64(bs) != 0 || base+chunk*int64(n) > int64(len(req.Tokens)):
		return bad("of %d tokens, %d of them there, with legs of %d", len(req.Tokens), base, chunk)
	}
	f = Form{ID: req.Id, Salt: req.Salt, Arrival: req.Arrival, Base: int(base), Chunk: int(chunk), Parts: n, Text: make([]int32, len(req.Tokens))}
	for i, t := range req.Tokens {
		if f.Text[i] = int32(t); f.Text[i] < 0 {
			return bad("with token %d", t)
		}
	}
	seen := map[string]bool{}
	for i, id := range req.Parts {
		if seen[id] {
			return bad("in which %s has two parts", id)
		}
		seen[id] = true
		if i == int(req.Part) {
			continue
		}
		p := r.peerByID(id)
		if p == nil {
			return bad("with %s, which is not known here", id)
		}
		others = append(others, p)
	}
	return f, kvcache.Cut(f.Base, len(f.Text), f.Chunk, n, int(req.Part)), others, nil
}

// join takes the blocks of a part, and opens the spans over them; the home's last, since its end is the part's.
func (r *RManager) join(ctx context.Context, w *wavePart, f Form, home *peer, others []*peer, req *pb.JoinWaveRequest) error {
	limited, done := context.WithTimeout(ctx, waveAnswer)
	defer done()
	id, err := r.waves.home.Assist(limited, w.number, f, w.course)
	if err != nil {
		return err
	}
	r.mu.Lock()
	w.request = id
	r.mu.Unlock()
	if err := r.openPart(w); err != nil {
		return err
	}
	for _, p := range others {
		if p == home {
			continue
		}
		if err := r.shareWave(w, p); err != nil {
			return err
		}
	}
	home.hostMu.Lock()
	defer home.hostMu.Unlock()
	if !r.serves(home, req.Session) {
		return errWaveStale
	}
	if reason, err := r.admits(ctx, home, req.Ticket, true); err != nil || reason != "" {
		return errors.Join(err, errWaveStale)
	}
	if err := r.openSlot(w, home, req.Ticket); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	own := w.slots[len(w.slots)-1]
	r.waves.joined[slotID{own.Owner, own.Handle, own.Generation}] = w
	time.AfterFunc(beginLimit, func() { r.expectBegun(w) })
	return nil
}

// leaveWave ends a part that came to nothing.
func (r *RManager) leaveWave(w *wavePart, cause error) {
	r.mu.Lock()
	if w.request != 0 {
		r.waves.home.Started(w.request, nil, cause)
	}
	r.mu.Unlock()
	r.endPart(w) // it never began, so no step has it; its request may be over already
	r.endSlots(w)
}

// expectBegun ends a part whose home was not heard of again.
func (r *RManager) expectBegun(w *wavePart) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !w.begun && !w.ended {
		r.waves.home.Started(w.request, nil, errors.New("its home does not begin the wave"))
	}
}

// BeginWave begins this instance's legs of a wave that it joined.
func (r *RManager) BeginWave(_ context.Context, req *pb.BeginWaveRequest) (*pb.BeginWaveReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, home := r.waves.joined[slotID{req.Owner, req.Handle, req.Generation}], r.peers[req.Owner]
	if w == nil || w.ended || w.begun || home == nil || home.serving != req.Session {
		return nil, status.Error(codes.FailedPrecondition, "cannot begin a wave that this instance has no part in")
	}
	if len(req.Spans) != len(w.others) {
		return nil, status.Errorf(codes.InvalidArgument, "cannot begin a wave of %d parts with %d others", w.course.Parts, len(req.Spans))
	}
	var spans []kvcache.Span
	for i, s := range req.Spans {
		p := r.peers[s.Instance]
		if s.Instance != w.others[i] {
			return nil, status.Errorf(codes.InvalidArgument, "cannot begin a wave with %q as part of %q", s.Instance, w.others[i])
		}
		if p == nil || !p.mayAssist() {
			return nil, status.Errorf(codes.FailedPrecondition, "cannot begin a wave with %s: there are no links to it", s.Instance)
		}
		spans = append(spans, kvcache.Span{Instance: p.id, Peer: p.index, Handle: s.Handle, Generation: s.Generation, Shared: true})
	}
	w.begun = true
	r.waves.home.Started(w.request, spans, nil)
	return &pb.BeginWaveReply{}, nil
}

// partEnds: a home's span has ended. If its request was in a wave that this instance assists with, that is over, and what
// others were to read of it.
func (r *RManager) partEnds(h kvcache.Hosted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := slotID{h.Owner, h.Handle, h.Generation}
	w := r.waves.joined[id]
	if w == nil {
		return
	}
	delete(r.waves.joined, id)
	if !w.ended {
		r.waves.home.Started(w.request, nil, errWaveOver)
	}
	r.spawn(func() { r.endSlots(w) })
}
