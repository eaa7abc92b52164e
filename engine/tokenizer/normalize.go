package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites the text between added tokens. It clears origin if the text's first byte is removed.
type normalizer interface {
	normalize(p piece) piece
}

type normalizers []normalizer

func (ns normalizers) normalize(p piece) piece {
	for _, n := range ns {
		p = n.normalize(p)
	}
	return p
}

type normalizeFunc func(string) string

func (f normalizeFunc) normalize(p piece) piece {
	p.text = f(p.text)
	return p
}

// prepend puts a text before any that is not empty.
type prepend string

func (n prepend) normalize(p piece) piece {
	if p.text != "" {
		p.text = string(n) + p.text
	}
	return p
}

type replaceAll struct {
	scan    scanner
	content string
}

func (n replaceAll) normalize(p piece) piece {
	var b strings.Builder
	for _, s := range findSpans(p.text, n.scan) {
		if !s.match {
			b.WriteString(p.text[s.start:s.end])
			continue
		}
		b.WriteString(n.content)
		p.origin = p.origin && (n.content != "" || b.Len() > 0)
	}
	p.text = b.String()
	return p
}

type strip struct{ left, right bool }

func (n strip) normalize(p piece) piece {
	if n.right {
		p.text = strings.TrimRightFunc(p.text, isSpace)
	}
	if n.left {
		trimmed := strings.TrimLeftFunc(p.text, isSpace)
		p.origin = p.origin && len(trimmed) == len(p.text)
		p.text = trimmed
	}
	return p
}

// lowercase maps rune by rune with no regard to context. İ is the one rune whose unconditional mapping is longer.
func lowercase(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == 'İ' {
			return r
		}
		return toLower(r)
	}, s)
	return strings.ReplaceAll(s, "İ", "i̇")
}

func stripAccents(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(classes.mark, r) {
			return -1
		}
		return r
	}, s)
}

// longRun is a number of combining marks in a row from which x/text may insert U+034F to keep the text stream-safe
// (UAX 15, section 13), which no tokenizer does. Its limit is 30 after decomposition, and no mark becomes more than 3.
const longRun = 10

// inert are characters younger than the reference's tables of normalization, to which they are unassigned: it neither
// decomposes nor reorders nor joins them. Without them a text falls into parts that do not touch one another.
var inert = &unicode.RangeTable{R16: []unicode.Range16{
	{0x7FD, 0x7FD, 1}, {0x898, 0x89F, 1}, {0x8CA, 0x8D3, 1}, {0x9FE, 0x9FE, 1}, {0xC3C, 0xC3C, 1}, {0xD3B, 0xD3C, 1},
	{0xEBA, 0xEBA, 1}, {0x1715, 0x1715, 1}, {0x1ABF, 0x1ACE, 1}, {0x1DF6, 0x1DFA, 1}, {0x32FF, 0x32FF, 1},
	{0xA7F2, 0xA7F4, 1}, {0xA82C, 0xA82C, 1}, {0xAB69, 0xAB69, 1},
}, R32: []unicode.Range32{
	{0x10781, 0x107BA, 1}, {0x10D24, 0x10D27, 1}, {0x10EAB, 0x10EAC, 1}, {0x10EFD, 0x10EFF, 1}, {0x10F46, 0x10F50, 1},
	{0x10F82, 0x10F85, 1}, {0x11070, 0x11070, 1}, {0x1133B, 0x1133B, 1}, {0x1145E, 0x1145E, 1}, {0x11839, 0x1183A, 1},
	{0x11930, 0x11930, 1}, {0x11938, 0x11938, 1}, {0x1193D, 0x1193E, 1}, {0x11943, 0x11943, 1}, {0x119E0, 0x119E0, 1},
	{0x11A34, 0x11A34, 1}, {0x11A47, 0x11A47, 1}, {0x11A99, 0x11A99, 1}, {0x11D42, 0x11D42, 1}, {0x11D44, 0x11D45, 1},
	{0x11D97, 0x11D97, 1}, {0x11F41, 0x11F42, 1}, {0x16FF0, 0x16FF1, 1}, {0x1E030, 0x1E06D, 1}, {0x1E08F, 0x1E08F, 1},
	{0x1E130, 0x1E136, 1}, {0x1E2AE, 0x1E2AE, 1}, {0x1E2EC, 0x1E2EF, 1}, {0x1E4EC, 0x1E4EF, 1}, {0x1F16C, 0x1F16C, 1},
	{0x1FBF0, 0x1FBF9, 1},
}}

// unicodeForm returns the normalizer of a Unicode normalization form.
func unicodeForm(form norm.Form) normalizeFunc {
	return func(s string) string {
		if form.IsNormalString(s) {
			return s
		}
		var b strings.Builder
		b.Grow(len(s))
		for s != "" {
			i := strings.IndexFunc(s, func(r rune) bool { return unicode.Is(inert, r) })
			if i < 0 {
				i = len(s)
			}
			b.WriteString(normalizePart(form, s[:i]))
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(s[i : i+n])
			s = s[i+n:]
		}
		return b.String()
	}
}

func normalizePart(form norm.Form, s string) string {
	if hasLongRun(form, s) {
		return normalizeLong(form, s)
	}
	return form.String(s)
}

func hasLongRun(form norm.Form, s string) bool {
	run := 0
	for i := 0; i < len(s); {
		if s[i] < utf8.RuneSelf {
			run = 0
			i++
			continue
		}
		props := form.PropertiesString(s[i:])
		if props.Size() == 0 {
			return false
		}
		i += props.Size()
		if props.CCC() == 0 && props.BoundaryBefore() {
			run = 0
			continue
		}
		if run++; run >= longRun {
			return true
		}
	}
	return false
}

// normalizeLong is the algorithm of UAX 15 without the stream-safe limit; only texts with a long run need it.
func normalizeLong(form norm.Form, s string) string {
	decompose := norm.NFD
	if form == norm.NFKC || form == norm.NFKD {
		decompose = norm.NFKD
	}
	var runes []rune
	for _, r := range s {
		runes = append(runes, []rune(decompose.String(string(r)))...)
	}
	class := func(r rune) uint8 { return norm.NFD.PropertiesString(string(r)).CCC() }
	for i := 0; i < len(runes); {
		j := i
		for j < len(runes) && class(runes[j]) != 0 {
			j++
		}
		slices.SortStableFunc(runes[i:j], func(a, b rune) int { return int(class(a)) - int(class(b)) })
		i = j + 1
	}
	if form == norm.NFD || form == norm.NFKD {
		return string(runes)
	}
	return string(compose(runes, class))
}

// compose joins each starter with the marks behind it that are not blocked, in place.
func compose(runes []rune, class func(rune) uint8) []rune {
	out := runes[:0]
	starter, last := -1, uint8(0)
	for _, r := range runes {
		c := class(r)
		if starter >= 0 && (len(out)-1 == starter || last < c) {
			if joined := []rune(norm.NFC.String(string([]rune{out[starter], r}))); len(joined) == 1 {
				out[starter] = joined[0]
				continue
			}
		}
		out = append(out, r)
		last = c
		if c == 0 {
			starter = len(out) - 1
		}
	}
	return out
}
