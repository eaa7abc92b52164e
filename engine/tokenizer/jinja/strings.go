package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

// isSpace is Python's str.isspace, which is wider than Unicode's White_Space by four control characters.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// isLineEnd is what str.splitlines splits at.
func isLineEnd(r rune) bool {
	switch r {
	case '\n', '\r', '\v', '\f', 0x1c, 0x1d, 0x1e, 0x85, 0x2028, 0x2029:
		return true
	}
	return false
}

func isLower(r rune) bool { return unicode.IsLower(r) || unicode.Is(unicode.Other_Lowercase, r) }
func isUpper(r rune) bool { return unicode.IsUpper(r) || unicode.Is(unicode.Other_Uppercase, r) }
func isCased(r rune) bool { return isLower(r) || isUpper(r) || unicode.IsTitle(r) }

// caseIgnorable is Unicode's Case_Ignorable: what does not end a word for the final sigma.
func caseIgnorable(r rune) bool {
	return unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf, unicode.Lm, unicode.Sk) ||
		strings.ContainsRune("'.:··՟״‘’․‧︓﹒﹕＇．：", r)
}

// lowerAt is the lower case of one character of a text.
func lowerAt(runes []rune, at int) string {
	switch r := runes[at]; r {
	case 'İ':
		return "i̇"
	case 'Σ':
		if finalSigma(runes, at) {
			return "ς"
		}
		return "σ"
	default:
		return string(unicode.ToLower(r))
	}
}

// finalSigma tells whether the sigma at a position ends a word.
func finalSigma(runes []rune, at int) bool {
	before := at - 1
	for before >= 0 && caseIgnorable(runes[before]) {
		before--
	}
	after := at + 1
	for after < len(runes) && caseIgnorable(runes[after]) {
		after++
	}
	return before >= 0 && isCased(runes[before]) && (after == len(runes) || !isCased(runes[after]))
}

func lower(s string) string {
	if !strings.ContainsAny(s, "Σİ") {
		return strings.ToLower(s)
	}
	return recase(s, lowerAt)
}

// upper and titleOf are Unicode's full mappings, which may lengthen a text.

func upper(s string) string { return cases.Upper(language.Und).String(s) }

func titleOf(r rune) string { return cases.Title(language.Und, cases.NoLower).String(string(r)) }

func recase(s string, mapped func(runes []rune, at int) string) string {
	var b strings.Builder
	b.Grow(len(s))
	runes := []rune(s)
	for i := range runes {
		b.WriteString(mapped(runes, i))
	}
	return b.String()
}

func capitalize(s string) string {
	return recase(s, func(runes []rune, at int) string {
		if at == 0 {
			return titleOf(runes[0])
		}
		return lowerAt(runes, at)
	})
}

// title is str.title: each character behind one without case gets title case.
func title(s string) string {
	return recase(s, func(runes []rune, at int) string {
		if at > 0 && isCased(runes[at-1]) {
			return lowerAt(runes, at)
		}
		return titleOf(runes[at])
	})
}

func casefold(s string) string { return cases.Fold().String(s) }

// allOf is true for a text that is not empty and whose characters all fulfil is.
func allOf(s string, is func(rune) bool) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return !is(r) }) < 0
}

// oneCase is str.islower or str.isupper.
func oneCase(s string, is func(rune) bool) bool {
	found := false
	for _, r := range s {
		if is(r) {
			found = true
		} else if isCased(r) {
			return false
		}
	}
	return found
}

// digits beyond Unicode's Nd that Python's str.isdigit knows.
var otherDigits = &unicode.RangeTable{R16: []unicode.Range16{
	{0xb2, 0xb3, 1}, {0xb9, 0xb9, 1}, {0x1369, 0x1371, 1}, {0x19da, 0x19da, 1}, {0x2070, 0x2070, 1}, {0x2074, 0x2079, 1},
	{0x2080, 0x2089, 1}, {0x2460, 0x2468, 1}, {0x2474, 0x247c, 1}, {0x2488, 0x2490, 1}, {0x24ea, 0x24ea, 1},
	{0x24f5, 0x24fd, 1}, {0x24ff, 0x24ff, 1}, {0x2776, 0x277e, 1}, {0x2780, 0x2788, 1}, {0x278a, 0x2792, 1},
}, R32: []unicode.Range32{
	{0x10a40, 0x10a43, 1}, {0x10e60, 0x10e68, 1}, {0x11052, 0x1105a, 1}, {0x1f100, 0x1f10a, 1},
}}

func isDigit(r rune) bool { return unicode.In(r, unicode.Nd, otherDigits) }
func isAlnum(r rune) bool { return unicode.In(r, unicode.L, unicode.N) }

// splitLines is str.splitlines.
func splitLines(s string, keepEnds bool) []string {
	var lines []string
	for s != "" {
		i := strings.IndexFunc(s, isLineEnd)
		if i < 0 {
			return append(lines, s)
		}
		_, width := utf8.DecodeRuneInString(s[i:])
		end := i + width
		if strings.HasPrefix(s[i:], "\r\n") {
			end++
		}
		if keepEnds {
			lines = append(lines, s[:end])
		} else {
			lines = append(lines, s[:i])
		}
		s = s[end:]
	}
	return lines
}

// splitSpace is str.split without a separator; limit < 0: no limit. What follows the last split keeps its end.
func splitSpace(s string, limit int) []string {
	var parts []string
	for s = strings.TrimLeftFunc(s, isSpace); s != ""; s = strings.TrimLeftFunc(s, isSpace) {
		i := strings.IndexFunc(s, isSpace)
		if i < 0 || limit >= 0 && len(parts) >= limit {
			return append(parts, s)
		}
		parts = append(parts, s[:i])
		s = s[i:]
	}
	return parts
}

// splitSpaceRight is str.rsplit without a separator. The parts come last first.
func splitSpaceRight(s string, limit int) []string {
	var parts []string
	for s = strings.TrimRightFunc(s, isSpace); s != ""; s = strings.TrimRightFunc(s, isSpace) {
		i := strings.LastIndexFunc(s, isSpace)
		if i < 0 || limit >= 0 && len(parts) >= limit {
			return append(parts, s)
		}
		_, width := utf8.DecodeRuneInString(s[i:])
		parts = append(parts, s[i+width:])
		s = s[:i]
	}
	return parts
}
