package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine"
)

// plan is a checked request: what to generate and how to answer.
type plan struct {
	arrived        time.Time
	answer         answer
	jobs           []*job
	promptTokens   int // of all prompts, each counted once
	echo           []echo
	logprobs       bool
	promptLogprobs int  // alternatives per token of the prompts, -1 for no such list
	tokenIDs       bool // of prompts and choices are told
	stream         bool
	usage          usageChunks
	own            ownAnswer // of another API, nil: a chat or a completion
}

// usageChunks says which chunks of a stream carry the usage.
type usageChunks int

const (
	usageNever usageChunks = iota
	usageLast              // one more chunk at the end
	usageEvery             // and every chunk how far its choice is
)

// textAnswer is how many tokens a completion has where the client does not say, as OpenAI has it.
const textAnswer = 16

// echo is a prompt that is repeated in front of a completion.
type echo struct {
	text  string
	own   bool  // the client's own text, not what its tokens make
	front int   // tokens that were put in front of that
	first int32 // the prompt's first token, which has no log probability
}

// completions answers POST /v1/completions.
func (s *Server) completions(ctx *fasthttp.RequestCtx) {
	var req completionRequest
	err := decode(ctx.PostBody(), &req)
	if err != nil {
		s.refuse(ctx, err)
		return
	}
	s.answerPlan(ctx, func(work context.Context) (*plan, error) {
		return s.planCompletion(work, &req, ctx.Request.Header.Peek("X-Request-Id"))
	})
}

func (s *Server) planCompletion(ctx context.Context, req *completionRequest, id []byte) (*plan, error) {
	n, err := s.checkCommon(ctx, &req.common, req.Echo)
	if err != nil {
		return nil, err
	}
	if orDefault(req.ThinkingBudget, -1) != -1 {
		return nil, badRequest("thinking_token_budget", "thinking_token_budget other than -1 is supported in chats alone.")
	}
	if len(req.Prompt) == 0 || len(req.Prompt) > maxPrompts {
		return nil, badRequest("prompt", "prompt must hold between 1 and %d prompts, got %d.", maxPrompts, len(req.Prompt))
	}
	if n*len(req.Prompt) > maxJobs {
		return nil, badRequest("n", "n times the number of prompts must be at most %d, got %d.", maxJobs, n*len(req.Prompt))
	}
	logprobs := int(orDefault(req.Logprobs, -1))
	if req.Logprobs != nil && (logprobs < 0 || logprobs > maxTopLogprobs) {
		return nil, badRequest("logprobs", "logprobs must be between 0 and %d, got %d.", maxTopLogprobs, logprobs)
	}
	p := s.newPlan(&req.common, "cmpl-", "text_completion", id)
	p.logprobs = logprobs >= 0
	for _, pr := range req.Prompt {
		tokens, repeated, err := s.promptTokens(&req.common, pr, orDefault(req.AddSpecialTokens, true))
		if err != nil {
			return nil, err
		}
		base := engine.Request{Prompt: tokens, Logprobs: logprobs, PromptLogprobs: p.promptLogprobs}
		if req.Echo {
			p.echo = append(p.echo, repeated)
			base.PromptLogprobs = max(logprobs, p.promptLogprobs)
		}
		if err := s.addJobs(p, &req.common, base, n, textAnswer); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (s *Server) checkCommon(ctx context.Context, c *common, echo bool) (int, error) {
	if err := s.checkModel(c.Model); err != nil {
		return 0, err
	}
	n, err := c.check(s.cfg.Defaults, echo)
	if err != nil {
		return 0, err
	}
	return n, s.checkGuide(ctx, c)
}

// checkModel refuses models that are not served; no name means the first.
func (s *Server) checkModel(name string) error {
	if name != "" && !slices.Contains(s.cfg.ModelNames, name) {
		return &Error{fasthttp.StatusNotFound, "NotFoundError", "model", fmt.Sprintf("The model `%s` does not exist.", name)}
	}
	return nil
}

// newPlan begins a plan. The client may name the request, by header or else by field, so that it finds
// it again in logs and in /cluster.
func (s *Server) newPlan(c *common, prefix, object string, id []byte) *plan {
	model := c.Model
	if model == "" {
		model = s.cfg.ModelNames[0]
	}
	name := newID()
	for _, asked := range []string{c.RequestID, string(id)} {
		if isName(asked) {
			name = asked
		}
	}
	p := &plan{
		arrived: time.Now(),
		answer: answer{
			id: prefix + name, object: object, model: model, created: time.Now().Unix(), tok: s.tok,
			skip: orDefault(c.SkipSpecial, true), tokensAsIDs: c.TokensAsIDs,
		},
		stream: c.Stream, promptLogprobs: int(orDefault(c.PromptLogprobs, -1)), tokenIDs: c.ReturnTokenIDs,
	}
	if o := c.StreamOptions; o != nil && o.IncludeUsage {
		p.usage = usageLast
		if o.Continuous {
			p.usage = usageEvery
		}
	}
	return p
}

// isName tells whether a client's name for a request is fit for logs.
func isName(s string) bool {
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// promptTokens encodes or checks one prompt.
func (s *Server) promptTokens(c *common, p prompt, special bool) ([]int32, echo, error) {
	tokens, own := p.tokens, p.isText
	front, behind := 0, 0
	if own {
		if err := s.checkLength(c, "prompt", p.text); err != nil {
			return nil, echo{}, err
		}
		if tokens = s.tok.Encode(p.text, special); special {
			front, behind = s.tok.Added()
		}
	} else if err := s.checkIDs("prompt", tokens); err != nil {
		return nil, echo{}, err
	}
	if len(tokens) == 0 {
		return nil, echo{}, badRequest("prompt", "the prompt is empty.")
	}
	cut, err := s.truncate(c, tokens, front, behind, textAnswer)
	if err != nil {
		return nil, echo{}, err
	}
	if own && len(cut) == len(tokens) {
		return cut, echo{p.text, true, front, cut[0]}, nil
	}
	return cut, echo{s.tok.Decode(cut, true), false, 0, cut[0]}, nil
}

func (s *Server) checkIDs(field string, ids []int32) error {
	for _, id := range ids {
		if id < 0 || int(id) >= s.cfg.Defaults.VocabSize {
			return badRequest(field, "%s has %d, which is no token id of this model (0 to %d).", field, id, s.cfg.Defaults.VocabSize-1)
		}
	}
	return nil
}

// addJobs adds n choices of one prompt.
func (s *Server) addJobs(p *plan, c *common, base engine.Request, n, defaultTokens int) error {
	sampling, bias, err := c.sampling(s.cfg.Defaults)
	if err != nil {
		return err
	}
	limits, err := s.limits(c)
	if err != nil {
		return err
	}
	priority, err := s.priority(c)
	if err != nil {
		return err
	}
	field := "prompt"
	if p.answer.chat {
		field = "messages"
	}
	limit, what, err := s.room()
	if err != nil {
		return err
	}
	most, err := c.fit(field, len(base.Prompt), defaultTokens, limit, what)
	if err != nil {
		if _, never := c.fit(field, len(base.Prompt), defaultTokens, s.cfg.MaxModelLen, what); never != nil {
			return err
		}
		return s.orLater(limit, err)
	}
	if int(c.MinTokens) > most {
		return badRequest("min_tokens", "min_tokens must be at most max_tokens (%d), got %d.", most, c.MinTokens)
	}
	if c.CacheSalt != nil && *c.CacheSalt == "" {
		return badRequest("cache_salt", "cache_salt must be a string that is not empty, if it is given.")
	}
	// EOS among the client's own stop tokens ends the answer, whatever ignore_eos says.
	eos := s.cfg.Defaults.EOS
	asked := slices.ContainsFunc(eos, func(id int32) bool { return slices.Contains(c.StopTokenIDs, id) })
	stopTokens := append(slices.Clone([]int32(c.StopTokenIDs)), eos...)
	if c.IgnoreEOS {
		stopTokens, eos = slices.Clone([]int32(c.StopTokenIDs)), nil
	}
	seed := s.seed(c.Seed)
	p.promptTokens += len(base.Prompt)
	for k := range n {
		r := base
		if k > 0 && p.answer.chat { // whose answer has the prompt's log probabilities once
			r.PromptLogprobs = -1
		}
		r.ID = p.answer.id + "-" + strconv.Itoa(len(p.jobs))
		r.MaxTokens, r.MinTokens, r.IgnoreEOS = most, int(c.MinTokens), c.IgnoreEOS && !asked
		r.Sampling, r.Bias, r.StopTokens, r.CacheSalt = sampling, bias, stopTokens, orDefault(c.CacheSalt, "")
		r.Guide, r.Limits, r.Priority = c.guide, limits, priority
		r.Sampling.Seed = seed + uint64(k)*0x9e3779b97f4a7c15
		p.jobs = append(p.jobs, &job{
			index: len(p.jobs), req: &r, arrived: p.arrived, stops: c.Stop, include: c.IncludeStop, skip: p.answer.skip, eos: eos, placement: c.KVPlacement, first: k == 0,
		})
	}
	return nil
}

func (s *Server) seed(asked *integer) uint64 {
	if asked != nil {
		return uint64(*asked)
	}
	return s.cfg.Seed + s.requests.Add(1)*0xbf58476d1ce4e5b9
}

// submit hands every job to an engine, or none.
func (s *Server) submit(ctx context.Context, p *plan) (err error) {
	defer func() {
		for _, j := range p.jobs {
			if err != nil && j.stream != nil {
				j.stream.Close()
			}
		}
	}()
	defer recovered(&err)
	for i, j := range p.jobs {
		j.req.Later = i > 0
		stream, err := s.backend.Submit(ctx, j.req)
		if err != nil {
			return err
		}
		j.stream = stream
	}
	return nil
}

// answerPlan generates and answers, as one JSON object or as a stream of events. A client that goes away
// ends its plan and its jobs, also while they are queued.
func (s *Server) answerPlan(ctx *fasthttp.RequestCtx, plan func(context.Context) (*plan, error)) {
	work, cancel := context.WithCancel(s.ctx) // its cause is that of s.ctx, if that ends it
	unwatch := s.watcher.watch(ctx.Conn(), cancel)
	done := func() { unwatch(); cancel() }
	p, err := planned(work, plan)
	if err != nil {
		if errors.Is(err, context.Cause(work)) {
			s.answerFailure(ctx, work, err)
		} else {
			s.refuse(ctx, err) // also to one that closed its own direction meanwhile
		}
		done()
		return
	}
	s.metrics.started(len(p.jobs))
	if err := s.submit(work, p); err != nil {
		if s.ctx.Err() != nil {
			err = context.Cause(s.ctx)
		}
		s.metrics.dropped(len(p.jobs), s.isGone(work))
		s.answerFailure(ctx, work, err)
		done()
		return
	}
	s.metrics.prompt.Add(float64(p.promptTokens))
	if p.stream {
		s.streamPlan(ctx, work, p, done)
		return
	}
	defer done()
	body, err := s.wholeAnswer(work, p)
	if err != nil {
		s.answerFailure(ctx, work, err)
		return
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(body)
}

func planned(work context.Context, plan func(context.Context) (*plan, error)) (p *plan, err error) {
	defer recovered(&err)
	return plan(work)
}

// isGone tells whether a request's client hung up.
func (s *Server) isGone(work context.Context) bool { return work.Err() != nil && s.ctx.Err() == nil }

// answerFailure answers a request that did not come to its end. One that hung up may have closed only its
// own direction.
func (s *Server) answerFailure(ctx *fasthttp.RequestCtx, work context.Context, err error) {
	if s.isGone(work) {
		writeError(ctx, badRequest("", "the request was given up, since its connection was closed."))
		return
	}
	s.refuse(ctx, err)
}

// refuse answers with an error and counts it, where completions were asked for.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	if p := path(ctx); ctx.IsPost() && (p == completionsPath || p == chatPath || p == responsesPath || p == messagesPath) {
		s.metrics.failed(p, err)
	}
	writeError(ctx, err)
}

// deltas runs all jobs and hands their deltas to each, one at a time, until all ended or one failed.
func (s *Server) deltas(ctx context.Context, p *plan, each func(delta) error) error {
	run, cancel := context.WithCancel(ctx)
	ch := make(chan delta, 4*len(p.jobs))
	for _, j := range p.jobs {
		go j.run(run, s.tok, s.metrics, func(d delta) bool {
			select {
			case ch <- d:
				return true
			case <-run.Done():
				return false
			}
		})
	}
	var failed error
	left, generated := len(p.jobs), make([]int, len(p.jobs))
	for left > 0 && failed == nil {
		var d delta
		select {
		case d = <-ch:
		case <-ctx.Done():
			failed = context.Cause(ctx)
			continue
		}
		if d.err != nil {
			failed = d.err
			continue
		}
		generated[d.index] += len(d.ids)
		if failed = each(d); failed == nil && d.finish != "" {
			reason := d.finish
			if reason == "tool_calls" { // as vLLM counts
				reason = "stop"
			}
			s.metrics.finished(reason, p.arrived, d.times, len(p.jobs[d.index].req.Prompt), generated[d.index])
			left--
		}
	}
	cancel()
	if failed != nil {
		s.metrics.dropped(left, s.isGone(ctx))
	}
	return failed
}

// Defaults are what a model says of itself.
type Defaults struct {
	Temperature, TopP, RepetitionPenalty float64
	TopK                                 int
	EOS                                  []int32
	VocabSize                            int
}
