package server

import (
	"strings"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// place is how far a choice's text is: that of a repeated prompt, if any, and then the answer's. They are decoded apart.
type place struct {
	at     *tokenizer.Offsets    // in the one or the other; nil at its beginning
	before int                   // characters in front of the answer's
	prompt int                   // tokens of the prompt that are not passed yet
	own    bool                  // its text is the client's own: special tokens are in it only where it says so
	front  int                   // tokens in front of that which are not passed
	echo   string                // what of that text is not passed
	waits  []engine.TokenLogprob // tokens whose place is not certain yet
}

// startOf is the place in front of a prompt of so many tokens.
func startOf(e echo, tokens int) place {
	return place{prompt: tokens, own: e.own, front: e.front, echo: e.text, before: utf8.RuneCountInString(e.text)}
}

// locate moves over tokens, and returns those whose place in the text is certain by now, and these places: at the end of
// all tokens.
func (a *answer) locate(p *place, tokens []engine.TokenLogprob, end bool) (sure []engine.TokenLogprob, offsets []int) {
	var found []int
	for _, t := range tokens {
		if p.at == nil {
			p.at = a.tok.NewOffsets()
		}
		if p.prompt == 0 {
			found = p.at.Push(found[:0], t.Token, a.skip)
		} else {
			found = p.pass(a.tok, t.Token, found[:0])
		}
		offsets = p.addTo(offsets, found)
		if p.prompt > 0 {
			p.prompt--
		}
	}
	if p.waits = append(p.waits, tokens...); end && p.at != nil {
		offsets = p.addTo(offsets, p.at.Flush(found[:0]))
		p.at = nil
	}
	sure, p.waits = p.waits[:len(offsets)], p.waits[len(offsets):]
	return sure, offsets
}

// pass moves over a token of the prompt.
func (p *place) pass(tok *tokenizer.Tokenizer, id int32, found []int) []int {
	if p.front > 0 {
		p.front--
		id = -1 // a token of no text, whatever it is elsewhere
	}
	seen := p.own && strings.HasPrefix(p.echo, string(tok.TokenBytes(id)))
	from := p.at.Chars()
	found = p.at.Push(found, id, !seen)
	for range p.at.Chars() - from {
		_, n := utf8.DecodeRuneInString(p.echo)
		p.echo = p.echo[n:]
	}
	if p.prompt == 1 {
		found = p.at.Flush(found)
		p.at = nil
	}
	return found
}

// addTo adds the places that were found in the prompt or in the answer.
func (p *place) addTo(offsets, found []int) []int {
	for _, n := range found {
		if p.prompt > 0 {
			n = min(n, p.before) // a normalizer may have made a longer text of the client's
		} else {
			n += p.before
		}
		offsets = append(offsets, n)
	}
	return offsets
}
