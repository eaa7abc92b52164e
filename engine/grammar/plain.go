package grammar

import "unicode/utf8"

// Most tokens of a vocabulary are plain: characters that a JSON string may have as they are. In most states of a form
// either all of them go on, or those of up to so many characters, or none; then they need not be tried one by one.

// maxRun is the most characters of tokens that are treated so.
const maxRun = 32

// plainRuns are the encodings of the plain characters.
var plainRuns = func() (out [][]byteRange) {
	ranges := plain()
	for i := 0; i < len(ranges); i += 2 {
		utf8Ranges(ranges[i], ranges[i+1], func(run []byteRange) { out = append(out, run) })
	}
	return out
}()

// plainLen is the number of characters of a plain token; 0 for others.
func plainLen(token []byte) (n int) {
	for len(token) > 0 {
		r, size := utf8.DecodeRune(token)
		if r == utf8.RuneError && size == 1 || r < 0x20 || r == '"' || r == '\\' {
			return 0
		}
		token = token[size:]
		n++
	}
	return n
}

// splitPlain makes the masks of plain tokens with up to 1, 2, ... maxRun characters, and the trie of all others.
func splitPlain(tokens [][]byte) (masks [][]uint32, rest trie) {
	others := make([][]byte, len(tokens))
	lengths := make([]int, len(tokens))
	for id, b := range tokens {
		if lengths[id] = plainLen(b); lengths[id] == 0 || lengths[id] > maxRun || len(b) > maxToken {
			others[id], lengths[id] = b, 0
		}
	}
	for k := 1; k <= maxRun; k++ {
		mask := make([]uint32, (len(tokens)+31)/32)
		for id, n := range lengths {
			if n > 0 && n <= k {
				mask[id/32] |= 1 << (id % 32)
			}
		}
		masks = append(masks, mask)
	}
	return masks, newTrie(others)
}

// plainRun tells that exactly the plain texts of up to n characters go on from a place, maxRun standing for all. It
// says false where that depends on which characters they are, or where longer ones go on after the bottom's end.
func (u *Guide) plainRun(c *config) (n int, ok bool) {
	ended := false
	for ; n < maxRun; n++ {
		next := u.afterPlain(c)
		switch next {
		case nil:
			return 0, false
		case dead:
			return n, !ended
		case c:
			return maxRun, true
		}
		c = next
		ended = ended || c.ended
	}
	return maxRun, true
}

// afterPlain is where any plain character leads, if all lead to the same; nil otherwise.
func (u *Guide) afterPlain(c *config) *config {
	if c == dead {
		return dead
	}
	if !c.tried {
		var to *config
		same := true
		for _, run := range plainRuns {
			if to, same = u.along(c, run, to); !same {
				to = nil
				break
			}
		}
		if u.m.work < 0 {
			return nil
		}
		c.tried, c.plain = true, to
	}
	return c.plain
}

// along follows all texts of a run of byte ranges. to is where others led, nil if there were none.
func (u *Guide) along(c *config, run []byteRange, to *config) (*config, bool) {
	if len(run) == 0 {
		return c, to == nil || to == c
	}
	last := u.g.classes[run[0].hi]
	for class := u.g.classes[run[0].lo]; ; class++ {
		next := u.m.step(c, max(run[0].lo, u.g.reps[class]))
		u.m.work--
		var same bool
		if to, same = u.along(next, run[1:], to); !same {
			return nil, false
		}
		if class == last {
			return to, true
		}
	}
}
