package tokenizer

import (
	"math"
	"unicode/utf8"
)

// unkPenalty is how far below the rarest piece an unknown character scores (SentencePiece's kUnkPenalty).
const unkPenalty = 10

// unigram finds the segmentation of highest total score (Viterbi over the pieces; Kudo 2018, arXiv 1804.10959).
type unigram struct {
	vocab   map[string]int32
	scores  []float64
	trie    trie
	unk     int32
	unkCost float64
	byteIDs *[256]int32
}

func newUnigram(pieces []scoredPiece, vocab map[string]int32, unk int32, byteIDs *[256]int32) *unigram {
	m := &unigram{vocab: vocab, unk: unk, byteIDs: byteIDs, scores: make([]float64, len(pieces))}
	low := math.Inf(1)
	for i, p := range pieces {
		m.scores[i] = p.score
		low = min(low, p.score)
		if p.piece != "" {
			m.trie.add(p.piece, vocab[p.piece])
		}
	}
	m.unkCost = low - unkPenalty
	return m
}

type unigramNode struct {
	score float64
	start int32 // -1: not reached
	id    int32
}

func (m *unigram) tokenize(word string, out []int32) []int32 {
	best := make([]unigramNode, len(word)+1)
	for i := range best {
		best[i].start = -1
	}
	for i := 0; i < len(word); {
		_, width := utf8.DecodeRuneInString(word[i:])
		single := false
		node := int32(0)
		for j := i; j < len(word); j++ {
			child, id, ok := m.trie.step(node, word[j])
			if !ok {
				break
			}
			node = child
			if id < 0 {
				continue
			}
			relax(&best[j+1], best[i].score+m.scores[id], i, id)
			single = single || j+1-i == width
		}
		if !single {
			relax(&best[i+width], best[i].score+m.unkCost, i, m.unk)
		}
		i += width
	}
	return m.collect(word, best, out)
}

func relax(n *unigramNode, score float64, start int, id int32) {
	if n.start < 0 || score > n.score {
		*n = unigramNode{score: score, start: int32(start), id: id}
	}
}

// collect walks the best path back, joins neighbouring unknown characters, and spells those in bytes where it can.
func (m *unigram) collect(word string, best []unigramNode, out []int32) []int32 {
	type span struct{ start, end int }
	var spans []span
	fusing := false
	for end := len(word); end > 0; {
		start := int(best[end].start)
		unknown := best[end].id == m.unk
		if unknown && fusing {
			spans[len(spans)-1].start = start
		} else {
			spans = append(spans, span{start, end})
		}
		fusing = unknown
		end = start
	}
	for i := len(spans) - 1; i >= 0; i-- {
		s := word[spans[i].start:spans[i].end]
		if id, ok := m.vocab[s]; ok {
			out = append(out, id)
			continue
		}
		var ok bool
		if out, ok = fallback(m.byteIDs, s, out); !ok {
			out = append(out, m.unk)
		}
	}
	return out
}
