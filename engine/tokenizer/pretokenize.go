package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// preTokenizer cuts one piece and appends the parts to out, none of them empty.
type preTokenizer interface {
	split(p piece, out []piece) []piece
}

// behavior says what becomes of the matches of a splitting pattern.
type behavior string

const (
	removed      behavior = "Removed"
	isolated     behavior = "Isolated"
	mergedBefore behavior = "MergedWithPrevious"
	mergedAfter  behavior = "MergedWithNext"
	contiguous   behavior = "Contiguous"
)

func (b behavior) valid() bool {
	switch b {
	case removed, isolated, mergedBefore, mergedAfter, contiguous:
		return true
	}
	return false
}

// span is a part of a text, and whether the pattern matched it.
type span struct {
	start, end int
	match      bool
}

// splitter cuts at the matches of a scanner.
type splitter struct {
	scan     scanner
	behavior behavior
	invert   bool
}

func (sp *splitter) split(p piece, out []piece) []piece {
	spans := findSpans(p.text, sp.scan)
	if sp.invert {
		for i := range spans {
			spans[i].match = !spans[i].match
		}
	}
	for _, s := range arrange(spans, sp.behavior) {
		out = append(out, piece{text: p.text[s.start:s.end], id: -1, origin: p.origin && s.start == 0})
	}
	return out
}

// findSpans covers s by matches and the gaps between them.
func findSpans(s string, scan scanner) []span {
	var spans []span
	gap := 0
	for i := 0; i < len(s); {
		end := scan(s, i)
		if end == i {
			_, n := utf8.DecodeRuneInString(s[i:])
			i += n
			continue
		}
		if gap < i {
			spans = append(spans, span{gap, i, false})
		}
		spans = append(spans, span{i, end, true})
		i, gap = end, end
	}
	if gap < len(s) {
		spans = append(spans, span{gap, len(s), false})
	}
	return spans
}

// arrange applies a behavior. Of several matches in a row only the one beside the text merges with it.
func arrange(spans []span, b behavior) []span {
	out := spans[:0]
	switch b {
	case isolated:
		return spans
	case removed:
		for _, s := range spans {
			if !s.match {
				out = append(out, s)
			}
		}
	case contiguous, mergedBefore:
		previous := false
		for _, s := range spans {
			merge := s.match && !previous
			if b == contiguous {
				merge = s.match == previous
			}
			if merge && len(out) > 0 {
				out[len(out)-1].end = s.end
			} else {
				out = append(out, s)
			}
			previous = s.match
		}
	case mergedAfter:
		for i := 0; i < len(spans); i++ {
			s := spans[i]
			if s.match && i+1 < len(spans) && !spans[i+1].match {
				i++
				s.end = spans[i].end
			}
			out = append(out, s)
		}
	}
	return out
}

// literal scans for a fixed text.
func literal(text string) scanner {
	return func(s string, i int) int {
		if text != "" && strings.HasPrefix(s[i:], text) {
			return i + len(text)
		}
		return i
	}
}

// runeScanner matches single runes.
func runeScanner(is func(rune) bool) scanner {
	return func(s string, i int) int { return upTo(s, i, 1, is) }
}

// scanWords matches \w+|[^\w\s]+.
func scanWords(s string, i int) int {
	if end := runOf(s, i, isWord); end > i {
		return end
	}
	return runOf(s, i, func(r rune) bool { return !isWord(r) && !isSpace(r) })
}

// byteLevel spells every byte as one printable rune, after cutting by the GPT-2 pattern if regex is set.
type byteLevel struct {
	prefixSpace, regex bool
	cut                splitter
}

func (b *byteLevel) split(p piece, out []piece) []piece {
	if b.prefixSpace && !strings.HasPrefix(p.text, " ") {
		p.text = " " + p.text
	}
	from := len(out)
	if b.regex {
		out = b.cut.split(p, out)
	} else {
		out = append(out, p)
	}
	var sb strings.Builder
	for i := from; i < len(out); i++ {
		sb.Reset()
		sb.Grow(2 * len(out[i].text))
		for j := range len(out[i].text) {
			sb.WriteRune(byteRune(out[i].text[j]))
		}
		out[i].text = sb.String()
	}
	return out
}

// byteRune is GPT-2's spelling of a byte: itself where it prints in Latin-1, else the next free rune from U+0100 on.
func byteRune(b byte) rune {
	switch {
	case b >= '!' && b <= '~', b >= 0xA1 && b <= 0xAC, b >= 0xAE:
		return rune(b)
	case b <= ' ':
		return 0x100 + rune(b)
	case b <= 0xA0: // 0x7F ... 0xA0
		return 0x121 + rune(b-0x7F)
	default: // 0xAD
		return 0x143
	}
}

// runeByte is the inverse of byteRune.
func runeByte(r rune) (byte, bool) {
	switch {
	case r >= '!' && r <= '~', r >= 0xA1 && r <= 0xAC, r >= 0xAE && r <= 0xFF:
		return byte(r), true
	case r >= 0x100 && r <= 0x120:
		return byte(r - 0x100), true
	case r >= 0x121 && r <= 0x142:
		return byte(r - 0x121 + 0x7F), true
	case r == 0x143:
		return 0xAD, true
	}
	return 0, false
}

// metaspace writes blanks as a visible rune and starts words with it.
type metaspace struct {
	replacement string // one rune
	scheme      string // "always", "first" or "never": where one is put before a text that has none
	cut         *splitter
}

func (m *metaspace) split(p piece, out []piece) []piece {
	p.text = strings.ReplaceAll(p.text, " ", m.replacement)
	if m.scheme == "always" || m.scheme == "first" && p.origin {
		if !strings.HasPrefix(p.text, m.replacement) {
			p.text = m.replacement + p.text
		}
	}
	if m.cut == nil {
		return append(out, p)
	}
	return m.cut.split(p, out)
}
