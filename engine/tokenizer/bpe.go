package tokenizer

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// bpe merges the pair of lowest rank first, leftmost among equals, with a heap: O(n log n) in the length of a word.
type bpe struct {
	vocab        map[string]int32
	merges       map[uint64]merge // left<<32 | right
	unk          int32            // -1: characters without a piece are dropped
	fuseUnk      bool
	ignoreMerges bool // a word that is itself a piece is taken whole
	byteIDs      *[256]int32
	prefix       string // continuing_subword_prefix
	suffix       string // end_of_word_suffix
}

type merge struct{ rank, id int32 }

type symbol struct {
	id         int32
	prev, next int32 // positions; -1: none
	dead       bool
}

type candidate struct{ rank, pos, id int32 }

// byteTokens returns the ids of "<0x00>" ... "<0xFF>", -1 where the vocabulary lacks one.
func byteTokens(vocab map[string]int32) *[256]int32 {
	var ids [256]int32
	for b := range ids {
		ids[b] = -1
		if id, ok := vocab[fmt.Sprintf("<0x%02X>", b)]; ok {
			ids[b] = id
		}
	}
	return &ids
}

// fallback appends the byte tokens of s, or reports that one is missing.
func fallback(ids *[256]int32, s string, out []int32) ([]int32, bool) {
	if ids == nil {
		return out, false
	}
	for i := range len(s) {
		if ids[s[i]] < 0 {
			return out, false
		}
	}
	for i := range len(s) {
		out = append(out, ids[s[i]])
	}
	return out, true
}

func (m *bpe) tokenize(word string, out []int32) []int32 {
	if m.ignoreMerges {
		if id, ok := m.vocab[word]; ok {
			return append(out, id)
		}
	}
	return m.mergeAll(m.symbols(word), out)
}

// symbols cuts a word into the ids of its characters. As in the reference, an unknown piece still being fused goes
// behind byte tokens that follow it.
func (m *bpe) symbols(word string) []int32 {
	ids := make([]int32, 0, len(word))
	unk := false
	for i := 0; i < len(word); {
		_, n := utf8.DecodeRuneInString(word[i:])
		s := word[i : i+n]
		if i > 0 && m.prefix != "" {
			s = m.prefix + s
		}
		i += n
		if i == len(word) && m.suffix != "" {
			s += m.suffix
		}
		if id, ok := m.vocab[s]; ok {
			if unk {
				ids, unk = append(ids, m.unk), false
			}
			ids = append(ids, id)
			continue
		}
		var ok bool
		if ids, ok = fallback(m.byteIDs, s, ids); ok || m.unk < 0 {
			continue
		}
		if unk && !m.fuseUnk {
			ids = append(ids, m.unk)
		}
		unk = true
	}
	if unk {
		ids = append(ids, m.unk)
	}
	return ids
}

func (m *bpe) mergeAll(ids, out []int32) []int32 {
	if len(ids) < 2 {
		return append(out, ids...)
	}
	symbols := make([]symbol, len(ids))
	var heap mergeHeap
	for i, id := range ids {
		symbols[i] = symbol{id: id, prev: int32(i - 1), next: int32(i + 1)}
		if i > 0 {
			m.propose(&heap, int32(i-1), ids[i-1], id)
		}
	}
	symbols[len(ids)-1].next = -1
	for len(heap) > 0 {
		top := heap.pop()
		left := &symbols[top.pos]
		if left.dead || left.next < 0 {
			continue
		}
		right := &symbols[left.next]
		if now, ok := m.merges[pairKey(left.id, right.id)]; !ok || now.id != top.id {
			continue // one of the two has merged with another meanwhile
		}
		right.dead = true
		left.id, left.next = top.id, right.next
		if left.next >= 0 {
			symbols[left.next].prev = top.pos
			m.propose(&heap, top.pos, left.id, symbols[left.next].id)
		}
		if left.prev >= 0 {
			m.propose(&heap, left.prev, symbols[left.prev].id, left.id)
		}
	}
	for i := int32(0); i >= 0; i = symbols[i].next {
		out = append(out, symbols[i].id)
	}
	return out
}

func pairKey(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

func (m *bpe) propose(heap *mergeHeap, pos, left, right int32) {
	if merge, ok := m.merges[pairKey(left, right)]; ok {
		heap.push(candidate{rank: merge.rank, pos: pos, id: merge.id})
	}
}

// mergeHeap is a binary min-heap by rank, then position.
type mergeHeap []candidate

func (c candidate) before(o candidate) bool {
	return c.rank < o.rank || c.rank == o.rank && c.pos < o.pos
}

func (h *mergeHeap) push(c candidate) {
	s := append(*h, c)
	i := len(s) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !c.before(s[parent]) {
			break
		}
		s[i] = s[parent]
		i = parent
	}
	s[i] = c
	*h = s
}

func (h *mergeHeap) pop() candidate {
	s := *h
	top, last := s[0], s[len(s)-1]
	s = s[:len(s)-1]
	*h = s
	i := 0
	for {
		child := 2*i + 1
		if child >= len(s) {
			break
		}
		if child+1 < len(s) && s[child+1].before(s[child]) {
			child++
		}
		if !s[child].before(last) {
			break
		}
		s[i] = s[child]
		i = child
	}
	if len(s) > 0 {
		s[i] = last
	}
	return top
}

// newBPE builds the merge table; merges are pairs in order of rank.
func newBPE(m *bpe, pairs [][2]string) (*bpe, error) {
	m.merges = make(map[uint64]merge, len(pairs))
	for rank, pair := range pairs {
		left, ok := m.vocab[pair[0]]
		if !ok {
			return nil, fmt.Errorf("merge %d: %q is not in the vocabulary", rank, pair[0])
		}
		right, ok := m.vocab[pair[1]]
		if !ok {
			return nil, fmt.Errorf("merge %d: %q is not in the vocabulary", rank, pair[1])
		}
		tail := pair[1]
		if m.prefix != "" {
			if len(tail) < len(m.prefix) {
				return nil, fmt.Errorf("merge %d: %q is shorter than continuing_subword_prefix", rank, tail)
			}
			tail = tail[len(m.prefix):]
		}
		id, ok := m.vocab[pair[0]+tail]
		if !ok {
			return nil, fmt.Errorf("merge %d: %q is not in the vocabulary", rank, pair[0]+tail)
		}
		m.merges[pairKey(left, right)] = merge{rank: int32(rank), id: id}
	}
	return m, nil
}

// splitMerge reads the older form of a merge, "left right".
func splitMerge(s string) ([2]string, bool) {
	left, right, ok := strings.Cut(s, " ")
	return [2]string{left, right}, ok && !strings.Contains(right, " ")
}
