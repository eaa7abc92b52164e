package tokenizer

import "unicode/utf8"

// piece is a part of the text on its way to the model: an added token already recognised (id >= 0) or text still to
// be cut. origin says that it starts at the first byte of the original text.
type piece struct {
	text   string
	id     int32
	origin bool
}

// addedToken is an entry of tokenizer.json's added_tokens.
type addedToken struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// addedVocabulary finds added tokens: those not subject to normalization in the raw text, the others in the normalized
// text.
type addedVocabulary struct {
	plain, normalized matcher
}

// matcher finds the leftmost, then longest pattern.
type matcher struct {
	trie   trie
	starts [256]bool // bytes a pattern begins with
	tokens []addedToken
}

func (m *matcher) add(pattern string, token addedToken) {
	if pattern == "" {
		return
	}
	m.starts[pattern[0]] = true
	m.trie.add(pattern, int32(len(m.tokens)))
	m.tokens = append(m.tokens, token)
}

// find returns the first match at or after from.
func (m *matcher) find(s string, from int) (start, end int, token *addedToken) {
	for i := from; i < len(s); i++ {
		if !m.starts[s[i]] {
			continue
		}
		if n, value := m.trie.longest(s[i:]); n > 0 {
			return i, i + n, &m.tokens[value]
		}
	}
	return 0, 0, nil
}

// cut splits p at the added tokens in it and appends the parts to out. Like the reference, a match that single_word
// rejects is stepped over whole, and the search for the next match does not see the blanks that rstrip took.
func (m *matcher) cut(p piece, out []piece) []piece {
	if len(m.tokens) == 0 {
		if p.text != "" {
			out = append(out, p)
		}
		return out
	}
	done := 0
	for at := 0; ; {
		start, end, token := m.find(p.text, at)
		if token == nil {
			break
		}
		at = end
		if token.SingleWord && (endsWithWord(p.text[:start]) || startsWithWord(p.text[end:])) {
			continue
		}
		if token.LStrip {
			for start > done {
				r, n := utf8.DecodeLastRuneInString(p.text[done:start])
				if !isSpace(r) {
					break
				}
				start -= n
			}
		}
		if token.RStrip {
			for end < len(p.text) {
				r, n := utf8.DecodeRuneInString(p.text[end:])
				if !isSpace(r) {
					break
				}
				end += n
			}
		}
		if done < start {
			out = append(out, piece{text: p.text[done:start], id: -1, origin: p.origin && done == 0})
		}
		out = append(out, piece{id: int32(token.ID)})
		done = end
	}
	if done < len(p.text) {
		out = append(out, piece{text: p.text[done:], id: -1, origin: p.origin && done == 0})
	}
	return out
}

func endsWithWord(s string) bool {
	r, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && isWord(r)
}

func startsWithWord(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return n > 0 && isWord(r)
}

// trie maps byte strings to values, for prefix searches. The zero trie is empty.
type trie struct {
	next   map[uint64]int32 // node<<8 | byte -> node
	values []int32          // by node; -1: no pattern ends here
}

func (t *trie) add(key string, value int32) {
	if t.next == nil {
		t.next, t.values = map[uint64]int32{}, []int32{-1}
	}
	node := int32(0)
	for i := range len(key) {
		edge := uint64(node)<<8 | uint64(key[i])
		child, ok := t.next[edge]
		if !ok {
			child = int32(len(t.values))
			t.next[edge] = child
			t.values = append(t.values, -1)
		}
		node = child
	}
	t.values[node] = value
}

// step follows one byte from a node; the root is 0. ok is false where no pattern goes on.
func (t *trie) step(node int32, c byte) (child, value int32, ok bool) {
	child, ok = t.next[uint64(node)<<8|uint64(c)]
	if !ok {
		return 0, -1, false
	}
	return child, t.values[child], true
}

// longest returns the length and value of the longest pattern s begins with; 0 if none.
func (t *trie) longest(s string) (n int, value int32) {
	node := int32(0)
	for i := range len(s) {
		child, v, ok := t.step(node, s[i])
		if !ok {
			break
		}
		if v >= 0 {
			n, value = i+1, v
		}
		node = child
	}
	return n, value
}
