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
		p.text = strings.TrimRightFunc(p.text, unicode.IsSpace)
	}
	if n.left {
		trimmed := strings.TrimLeftFunc(p.text, unicode.IsSpace)
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
		return unicode.ToLower(r)
	}, s)
	return strings.ReplaceAll(s, "İ", "i̇")
}

func stripAccents(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.M, r) {
			return -1
		}
		return r
	}, s)
}

// longRun is a number of combining marks in a row from which x/text may insert U+034F to keep the text stream-safe
// (UAX 15, section 13), which no tokenizer does. Its limit is 30 after decomposition, and no mark becomes more than 3.
const longRun = 10

// unicodeForm returns the normalizer of a Unicode normalization form.
func unicodeForm(form norm.Form) normalizeFunc {
	return func(s string) string {
		if !hasLongRun(form, s) {
			return form.String(s)
		}
		return normalizeLong(form, s)
	}
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
