package grammar

import "unicode/utf8"

// byteRange is the bytes lo to hi.
type byteRange struct{ lo, hi byte }

// utf8Ranges cuts the characters lo to hi into runs whose encodings are all combinations of one range for each byte.
func utf8Ranges(lo, hi rune, emit func([]byteRange)) {
	const surrogates, behind = 0xD800, 0xE000
	if lo < surrogates && hi >= surrogates {
		utf8Ranges(lo, surrogates-1, emit)
		lo = surrogates
	}
	if lo >= surrogates && lo < behind {
		lo = behind
	}
	if lo > hi {
		return
	}
	// Ends of the lengths of encodings.
	for _, end := range []rune{0x7F, 0x7FF, 0xFFFF} {
		if lo <= end && hi > end {
			utf8Ranges(lo, end, emit)
			utf8Ranges(end+1, hi, emit)
			return
		}
	}
	// A run that crosses a multiple of 64^k is cut there, unless it is whole runs of it.
	for k := 1; k < utf8.RuneLen(hi); k++ {
		mask := rune(1)<<(6*k) - 1
		if lo&^mask == hi&^mask {
			continue
		}
		if lo&mask != 0 {
			utf8Ranges(lo, lo|mask, emit)
			utf8Ranges(lo|mask+1, hi, emit)
			return
		}
		if hi&mask != mask {
			utf8Ranges(lo, hi&^mask-1, emit)
			utf8Ranges(hi&^mask, hi, emit)
			return
		}
	}
	var a, b [utf8.UTFMax]byte
	n := utf8.EncodeRune(a[:], lo)
	utf8.EncodeRune(b[:], hi)
	out := make([]byteRange, n)
	for i := range out {
		out[i] = byteRange{a[i], b[i]}
	}
	emit(out)
}
