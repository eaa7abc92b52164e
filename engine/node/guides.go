package node

import (
	"fmt"
	"slices"
	"sync"

	"github.com/infinite-llm/infinite/engine/grammar"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// newGuides compiles forms of answers for a model folder's vocabulary, which is loaded when the first is asked for: an
// instance deals in token ids, and needs it for nothing else.
func newGuides(dir string, m *model.Config) *grammar.Cache[*grammar.Guide] {
	vocabulary := sync.OnceValues(func() (*grammar.Vocabulary, error) {
		tok, err := OpenTokenizer(dir)
		if err != nil {
			return nil, err
		}
		return Vocabulary(tok, m.VocabSize, m.EOS), nil
	})
	return grammar.NewCache(func(kind, source string) (*grammar.Guide, error) {
		v, err := vocabulary()
		if err != nil {
			return nil, fmt.Errorf("cannot load the vocabulary: %w", err)
		}
		g, err := grammar.Compile(kind, source)
		if err != nil {
			return nil, err
		}
		return grammar.NewGuide(g, v), nil
	})
}

// Vocabulary is the tokens of a text by what they stand for in an answer, for a model of size ids. Control tokens and
// those that end an answer are none.
func Vocabulary(tok *tokenizer.Tokenizer, size int, eos []int32) *grammar.Vocabulary {
	tokens := make([][]byte, size)
	for id := range int32(size) {
		if !tok.IsSpecial(id) && !slices.Contains(eos, id) {
			tokens[id] = tok.TextBytes(id, false)
		}
	}
	return grammar.NewVocabulary(tokens, func(id int32) []byte { return tok.TextBytes(id, true) })
}
