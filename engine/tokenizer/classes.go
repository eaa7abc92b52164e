package tokenizer

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// classesFile holds the classes of characters as the reference knows them. Its pattern engine, its normalizers and its
// standard library follow three versions of Unicode, and Go's tables a fourth.
//
//go:embed classes.txt
var classesFile string

var classes = mustParseClasses(classesFile)

type classTables struct {
	letter, number, digit, word, numeric, punct, mark *unicode.RangeTable

	lower []lowerRange // what Go's unicode.ToLower may not know yet
}

type lowerRange struct{ first, last, delta rune }

// mustParseClasses reads the embedded file. Lines with a blank in front hold ranges of the class named above them.
func mustParseClasses(file string) *classTables {
	c := &classTables{}
	tables := map[string]**unicode.RangeTable{
		"letter": &c.letter, "number": &c.number, "digit": &c.digit, "word": &c.word, "numeric": &c.numeric,
		"punct": &c.punct, "mark": &c.mark,
	}
	name := ""
	for line := range strings.Lines(file) {
		if line[0] == '#' {
			continue
		}
		if line[0] != ' ' {
			name = strings.TrimSpace(line)
			if into := tables[name]; into != nil {
				*into = &unicode.RangeTable{}
			}
			continue
		}
		for _, item := range strings.Fields(line) {
			bounds, delta, _ := strings.Cut(item, ":")
			first, last, isRange := strings.Cut(bounds, "-")
			if !isRange {
				last = first
			}
			if name == "lower" {
				c.lower = append(c.lower, lowerRange{mustRune(first, 16), mustRune(last, 16), mustRune(delta, 10)})
			} else {
				addRange(*tables[name], mustRune(first, 16), mustRune(last, 16))
			}
		}
	}
	return c
}

func mustRune(s string, base int) rune {
	v, err := strconv.ParseInt(s, base, 32)
	if err != nil {
		panic(fmt.Sprintf("classes.txt: %v", err))
	}
	return rune(v)
}

func addRange(t *unicode.RangeTable, first, last rune) {
	if last > 0xFFFF {
		t.R32 = append(t.R32, unicode.Range32{Lo: uint32(first), Hi: uint32(last), Stride: 1})
		return
	}
	t.R16 = append(t.R16, unicode.Range16{Lo: uint16(first), Hi: uint16(last), Stride: 1})
	if last <= unicode.MaxLatin1 {
		t.LatinOffset = len(t.R16)
	}
}

func isSpace(r rune) bool {
	if r < 0x80 {
		return r == ' ' || r >= '\t' && r <= '\r'
	}
	return unicode.IsSpace(r)
}

func isLetter(r rune) bool {
	if r < 0x80 {
		return r|0x20 >= 'a' && r|0x20 <= 'z'
	}
	return unicode.Is(classes.letter, r)
}

// isNumber is \p{N} of the pattern engine.
func isNumber(r rune) bool {
	if r < 0x80 {
		return r >= '0' && r <= '9'
	}
	return unicode.Is(classes.number, r)
}

func isDigit(r rune) bool { return unicode.Is(classes.digit, r) }

// isNumeric is what the Digits pre-tokenizer cuts off.
func isNumeric(r rune) bool { return unicode.Is(classes.numeric, r) }

func isOther(r rune) bool { return !isSpace(r) && !isLetter(r) && !isNumber(r) }

func isNewline(r rune) bool { return r == '\r' || r == '\n' }

// isWord is \w of Unicode regular expressions (UTS 18, annex C).
func isWord(r rune) bool {
	if r < 0x80 {
		return r == '_' || r >= '0' && r <= '9' || r|0x20 >= 'a' && r|0x20 <= 'z'
	}
	return unicode.Is(classes.word, r)
}

// isPunctuation is ASCII punctuation and symbols, and category P.
func isPunctuation(r rune) bool { return unicode.Is(classes.punct, r) }

// toLower maps one character to one.
func toLower(r rune) rune {
	if r < 0x1000 {
		return unicode.ToLower(r)
	}
	for _, l := range classes.lower {
		if r >= l.first && r <= l.last {
			return r + l.delta
		}
	}
	return unicode.ToLower(r)
}
