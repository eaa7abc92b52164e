package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

type batchSpan = batch.Span

// share is a request's part of the step in flight.
type share struct {
	r      *request
	rows   int // index of its first row
	prompt int // rows for prompt log probabilities
	sample bool
	drafts int  // the seq's last tokens, each with a row to sample from
	first  bool // since it was admitted
	shared int  // tokens in shared spans
}

// fill writes the plan into the device's step. It says whether there is anything to compute.
func (e *Engine) fill(p *sched.Plan) bool {
	e.stepID++
	st := e.dev.Step()
	st.Reset(e.stepID, uint64(e.cfg.PeerTimeout), e.cfg.StepFlags)
	e.share, e.spareIndex = e.share[:0], mostIndexed
	e.lookAll(p)
	for _, it := range p.Items {
		r := e.get(it.Request)
		if needsMask(r, it) && r.late() {
			continue // it stays where it was
		}
		if err := e.prepare(r, it); err != nil {
			e.fail(r, err)
			continue
		}
		before := st.Head.NSeqs
		if err := e.add(st, r, it); err != nil {
			if st.Head.NSeqs > before { // a part of it is in the step, and results go by place
				e.fail(r, err)
				return e.refill()
			}
			if st.Head.NSeqs == 0 {
				e.fail(r, err) // it would not fit any step
			}
			// Otherwise it waits for a step with more room; it stays where it was.
			continue
		}
	}
	if st.Head.NSeqs == 0 && len(e.looks) > 0 {
		e.signal() // some may only be late
	}
	return st.Head.NSeqs > 0
}

// refill gives a step up that cannot be as it is; what is left of its plan is planned anew.
func (e *Engine) refill() bool {
	e.dev.Step().Reset(e.stepID, uint64(e.cfg.PeerTimeout), e.cfg.StepFlags)
	e.share = e.share[:0]
	e.signal()
	return false
}

// prepare opens the request's slot where that is due: at its start, again after a preemption, and when
// stop tokens become allowed.
func (e *Engine) prepare(r *request, it sched.Item) error {
	mask := r.generated() < r.MinTokens && len(r.StopTokens) > 0
	if it.First || r.masked != mask {
		if err := e.dev.OpenSlot(it.Slot, r.Sampling, r.tokens, len(r.Prompt), r.bias(mask)); err != nil {
			return fmt.Errorf("cannot open a sampling slot: %w", err)
		}
		r.masked = mask
	}
	if needsMask(r, it) {
		if err := e.blocked(r); err != nil {
			return err
		}
	}
	r.running.Store(true)
	r.ran.Store(true)
	return nil
}

// begins counts what a request that was admitted has found in the cache, and of that with others; began is the time of its
// first step.
func (e *Engine) begins(r *request, cached, shared int, began time.Time) {
	if !r.begun {
		r.begun, r.cached, r.queued = true, min(cached, len(r.Prompt)), began.Sub(r.submitted)
	}
	if e.cfg.PrefixCaching {
		e.mu.Lock()
		e.stats.PrefixQueries += uint64(len(r.tokens))
		e.stats.PrefixHits += uint64(cached)
		e.stats.SharedQueries += uint64(r.searched)
		e.stats.SharedHits += uint64(shared)
		r.searched = 0
		e.mu.Unlock()
	}
}

// name lets others find the blocks that a step has filled up to position computed.
func (e *Engine) name(r *request, computed int) {
	if e.cfg.PrefixCaching {
		r.keys = kvcache.AppendKeys(r.keys, r.root, r.tokens[:computed], e.kv.BlockSize())
		e.sched.Name(r.id, r.keys)
	}
}

// add appends the request's share to the step.
func (e *Engine) add(st *batch.Step, r *request, it sched.Item) error {
	drafts := e.draft(r, it)
	if err := e.kv.AppendTable(r.id, &e.table); err != nil {
		return err
	}
	bs := e.kv.BlockSize()
	e.spans = e.spans[:0]
	pos, shared := 0, 0
	for _, s := range e.table.Spans {
		if s.Blocks == 0 {
			continue // a wave has not come as far
		}
		e.spans = append(e.spans, batchSpan{
			Peer: s.Peer, Handle: s.Handle, Generation: s.Generation, Pos0: uint32(pos), NTokens: uint32(s.Blocks * bs),
		})
		if pos += s.Blocks * bs; s.Shared {
			shared = pos
		}
	}
	end := it.Start + it.N
	seq, err := st.AddSeq(it.Slot, it.Start, pos, r.tokens[it.Start:end], e.table.Local, e.spans)
	if err != nil {
		return err
	}
	st.Seqs[seq].Tag, st.Seqs[seq].Wave = r.tag, r.part.number
	sh := share{r: r, rows: int(st.Head.NRows), sample: it.Last && r.MaxTokens > 0, first: it.First, shared: shared}
	// Rows that were read before a preemption are not asked for again.
	for p := max(it.Start, len(r.prompt)); p < min(end, r.promptRows()); p++ {
		if _, err := st.AddRow(seq, p-it.Start, r.Prompt[p+1], r.PromptLogprobs); err != nil {
			return fmt.Errorf("the scheduler's rows exceed the step's: %w", err)
		}
		sh.prompt++
	}
	if err := st.AddDrafts(drafts); err != nil {
		return fmt.Errorf("the scheduler's drafts exceed the step: %w", err)
	}
	sh.drafts = len(drafts)
	for k := 0; sh.sample && k <= sh.drafts; k++ {
		row, err := st.AddRow(seq, it.N-1+k, -1, max(0, r.Logprobs))
		if err == nil && r.masks() {
			err = r.addMask(st, row, drafts[:k])
		}
		if err != nil {
			return fmt.Errorf("the scheduler's rows exceed the step's: %w", err)
		}
	}
	e.share = append(e.share, sh)
	return nil
}

// tellBegun is told before the step: one that ends the process is one that the request was in.
func (r *request) tellBegun() {
	if r.TellBegun && !r.told {
		r.told = true
		r.stream.push(Event{Begun: true, StopToken: -1})
	}
}

// step runs the filled step and takes its results.
func (e *Engine) step() error {
	for i := range e.share {
		e.share[i].r.tellBegun()
	}
	began := time.Now()
	if err := e.dev.Submit(); err != nil {
		slog.Error("the device refused a step", "step", e.stepID, "requests", len(e.share), "error", err)
		for _, sh := range e.share {
			e.fail(sh.r, fmt.Errorf("cannot compute the request: %w", err))
		}
		return nil
	}
	// Also when the engine is told to stop: the device works on the step's buffers and blocks.
	for {
		done, err := e.dev.Wait(100 * time.Millisecond)
		if err != nil {
			return fmt.Errorf("cannot finish step %d: %w", e.stepID, err)
		}
		if done {
			break
		}
		if d := time.Since(began); d > e.cfg.StepTimeout {
			return fmt.Errorf("cannot finish step %d: it took longer than %s", e.stepID, d.Round(time.Millisecond))
		}
	}
	e.collect(began)
	return nil
}

// collect commits the step to the scheduler and delivers what came out of it.
func (e *Engine) collect(began time.Time) {
	st := e.dev.Step()
	now := time.Now()
	e.countPrompt(st)
	var lost []int32
	generated := 0
	work, whole := e.work(st, now.Sub(began)), true
	for i := range e.share {
		sh := &e.share[i]
		out := st.SeqOut[i]
		if st.Seqs[i].Wave != 0 {
			whole = false // it waits for others to compute
		}
		if out.Status != batch.StatusOK {
			whole = false
			if out.Peer >= 0 && out.Status != batch.StatusStale && !slices.Contains(lost, out.Peer) {
				lost = append(lost, out.Peer)
			}
			e.spoil(sh.r, out)
			continue
		}
		seq := st.Seqs[i]
		generated += e.take(st, sh, &seq, began, now)
	}
	e.mu.Lock()
	if whole {
		e.fit.Add(work)
	}
	e.stats.Steps++
	e.stats.StepTime += now.Sub(began)
	e.stats.GeneratedTokens += uint64(generated)
	e.rate.roll(now)
	e.rate.tokens += uint64(generated)
	e.mu.Unlock()
	for _, p := range lost {
		e.lender.PeerIndexLost(int(p))
	}
}

// countPrompt counts the prompt tokens that the step computed: before anybody hears of the step, so that whoever has an
// answer, or finds the blocks of an instance that assisted free, finds them counted.
func (e *Engine) countPrompt(st *batch.Step) {
	n := 0
	for i := range e.share {
		if seq := &st.Seqs[i]; st.SeqOut[i].Status == batch.StatusOK {
			n += max(0, min(int(seq.Pos0+seq.NTokens), len(e.share[i].r.Prompt))-int(seq.Pos0))
		}
	}
	e.mu.Lock()
	e.stats.PromptTokens += uint64(n)
	e.mu.Unlock()
}

// take reads one request's rows, and returns how many tokens came of them.
func (e *Engine) take(st *batch.Step, sh *share, seq *batch.Seq, began, now time.Time) (gained int) {
	r := sh.r
	switch {
	case !sh.first || r.assist:
	case seq.Wave != 0:
		e.begins(r, r.part.base, 0, began)
	default:
		e.begins(r, int(seq.Pos0), sh.shared, began)
	}
	for k := range sh.prompt {
		out := &st.RowOut[sh.rows+k]
		r.prompt = append(r.prompt, logprobOf(out, r.Prompt[len(r.prompt)+1]))
	}
	e.events = e.events[:0]
	var err error
	for k, goes := 0, sh.sample; goes && err == nil; k++ {
		out := &st.RowOut[sh.rows+sh.prompt+k]
		var ev Event
		if ev, err = e.accept(r, out, k, now); err == nil {
			e.events = append(e.events, ev)
		}
		// The next row is of this text if the draft in front of it is what this one sampled.
		goes = ev.Finish == "" && k < sh.drafts && st.Tokens[int(seq.TokenOff+seq.NTokens)-sh.drafts+k] == out.Token
	}
	gained = len(e.events)
	e.guessed(r, sh.drafts, gained-1)
	if err == nil {
		err = e.sched.Commit(r.id, gained)
	}
	if err != nil {
		e.deliver(r) // what was right before it
		e.fail(r, err)
		return gained
	}
	computed := int(seq.Pos0+seq.NTokens) - sh.drafts + max(0, gained-1)
	if e.sched.InWave(r.id) {
		return gained // nothing comes of a leg but the last one
	}
	if seq.Wave != 0 {
		e.waved(r)
	}
	if bs := e.kv.BlockSize(); computed/bs > int(seq.Pos0)/bs || seq.Wave != 0 {
		e.name(r, computed)
	}
	if !sh.sample && r.MaxTokens == 0 && computed == len(r.tokens) {
		e.finish(r, Event{Prompt: r.prompt, Cached: r.cached, Queued: r.queued, Finish: "length", StopToken: -1})
	}
	e.deliver(r)
	return gained
}

// deliver sends a step's events of a request.
func (e *Engine) deliver(r *request) {
	for _, ev := range e.events {
		if ev.Finish != "" {
			e.finish(r, ev)
			break
		}
		r.stream.push(ev)
	}
}

// accept makes the token of a row, the k-th that the step samples of the request, a part of its answer. ev.Finish says
// whether it ends there.
func (e *Engine) accept(r *request, out *batch.RowOut, k int, now time.Time) (ev Event, err error) {
	ev = Event{Token: out.Token, HasToken: true, StopToken: -1}
	if r.Logprobs >= 0 {
		lp := logprobOf(out, out.Token)
		ev.Logprob = &lp
	}
	r.tokens = append(r.tokens, out.Token)
	r.known.Store(int64(len(r.tokens)))
	r.losses = 0
	if r.generated() == 1 {
		ev.Prompt, ev.Cached, ev.Queued = r.prompt, r.cached, r.queued
		e.mu.Lock()
		e.stats.FirstTokens++
		e.stats.TTFT += now.Sub(r.submitted)
		e.mu.Unlock()
	}
	if ev.Finish = r.ends(out.Token, e.cfg.EOS, e.cfg.Sched.MaxModelLen); ev.Finish == "stop" {
		ev.StopToken = out.Token
	}
	if r.guided != nil {
		over, err := r.guided.accept(out.Token, k)
		if err != nil {
			return ev, err
		}
		if over {
			ev.Finish = "stop" // also of what ignores EOS, or is at its last token
		}
	}
	return ev, nil
}

// logprobOf reads a row about token. The device's buffers are used again, so everything is copied.
func logprobOf(out *batch.RowOut, token int32) TokenLogprob {
	t := TokenLogprob{Token: token, Logprob: out.Logprob, Rank: out.Rank}
	for i := range min(int(out.NTop), batch.MaxTop) {
		t.Top = append(t.Top, Alt{Token: out.TopIDs[i], Logprob: out.TopLogprobs[i]})
	}
	return t
}

// spoil takes a request's share of a step that came to nothing: for lack of a peer's part, or by the device's fault.
func (e *Engine) spoil(r *request, out batch.SeqOut) {
	if out.Peer < 0 {
		why := fmt.Sprintf("the device reports status %d", out.Status)
		if out.Status == batch.StatusNotFinite {
			why = "the logits are not finite (damaged weights, or a dtype that is too narrow)"
		}
		e.fail(r, errors.New("cannot compute the request: "+why))
		return
	}
	instance := fmt.Sprintf("#%d", out.Peer)
	if t, err := e.kv.Table(r.id); err == nil {
		if at := slices.IndexFunc(t.Spans, func(s kvcache.Span) bool { return s.Peer == uint32(out.Peer) }); at >= 0 {
			instance = t.Spans[at].Instance
		}
	}
	if e.sched.InWave(r.id) && !r.assist {
		e.alone(r, fmt.Errorf("instance %s did not come as far with its part: status %d", instance, out.Status))
		return
	}
	e.recompute(r, instance)
}
