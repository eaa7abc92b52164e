package server

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// plan is a checked request: what to generate and how to answer.
type plan struct {
	answer       answer
	jobs         []*job
	promptTokens int // of all prompts, each counted once
	echo         []echo
	logprobs     bool
	stream       bool
	usage        bool // a last chunk with the usage
}

// echo is a prompt that is repeated in front of a completion.
type echo struct {
	text  string
	first int32 // the prompt's first token, which has no log probability
}

// completions answers POST /v1/completions.
func (s *Server) completions(ctx *fasthttp.RequestCtx) {
	var req completionRequest
	if err := decode(ctx.PostBody(), &req); err != nil {
		writeError(ctx, err)
		return
	}
	p, err := s.planCompletion(&req)
	if err != nil {
		writeError(ctx, err)
		return
	}
	s.answerPlan(ctx, p)
}

// chat answers POST /v1/chat/completions.
func (s *Server) chat(ctx *fasthttp.RequestCtx) {
	var req chatRequest
	if err := decode(ctx.PostBody(), &req); err != nil {
		writeError(ctx, err)
		return
	}
	p, err := s.planChat(&req)
	if err != nil {
		writeError(ctx, err)
		return
	}
	s.answerPlan(ctx, p)
}

func (s *Server) planCompletion(req *completionRequest) (*plan, error) {
	n, err := s.checkCommon(&req.common)
	if err != nil {
		return nil, err
	}
	if len(req.Prompt) == 0 || len(req.Prompt) > maxPrompts {
		return nil, badRequest("prompt", "prompt must hold between 1 and %d prompts, got %d.", maxPrompts, len(req.Prompt))
	}
	logprobs := orDefault(req.Logprobs, -1)
	if req.Logprobs != nil && (logprobs < 0 || logprobs > maxTopLogprobs) {
		return nil, badRequest("logprobs", "logprobs must be between 0 and %d, got %d.", maxTopLogprobs, logprobs)
	}
	p := s.newPlan(&req.common, "cmpl-", "text_completion")
	p.logprobs = logprobs >= 0
	for _, pr := range req.Prompt {
		tokens, text, err := s.promptTokens(pr, orDefault(req.AddSpecialTokens, true))
		if err != nil {
			return nil, err
		}
		base := engine.Request{Prompt: tokens, Logprobs: logprobs, PromptLogprobs: -1}
		if req.Echo {
			p.echo = append(p.echo, echo{text, tokens[0]})
			if logprobs >= 0 {
				base.PromptLogprobs = logprobs
			}
		}
		if err := s.addJobs(p, &req.common, base, n, 16); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (s *Server) planChat(req *chatRequest) (*plan, error) {
	if req.MaxCompletionTokens != nil { // the newer name wins
		req.MaxTokens, req.maxTokensField = req.MaxCompletionTokens, "max_completion_tokens"
	}
	n, err := s.checkCommon(&req.common)
	if err != nil {
		return nil, err
	}
	top := orDefault(req.TopLogprobs, 0)
	switch {
	case len(req.Messages) == 0:
		return nil, badRequest("messages", "messages must have at least one message.")
	case top < 0 || top > maxTopLogprobs:
		return nil, badRequest("top_logprobs", "top_logprobs must be between 0 and %d, got %d.", maxTopLogprobs, top)
	case req.TopLogprobs != nil && !req.Logprobs:
		return nil, badRequest("top_logprobs", "when using top_logprobs, logprobs must be set to true.")
	case !s.tok.HasChatTemplate():
		return nil, badRequest("", "this model has no chat template; use /v1/completions.")
	}
	messages := make([]tokenizer.Message, len(req.Messages))
	for i, m := range req.Messages {
		if m.Role == "" {
			return nil, badRequest("messages", "message %d has no role.", i)
		}
		messages[i] = tokenizer.Message{Role: m.Role, Content: string(m.Content), Name: m.Name}
	}
	text, err := s.tok.ApplyChat(messages, orDefault(req.AddGenerationPrompt, true), req.TemplateVars)
	if err != nil {
		return nil, badRequest("messages", "cannot apply the chat template: %v", err)
	}
	logprobs := -1
	if req.Logprobs {
		logprobs = top
	}
	tokens := s.tok.Encode(text, false)
	if len(tokens) == 0 {
		return nil, badRequest("messages", "the messages make an empty prompt.")
	}
	p := s.newPlan(&req.common, "chatcmpl-", "chat.completion")
	p.answer.chat, p.logprobs = true, req.Logprobs
	base := engine.Request{Prompt: tokens, Logprobs: logprobs, PromptLogprobs: -1}
	return p, s.addJobs(p, &req.common, base, n, 1<<30)
}

func (s *Server) checkCommon(c *common) (int, error) {
	if err := s.checkModel(c.Model); err != nil {
		return 0, err
	}
	return c.check(s.cfg.Defaults)
}

// checkModel refuses models that are not served; no name means the first.
func (s *Server) checkModel(name string) error {
	if name != "" && !slices.Contains(s.cfg.ModelNames, name) {
		return &Error{fasthttp.StatusNotFound, "NotFoundError", "model", fmt.Sprintf("The model `%s` does not exist.", name)}
	}
	return nil
}

func (s *Server) newPlan(c *common, prefix, object string) *plan {
	model := c.Model
	if model == "" {
		model = s.cfg.ModelNames[0]
	}
	return &plan{
		answer: answer{id: prefix + newID(), object: object, model: model, created: time.Now().Unix(), tok: s.tok, skip: orDefault(c.SkipSpecial, true)},
		stream: c.Stream, usage: c.StreamOptions != nil && c.StreamOptions.IncludeUsage,
	}
}

// promptTokens encodes or checks one prompt; text is what echo repeats.
func (s *Server) promptTokens(p prompt, special bool) (tokens []int32, text string, err error) {
	if p.isText {
		tokens, text = s.tok.Encode(p.text, special), p.text
	} else {
		for _, id := range p.tokens {
			if id < 0 || int(id) >= s.cfg.Defaults.VocabSize {
				return nil, "", badRequest("prompt", "the prompt has %d, which is no token id of this model (0 to %d).", id, s.cfg.Defaults.VocabSize-1)
			}
		}
		tokens, text = p.tokens, s.tok.Decode(p.tokens, true)
	}
	if len(tokens) == 0 {
		return nil, "", badRequest("prompt", "the prompt is empty.")
	}
	return tokens, text, nil
}

// addJobs adds n choices of one prompt.
func (s *Server) addJobs(p *plan, c *common, base engine.Request, n, defaultTokens int) error {
	sampling, bias, err := c.sampling(s.cfg.Defaults)
	if err != nil {
		return err
	}
	field, capacity := "prompt", s.backend.Capacity()
	if p.answer.chat {
		field = "messages"
	}
	if capacity <= 0 {
		return unavailable()
	}
	max, err := c.fit(field, len(base.Prompt), defaultTokens, s.cfg.MaxModelLen, capacity)
	if err != nil {
		return err
	}
	if c.MinTokens > max {
		return badRequest("min_tokens", "min_tokens must be at most max_tokens (%d), got %d.", max, c.MinTokens)
	}
	seed := s.seed(c.Seed)
	p.promptTokens += len(base.Prompt)
	for k := range n {
		r := base
		r.ID = p.answer.id + "-" + strconv.Itoa(len(p.jobs))
		r.MaxTokens, r.MinTokens, r.IgnoreEOS = max, c.MinTokens, c.IgnoreEOS
		r.Sampling, r.Bias = sampling, bias
		r.Sampling.Seed = seed + uint64(k)*0x9e3779b97f4a7c15
		r.StopTokens = append(slices.Clone(c.StopTokenIDs), s.cfg.Defaults.EOS...)
		if c.IgnoreEOS {
			r.StopTokens = slices.Clone(c.StopTokenIDs)
		}
		p.jobs = append(p.jobs, &job{index: len(p.jobs), req: &r, stops: c.Stop, include: c.IncludeStop, skip: orDefault(c.SkipSpecial, true), eos: s.cfg.Defaults.EOS})
	}
	return nil
}

func (s *Server) seed(asked *int64) uint64 {
	if asked != nil {
		return uint64(*asked)
	}
	return s.cfg.Seed + s.requests.Add(1)*0xbf58476d1ce4e5b9
}

// submit hands every job to an engine, or none.
func (s *Server) submit(ctx context.Context, p *plan) error {
	for i, j := range p.jobs {
		stream, err := s.backend.Submit(ctx, j.req)
		if err != nil {
			for _, earlier := range p.jobs[:i] {
				earlier.stream.Close()
			}
			return err
		}
		j.stream = stream
	}
	return nil
}

// answerPlan generates and answers, as one JSON object or as a stream of events. A client that goes away
// ends its jobs, also while they are queued.
func (s *Server) answerPlan(ctx *fasthttp.RequestCtx, p *plan) {
	work, cancel := context.WithCancel(s.ctx) // its cause is that of s.ctx, if that ends it
	unwatch := s.watcher.watch(ctx.Conn(), cancel)
	done := func() { unwatch(); cancel() }
	s.metrics.started(len(p.jobs), p.promptTokens)
	if err := s.submit(work, p); err != nil {
		if s.ctx.Err() != nil {
			err = context.Cause(s.ctx)
		}
		done()
		s.metrics.finished(len(p.jobs), "rejected")
		writeError(ctx, err)
		return
	}
	if p.stream {
		s.streamPlan(ctx, work, p, done)
		return
	}
	defer done()
	choices, err := s.collect(work, p)
	if err != nil {
		writeError(ctx, err)
		return
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(p.encode(choices))
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
	left := len(p.jobs)
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
		if failed = each(d); failed == nil && d.finish != "" {
			s.metrics.finished(1, d.finish)
			left--
		}
	}
	cancel()
	if failed != nil {
		s.metrics.finished(left, "error")
	}
	return failed
}

// choice is a finished choice.
type choice struct {
	text       []byte
	tokens     []engine.TokenLogprob
	prompt     []engine.TokenLogprob
	generated  int
	finish     string
	stopReason any
}

func (s *Server) collect(ctx context.Context, p *plan) ([]choice, error) {
	choices := make([]choice, len(p.jobs))
	err := s.deltas(ctx, p, func(d delta) error {
		c := &choices[d.index]
		c.text = append(c.text, d.text...)
		c.tokens = append(c.tokens, d.tokens...)
		c.prompt = append(c.prompt, d.prompt...)
		c.generated += d.generated
		c.finish, c.stopReason = d.finish, d.stopReason
		return nil
	})
	return choices, err
}

// encode writes the whole answer.
func (p *plan) encode(choices []choice) []byte {
	a := &p.answer
	b := append(a.head(nil, a.object), `,"choices":[`...)
	generated := 0
	for i, c := range choices {
		if i > 0 {
			b = append(b, ',')
		}
		generated += c.generated
		b = append(b, `{"index":`...)
		b = appendInt(b, i)
		if a.chat {
			b = append(b, `,"message":{"role":"assistant","content":`...)
			b = appendString(b, string(c.text))
			b = append(b, `},"logprobs":`...)
			if p.logprobs {
				b = a.appendChatLogprobs(b, c.tokens)
			} else {
				b = append(b, `null`...)
			}
		} else {
			b = p.appendTextChoice(b, i, c)
		}
		b = append(appendFinish(b, c.finish, c.stopReason), '}')
	}
	b = append(b, `],"usage":`...)
	return append(appendUsage(b, p.promptTokens, generated), '}')
}

func (p *plan) appendTextChoice(b []byte, i int, c choice) []byte {
	text, tokens, echoed := string(c.text), c.tokens, len(p.echo) > 0
	var at place
	if echoed {
		e := p.echo[i/(len(p.jobs)/len(p.echo))]
		text, at.echo = e.text+text, e.text
		tokens = slices.Concat([]engine.TokenLogprob{{Token: e.first}}, c.prompt, c.tokens)
	}
	b = append(b, `,"text":`...)
	b = appendString(b, text)
	b = append(b, `,"logprobs":`...)
	if !p.logprobs {
		return append(b, `null`...)
	}
	return p.answer.appendTextLogprobs(b, tokens, &at, echoed)
}

// Defaults are what a model says of itself.
type Defaults struct {
	Temperature, TopP, RepetitionPenalty float64
	TopK                                 int
	EOS                                  []int32
	VocabSize                            int
}
