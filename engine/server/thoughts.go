package server

import (
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
	form   reasoning.Form // "": none
	prompt string
	turn   string // the end of the prompt that the answer goes on with
	goesOn bool   // there is one
	tell   bool
}

// planThoughts knows by the prompt whether thoughts have begun. They come before the form that an answer is to have; where
// it could not be seen that they begin, the form does at once.
func (s *Server) planThoughts(req *chatRequest, prompt string) thoughtPlan {
	p := thoughtPlan{form: s.thinking.form, prompt: prompt, goesOn: req.ContinueFinal, tell: orDefault(req.IncludeReasoning, true)}
	if p.goesOn {
		p.turn = string(orDefault(req.Messages[len(req.Messages)-1].Content, ""))
	}
	if p.form == "" || req.guide == (engine.Guide{}) {
		return p
	}
	end := p.form.Markers()[1]
	switch at := p.parser(); {
	case at.Thinks():
		req.guide.Thoughts = engine.Thoughts{Opened: true, Open: -1, Close: end, CloseToken: s.thinking.close}
	case at.Open() && s.thinking.open >= 0:
		req.guide.Thoughts = engine.Thoughts{Open: s.thinking.open, Close: end, CloseToken: s.thinking.close}
	case at.Open():
		p.form = ""
	}
	return p
}

func (p thoughtPlan) parser() *reasoning.Parser {
	if p.goesOn {
		return reasoning.Continue(p.form, p.turn)
	}
	return reasoning.New(p.form, p.prompt)
}

// reader is for one choice; nil where there are no thoughts.
func (p thoughtPlan) reader() *thoughtReader {
	if p.form == "" {
		return nil
	}
	return &thoughtReader{parser: p.parser(), marks: p.form.Markers(), tell: p.tell}
}

// thoughtReader takes the thoughts out of one choice's text. Its methods do nothing on nil.
type thoughtReader struct {
	parser *reasoning.Parser
	marks  []string // special tokens that it must see
	tell   bool     // the client wants them
	open   int      // tokens of which it is not known whether they begin thoughts
}

func (r *thoughtReader) keep() []string {
	if r == nil {
		return nil
	}
	return r.marks
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
