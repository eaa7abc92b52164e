package server

import (
	"math"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/reasoning"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// thinking is what a server knows of its model's thoughts.
type thinking struct {
	form        reasoning.Form // "": it has none, or they are text
	open, close int32          // the tokens that mark them, -1: the marks are more than a token each
}

// probeThinking finds that out. parser is --reasoning-parser.
func probeThinking(tok *tokenizer.Tokenizer, parser string) thinking {
	form := reasoning.Form(parser)
	switch parser {
	case "", "auto":
		form, _ = reasoning.Detect(tok.ChatTemplate())
	case "none":
		form = ""
	}
	if form == "" {
		return thinking{}
	}
	token := func(mark string) int32 {
		if ids := tok.Encode(mark, false); len(ids) == 1 {
			return ids[0]
		}
		return -1
	}
	m := form.Markers()
	return thinking{form, token(m[0]), token(m[1])}
}

// thoughtPlan is what a chat's answers have of thoughts.
type thoughtPlan struct {
	start *reasoning.Parser // of every choice, before its first token; nil: there are no thoughts
	marks []string          // special tokens that a reader must see
	tell  bool              // the client wants them
}

// planThoughts knows by the prompt, or by the turn that is continued, whether thoughts have begun. They come before the form
// that an answer is to have; where it could not be seen that they begin, the form does at once.
func (s *Server) planThoughts(req *chatRequest, prompt string) thoughtPlan {
	if s.thinking.form == "" {
		return thoughtPlan{}
	}
	p := thoughtPlan{reasoning.New(s.thinking.form, prompt), s.thinking.form.Markers(), orDefault(req.IncludeReasoning, true)}
	if req.ContinueFinal {
		turn := orDefault(req.Messages[len(req.Messages)-1].Content, "")
		p.start = reasoning.Continue(s.thinking.form, string(turn))
	}
	if req.guide == (engine.Guide{}) {
		return p
	}
	before := engine.Thoughts{Opened: p.start.Thinks(), Open: -1, Close: p.marks[1], CloseToken: s.thinking.close}
	switch {
	case before.Opened:
		req.guide.Thoughts = before
	case p.start.Open() && s.thinking.open >= 0:
		before.Open = s.thinking.open
		req.guide.Thoughts = before
	case p.start.Open():
		p.start = nil
	}
	return p
}

// limitThoughts takes thinking_token_budget. Where no token ends the thoughts only what must be held is refused.
func (s *Server) limitThoughts(req *chatRequest, p thoughtPlan) error {
	most := orDefault(req.ThinkingBudget, -1)
	switch {
	case most == -1:
		return nil
	case most < -1:
		return badRequest("thinking_token_budget", "thinking_token_budget must be -1 or at least 0, got %d.", most)
	case s.thinking.form == "" || s.thinking.close < 0 || p.start != nil && p.start.Open() && s.thinking.open < 0:
		if req.softBudget {
			return nil
		}
		return badRequest("thinking_token_budget", "thinking_token_budget other than -1 is not supported: this model has no thoughts that tokens of their own begin and end.")
	case p.start == nil:
		return nil
	}
	limit := engine.ThoughtLimit{Most: int(min(most, math.MaxInt32)), Close: s.thinking.close, Opened: p.start.Thinks(), Open: -1}
	if p.start.Open() {
		limit.Open = s.thinking.open
	}
	if limit.Opened || limit.Open >= 0 {
		req.thought = &limit
	}
	return nil
}

// reader is for one choice; nil where there are no thoughts.
func (p thoughtPlan) reader() *thoughtReader {
	if p.start == nil {
		return nil
	}
	return &thoughtReader{parser: *p.start, keep: p.marks, tell: p.tell}
}

// thoughtReader takes the thoughts out of one choice's text. Its methods do nothing on nil.
type thoughtReader struct {
	parser reasoning.Parser
	keep   []string // special tokens that mark thoughts
	tell   bool
	open   int // tokens of which it is not known whether they begin thoughts
}

func (r *thoughtReader) marks() []string {
	if r == nil {
		return nil
	}
	return r.keep
}

// take moves the thoughts of a delta's text to their place. A token that begins thoughts or ends them is one of theirs.
func (r *thoughtReader) take(d *delta) {
	if r == nil {
		return
	}
	thinks := r.parser.Thinks()
	d.reasoning, d.text = r.parser.Feed(d.text)
	if r.open += len(d.ids); !r.parser.Open() {
		if thinks || r.parser.Thinks() {
			d.thinking = r.open
		}
		r.open = 0
	}
	if d.finish != "" {
		thought, answer := r.parser.Finish()
		d.reasoning += thought
		d.text += answer
	}
	if !r.tell {
		d.reasoning = ""
	}
}

// appendReasoning appends a text's thoughts under both names that clients know.
func appendReasoning(b []byte, text string) []byte {
	b = append(b, `"reasoning_content":`...)
	b = appendString(b, text)
	b = append(b, `,"reasoning":`...)
	return appendString(b, text)
}
