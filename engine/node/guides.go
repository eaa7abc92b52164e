package node

import (
	"context"
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
	var mu sync.Mutex
	var loaded *grammar.Vocabulary // stays nil while loading fails, which may pass
	vocabulary := func() (*grammar.Vocabulary, error) {
		mu.Lock()
		defer mu.Unlock()
		if loaded == nil {
			tok, err := OpenTokenizer(dir)
			if err != nil {
				return nil, fmt.Errorf("cannot load the vocabulary: %w", err)
			}
			loaded = Vocabulary(tok, m.VocabSize, m.EOS)
		}
		return loaded, nil
	}
	return grammar.NewCache(func(ctx context.Context, steps int, kind, source string) (*grammar.Guide, error) {
		v, err := vocabulary()
		if err != nil {
			return nil, err
		}
		g, err := grammar.CompileWithin(ctx, steps, kind, source)
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
