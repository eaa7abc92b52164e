package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
)

// stream is a request at another process, seen as an engine.Stream.
type stream struct {
	call     grpc.ServerStreamingClient[routerpb.GenerateEvent]
	cancel   context.CancelFunc
	end      func() // cancels, and lets go of the connection; once
	instance string
	prompt   int    // its tokens
	taken    uint64 // the instance's first report that is sure to show it
	ended    bool   // Next has returned the last event
	// begun says that the request may have been in a step there: an instance that would not tell counts as one that told.
	begun  bool
	charge *charge // what the request counts against its home; nil: nothing
	// found is told once, with the first token, how many of the prompt's had KV in the cache; nil: nobody is.
	found func(cached int)
}

// Next returns the request's next event. ctx cancels the request.
func (s *stream) Next(ctx context.Context) (engine.Event, error) {
	if s.ended {
		return engine.Event{}, io.EOF
	}
	stop := context.AfterFunc(ctx, s.cancel)
	defer stop()
	ev, err := s.receive()
	if s.ended = err != nil || ev.Finish != ""; s.ended {
		s.charge.drop()
	}
	if err != nil {
		if ctx.Err() != nil {
			return engine.Event{}, context.Cause(ctx)
		}
		return engine.Event{}, &homeLostError{s.instance, err}
	}
	if s.found != nil && ev.HasToken {
		s.found(ev.Cached)
		s.found = nil
	}
	return ev, nil
}

// receive puts an event together from what sendEvent made of it. Who reads is not told that the request begins.
func (s *stream) receive() (engine.Event, error) {
	var prompt []engine.TokenLogprob
	for {
		p, err := s.call.Recv()
		if err != nil {
			return engine.Event{}, err
		}
		if p.Begun {
			s.begun = true
			s.charge.begun(p.Report)
			continue
		}
		ev := eventFromPB(p, s.instance)
		prompt = append(prompt, ev.Prompt...)
		if len(prompt) > s.prompt { // else there could be pieces for ever
			return engine.Event{}, fmt.Errorf("it sent the log probabilities of more tokens than the %d of the prompt", s.prompt)
		}
		if !p.More {
			ev.Prompt = prompt
			return ev, nil
		}
		if len(ev.Prompt) == 0 {
			return engine.Event{}, errors.New("it sent an empty piece of the prompt's log probabilities")
		}
	}
}

// Close cancels the request if it goes on.
func (s *stream) Close() {
	s.end()
	s.charge.drop()
}

func toPB(r *engine.Request) *routerpb.GenerateRequest {
	p := &routerpb.GenerateRequest{
		Id: r.ID, Prompt: r.Prompt, MaxTokens: uint32(r.MaxTokens), StopTokens: r.StopTokens, MinTokens: uint32(r.MinTokens),
		IgnoreEos: r.IgnoreEOS, Logprobs: int32(r.Logprobs), PromptLogprobs: int32(r.PromptLogprobs), Arrival: r.Arrival, Answer: r.Answer, CacheSalt: r.CacheSalt, Handed: r.Handed, Later: r.Later, Near: r.Near, TellBegun: r.TellBegun,
		AllowedTokens: r.Limits.Allowed, GuideKind: r.Guide.Kind, GuideSource: r.Guide.Source, Thoughts: thoughtsToPB(r.Guide.Thoughts), Thought: thoughtLimitToPB(r.Limits.Thought),
		Sampling: &routerpb.Sampling{
			Temperature: r.Sampling.Temperature, TopP: r.Sampling.TopP, MinP: r.Sampling.MinP, Repetition: r.Sampling.Repetition,
			Presence: r.Sampling.Presence, Frequency: r.Sampling.Frequency, TopK: r.Sampling.TopK, Seed: r.Sampling.Seed,
		},
	}
	for _, b := range r.Bias {
		p.Bias = append(p.Bias, &routerpb.Bias{Token: b.Token, Value: b.Value})
	}
	for _, seq := range r.Limits.Bad {
		p.Bad = append(p.Bad, &routerpb.Tokens{Ids: seq})
	}
	return p
}

func thoughtsToPB(t engine.Thoughts) *routerpb.Thoughts {
	if t == (engine.Thoughts{}) {
		return nil
	}
	return &routerpb.Thoughts{Close: t.Close, CloseToken: t.CloseToken, Opened: t.Opened, Open: t.Open}
}

func thoughtsFromPB(t *routerpb.Thoughts) engine.Thoughts {
	return engine.Thoughts{Close: t.GetClose(), CloseToken: t.GetCloseToken(), Opened: t.GetOpened(), Open: t.GetOpen()}
}

func thoughtLimitToPB(t *engine.ThoughtLimit) *routerpb.ThoughtLimit {
	if t == nil {
		return nil
	}
	return &routerpb.ThoughtLimit{Most: uint32(t.Most), Close: t.Close, Opened: t.Opened, Open: t.Open}
}

func thoughtLimitFromPB(t *routerpb.ThoughtLimit) *engine.ThoughtLimit {
	if t == nil {
		return nil
	}
	return &engine.ThoughtLimit{Most: int(t.Most), Close: t.Close, Opened: t.Opened, Open: t.Open}
}

func requestFromPB(p *routerpb.GenerateRequest) *engine.Request {
	s := p.Sampling
	r := &engine.Request{
		ID: p.Id, Prompt: p.Prompt, MaxTokens: int(p.MaxTokens), StopTokens: p.StopTokens, MinTokens: int(p.MinTokens),
		IgnoreEOS: p.IgnoreEos, Logprobs: int(p.Logprobs), PromptLogprobs: int(p.PromptLogprobs), Arrival: p.Arrival, Answer: p.Answer, CacheSalt: p.CacheSalt, Handed: p.Handed, Later: p.Later, Near: p.Near, TellBegun: p.TellBegun,
		Limits: engine.Limits{Allowed: p.AllowedTokens, Thought: thoughtLimitFromPB(p.Thought)},
		Guide:  engine.Guide{Kind: p.GuideKind, Source: p.GuideSource, Thoughts: thoughtsFromPB(p.Thoughts)},
		Sampling: batch.Sampling{
			Temperature: s.GetTemperature(), TopP: s.GetTopP(), MinP: s.GetMinP(), Repetition: s.GetRepetition(),
			Presence: s.GetPresence(), Frequency: s.GetFrequency(), TopK: s.GetTopK(), Seed: s.GetSeed(),
		},
	}
	for _, seq := range p.Bad {
		r.Limits.Bad = append(r.Limits.Bad, seq.Ids)
	}
	for _, b := range p.Bias {
		r.Bias = append(r.Bias, batch.Bias{Token: b.Token, Value: b.Value})
	}
	return r
}

func logprobToPB(t *engine.TokenLogprob) *routerpb.TokenLogprob {
	p := &routerpb.TokenLogprob{Token: t.Token, Logprob: t.Logprob, Rank: t.Rank}
	for _, a := range t.Top {
		p.Top = append(p.Top, &routerpb.Alternative{Token: a.Token, Logprob: a.Logprob})
	}
	return p
}

func logprobFromPB(p *routerpb.TokenLogprob) engine.TokenLogprob {
	t := engine.TokenLogprob{Token: p.Token, Logprob: p.Logprob, Rank: p.Rank}
	for _, a := range p.Top {
		t.Top = append(t.Top, engine.Alt{Token: a.Token, Logprob: a.Logprob})
	}
	return t
}

func eventToPB(ev engine.Event) *routerpb.GenerateEvent {
	p := &routerpb.GenerateEvent{HasToken: ev.HasToken, Token: ev.Token, Finish: ev.Finish, StopToken: ev.StopToken, Cached: uint32(ev.Cached), QueuedNs: int64(ev.Queued), Begun: ev.Begun}
	if ev.Logprob != nil {
		p.Logprob = logprobToPB(ev.Logprob)
	}
	for i := range ev.Prompt {
		p.Prompt = append(p.Prompt, logprobToPB(&ev.Prompt[i]))
	}
	for _, s := range ev.Spans {
		p.Spans = append(p.Spans, &routerpb.Span{Instance: s.Instance, Blocks: uint32(s.Blocks)})
	}
	if ev.Err != nil {
		p.Error, p.ErrorKind = ev.Err.Error(), kindOf(ev.Err)
	}
	return p
}

// eventFromPB names the home, which does not name itself.
func eventFromPB(p *routerpb.GenerateEvent, home string) engine.Event {
	ev := engine.Event{HasToken: p.HasToken, Token: p.Token, Finish: p.Finish, StopToken: p.StopToken, Cached: int(p.Cached), Queued: time.Duration(p.QueuedNs), Begun: p.Begun}
	if p.Logprob != nil {
		lp := logprobFromPB(p.Logprob)
		ev.Logprob = &lp
	}
	for _, t := range p.Prompt {
		ev.Prompt = append(ev.Prompt, logprobFromPB(t))
	}
	for _, s := range p.Spans {
		ev.Spans = append(ev.Spans, engine.SpanInfo{Instance: cmp.Or(s.Instance, home), Blocks: int(s.Blocks)})
	}
	if p.Error != "" {
		ev.Err = &Error{p.ErrorKind, p.Error}
	}
	return ev
}
