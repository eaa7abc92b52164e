package server

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// appendString appends s as a JSON string. SSE chunks are put together by hand, since a reflecting
// encoder costs more than the rest of a chunk's way.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c == '\n':
				b = append(b, '\\', 'n')
			case c == '\r':
				b = append(b, '\\', 'r')
			case c == '\t':
				b = append(b, '\\', 't')
			case c < 0x20 || c == 0x7f:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b = append(b, "\ufffd"...)
		} else {
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return append(b, '"')
}

func appendFloat(b []byte, f float32) []byte {
	switch {
	case f < -9999 || f != f: // JSON has no infinity; clients take -9999 for it, as vLLM sends
		f = -9999
	case f > math.MaxFloat32:
		f = math.MaxFloat32
	}
	return strconv.AppendFloat(b, float64(f), 'g', -1, 32)
}

func appendInt(b []byte, n int) []byte { return strconv.AppendInt(b, int64(n), 10) }
