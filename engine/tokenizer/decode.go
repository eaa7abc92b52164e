package tokenizer

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A decoder is a chain of stages. Each takes pieces, one at a time, and passes pieces on; a stage that needs to see
// more before it can tell what a piece becomes holds it back until then or until flush. Decode and Stream use the same
// chain, so that a stream's parts always add up to the whole.
type stage interface {
	push(s string)
	flush()
}

type decoderKind int

const (
	decodeByteLevel decoderKind = iota
	decodeByteFallback
	decodeMetaspace
	decodeReplace
	decodeFuse
	decodeStrip
)

// decoderSpec is one stage of a file's decoder. fused says that a stage before it has joined the pieces, so that what
// comes is one piece in parts.
type decoderSpec struct {
	kind      decoderKind
	fused     bool
	pattern   string // Replace: what; Metaspace: the replacement; Strip: the rune
	content   string // Replace: by what
	keepFirst bool   // Metaspace: a blank at the beginning stays
	start     int    // Strip: how many at most
}

// sink collects the decoded text.
type sink struct {
	strings.Builder
}

func (s *sink) push(text string) { s.WriteString(text) }
func (s *sink) flush()           {}

// chain is the first stage, and those that hold text back, nil where there is none.
type chain struct {
	stage
	bytes *byteLevelStage
	run   *fallbackStage
}

func (t *Tokenizer) newChain(out stage) (c chain) {
	if t.noDec {
		return chain{stage: &joinStage{next: out}}
	}
	for i := len(t.dec) - 1; i >= 0; i-- {
		spec := t.dec[i]
		switch spec.kind {
		case decodeByteLevel:
			c.bytes = &byteLevelStage{next: out}
			out = c.bytes
		case decodeByteFallback:
			c.run = &fallbackStage{next: out}
			out = c.run
		case decodeMetaspace:
			out = &metaspaceStage{spec: spec, next: out}
		case decodeReplace:
			out = &replaceStage{spec: spec, next: out}
		case decodeStrip:
			out = &stripStage{spec: spec, next: out}
		case decodeFuse: // joining changes only what later stages see, and their specs know
		}
	}
	c.stage = out
	return c
}

// Decode returns the text of ids. Unknown ids are left out, and with skipSpecial control tokens too. Bytes that do not
// make whole UTF-8 characters become U+FFFD as the reference writes them.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	s := t.NewStream(skipSpecial)
	for _, id := range ids {
		s.feed(id)
	}
	s.chain.flush()
	return s.out.String()
}

// Stream decodes an answer token by token. It is linear in the length of the answer.
type Stream struct {
	t           *Tokenizer
	skipSpecial bool
	kept        []string // special tokens that are not left out
	chain       chain
	out         sink
}

// NewStream starts the decoding of one answer.
func (t *Tokenizer) NewStream(skipSpecial bool) *Stream {
	s := &Stream{t: t, skipSpecial: skipSpecial}
	s.chain = t.newChain(&s.out)
	return s
}

// Keep lets special tokens of these contents through, though others are left out.
func (s *Stream) Keep(contents ...string) { s.kept = contents }

// Push takes the next token and returns the text that is certain by now: always whole UTF-8 characters, and "" while a
// character, or a run of byte-fallback tokens (which the reference judges as a whole), is incomplete.
func (s *Stream) Push(id int32) string {
	s.feed(id)
	return s.take()
}

// Flush ends the answer and returns what was held back. The results of all Push calls and this one, in order, are what
// Decode returns for all the tokens.
func (s *Stream) Flush() string {
	s.chain.flush()
	text := s.take()
	s.chain = s.t.newChain(&s.out)
	return text
}

func (s *Stream) take() string {
	text := s.out.String()
	s.out.Reset()
	return text
}

func (s *Stream) feed(id int32) {
	if !s.t.known(id) {
		return
	}
	piece := s.t.pieces[id]
	if s.skipSpecial && s.t.special[piece] && !slices.Contains(s.kept, piece) {
		return
	}
	s.chain.push(piece)
}

// joinStage stands in where a file has no decoder.
type joinStage struct {
	next    stage
	started bool
}

func (j *joinStage) push(s string) {
	if j.started {
		s = " " + s
	}
	j.started = true
	j.next.push(s)
}

func (j *joinStage) flush() { j.next.flush() }

// pieceBytes spells a byte-level piece in bytes; a piece with a rune that stands for no byte is taken as it is.
func pieceBytes(dst []byte, s string) []byte {
	from := len(dst)
	for _, r := range s {
		b, ok := runeByte(r)
		if !ok {
			return append(dst[:from], s...)
		}
		dst = append(dst, b)
	}
	return dst
}

type byteLevelStage struct {
	next    stage
	pending []byte // an incomplete character
}

func (b *byteLevelStage) push(s string) {
	b.pending = pieceBytes(b.pending, s)
	b.emit(false)
}

func (b *byteLevelStage) emit(final bool) {
	var text strings.Builder
	n := lossy(&text, b.pending, final)
	b.pending = append(b.pending[:0], b.pending[n:]...)
	if text.Len() > 0 {
		b.next.push(text.String())
	}
}

func (b *byteLevelStage) flush() {
	b.emit(true)
	b.next.flush()
}

// byteToken reads "<0x41>".
func byteToken(s string) (byte, bool) {
	if len(s) != 6 || s[:3] != "<0x" || s[5] != '>' {
		return 0, false
	}
	digits := s[3:5]
	if digits[0] == '+' { // the reference's number parser allows a sign
		digits = digits[1:]
	}
	v, err := strconv.ParseUint(digits, 16, 8)
	return byte(v), err == nil
}

// fallbackStage joins byte tokens. A run of them that is not UTF-8 as a whole becomes one U+FFFD per byte.
type fallbackStage struct {
	next  stage
	bytes []byte // the run
}

func (f *fallbackStage) push(s string) {
	if b, ok := byteToken(s); ok {
		f.bytes = append(f.bytes, b)
		return
	}
	f.end()
	f.next.push(s)
}

func (f *fallbackStage) end() {
	if utf8.Valid(f.bytes) {
		if len(f.bytes) > 0 {
			f.next.push(string(f.bytes))
		}
	} else {
		for range f.bytes {
			f.next.push("\uFFFD")
		}
	}
	f.bytes = f.bytes[:0]
}

func (f *fallbackStage) flush() {
	f.end()
	f.next.flush()
}

type metaspaceStage struct {
	spec    decoderSpec
	next    stage
	started bool
}

func (m *metaspaceStage) push(s string) {
	by := " "
	if !m.spec.keepFirst && (!m.started || m.spec.fused) {
		by = ""
	}
	m.started = true
	m.next.push(strings.ReplaceAll(s, m.spec.pattern, by))
}

func (m *metaspaceStage) flush() { m.next.flush() }

type replaceStage struct {
	spec decoderSpec
	next stage
}

func (r *replaceStage) push(s string) {
	r.next.push(strings.ReplaceAll(s, r.spec.pattern, r.spec.content))
}
func (r *replaceStage) flush() { r.next.flush() }

// stripStage cuts up to start runes from the beginning of a piece, as far as they are the pattern.
type stripStage struct {
	spec decoderSpec
	next stage
	cut  int  // of a fused piece: runes cut so far
	past bool // of a fused piece: beyond the beginning
}

func (st *stripStage) push(s string) {
	if !st.spec.fused {
		st.cut, st.past = 0, false
	}
	for !st.past && s != "" {
		if st.cut == st.spec.start || !strings.HasPrefix(s, st.spec.pattern) {
			st.past = true
			break
		}
		s = s[len(st.spec.pattern):]
		st.cut++
	}
	if s != "" || !st.spec.fused {
		st.next.push(s)
	}
}

func (st *stripStage) flush() { st.next.flush() }

// textBytes is what one piece contributes to a text, first or behind others.
func textBytes(specs []decoderSpec, s string, first bool) []byte {
	for _, spec := range specs {
		switch spec.kind {
		case decodeByteLevel:
			s = string(pieceBytes(nil, s))
		case decodeByteFallback:
			if b, ok := byteToken(s); ok {
				s = string([]byte{b})
			}
		case decodeMetaspace:
			by := " "
			if !spec.keepFirst && (first || spec.fused) {
				by = ""
			}
			s = strings.ReplaceAll(s, spec.pattern, by)
		case decodeReplace:
			s = strings.ReplaceAll(s, spec.pattern, spec.content)
		case decodeStrip:
			for n := 0; n < spec.start && (first || !spec.fused) && strings.HasPrefix(s, spec.pattern); n++ {
				s = s[len(spec.pattern):]
			}
		case decodeFuse:
		}
	}
	return []byte(s)
}

// tokenBytes is what one piece contributes in the middle of a text.
func tokenBytes(specs []decoderSpec, s string) []byte {
	for _, spec := range specs {
		switch spec.kind {
		case decodeByteLevel:
			s = string(pieceBytes(nil, s))
		case decodeByteFallback:
			if b, ok := byteToken(s); ok {
				return []byte{b}
			}
		case decodeMetaspace:
			s = strings.ReplaceAll(s, spec.pattern, " ")
		case decodeReplace:
			s = strings.ReplaceAll(s, spec.pattern, spec.content)
		case decodeFuse, decodeStrip:
		}
	}
	return []byte(s)
}
