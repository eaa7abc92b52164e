package server

import (
	"github.com/infinite-llm/infinite/engine/toolcall"
)

// callDelta is what a delta adds to a call: with an id the call itself, by its name, else a piece of its arguments.
type callDelta struct {
	index    int
	id, name string
	args     string
	at       int // bytes of the delta's text in front of it
}

// call is a finished call.
type call struct {
	id, name string
	args     []byte
}

// callReader finds the calls in one choice's text.
type callReader struct {
	parser  *toolcall.Parser
	keep    []string // special tokens that mark calls
	single  bool     // calls behind the first are not told
	forced  bool     // by the client: then the call is no reason to finish, as with OpenAI
	shortID bool
	calls   int
}

// reader is for one choice; nil where all text is content.
func (p *toolPlan) reader() *callReader {
	r := &callReader{single: p.single, shortID: p.shortID}
	switch {
	case p.forced != "":
		r.parser, r.forced = toolcall.NewNamed(p.forced), true
	case p.require:
		r.parser = toolcall.NewList()
	case p.form != "":
		r.parser, r.keep = toolcall.New(p.form), p.form.Markers()
	default:
		return nil
	}
	return r
}

// read takes a piece of the text and returns what of it is content, and what calls.
func (r *callReader) read(text string, end bool) (content string, calls []callDelta) {
	events := r.parser.Feed(text)
	if end {
		events = append(events, r.parser.Finish()...)
	}
	for _, ev := range events {
		switch {
		case ev.Kind == toolcall.Content:
			content += ev.Text
		case r.single && ev.Call > 0:
		case ev.Kind == toolcall.Begin:
			r.calls++
			calls = append(calls, callDelta{index: ev.Call, id: r.newID(), name: ev.Text, at: len(content)})
		default:
			calls = append(calls, callDelta{index: ev.Call, args: ev.Text, at: len(content)})
		}
	}
	return content, calls
}

// marks are special tokens that it must see.
func (r *callReader) marks() []string {
	if r == nil {
		return nil
	}
	return r.keep
}

// newID is random. Mistral's templates take none but of 9 letters and digits.
func (r *callReader) newID() string {
	if r.shortID {
		return newID()[:9]
	}
	return "call_" + newID()
}

// finish is why a choice ended, given why its text did.
func (r *callReader) finish(reason string) string {
	if r.calls > 0 && !r.forced && reason == "stop" {
		return "tool_calls"
	}
	return reason
}

// parts cuts a delta into those that chunks have room for, thoughts, content or one call each, in the order in which they
// came. What belongs to tokens goes with the first of them, the end with the last.
func (d delta) parts() []delta {
	if len(d.calls) == 0 && (d.reasoning == "" || d.text == "") {
		return []delta{d}
	}
	var list []delta
	if d.reasoning != "" {
		list = append(list, delta{index: d.index, reasoning: d.reasoning})
	}
	at := 0
	text := func(end int) {
		if at < end {
			list = append(list, delta{index: d.index, text: d.text[at:end]})
		}
		at = end
	}
	for _, c := range d.calls {
		text(c.at)
		list = append(list, delta{index: d.index, calls: []callDelta{c}})
	}
	text(len(d.text))
	first, last := &list[0], &list[len(list)-1]
	first.tokens, first.prompt, first.ids, first.thinking, first.cached = d.tokens, d.prompt, d.ids, d.thinking, d.cached
	last.finish, last.stopReason, last.spans = d.finish, d.stopReason, d.spans
	return list
}

// add puts a delta's calls together.
func (c *choice) add(calls []callDelta) {
	for _, d := range calls {
		if d.id != "" {
			c.calls = append(c.calls, call{id: d.id, name: d.name})
		}
		last := &c.calls[len(c.calls)-1]
		last.args = append(last.args, d.args...)
	}
}

// appendDelta appends a chat chunk's content, its thoughts, or its part of a call.
func appendDelta(b []byte, d delta) []byte {
	if d.reasoning != "" {
		return append(appendReasoning(append(b, '{'), d.reasoning), '}')
	}
	if len(d.calls) == 0 {
		b = append(b, `{"content":`...)
		return append(appendString(b, d.text), '}')
	}
	c := d.calls[0]
	b = append(b, `{"tool_calls":[{"index":`...)
	b = appendInt(b, c.index)
	if c.id != "" {
		b = append(b, `,"id":`...)
		b = appendString(b, c.id)
		b = append(b, `,"type":"function"`...)
	}
	b = append(b, `,"function":{`...)
	if c.id != "" {
		b = append(b, `"name":`...)
		b = append(appendString(b, c.name), ',')
	}
	b = append(b, `"arguments":`...)
	return append(appendString(b, c.args), `}}]}`...)
}

// appendMessage appends content and calls of a whole answer. Content that is only calls is null.
func appendMessage(b []byte, c choice) []byte {
	b = append(b, `{"role":"assistant","content":`...)
	if len(c.text) == 0 && len(c.calls) > 0 {
		b = append(b, `null`...)
	} else {
		b = appendString(b, string(c.text))
	}
	b = append(b, `,"refusal":null`...)
	switch {
	case len(c.reasoning) > 0:
		b = appendReasoning(append(b, ','), string(c.reasoning))
	case c.thinks: // clients of such models read the field, whether there is something in it or not
		b = append(b, `,"reasoning_content":null,"reasoning":null`...)
	}
	for i, one := range c.calls {
		if i == 0 {
			b = append(b, `,"tool_calls":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"id":`...)
		b = appendString(b, one.id)
		b = append(b, `,"type":"function","function":{"name":`...)
		b = appendString(b, one.name)
		b = append(b, `,"arguments":`...)
		b = append(appendString(b, string(one.args)), `}}`...)
	}
	if len(c.calls) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}
