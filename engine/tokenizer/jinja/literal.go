package jinja

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	floatPattern = regexp.MustCompile(`^(\d+_)*\d+((\.(\d+_)*\d+)?[eE][+-]?(\d+_)*\d+|\.(\d+_)*\d+)`)
	intPattern   = regexp.MustCompile(`^(0[bB](_?[01])+|0[oO](_?[0-7])+|0[xX](_?[0-9a-fA-F])+|[1-9](_?\d)*|0(_?0)*)`)
)

func (l *lexer) number() error {
	rest := l.src[l.pos:]
	if m := floatPattern.FindString(rest); m != "" && (l.pos == 0 || l.src[l.pos-1] != '.') {
		f, err := strconv.ParseFloat(strings.ReplaceAll(m, "_", ""), 64)
		if err != nil && f == 0 {
			return syntax(l.lineAt(l.pos), "cannot read the number %s", m)
		}
		l.tokens = append(l.tokens, token{kind: tokFloat, text: m, num: f, line: l.lineAt(l.pos)})
		l.advance(l.pos + len(m))
		return nil
	}
	m := intPattern.FindString(rest)
	text := strings.ReplaceAll(m, "_", "")
	if strings.Trim(text, "0") == "" {
		text = "0" // Go reads 00 in another way
	}
	n, err := strconv.ParseInt(text, 0, 64)
	if err != nil {
		return unsupported(l.lineAt(l.pos), "the integer %s", m)
	}
	l.tokens = append(l.tokens, token{kind: tokInt, text: m, num: int(n), line: l.lineAt(l.pos)})
	l.advance(l.pos + len(m))
	return nil
}

var simpleEscapes = map[byte]byte{
	'\\': '\\', '\'': '\'', '"': '"', 'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v',
}

// unescape reads the inside of a string literal as Python's unicode-escape codec does. An escape it does not know stays
// as it is written.
func unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			i++
			continue
		}
		if i+1 == len(s) {
			return "", errEscape
		}
		c := s[i+1]
		i += 2
		if e, ok := simpleEscapes[c]; ok {
			b.WriteByte(e)
			continue
		}
		switch {
		case c == '\n':
		case c >= '0' && c <= '7':
			n := 1
			for n < 3 && i-1+n < len(s) && s[i-1+n] >= '0' && s[i-1+n] <= '7' {
				n++
			}
			v, _ := strconv.ParseUint(s[i-1:i-1+n], 8, 16)
			b.WriteRune(rune(v))
			i += n - 1
		case c == 'x' || c == 'u' || c == 'U':
			r, n, err := hexEscape(s[i:], c)
			if err != nil {
				return "", err
			}
			b.WriteRune(r)
			i += n
		case c == 'N' || c >= utf8.RuneSelf: // Python's codec first spells such a character in ASCII
			return "", fmt.Errorf(`%w: \ before N or a character beyond ASCII in a string`, ErrUnsupported)
		default:
			b.WriteByte('\\')
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

func hexEscape(s string, c byte) (rune, int, error) {
	n := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
	if len(s) < n {
		return 0, 0, errEscape
	}
	v, err := strconv.ParseUint(s[:n], 16, 32)
	if err != nil {
		return 0, 0, errEscape
	}
	if v > utf8.MaxRune || v >= 0xD800 && v < 0xE000 {
		return 0, 0, fmt.Errorf(`%w: the character \%c%s`, ErrUnsupported, c, s[:n])
	}
	return rune(v), n, nil
}
