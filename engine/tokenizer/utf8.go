package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// validUTF8 replaces each maximal invalid part of s by U+FFFD (Unicode 16, section 3.9, table 3-8), as Rust's
// from_utf8_lossy and Python's errors="replace" do. Go's own conversion would write one U+FFFD per byte.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 8)
	lossy(&b, []byte(s), true)
	return b.String()
}

// lossy writes b to out with U+FFFD for each maximal invalid part and returns how many bytes it consumed. Unless final
// is set, it stops before an incomplete character at the end, which later bytes may complete.
func lossy(out *strings.Builder, b []byte, final bool) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r != utf8.RuneError || size > 1 {
			out.Write(b[i : i+size])
			i += size
			continue
		}
		n, incomplete := invalidPart(b[i:])
		if incomplete && !final {
			return i
		}
		out.WriteRune(utf8.RuneError)
		i += n
	}
	return len(b)
}

// invalidPart returns the length of the maximal invalid part b starts with, at least 1, and whether b ends inside what
// could still become a character.
func invalidPart(b []byte) (n int, incomplete bool) {
	low, high := byte(0x80), byte(0xBF)
	need := 0
	switch c := b[0]; {
	case c >= 0xC2 && c <= 0xDF:
		need = 1
	case c >= 0xE0 && c <= 0xEF:
		need = 2
		if c == 0xE0 {
			low = 0xA0
		} else if c == 0xED {
			high = 0x9F
		}
	case c >= 0xF0 && c <= 0xF4:
		need = 3
		if c == 0xF0 {
			low = 0x90
		} else if c == 0xF4 {
			high = 0x8F
		}
	default:
		return 1, false
	}
	for n = 1; n <= need; n++ {
		if n == len(b) {
			return n, true
		}
		if b[n] < low || b[n] > high {
			return n, false
		}
		low, high = 0x80, 0xBF
	}
	return n, false
}
