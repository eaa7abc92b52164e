package tokenizer

import "unicode/utf8"

// The pre-tokenizer patterns that are recognised, by their exact text. Each has a scanner written by hand: Go's regexp
// has no look-ahead, and a scanner is linear whatever the text.
const (
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternLlama3 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|` +
		`\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen2 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|` +
		`\s*[\r\n]+|\s+(?!\S)|\s+`
	patternSpaces = `\s+`
	patternBlanks = ` {2,}`
	patternDigit  = `\d`
	patternDigits = `\p{N}{1,3}`
)

// scanner returns the end of the match that starts exactly at i, or i if none starts there. 0 <= i < len(s).
type scanner func(s string, i int) int

// scannerFor returns the scanner of a pattern, nil if it is not known.
func scannerFor(pattern string) scanner {
	switch pattern {
	case patternGPT2:
		return scanGPT2
	case patternLlama3:
		return func(s string, i int) int { return scanTiktoken(s, i, 3) }
	case patternQwen2:
		return func(s string, i int) int { return scanTiktoken(s, i, 1) }
	case patternSpaces:
		return func(s string, i int) int { return runOf(s, i, isSpace) }
	case patternBlanks:
		return func(s string, i int) int {
			end := runOf(s, i, func(r rune) bool { return r == ' ' })
			if end-i < 2 {
				return i
			}
			return end
		}
	case patternDigit:
		return func(s string, i int) int { return upTo(s, i, 1, isDigit) }
	case patternDigits:
		return func(s string, i int) int { return upTo(s, i, 3, isNumber) }
	}
	return nil
}

// runOf returns the end of the run of runes from i on that fulfil is.
func runOf(s string, i int, is func(rune) bool) int { return upTo(s, i, len(s), is) }

// upTo is runOf with at most limit runes.
func upTo(s string, i, limit int, is func(rune) bool) int {
	for n := 0; n < limit && i < len(s); n++ {
		r, width := utf8.DecodeRuneInString(s[i:])
		if !is(r) {
			break
		}
		i += width
	}
	return i
}

// contraction matches 's 't 're 've 'm 'll 'd at i. With fold set the case does not matter, and ſ (U+017F), whose
// simple case folding is s, counts as s.
func contraction(s string, i int, fold bool) int {
	if s[i] != '\'' || i+1 == len(s) {
		return i
	}
	if fold && len(s) >= i+3 && s[i+1] == 0xC5 && s[i+2] == 0xBF {
		return i + 3
	}
	lower := func(j int) byte {
		if j >= len(s) {
			return 0
		}
		if fold && s[j] >= 'A' && s[j] <= 'Z' {
			return s[j] | 0x20
		}
		return s[j]
	}
	switch lower(i + 1) {
	case 's', 't', 'm', 'd':
		return i + 2
	case 'r', 'v':
		if lower(i+2) == 'e' {
			return i + 3
		}
	case 'l':
		if lower(i+2) == 'l' {
			return i + 3
		}
	}
	return i
}

// spaces matches \s+(?!\S)|\s+ at i, which holds a blank: the run, less its last rune if text follows and something
// remains.
func spaces(s string, i, end int) int {
	if end == len(s) {
		return end
	}
	_, width := utf8.DecodeLastRuneInString(s[i:end])
	if end-width > i {
		return end - width
	}
	return end
}

func scanGPT2(s string, i int) int {
	if end := contraction(s, i, false); end > i {
		return end
	}
	start := i
	if s[i] == ' ' {
		start++
	}
	for _, is := range [...]func(rune) bool{isLetter, isNumber, isOther} {
		if end := runOf(s, start, is); end > start {
			return end
		}
	}
	return spaces(s, i, runOf(s, i, isSpace))
}

// scanTiktoken matches the Llama-3 pattern, with at most digits numbers in a piece; Qwen's is the same with 1.
func scanTiktoken(s string, i, digits int) int {
	if end := contraction(s, i, true); end > i {
		return end
	}
	r, width := utf8.DecodeRuneInString(s[i:])
	start := i
	if !isNewline(r) && !isLetter(r) && !isNumber(r) {
		start += width
	}
	if end := runOf(s, start, isLetter); end > start {
		return end
	}
	if end := upTo(s, i, digits, isNumber); end > i {
		return end
	}
	start = i
	if r == ' ' {
		start++
	}
	if end := runOf(s, start, isOther); end > start {
		return runOf(s, end, isNewline)
	}
	end := runOf(s, i, isSpace)
	for last := end; last > i; last-- {
		if isNewline(rune(s[last-1])) {
			return last
		}
	}
	return spaces(s, i, end)
}
