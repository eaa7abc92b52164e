package grammar

import (
	"bytes"
	"cmp"
	"slices"
)

// Vocabulary is the tokens of a model as byte strings, in the order of a dictionary, so that what tokens have in
// common at their beginning is followed once. It does not change and may be shared.
type Vocabulary struct {
	size  int
	bytes [][]byte // by id
	first [][]byte // by id, of the tokens that stand for other bytes at the beginning of a text; else nil
	mid   trie
	start trie
	plain [][]uint32 // see splitPlain
	rest  trie
}

// NewVocabulary takes the bytes of each token in the middle of a text, by id, nil or empty for tokens that never
// stand within a text of a grammar: control tokens, those that end an answer, ids without a token. first says what a
// token stands for at the beginning of a text; nil: always the same. What it is given is kept.
func NewVocabulary(tokens [][]byte, first func(id int32) []byte) *Vocabulary {
	v := &Vocabulary{size: len(tokens), bytes: tokens}
	v.mid = newTrie(tokens)
	v.start = v.mid
	v.plain, v.rest = splitPlain(tokens)
	if first == nil {
		return v
	}
	v.first = make([][]byte, len(tokens))
	beginnings, differs := make([][]byte, len(tokens)), false
	for id, b := range tokens {
		if beginnings[id] = b; len(b) == 0 {
			continue
		}
		if at := first(int32(id)); !bytes.Equal(at, b) {
			v.first[id], beginnings[id], differs = at, at, true
			if at == nil {
				v.first[id] = []byte{}
			}
		}
	}
	if differs {
		v.start = newTrie(beginnings)
	}
	return v
}

// Size is the number of ids.
func (v *Vocabulary) Size() int { return v.size }

// Words is the number of 32-bit words of a mask: bit id%32 of word id/32 says that a token is allowed.
func (v *Vocabulary) Words() int { return (v.size + 31) / 32 }

// Has tells whether a token may stand within a text of a grammar.
func (v *Vocabulary) Has(id int32) bool { return id >= 0 && int(id) < v.size && len(v.bytes[id]) > 0 }

// Text is what a token stands for in the middle of a text; nil where it never stands in one.
func (v *Vocabulary) Text(id int32) []byte {
	if !v.Has(id) {
		return nil
	}
	return v.bytes[id]
}

// at is what a token stands for at the beginning of a text, or behind it.
func (v *Vocabulary) at(id int32, beginning bool) []byte {
	if beginning && v.first != nil && v.first[id] != nil {
		return v.first[id]
	}
	return v.bytes[id]
}

// trie is byte strings with their ids as a tree, its nodes in the order of a walk that goes down first.
type trie struct {
	nodes []trieNode
	ids   []int32 // by string
	deep  int     // bytes of the longest
}

// trieNode is reached by one byte from its parent, the last node before it that is less deep. The tokens of ids[from:to]
// end here; skip is the next node that is not below, and ids up to its from are of tokens at or below this one.
type trieNode struct {
	b        byte
	depth    uint16 // bytes up to and with this one
	from, to int32
	skip     int32
}

// maxToken is more bytes than any token that is worth generating has; longer ones are left out.
const maxToken = 1024

func newTrie(strings [][]byte) trie {
	var t trie
	for id, b := range strings {
		if len(b) > 0 && len(b) <= maxToken {
			t.ids = append(t.ids, int32(id))
			t.deep = max(t.deep, len(b))
		}
	}
	slices.SortFunc(t.ids, func(a, b int32) int {
		return cmp.Or(bytes.Compare(strings[a], strings[b]), cmp.Compare(a, b))
	})
	var open []int32 // the nodes on the way to the last one
	var last []byte
	for i, id := range t.ids {
		b := strings[id]
		same := 0
		for same < len(b) && same < len(last) && b[same] == last[same] {
			same++
		}
		for _, n := range open[same:] {
			t.nodes[n].skip = int32(len(t.nodes))
		}
		open = open[:same]
		for at := same; at < len(b); at++ {
			open = append(open, int32(len(t.nodes)))
			t.nodes = append(t.nodes, trieNode{b: b[at], depth: uint16(at + 1), from: int32(i), to: int32(i)})
		}
		t.nodes[open[len(open)-1]].to = int32(i + 1)
		last = b
	}
	for _, n := range open {
		t.nodes[n].skip = int32(len(t.nodes))
	}
	return t
}
