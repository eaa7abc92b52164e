package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// FormWave looks for others that assist; the outcome goes to WaveHome.Formed. It does not wait.
func (r *RManager) FormWave(f Form) {
	w := r.takePart(f.Request)
	r.mu.Lock()
	defer r.mu.Unlock()
	if w == nil {
		r.waves.home.Formed(f.Request, 0, kvcache.Course{}, nil)
		return
	}
	r.spawn(func() { r.form(w, f) })
}

func (r *RManager) form(w *wavePart, f Form) {
	err := r.gather(w, f)
	r.mu.Lock()
	defer r.mu.Unlock()
	var spans []kvcache.Span
	for i := range w.helpers {
		j := &w.helpers[i]
		j.peer.placing--
		if j.peer.session != j.session && err == nil {
			err = errWaveStale
		}
		if j.span.Generation != 0 {
			spans = append(spans, j.span)
		}
	}
	if err == nil && (w.ended || len(spans) < len(w.helpers)) {
		err = errWaveOver
	}
	if err != nil {
		for _, s := range spans {
			r.owe(kvcache.Ended{Span: s})
		}
		spans = nil
		slog.Debug("no wave is formed", "request", f.ID, "error", err)
	}
	r.waves.home.Formed(f.Request, w.number, w.course, spans)
}

// gather asks those who would assist to do so. The links to them are kept until form has told of them.
func (r *RManager) gather(w *wavePart, f Form) error {
	ctx, done := context.WithTimeout(r.ctx, waveAnswer)
	defer done()
	all := r.helpers()
	all = all[:min(len(all), f.Parts-1)]
	would := make([]bool, len(all))
	each(len(all), func(i int) { would[i] = r.wouldJoin(ctx, all[i], f, len(all)+1) == nil })
	var parts []creditor
	for i, c := range all {
		if would[i] && r.hold(c) {
			parts = append(parts, c)
			w.helpers = append(w.helpers, joined{creditor: c})
		}
	}
	if len(parts) == 0 {
		return errNoHelp
	}
	w.course = kvcache.Cut(f.Base, len(f.Text), f.Chunk, len(parts)+1, len(parts))
	names := make([]string, 0, len(parts)+1)
	for _, c := range parts {
		names = append(names, c.peer.id)
	}
	names = append(names, r.cfg.ID)
	errs := make([]error, len(parts))
	each(len(parts), func(i int) { errs[i] = r.askToJoin(ctx, &w.helpers[i], f, names, i) })
	return errors.Join(errs...)
}

// each runs f for 0..n-1 beside each other.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// helpers lists those who might assist, those with the least to do first.
func (r *RManager) helpers() []creditor {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := map[string]*pb.Load{}
	for _, in := range r.view.GetInstances() {
		busy[in.Id] = in.Load
	}
	var peers []*peer
	for _, p := range r.peers {
		if p.mayAssist() && busy[p.id].GetWaiting() == 0 {
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, func(a, b *peer) int {
		return cmp.Or(cmp.Compare(busy[a.id].GetRunning(), busy[b.id].GetRunning()), cmp.Compare(b.hostable, a.hostable), cmp.Compare(a.id, b.id))
	})
	out := make([]creditor, 0, len(peers))
	for _, p := range peers[:min(len(peers), maxParts-1)] {
		out = append(out, creditor{p, p.session})
	}
	return out
}

// mayAssist says whether there are links both ways to a peer that runs requests. The caller holds RManager.mu.
func (p *peer) mayAssist() bool {
	return p.session != 0 && p.serving != 0 && !p.upgrading && !p.gone && !p.left && !p.drains && !p.member.MemoryOnly
}

// wouldJoin asks an instance to keep its part for this one, in a wave of so many parts.
func (r *RManager) wouldJoin(ctx context.Context, c creditor, f Form, parts int) error {
	limited, done := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer done()
	reply, err := c.peer.client.JoinWave(limited, &pb.JoinWaveRequest{Owner: r.cfg.ID, Session: c.session,
		Blocks: uint32(((len(f.Text)-f.Base)/parts + f.Chunk) / r.kv.BlockSize())})
	if err == nil && reply.Reason != "" {
		err = errors.New(reply.Reason)
	}
	return err
}

// askToJoin asks an instance for its part, and takes its spans.
func (r *RManager) askToJoin(ctx context.Context, j *joined, f Form, parts []string, part int) error {
	req := &pb.JoinWaveRequest{Owner: r.cfg.ID, Session: j.session, Ticket: r.nextTicket(), Id: f.ID, Salt: f.Salt, Arrival: f.Arrival,
		Tokens: make([]uint32, len(f.Text)), PatienceNs: uint64(r.cfg.WavePatience), Base: uint32(f.Base), Chunk: uint32(f.Chunk), Parts: parts, Part: uint32(part)}
	for i, t := range f.Text {
		req.Tokens[i] = uint32(t)
	}
	reply, err := j.peer.client.JoinWave(ctx, req)
	if err == nil && reply.Reason != "" {
		return fmt.Errorf("%s does not assist: %s", j.peer.id, reply.Reason)
	}
	if err == nil {
		j.others = reply.Spans
		if own := spanFor(reply.Spans, r.cfg.ID); own != nil && len(reply.Spans) == len(parts)-1 {
			j.span = kvcache.Span{Instance: j.peer.id, Peer: j.peer.index, Handle: own.Handle, Generation: own.Generation, Shared: true}
			return nil
		}
		err = fmt.Errorf("cannot use spans of %s for %d of %d others", j.peer.id, len(reply.Spans), len(parts)-1)
	}
	r.giveUp(j.creditor, req.Ticket) // it may have been heard
	return err
}

func spanFor(spans []*pb.WaveSpan, instance string) *pb.WaveSpan {
	for _, s := range spans {
		if s.Instance == instance && s.Generation != 0 {
			return s
		}
	}
	return nil
}

// StartWave tells those who assist of each other; the outcome goes to WaveHome.Started. The request has its blocks.
func (r *RManager) StartWave(id kvcache.RequestID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.waves.own
	if w == nil || w.request != id {
		r.waves.home.Started(id, nil, errWaveOver)
		return
	}
	r.spawn(func() {
		err := r.start(w)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.waves.home.Started(id, nil, err)
	})
}

func (r *RManager) start(w *wavePart) error {
	if err := r.openPart(w); err != nil {
		return err
	}
	for i := range w.helpers {
		if err := r.shareWave(w, w.helpers[i].peer); err != nil {
			r.endSlots(w)
			return err
		}
	}
	ctx, done := context.WithTimeout(r.ctx, waveAnswer)
	defer done()
	errs := make([]error, len(w.helpers))
	each(len(w.helpers), func(i int) { errs[i] = r.tellToBegin(ctx, w, i) })
	if err := errors.Join(errs...); err != nil {
		r.endSlots(w)
		return err
	}
	return nil
}

func (r *RManager) tellToBegin(ctx context.Context, w *wavePart, i int) error {
	me := &w.helpers[i]
	req := &pb.BeginWaveRequest{Owner: r.cfg.ID, Session: me.session, Handle: me.span.Handle, Generation: me.span.Generation}
	for k := range w.helpers {
		if k == i {
			continue
		}
		s := spanFor(w.helpers[k].others, me.peer.id)
		if s == nil {
			return fmt.Errorf("%s opened no span for %s", w.helpers[k].peer.id, me.peer.id)
		}
		req.Spans = append(req.Spans, &pb.WaveSpan{Instance: w.helpers[k].peer.id, Handle: s.Handle, Generation: s.Generation})
	}
	own := w.slots[i]
	req.Spans = append(req.Spans, &pb.WaveSpan{Instance: r.cfg.ID, Handle: own.Handle, Generation: own.Generation})
	if _, err := me.peer.client.BeginWave(ctx, req); err != nil {
		return fmt.Errorf("cannot let %s begin: %w", me.peer.id, err)
	}
	return nil
}
