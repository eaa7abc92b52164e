package tokenizer

import (
	"unicode/utf8"
)

// Offsets decodes a text as a Stream does, and tells where in it each token begins: how many characters there are in
// front of it. A character that is made of several tokens is in front of all but the first; so is what becomes of bytes
// that are no character.
type Offsets struct {
	s     *Stream
	chars int   // of the text that is certain
	held  []int // of tokens inside a run of byte tokens: how many of its bytes are in front
}

// NewOffsets starts with an empty text.
func (t *Tokenizer) NewOffsets() *Offsets { return &Offsets{s: t.NewStream(false)} }

// Chars is how long the text is that is certain by now.
func (o *Offsets) Chars() int { return o.chars }

// Push takes the next token, and appends to dst the places that are certain by now, in the tokens' order: all but those
// inside a run of byte-fallback tokens that is not over, which the reference judges as a whole. With skip a special token
// has no text.
func (o *Offsets) Push(dst []int, id int32, skip bool) []int {
	silent := !o.s.t.known(id) || skip && o.s.t.IsSpecial(id)
	run := o.s.chain.run
	if run != nil && len(run.bytes) > 0 {
		if _, is := byteToken(o.s.t.TokenString(id)); is || silent {
			o.held = append(o.held, len(run.bytes))
			if !silent {
				o.s.feed(id)
			}
			return dst
		}
		dst = o.endRun(dst)
	}
	begun := 0
	if b := o.s.chain.bytes; b != nil && len(b.pending) > 0 {
		begun = 1
	}
	dst = append(dst, o.chars+begun)
	if !silent {
		o.s.feed(id)
		o.count(o.s.take())
	}
	return dst
}

// Flush ends the text, and appends the places that were not certain.
func (o *Offsets) Flush(dst []int) []int {
	if run := o.s.chain.run; run != nil && len(run.bytes) > 0 {
		dst = o.endRun(dst)
	}
	o.count(o.s.Flush())
	return dst
}

func (o *Offsets) count(text string) { o.chars += utf8.RuneCountInString(text) }

// endRun passes a run of byte tokens on, and places the tokens in it.
func (o *Offsets) endRun(dst []int) []int {
	run, from := o.s.chain.run, o.chars
	text, whole := string(run.bytes), utf8.Valid(run.bytes)
	run.end()
	o.count(o.s.take())
	all := len(text)
	if whole {
		all = utf8.RuneCountInString(text)
	}
	cut := all - (o.chars - from) // by a later stage, in front
	at, begun := 0, 0
	for _, n := range o.held {
		for ; at < n; at++ {
			if !whole || utf8.RuneStart(text[at]) {
				begun++
			}
		}
		dst = append(dst, from+max(0, begun-cut))
	}
	o.held = o.held[:0]
	return dst
}
