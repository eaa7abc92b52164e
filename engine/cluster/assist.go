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
		return &pb.JoinWaveReply{Reason: r.wouldAssist(int(req.Blocks) * r.kv.BlockSize())}, nil
	}
	f, c, others, err := r.readWave(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	w := r.takePart(0)
	if w == nil {
		return refuse(errBusyWave)
	}
	w.course = c
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

// wouldAssist says why this instance would not assist now.
func (r *RManager) wouldAssist(tokens int) string {
	r.mu.Lock()
	home, busy := r.waves.home, r.waves.own != nil
	r.mu.Unlock()
	switch {
	case home == nil:
		return "this instance has no part in waves"
	case busy:
		return errBusyWave.Error()
	}
	if err := home.Helps(tokens); err != nil {
		return err.Error()
	}
	return ""
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
	time.AfterFunc(2*waveAnswer, func() { r.expectBegun(w) })
	return nil
}

// leaveWave ends a part that came to nothing.
func (r *RManager) leaveWave(w *wavePart, cause error) {
	r.mu.Lock()
	id := w.request
	if id != 0 {
		r.waves.home.Started(id, nil, cause) // its EndWave follows
	}
	r.mu.Unlock()
	if id == 0 {
		r.endPart(w)
	}
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
	w := r.waves.joined[slotID{req.Owner, req.Handle, req.Generation}]
	if w == nil || w.ended || w.begun {
		return nil, status.Error(codes.FailedPrecondition, "cannot begin a wave that this instance has no part in")
	}
	var spans []kvcache.Span
	for _, s := range req.Spans {
		p := r.peers[s.Instance]
		if p == nil || !p.mayAssist() {
			return nil, status.Errorf(codes.FailedPrecondition, "cannot begin a wave with %s: there are no links to it", s.Instance)
		}
		spans = append(spans, kvcache.Span{Instance: p.id, Peer: p.index, Handle: s.Handle, Generation: s.Generation, Shared: true})
	}
	if len(spans) != w.course.Parts-1 {
		return nil, status.Errorf(codes.InvalidArgument, "cannot begin a wave of %d parts with %d others", w.course.Parts, len(spans))
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
