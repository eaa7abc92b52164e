package server

import (
	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/reasoning"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// thoughtReader takes the thoughts out of one choice's text. Its methods do nothing on nil.
type thoughtReader struct {
	parser *reasoning.Parser
	marks  []string // special tokens that it must see
	tell   bool     // the client wants them
	open   int      // tokens of which it is not known whether they begin thoughts
}

// reasoningForm is the one that a server looks for, "" for none. parser is --reasoning-parser.
func reasoningForm(tok *tokenizer.Tokenizer, parser string) reasoning.Form {
	switch parser {
	case "", "auto":
		form, _ := reasoning.Detect(tok.ChatTemplate())
		return form
	case "none":
		return ""
	}
	return reasoning.Form(parser)
}

// thoughts is the reader of one choice of a chat whose prompt is known. An answer that has a form has it from its first
// token on.
func (s *Server) thoughts(req *chatRequest, prompt string) *thoughtReader {
	if s.reasoning == "" || req.guide != (engine.Guide{}) {
		return nil
	}
	return &thoughtReader{parser: reasoning.New(s.reasoning, prompt), marks: s.reasoning.Markers(), tell: orDefault(req.IncludeReasoning, true)}
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
