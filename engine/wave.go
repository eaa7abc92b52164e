package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// A wave is a prompt that several instances compute at the same time (sched/wave.go). Its home asks for one, and the others
// assist: each has a request of its own for it, without an answer, that nobody waits for and that no figure counts as one.

// WaveText is what those who assist must know of a request.
type WaveText struct {
	ID      string
	Tokens  []int32
	Salt    string
	Arrival uint64
}

// Waves brings the instances of a wave together. None of its methods waits for them.
type Waves interface {
	FormWave(f sched.Form, text WaveText) // finds others that assist; the outcome comes by Engine.Formed
	StartWave(id kvcache.RequestID)       // tells them of each other; the outcome comes by Engine.Started
	// EndWave says that a request's part of a wave is over, or came to nothing. It comes between two steps.
	EndWave(id kvcache.RequestID)
}

// Formation is a wave that others take part in: spans, in the order of their parts, are to hold what they compute.
type Formation struct {
	Number uint32 // the device's, for steps
	Course kvcache.Course
	Spans  []kvcache.Span
}

// Assist is the request of an instance that helps with a wave.
type Assist struct {
	Text   WaveText
	Course kvcache.Course
	Number uint32
}

// part is a request's part in a wave.
type part struct {
	number uint32 // 0: it is in none
	asked  bool   // FormWave or Assist was, and EndWave is due
	base   int    // tokens that were there before it
}

// waveNews is what the loop is told of waves.
type waveNews struct {
	request kvcache.RequestID
	formed  *Formation
	started bool
	spans   []kvcache.Span // with started
	err     error
	assist  *assisting
}

// assisting is an Assist that waits for the loop.
type assisting struct {
	r      *request
	course kvcache.Course
	done   chan error // of one
	ctx    context.Context
}

// Formed takes the outcome of a FormWave; without spans nobody assists.
func (e *Engine) Formed(id kvcache.RequestID, f Formation) { e.tell(waveNews{request: id, formed: &f}) }

// Started takes the outcome of a StartWave, or begins the wave of a request that assists, for which spans hold what the
// others compute. An err ends the wave.
func (e *Engine) Started(id kvcache.RequestID, spans []kvcache.Span, err error) {
	e.tell(waveNews{request: id, started: true, spans: spans, err: err})
}

func (e *Engine) tell(n waveNews) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inbox.news = append(e.inbox.news, news{wave: &n})
	e.signal()
}

// Helps says why this instance would not take a part of so many tokens in a wave now, as far as can be seen without waiting
// for the loop.
func (e *Engine) Helps(tokens int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.draining || e.stopped:
		return ErrStopped
	case e.stats.Waiting > 0 || len(e.inbox.submits) > 0 || e.prefills:
		return errors.New("this instance has prompts of its own to compute")
	case tokens > e.kv.Free()*e.kv.BlockSize():
		return kvcache.ErrNoRoom
	}
	return nil
}

// Assist takes a request for a wave, which has its blocks then, or says why it cannot. It waits for the step that runs.
func (e *Engine) Assist(ctx context.Context, a Assist) (kvcache.RequestID, error) {
	until := a.Course.Until(a.Course.Me)
	end := until.End()
	req := &Request{ID: a.Text.ID, Arrival: a.Text.Arrival, CacheSalt: a.Text.Salt, Logprobs: -1, PromptLogprobs: -1,
		Sampling: batch.Sampling{TopP: 1, Repetition: 1}}
	if end < 1 || end > len(a.Text.Tokens) {
		return 0, fmt.Errorf("cannot assist with %d tokens of a text of %d", end, len(a.Text.Tokens))
	}
	req.Prompt = a.Text.Tokens[:end]
	if err := req.check(e.cfg.Sched.MaxModelLen); err != nil {
		return 0, err
	}
	root, keys := e.keys(req.CacheSalt, req.Prompt)
	ask := &assisting{course: until, done: make(chan error, 1), ctx: ctx}
	e.mu.Lock()
	if e.draining || e.stopped {
		e.mu.Unlock()
		return 0, ErrStopped
	}
	e.lastID++
	r := &request{Request: req, id: e.lastID, tag: batch.Tag(req.ID), tokens: req.Prompt, root: root, keys: keys, part: part{number: a.Number}, assist: true}
	r.known.Store(int64(len(r.tokens)))
	r.stream = newStream(func() {})
	ask.r = r
	e.live[r.id] = r
	e.inbox.news = append(e.inbox.news, news{wave: &waveNews{request: r.id, assist: ask}})
	e.signal()
	e.mu.Unlock()
	select {
	case err := <-ask.done:
		return r.id, err
	case <-ctx.Done():
	}
	// The loop may be about to take it, or have done so.
	e.Started(r.id, nil, context.Cause(ctx))
	return 0, context.Cause(ctx)
}

// wave does what was said of a wave.
func (e *Engine) wave(n *waveNews) {
	r := e.get(n.request)
	switch {
	case n.assist != nil:
		e.assist(n.assist)
	case n.formed != nil:
		e.formed(n.request, r, n.formed)
	case r == nil:
		e.release(kvcache.EndedOf(n.spans)) // it has ended meanwhile
	case n.err != nil && r.assist:
		e.fail(r, fmt.Errorf("cannot assist any more: %w", n.err))
	case n.err != nil:
		e.alone(r, n.err)
	default:
		if err := e.sched.Started(r.id, n.spans); err != nil {
			e.release(kvcache.EndedOf(n.spans))
			e.fail(r, err)
		}
	}
}

func (e *Engine) assist(a *assisting) {
	r := a.r
	err := context.Cause(a.ctx)
	if err == nil {
		err = e.sched.Assist(sched.Request{ID: r.id, Arrival: r.Arrival, Tokens: len(r.tokens), Keys: r.keys}, a.course)
	}
	if err != nil {
		e.finish(r, Event{Finish: "abort", Err: err})
	} else {
		r.part.asked = true
		r.running.Store(true)
	}
	a.done <- err
}

func (e *Engine) formed(id kvcache.RequestID, r *request, f *Formation) {
	back, ok := e.sched.Formed(id, f.Course, f.Spans)
	e.release(back)
	switch {
	case r == nil:
	case !ok:
		e.endWave(r)
	default:
		r.part.number = f.Number
		r.inWave.Store(true)
		e.lender.StartWave(id)
	}
}

// alone lets a request whose wave came to nothing compute its prompt by itself.
func (e *Engine) alone(r *request, why error) {
	if !e.sched.InWave(r.id) {
		return
	}
	slog.Warn("a prompt is computed by one instance", "id", r.ID, "tokens", len(r.tokens), "error", why)
	if spans, ok := e.sched.Restart(r.id); ok {
		r.running.Store(false)
		e.endWave(r)
		e.release(spans)
	}
}

// endWave tells the others, once, that the request is in no wave any more.
func (e *Engine) endWave(r *request) {
	if r.part.asked {
		r.part.asked, r.part.number = false, 0
		r.inWave.Store(false)
		e.lender.EndWave(r.id)
	}
}

// waved: a request's legs are over.
func (e *Engine) waved(r *request) {
	e.endWave(r)
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.assist {
		e.stats.Assists++
	} else {
		e.stats.Waves++
	}
}

// form asks for the waves of a plan.
func (e *Engine) form(p *sched.Plan) {
	for _, f := range p.Forms {
		r := e.get(f.Request)
		r.part = part{asked: true, base: f.Base}
		r.running.Store(true)
		e.lender.FormWave(f, WaveText{ID: r.ID, Tokens: r.tokens, Salt: r.CacheSalt, Arrival: r.Arrival})
	}
}
