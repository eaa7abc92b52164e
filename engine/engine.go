// Package engine is the step loop of an instance: requests in, token streams out.
//
//	engine.go   the API: Engine, Submit, Drain, Requests
//	guide.go    answers that are held to a form
//	drafts.go   tokens that are guessed, and sampled behind, ahead
//	request.go  what a request is, its checks, its errors
//	loop.go     the loop: inbox -> plan -> step -> commit -> events
//	wave.go     prompts that several instances compute
//	step.go     filling a step, reading its output
//	stream.go   a request's events
//	measure.go  how long steps take, for plans; what plans want moved
//	device.go   what the loop needs of others
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/infinite-llm/infinite/engine/arrival"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/plan"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Config of an engine.
type Config struct {
	Sched        sched.Config
	EOS          []int32       // tokens that IgnoreEOS takes out of a request's StopTokens
	PeerTimeout  time.Duration // longest wait for one remote partial; default 10 s
	StepTimeout  time.Duration // longest step; default 10 min. A longer one ends the loop.
	StallRefresh time.Duration // how often the view is read while every request waits for room; default 20 ms
	IdleCheck    time.Duration // how often the device is looked after while there is no request; default 1 s
	StepFlags    uint32        // batch.Flag*
	// PrefixCaching lets requests begin with full blocks of others, and keeps the blocks of those that have ended.
	PrefixCaching bool
	// MaskTime is how long a step may wait for masks that are not there yet: beyond it requests go without the step. One
	// mask is made in any case. Default 20 ms.
	MaskTime    time.Duration
	Speculation Speculation
	// Guides compiles the forms of answers; nil: requests with one are refused.
	Guides Guides
}

// SpanInfo is a run of blocks on another instance.
type SpanInfo struct {
	Instance string
	Blocks   int
}

// RequestInfo is where a request stands.
type RequestInfo struct {
	ID      string
	Request kvcache.RequestID
	Arrival uint64
	Tokens  int        // known tokens: prompt and answer
	Spans   []SpanInfo // where blocks are that are elsewhere, in the order of the table
	Local   int        // blocks after the spans
	Movable int        // of them, blocks that may be placed elsewhere, behind those on their way, and would be free then
	Running bool
	Begun   bool // it runs, or did before it was preempted or lost KV: it wants again what it had
	InWave  bool // it has all the blocks that its prompt takes here; the others are elsewhere, or will be
	// Blocks that Place asked for and that are not placed yet, and where they go.
	Planned   int
	PlannedTo string
}

// Stats are counters since the start, and the queues' lengths now.
type Stats struct {
	Running, Waiting, Stalled                          int
	Steps, PromptTokens, GeneratedTokens               uint64
	Requests, Finished, Failed, Cancelled, Preemptions uint64
	Recoveries                                         uint64 // requests recomputed because KV was lost with a peer
	PrefixQueries, PrefixHits                          uint64 // tokens of requests that began, and those with KV in the cache
	SharedQueries, SharedHits                          uint64 // of them, tokens that others were asked for, and those whose KV is used there
	Offloads, OffloadedBlocks, RefusedOffloads         uint64
	ReturnedBlocks                                     uint64        // that came back from instances that were about to leave
	PlannedMoves, PlannedBlocks                        uint64        // calls of Place, and the blocks placed by them
	Drafts, DraftTokens, AcceptedTokens                uint64        // steps of a request that had drafts, these, and those that were right
	Waves, Assists                                     uint64        // prompts here that several instances computed, and those of others computed here in part
	StepTime                                           time.Duration // sum over steps
	TTFT                                               time.Duration // sum over first tokens
	FirstTokens                                        uint64
	TokensPerSecond                                    float64 // generated, over about the last second
}

// Engine runs requests on one device. Its methods are safe for concurrent use.
type Engine struct {
	cfg    Config
	dev    Device
	kv     *kvcache.Manager
	lender Lender
	wake   chan struct{} // capacity 1: the inbox has something

	mu       sync.Mutex
	inbox    inbox
	live     map[kvcache.RequestID]*request // unfinished
	room     int                            // requests that Submit takes before the loop looks again
	lastID   kvcache.RequestID
	clock    uint64
	draining bool
	stopped  bool          // the loop has ended
	started  bool          // the loop has begun
	empty    chan struct{} // closed when nothing is live; Drain makes it
	prefills bool          // a running request has a long prompt to compute yet
	stats    Stats
	rate     rate
	fit      plan.Fit

	// the loop's own
	sched  *sched.Scheduler
	stepID uint64
	share  []share
	looks  []*request        // scratch: those of a step that need a mask
	looked kvcache.RequestID // the last that one was made for
	guess  []int32           // scratch: drafts
	events []Event           // scratch: of one request in a step

	spareIndex int           // tokens that the step may still take into indexes
	noMask     []uint32      // scratch
	spareMasks int           // of the step, beyond one for each request that needs one
	maskTime   time.Duration // that is left in the step for making masks
	table      kvcache.Table
	spans      []batchSpan
	hungry     uint64     // the plan's Starving that the lender knows of
	placed     []*request // in a plan for the cluster
	asked      []int      // scratch: KV tokens of a step by peer
}

// inbox is what the loop is told between steps. Each list is bounded: by room, by the live requests (places too), by
// the moves in flight and the peers.
type inbox struct {
	submits []*request
	cancels []*request
	news    []news
	places  []Placing
	abort   bool
}

// news of other instances. Their order counts: a span is lost with its instance if it was moved there
// before, and is not if the instance came back and it was moved there after.
type news struct {
	moved *MoveResult
	found *searchResult
	wave  *waveNews
	lost  string // an instance, without the others
}

// searchResult is the outcome of a Search.
type searchResult struct {
	request kvcache.RequestID
	found   []kvcache.Found
}

// rate measures tokens per second over windows of a second.
type rate struct {
	since  time.Time
	tokens uint64
	last   float64
}

func (r *rate) roll(now time.Time) {
	if r.since.IsZero() {
		r.since = now
	}
	if d := now.Sub(r.since); d >= time.Second {
		r.last, r.tokens, r.since = float64(r.tokens)/d.Seconds(), 0, now
	}
}

// New wires an engine; Run starts it. It alone opens, grows and closes requests in kv.
func New(cfg Config, dev Device, kv *kvcache.Manager, lender Lender) (*Engine, error) {
	if dev == nil || kv == nil || lender == nil {
		return nil, errors.New("cannot make an engine without device, KV pool and lender")
	}
	if cfg.PeerTimeout == 0 {
		cfg.PeerTimeout = 10 * time.Second
	}
	if cfg.StepTimeout == 0 {
		cfg.StepTimeout = 10 * time.Minute
	}
	if cfg.MaskTime == 0 {
		cfg.MaskTime = 20 * time.Millisecond
	}
	if cfg.StallRefresh == 0 {
		cfg.StallRefresh = 20 * time.Millisecond
	}
	if cfg.IdleCheck == 0 {
		cfg.IdleCheck = time.Second
	}
	if err := cfg.Speculation.check(); err != nil {
		return nil, err
	}
	s, err := sched.New(cfg.Sched, kv)
	if err != nil {
		return nil, err
	}
	// A step of the scheduler's must fit the device's buffers; only block and span lists may run full.
	if st := dev.Step(); len(st.Tokens) < cfg.Sched.MaxBatchedTokens || len(st.Seqs) < cfg.Sched.MaxNumSeqs ||
		len(st.Rows) < max(cfg.Sched.MaxRows, cfg.Sched.MaxNumSeqs) || cfg.Sched.MaxRows == 0 && len(st.Rows) < cfg.Sched.MaxBatchedTokens {
		return nil, fmt.Errorf("cannot run steps of %d tokens, %d requests and %d rows on a device with room for %d, %d and %d",
			cfg.Sched.MaxBatchedTokens, cfg.Sched.MaxNumSeqs, cfg.Sched.MaxRows, len(st.Tokens), len(st.Seqs), len(st.Rows))
	}
	return &Engine{
		cfg: cfg, dev: dev, kv: kv, lender: lender, sched: s, room: s.Room(), wake: make(chan struct{}, 1),
		live: map[kvcache.RequestID]*request{},
	}, nil
}

func (e *Engine) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Submit queues a request and returns without waiting for the loop. A full queue is a
// *sched.QueueFullError; ErrStopped while draining and after. req must not change until the stream ends.
func (e *Engine) Submit(ctx context.Context, req *Request) (Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := req.check(e.cfg.Sched.MaxModelLen); err != nil {
		return nil, err
	}
	if err := e.refuses(req); err != nil {
		return nil, err // before the work for its keys
	}
	limits, err := e.limits(req)
	if err != nil {
		return nil, err
	}
	guided, err := e.guide(ctx, req)
	if err != nil {
		return nil, err
	}
	tokens := slices.Concat(req.Prompt, req.Answer)
	root, keys := e.keys(req.CacheSalt, tokens) // a millisecond for 100,000 tokens
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.refusesLocked(req); err != nil {
		guided.close()
		return nil, err
	}
	e.room--
	e.lastID++
	e.clock = max(e.clock+1, arrival.Now(time.Now()))
	own := *req
	if own.Arrival == 0 {
		own.Arrival = arrival.Of(own.Priority, e.clock)
	}
	r := &request{Request: &own, id: e.lastID, tag: batch.Tag(req.ID), tokens: tokens, root: root, keys: keys, guided: guided, limits: limits, submitted: time.Now()}
	r.known.Store(int64(len(r.tokens)))
	r.stream = newStream(func() { e.cancel(r) })
	e.live[r.id] = r
	e.stats.Requests++
	e.inbox.submits = append(e.inbox.submits, r)
	e.signal()
	return r.stream, nil
}

func (e *Engine) refuses(req *Request) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refusesLocked(req)
}

// refusesLocked says why no request, or not this one, is taken now.
func (e *Engine) refusesLocked(req *Request) error {
	if e.draining || e.stopped {
		return ErrStopped
	}
	if !sched.Takes(e.room, req.Handed, req.Later) {
		return &sched.QueueFullError{Waiting: e.stats.Waiting + len(e.inbox.submits)}
	}
	return nil
}

// keys names the full blocks of tokens, if they are to be found by others.
func (e *Engine) keys(salt string, tokens []int32) (root kvcache.Key, keys []kvcache.Key) {
	if e.cfg.PrefixCaching {
		root = kvcache.RootKey(salt)
		keys = kvcache.AppendKeys(nil, root, tokens, e.kv.BlockSize())
	}
	return root, keys
}

func (e *Engine) cancel(r *request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.live[r.id] == r {
		e.inbox.cancels = append(e.inbox.cancels, r)
		e.signal()
	}
}

// Moved takes the outcome of an Offload or a Return; the loop settles it between steps.
func (e *Engine) Moved(m MoveResult) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inbox.news = append(e.inbox.news, news{moved: &m})
	e.signal()
}

// Found takes the outcome of a Search: spans that hold, with what is here, the request's first blocks, or none.
func (e *Engine) Found(request kvcache.RequestID, found []kvcache.Found) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inbox.news = append(e.inbox.news, news{found: &searchResult{request, found}})
	e.signal()
}

// PeerLost says that an instance is gone; every request with a span there is computed anew.
func (e *Engine) PeerLost(instance string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inbox.news = append(e.inbox.news, news{lost: instance})
	e.signal()
}

// Requests lists the unfinished requests, in the order in which they came.
func (e *Engine) Requests() []RequestInfo {
	e.mu.Lock()
	out := make([]RequestInfo, 0, len(e.live))
	for _, r := range e.live {
		if r.assist {
			continue // it is its home's
		}
		info := RequestInfo{ID: r.ID, Request: r.id, Arrival: r.Arrival, Tokens: int(r.known.Load()), Running: r.running.Load(), Begun: r.ran.Load(), InWave: r.inWave.Load()}
		if info.Planned = int(r.planned.Load()); info.Planned > 0 {
			info.PlannedTo = r.plannedTo
		}
		out = append(out, info)
	}
	e.mu.Unlock()
	slices.SortFunc(out, func(a, b RequestInfo) int {
		return cmp.Or(cmp.Compare(a.Arrival, b.Arrival), cmp.Compare(a.Request, b.Request))
	})
	var t kvcache.Table
	for i := range out {
		id := out[i].Request
		if e.kv.AppendTable(id, &t) != nil {
			continue // it waits
		}
		out[i].Local = len(t.Local)
		if !e.kv.Shares(id) {
			out[i].Movable = movable(e.kv.Size(id))
		}
		for _, s := range t.Spans {
			if s.Blocks > 0 {
				out[i].Spans = append(out[i].Spans, SpanInfo{s.Instance, s.Blocks})
			}
		}
	}
	return out
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rate.roll(time.Now())
	e.stats.TokensPerSecond = e.rate.last
	return e.stats
}

// Drain refuses new requests, aborts those that have no room, for others to go on with, and waits until the rest ended.
// When ctx ends first it aborts them and returns its error. The loop goes on until Run's context ends.
func (e *Engine) Drain(ctx context.Context) error {
	e.mu.Lock()
	e.draining = true
	e.signal()
	if len(e.live) == 0 || e.stopped {
		e.mu.Unlock()
		return nil
	}
	if e.empty == nil {
		e.empty = make(chan struct{})
	}
	empty := e.empty
	e.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
	}
	e.mu.Lock()
	n, idle := len(e.live), !e.started
	e.inbox.abort = true
	e.started, e.stopped = true, e.stopped || idle // Run will not begin any more
	e.signal()
	e.mu.Unlock()
	slog.Warn("requests are cut short: the time to finish them is over", "requests", n)
	if idle {
		e.endAll(Event{Finish: "abort", Err: ErrStopped})
	}
	<-empty
	return context.Cause(ctx)
}
