package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Run is the step loop. It returns nil when ctx ends, and no step is in flight then, and an error when the
// device does not go on; either way all unfinished requests end.
func (e *Engine) Run(ctx context.Context) (err error) {
	e.mu.Lock()
	if e.started {
		drained := e.stopped && e.draining
		e.mu.Unlock()
		if drained {
			return nil
		}
		return errors.New("cannot run an engine twice")
	}
	e.started = true
	e.mu.Unlock()
	defer func() { e.stop(err) }()
	for ctx.Err() == nil {
		e.takeInbox()
		plan := e.sched.Schedule(e.lender.View())
		e.apply(plan)
		e.handOn()
		e.publish(plan)
		if len(plan.Items) == 0 || !e.fill(plan) {
			e.wait(ctx)
			if err := e.dev.Err(); err != nil {
				return fmt.Errorf("the device failed in work for others: %w", err)
			}
			continue
		}
		if err := e.step(); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for news. While requests wait for room it also ends after a short while, because room with
// others shows in the view alone; else after a longer one, to look after the device.
func (e *Engine) wait(ctx context.Context) {
	most := e.cfg.IdleCheck
	if !e.sched.Idle() {
		most = e.cfg.StallRefresh
	}
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-e.wake:
	case <-t.C:
	}
}

// takeInbox does what was asked between steps. No step is in flight, so blocks may be freed.
func (e *Engine) takeInbox() {
	e.mu.Lock()
	in := e.inbox
	e.inbox = inbox{}
	e.mu.Unlock()
	// Moves before cancellations: a request that is cancelled below then has its spans in one piece.
	for _, n := range in.news {
		switch {
		case n.moved != nil && n.moved.Back:
			e.settleReturn(*n.moved)
		case n.moved != nil:
			e.settle(*n.moved)
		case n.found != nil:
			e.release(e.sched.Found(n.found.request, n.found.found))
		case n.wave != nil:
			e.wave(n.wave)
		default:
			e.lose(n.lost)
		}
	}
	for _, r := range in.submits {
		err := e.sched.Add(sched.Request{
			ID: r.id, Arrival: r.Arrival, Tokens: len(r.tokens), Rows: r.promptRows(), Handed: r.Handed, Later: r.Later, Keys: r.keys, Near: r.Near,
		})
		if err != nil {
			e.fail(r, err)
		}
	}
	for _, p := range in.places {
		e.begin(p)
	}
	for _, r := range in.cancels {
		e.finish(r, Event{Finish: "abort", Err: errCancelled})
	}
	if in.abort {
		e.endAll(Event{Finish: "abort", Err: ErrStopped})
	}
}

// lose recomputes the requests that have blocks at an instance.
func (e *Engine) lose(instance string) {
	e.release(e.sched.Lost(instance))
	for _, id := range e.kv.RequestsAt(instance) {
		if r := e.get(id); r != nil {
			e.recompute(r, instance)
		}
	}
}

// recompute lets a request that lost KV with an instance wait again, with all its tokens to compute; it ends with
// a *PeerLostError when that has come to nothing too often. Its stream sees no more than a pause.
func (e *Engine) recompute(r *request, instance string) {
	if r.assist {
		e.fail(r, fmt.Errorf("cannot assist any more: instance %s is lost", instance))
		return
	}
	if r.losses++; r.losses > maxLosses {
		e.fail(r, &PeerLostError{Instance: instance, Request: r.ID})
		return
	}
	spans, ok := e.sched.Restart(r.id)
	if !ok {
		return // it waits already
	}
	r.running.Store(false)
	e.endWave(r)
	e.release(spans)
	e.mu.Lock()
	e.stats.Recoveries++
	e.mu.Unlock()
	slog.Warn("a request lost KV with an instance and will be recomputed", "id", r.ID, "tokens", len(r.tokens), "peer", instance)
}

// settle books the outcome of a move. The blocks that it frees were last read by a step that is over.
func (e *Engine) settle(m MoveResult) {
	var orphans []kvcache.Ended
	err := m.Err
	switch {
	case err == nil:
		orphans, err = e.kv.CommitMove(m.Request, m.Span.Blocks)
	case m.Began:
		var abort error
		if orphans, abort = e.kv.AbortMove(m.Request); abort != nil {
			err = errors.Join(err, abort)
		}
	}
	e.sched.Moved(m.Request, err == nil)
	e.release(orphans)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.stats.RefusedOffloads++
		slog.Debug("blocks could not be placed elsewhere", "request", uint64(m.Request), "error", err)
		return
	}
	e.stats.OffloadedBlocks += uint64(m.Span.Blocks)
}

// settleReturn books the outcome of a return: blocks that came back are read by the next step.
func (e *Engine) settleReturn(m MoveResult) {
	err, before := m.Err, e.kv.Size(m.Request).Spans
	if m.Began {
		ended, end := e.kv.EndReturn(m.Request, err == nil)
		err = errors.Join(err, end)
		e.release(ended)
	}
	e.sched.Returned(m.Request, err == nil)
	if err != nil {
		slog.Debug("blocks could not come back", "request", uint64(m.Request), "error", err)
		return
	}
	came := before - e.kv.Size(m.Request).Spans // none of a request that has ended
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.ReturnedBlocks += uint64(max(0, came))
}

func (e *Engine) release(spans []kvcache.Ended) {
	if len(spans) > 0 {
		e.lender.Release(spans)
	}
}

// apply does what a plan asks for beside its step.
func (e *Engine) apply(p *sched.Plan) {
	for _, x := range p.Preempted {
		r := e.get(x.Request)
		r.running.Store(false)
		e.endWave(r)
		slog.Warn("a request is preempted and will be recomputed", "id", r.ID, "tokens", len(r.tokens), "reason", x.Reason)
	}
	e.release(p.Release)
	for _, x := range p.Failed {
		e.fail(e.get(x.Request), x.Err)
	}
	e.mu.Lock()
	e.stats.Preemptions += uint64(len(p.Preempted))
	e.stats.Offloads += uint64(len(p.Offloads))
	e.mu.Unlock()
	for _, o := range p.Offloads {
		e.lender.Offload(o)
	}
	for _, x := range p.Returns {
		e.lender.Return(x)
	}
	for _, x := range p.Searches {
		e.get(x.Request).searched = len(x.Keys) * e.kv.BlockSize()
		e.lender.Search(x)
	}
	e.form(p)
	if p.Starving != e.hungry {
		e.hungry = p.Starving
		e.lender.Starving(p.Starving)
	}
}

// handOn ends the requests without room on an instance that stops, so that another one goes on with them: an instance
// that has left the cluster hears of no room any more.
func (e *Engine) handOn() {
	e.mu.Lock()
	draining := e.draining
	e.mu.Unlock()
	if !draining {
		return
	}
	for _, id := range e.sched.Idlers() {
		if r := e.get(id); r != nil {
			e.finish(r, Event{Finish: "abort", Err: ErrStopped})
		}
	}
}

// publish lets other goroutines see the queues' lengths.
func (e *Engine) publish(p *sched.Plan) {
	running, waiting := e.sched.Counts()
	e.follow()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Running, e.stats.Waiting, e.stats.Stalled, e.stats.PlannedBlocks = running, waiting, p.Stalled, e.sched.Placed()
	e.room = e.sched.Room() - len(e.inbox.submits)
	e.prefills = e.sched.Prefills()
}

func (e *Engine) get(id kvcache.RequestID) *request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live[id]
}

func (e *Engine) fail(r *request, err error) {
	e.finish(r, Event{Finish: "error", Err: err})
}

// finish ends a request in any state: its blocks and spans are freed, its stream gets ev as the last
// event. Ending it again does nothing.
func (e *Engine) finish(r *request, ev Event) {
	e.mu.Lock()
	if e.live[r.id] != r {
		e.mu.Unlock()
		return
	}
	delete(e.live, r.id)
	r.guided.close()
	switch {
	case r.assist: // its home counts it
	case ev.Finish == "error":
		e.stats.Failed++
	case ev.Finish == "abort":
		e.stats.Cancelled++
	default:
		e.stats.Finished++
	}
	if ev.Finish == "error" || ev.Finish == "abort" {
		ev.StopToken = -1
	}
	e.mu.Unlock()
	if ev.Finish == "stop" || ev.Finish == "length" {
		ev.Spans = e.placement(r.id)
	}
	spans, _ := e.sched.Remove(r.id)
	e.endWave(r)
	e.release(spans)
	r.running.Store(false)
	r.stream.push(ev)
	if ev.Finish == "error" && r.assist {
		slog.Debug("a request ended that assists another instance", "id", r.ID, "tokens", len(r.tokens), "error", ev.Err)
	} else if ev.Finish == "error" {
		slog.Warn("a request failed", "id", r.ID, "tokens", len(r.tokens), "error", ev.Err)
	}
	// Last, so that after Drain the books are in order.
	e.mu.Lock()
	if len(e.live) == 0 && e.empty != nil {
		close(e.empty)
		e.empty = nil
	}
	e.mu.Unlock()
}

// placement is where a running request's KV lies, in the order of the text.
func (e *Engine) placement(id kvcache.RequestID) (out []SpanInfo) {
	runs, _ := e.kv.Runs(id) // none while it waits
	for _, run := range runs {
		out = append(out, SpanInfo(run))
	}
	return out
}

func (e *Engine) endAll(ev Event) {
	e.mu.Lock()
	var list []*request
	for _, r := range e.live {
		list = append(list, r)
	}
	e.mu.Unlock()
	for _, r := range list {
		e.finish(r, ev)
	}
}

// stop ends what is left when the loop ends. Submit refuses from here on, so nothing is added behind it.
func (e *Engine) stop(err error) {
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	e.takeInbox()
	if err != nil {
		// The device may still be writing to blocks that become free here; nobody else may have them.
		e.kv.SetPressure(true)
		e.endAll(Event{Finish: "error", Err: &Error{"unavailable", fmt.Sprintf("cannot go on with the request: %v", err)}})
		return
	}
	e.endAll(Event{Finish: "abort", Err: ErrStopped})
}
