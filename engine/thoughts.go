package engine

import (
	"bytes"
	"unicode"

	"github.com/infinite-llm/infinite/engine/grammar"
)

// Thoughts may stand before the form of an answer, and are free of it. The zero value is none.
type Thoughts struct {
	Close      string // the text that ends them, "": there are none
	CloseToken int32  // a token that does; below 0: none
	Opened     bool   // the prompt has begun them
	Open       int32  // else the token that begins them where it is the answer's first; below 0: none
}

// thinking is an answer before its form.
type thinking struct {
	Thoughts
	begun bool
	tail  []byte // of their text: as much as may be a part of Close
}

// newThinking is nil where there are no thoughts, or none can begin.
func newThinking(t Thoughts) *thinking {
	if t.Close == "" || !t.Opened && t.Open < 0 {
		return nil
	}
	return &thinking{Thoughts: t, begun: t.Opened}
}

// read takes the next token of the thoughts. closed: they end with it, and rest is the form's text in it already.
func (t *thinking) read(token int32, v *grammar.Vocabulary) (rest []byte, closed bool) {
	if t.CloseToken >= 0 && token == t.CloseToken {
		return nil, true
	}
	t.tail = append(t.tail, v.Text(token)...)
	if _, rest, closed = bytes.Cut(t.tail, []byte(t.Close)); closed {
		return bytes.TrimLeftFunc(rest, unicode.IsSpace), true
	}
	t.tail = t.tail[max(0, len(t.tail)-len(t.Close)+1):]
	return nil, false
}

// waits says whether the form has not begun and cannot begin with the next token, which is free then.
func (g *guided) waits() bool { return g.thinking != nil && g.thinking.begun }

// opens says whether the next token may begin thoughts as well as the form.
func (g *guided) opens() bool { return g.thinking != nil && !g.thinking.begun }

// take follows the answer by a token.
func (g *guided) take(token int32) error {
	switch {
	case g.opens() && token == g.thinking.Open:
		g.thinking.begun = true
		return nil
	case g.waits():
		rest, closed := g.thinking.read(token, g.words)
		if !closed {
			return nil
		}
		g.thinking = nil
		return g.m.Follow(rest)
	}
	g.thinking = nil
	return g.m.Accept(token)
}

// free are those drafts that are of thoughts: what follows their end has a form that is not known before.
func (t *thinking) free(drafts []int32, v *grammar.Vocabulary) []int32 {
	ahead := thinking{Thoughts: t.Thoughts, tail: bytes.Clone(t.tail)}
	for k, token := range drafts {
		if _, closed := ahead.read(token, v); closed {
			return drafts[:k]
		}
	}
	return drafts
}
