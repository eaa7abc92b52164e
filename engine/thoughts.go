package engine

import (
	"bytes"
	"slices"
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

// ThoughtLimit is how long thoughts may be that stand at an answer's beginning, without blanks before them, and that a token
// ends. Where other tokens spell its text thoughts have not ended by it, unless a form has begun behind them.
type ThoughtLimit struct {
	Most   int   // tokens of theirs, without those that begin and end them; then comes Close
	Close  int32 // the token that ends them
	Opened bool  // the prompt has begun them
	Open   int32 // else the token that begins them where it is the answer's first; below 0: none
}

// thoughtLimit is that of a request. Its methods do nothing on nil.
type thoughtLimit struct {
	ThoughtLimit
	drafts int  // that a step may have, at most
	read   int  // of the answer, which only grows
	closed bool // the thoughts have ended, as far as that
}

// long is how many tokens of an answer and of what follows it are thoughts that have not ended; below 0: none.
func (t *thoughtLimit) long(answer, drafts []int32) int {
	if t == nil {
		return -1
	}
	for ; t.read < len(answer) && !t.closed; t.read++ {
		t.closed = answer[t.read] == t.Close
	}
	n := len(answer) + len(drafts)
	switch {
	case t.closed || slices.Contains(drafts, t.Close):
		return -1
	case t.Opened:
		return n
	case len(answer) > 0 && answer[0] == t.Open, len(answer) == 0 && len(drafts) > 0 && drafts[0] == t.Open:
		return n - 1
	}
	return -1
}

// over tells that the thoughts have to end behind drafts.
func (t *thoughtLimit) over(answer, drafts []int32) bool {
	n := t.long(answer, drafts)
	return n >= 0 && n >= t.Most
}

// near tells whether the thoughts may come to their limit within a step's drafts.
func (t *thoughtLimit) near(answer []int32) bool {
	n := t.long(answer, nil)
	if t != nil && len(answer) == 0 && t.Open >= 0 {
		n = 0 // they may begin
	}
	return n >= 0 && n+t.drafts >= t.Most
}
