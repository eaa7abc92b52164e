package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/infinite-llm/infinite/engine"
)

// messageAnswer is the answer of one request, while it is made and when it is done. Its blocks come out of deltas one after the other,
// for a whole answer as for a stream, so both have the same.
type messageAnswer struct {
	srv     *Server
	p       *plan
	most    int    // tokens that the client asked for
	hide    bool   // thoughts are in their signature alone
	content []byte // the blocks that are done
	done    int    // how many
	uses    int    // how many of these are of tools
	open    *block // nil: the next text begins one
	grown   []byte
	tally   tally
	finish  string
	stop    any // what stopped it
	spans   []engine.SpanInfo
	listen  blockListener // nil: nobody
}

// Kinds of blocks.
const (
	thinkingBlock = "thinking"
	textBlock     = "text"
	useBlock      = "tool_use"
)

// block is a part of an answer.
type block struct {
	kind     string
	id, name string // of a tool_use
}

// blockListener is told of an answer's blocks while they are made.
type blockListener interface {
	opened(b *block) error
	grew(b *block, text string) error
	closed(b *block, signature string) error
}

func (m *messageAnswer) whole(ctx context.Context) ([]byte, error) {
	if err := m.srv.parts(ctx, m.p, m.add); err != nil {
		return nil, err
	}
	return m.append(nil), nil
}

// add takes a delta that has one thing: thoughts, a text, or a part of a call.
func (m *messageAnswer) add(d delta) error {
	m.tally.add(d, true)
	if d.finish != "" {
		m.finish, m.stop, m.spans = d.finish, d.stopReason, d.spans
	}
	for _, piece := range []struct{ kind, text string }{{thinkingBlock, d.reasoning}, {textBlock, d.text}} {
		if piece.text == "" {
			continue
		}
		if err := m.begin(block{kind: piece.kind}); err != nil {
			return err
		}
		if err := m.grow(piece.text); err != nil {
			return err
		}
	}
	for _, c := range d.calls {
		if c.id != "" {
			if err := m.begin(block{useBlock, useID(c.id), c.name}); err != nil {
				return err
			}
		}
		if err := m.grow(c.args); err != nil {
			return err
		}
	}
	if d.finish == "" {
		return nil
	}
	if m.open == nil && m.done == 0 { // clients take the first block's text
		if err := m.begin(block{kind: textBlock}); err != nil {
			return err
		}
	}
	return m.close()
}

// useID is a call's id as Anthropic writes them; those of templates that want their own stay.
func useID(id string) string {
	if rest, ok := strings.CutPrefix(id, "call_"); ok {
		return "toolu_" + rest
	}
	return id
}

// begin makes it the open block. A text goes on with the one that is open.
func (m *messageAnswer) begin(b block) error {
	if m.open != nil && m.open.kind == b.kind && b.kind != useBlock {
		return nil
	}
	if err := m.close(); err != nil {
		return err
	}
	if b.kind == useBlock {
		m.uses++
	}
	m.open = &b
	if m.listen == nil {
		return nil
	}
	return m.listen.opened(m.open)
}

// grow adds to the open block.
func (m *messageAnswer) grow(text string) error {
	m.grown = append(m.grown, text...)
	if m.listen == nil || text == "" || m.hides() {
		return nil
	}
	return m.listen.grew(m.open, text)
}

// hides says that the open block's text is not shown.
func (m *messageAnswer) hides() bool { return m.hide && m.open.kind == thinkingBlock }

// close ends the open block, if there is one.
func (m *messageAnswer) close() error {
	if m.open == nil {
		return nil
	}
	b, signature := m.open, ""
	if b.kind == thinkingBlock {
		signature = sign(string(m.grown), m.hide)
	}
	if m.done > 0 {
		m.content = append(m.content, ',')
	}
	text := string(m.grown)
	if m.hides() {
		text = ""
	}
	m.content = b.append(m.content, text, signature)
	m.open, m.grown = nil, m.grown[:0]
	m.done++
	if m.listen == nil {
		return nil
	}
	return m.listen.closed(b, signature)
}

// append writes a block with its text.
func (b *block) append(to []byte, text, signature string) []byte {
	to = appendString(append(to, `{"type":`...), b.kind)
	switch b.kind {
	case thinkingBlock:
		to = appendString(append(to, `,"thinking":`...), text)
		to = appendString(append(to, `,"signature":`...), signature)
	case textBlock:
		to = appendString(append(to, `,"text":`...), text)
	case useBlock:
		to = appendString(append(to, `,"id":`...), b.id)
		to = appendString(append(to, `,"name":`...), b.name)
		to = appendInput(append(to, `,"input":`...), text)
	}
	return append(to, '}')
}

// appendInput appends a call's arguments, which clients know as an object. What is none, because the model wrote it so or was cut
// off, is a string in one, under the name that Anthropic's documentation has for such: a tool with a schema takes no such object.
func appendInput(b []byte, arguments string) []byte {
	if arguments == "" {
		return append(b, `{}`...)
	}
	to := bytes.NewBuffer(b)
	if strings.HasPrefix(strings.TrimLeft(arguments, " \t\r\n"), "{") && json.Compact(to, []byte(arguments)) == nil {
		return to.Bytes()
	}
	return append(appendString(append(b, `{"INVALID_JSON":`...), arguments), '}')
}

// sealed begins the signature of thoughts that are nowhere else.
const sealed = "thoughts."

// sign makes a signature. Nothing is proved by it, as thoughts are the client's to change, but clients want one. It holds those
// that are not shown, so that the model has them when the client sends the block back.
func sign(thoughts string, hidden bool) string {
	if hidden {
		return sealed + base64.RawURLEncoding.EncodeToString([]byte(thoughts))
	}
	sum := sha256.Sum256([]byte(thoughts))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func unsealed(signature string) (thoughts string, ok bool) {
	code, ok := strings.CutPrefix(signature, sealed)
	if !ok {
		return "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(code)
	return string(b), err == nil
}

// append writes the object, as far as it is made.
func (m *messageAnswer) append(b []byte) []byte {
	b = appendString(append(b, `{"id":`...), m.p.answer.id)
	b = appendString(append(b, `,"type":"message","role":"assistant","model":`...), m.p.answer.model)
	b = append(append(append(b, `,"content":[`...), m.content...), ']')
	b = m.appendStop(append(b, ','))
	b = m.appendUsage(append(b, `,"usage":`...))
	return append(appendPlacement(b, m.spans), '}')
}

// appendStop appends why the answer ended, null while it goes on.
func (m *messageAnswer) appendStop(b []byte) []byte {
	b = append(b, `"stop_reason":`...)
	sequence, stopped := m.stop.(string)
	switch {
	case m.finish == "":
		b = append(b, `null`...)
	case stopped:
		b = append(b, `"stop_sequence"`...)
	case m.finish == "length" && m.p.jobs[0].req.MaxTokens < m.most:
		b = append(b, `"model_context_window_exceeded"`...)
	case m.finish == "length":
		b = append(b, `"max_tokens"`...)
	case m.uses > 0:
		b = append(b, `"tool_use"`...)
	default:
		b = append(b, `"end_turn"`...)
	}
	b = append(b, `,"stop_sequence":`...)
	if !stopped {
		return append(b, `null`...)
	}
	return appendString(b, sequence)
}

// appendUsage: with Anthropic the tokens that came from the cache are none of the input's. What is written to the cache costs
// nothing here, and is not counted.
func (m *messageAnswer) appendUsage(b []byte) []byte {
	b = appendInt(append(b, `{"input_tokens":`...), m.p.promptTokens-m.tally.cached)
	b = appendInt(append(b, `,"cache_creation_input_tokens":0,"cache_read_input_tokens":`...), m.tally.cached)
	b = appendInt(append(b, `,"output_tokens":`...), m.tally.completion)
	b = appendInt(append(b, `,"output_tokens_details":{"thinking_tokens":`...), m.tally.reasoning)
	return append(b, `}}`...)
}
