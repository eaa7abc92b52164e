package server

import (
	"context"
	"slices"

	"github.com/infinite-llm/infinite/engine"
)

// choice is a finished choice.
type choice struct {
	thinks     bool // the server looks for thoughts
	reasoning  []byte
	text       []byte
	calls      []call
	tokens     []engine.TokenLogprob
	prompt     []engine.TokenLogprob
	ids        []int32
	thinking   int // tokens of thoughts
	finish     string
	stopReason any
	spans      []engine.SpanInfo
	cached     int // tokens of the prompt
}

// wholeAnswer generates all and writes the answer.
func (s *Server) wholeAnswer(ctx context.Context, p *plan) ([]byte, error) {
	if p.own != nil {
		return p.own.whole(ctx)
	}
	choices, err := s.collect(ctx, p)
	if err != nil {
		return nil, err
	}
	return p.encode(choices), nil
}

func (s *Server) collect(ctx context.Context, p *plan) ([]choice, error) {
	choices := make([]choice, len(p.jobs))
	err := s.deltas(ctx, p, func(d delta) error {
		c := &choices[d.index]
		c.thinks = p.jobs[d.index].thoughts != nil
		c.reasoning = append(c.reasoning, d.reasoning...)
		c.text = append(c.text, d.text...)
		c.add(d.calls)
		c.tokens = append(c.tokens, d.tokens...)
		c.prompt = append(c.prompt, d.prompt...)
		c.ids = append(c.ids, d.ids...)
		c.thinking += d.thinking
		c.cached += d.cached
		c.finish, c.stopReason, c.spans = d.finish, d.stopReason, d.spans
		return nil
	})
	return choices, err
}

// encode writes the whole answer.
func (p *plan) encode(choices []choice) []byte {
	a := &p.answer
	b := append(a.head(nil, a.object), `,"choices":[`...)
	t := tally{prompt: p.promptTokens}
	for i, c := range choices {
		if i > 0 {
			b = append(b, ',')
		}
		t.completion += len(c.ids)
		t.reasoning += c.thinking
		if p.jobs[i].first {
			t.cached += c.cached
		}
		b = append(b, `{"index":`...)
		b = appendInt(b, i)
		if a.chat {
			b = p.appendChatChoice(b, c)
		} else {
			b = p.appendTextChoice(b, i, c)
		}
		b = appendFinish(b, c.finish, c.stopReason, c.spans)
		if p.tokenIDs {
			b = appendIDs(b, "token_ids", c.ids)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	if a.chat && p.promptLogprobs >= 0 {
		b = a.appendPromptLogprobs(b, choices[0].prompt, p.promptLogprobs)
	}
	if a.chat && p.tokenIDs {
		b = appendIDs(b, "prompt_token_ids", p.jobs[0].req.Prompt)
	}
	b = append(b, `,"usage":`...)
	return append(t.append(b, a.chat), '}')
}

func (p *plan) appendChatChoice(b []byte, c choice) []byte {
	b = append(b, `,"message":`...)
	b = appendMessage(b, c)
	b = append(b, `,"logprobs":`...)
	if !p.logprobs {
		return append(b, `null`...)
	}
	return p.answer.appendChatLogprobs(b, c.tokens)
}

func (p *plan) appendTextChoice(b []byte, i int, c choice) []byte {
	text, tokens, echoed := string(c.text), c.tokens, len(p.echo) > 0
	var at place
	if echoed {
		e := p.echo[i/(len(p.jobs)/len(p.echo))]
		text, at = e.text+text, startOf(e, 1+len(c.prompt))
		tokens = slices.Concat([]engine.TokenLogprob{{Token: e.first}}, fewer(c.prompt, p.jobs[i].req.Logprobs), c.tokens)
	}
	b = append(b, `,"text":`...)
	b = appendString(b, text)
	b = append(b, `,"logprobs":`...)
	if p.logprobs {
		tokens, offsets := p.answer.locate(&at, tokens, true)
		b = p.answer.appendTextLogprobs(b, tokens, offsets, echoed)
	} else {
		b = append(b, `null`...)
	}
	if p.promptLogprobs >= 0 {
		b = p.answer.appendPromptLogprobs(b, c.prompt, p.promptLogprobs)
	}
	if p.tokenIDs {
		b = appendIDs(b, "prompt_token_ids", p.jobs[i].req.Prompt)
	}
	return b
}
