package tokenizer

import (
	"math/rand/v2"
	"testing"
	"unicode/utf8"
)

// What tokens add to a text, one behind the other, is what Decode makes of them: of texts of the corpus, and of random
// tokens as far as those are UTF-8.
func TestTextBytes(t *testing.T) {
	for _, form := range forms(t) {
		tok := load(t, form)
		r := rand.New(rand.NewPCG(1, 2))
		var answers [][]int32
		for _, text := range corpus(t) {
			answers = append(answers, tok.Encode(text, false))
		}
		for range 3000 {
			answer := make([]int32, 1+r.IntN(6))
			for i := range answer {
				answer[i] = r.Int32N(int32(tok.VocabSize()))
			}
			answers = append(answers, answer)
		}
		compared := 0
		for _, answer := range answers {
			var text []byte
			empty := false
			for i, id := range answer {
				b := tok.TextBytes(id, i == 0)
				text, empty = append(text, b...), empty || len(b) == 0
			}
			// A first token without text leaves the next one as it would be at the beginning.
			if empty || !utf8.Valid(text) {
				continue
			}
			compared++
			if want := tok.Decode(answer, false); string(text) != want {
				t.Fatalf("%s: %v are %q one by one, and %q together", form, answer, text, want)
			}
		}
		if compared < 500 {
			t.Errorf("%s: only %d answers were compared", form, compared)
		}
	}
}
