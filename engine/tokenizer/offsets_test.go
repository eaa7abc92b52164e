package tokenizer

import (
	"math/rand/v2"
	"slices"
	"testing"
	"unicode/utf8"
)

// wantOffsets says where tokens begin by the texts of what is in front of them, which Decode ends: an incomplete character
// is one there, as it is in the whole text. Not so in a run of byte tokens: there it is by the characters that it begins, or
// by its bytes if the run is not UTF-8.
func wantOffsets(tok *Tokenizer, ids []int32, skip bool) (want []int) {
	fallback := slices.ContainsFunc(tok.dec, func(s decoderSpec) bool { return s.kind == decodeByteFallback })
	var run []byte
	from, inside := 0, []int{} // where the run begins, and how much of it is in front of each token
	end := func() {
		for _, n := range inside {
			begun := n
			if utf8.Valid(run) {
				begun = 0
				for i := range string(run) {
					if i < n {
						begun++
					}
				}
			}
			want = append(want, from+begun)
		}
		run, inside = nil, nil
	}
	for i, id := range ids {
		b, isByte := byteToken(tok.TokenString(id))
		silent := !tok.known(id) || skip && tok.IsSpecial(id)
		if isByte = isByte && fallback && !silent; !isByte && !silent {
			end()
		}
		if len(run) == 0 {
			from = utf8.RuneCountInString(tok.Decode(ids[:i], skip))
		}
		if inside = append(inside, len(run)); isByte {
			run = append(run, b)
		}
		if len(run) == 0 {
			end()
		}
	}
	end()
	return want
}

func TestOffsets(t *testing.T) {
	for _, form := range forms(t) {
		t.Run(form, func(t *testing.T) {
			tok := load(t, form)
			draw := rand.New(rand.NewPCG(1, 2))
			var odd []int32 // tokens that are no whole characters, or special
			for id := range int32(tok.VocabSize()) {
				if b := tok.TokenBytes(id); !utf8.Valid(b) || tok.IsSpecial(id) {
					odd = append(odd, id)
				}
			}
			emoji := tok.Encode("a 😀中é\n", false)
			for range 2000 {
				var ids []int32
				for range draw.IntN(12) {
					switch {
					case draw.IntN(3) > 0 && len(odd) > 0:
						ids = append(ids, odd[draw.IntN(len(odd))])
					case draw.IntN(2) == 0:
						ids = append(ids, emoji[:draw.IntN(len(emoji)+1)]...)
					default:
						ids = append(ids, int32(draw.IntN(tok.VocabSize()+1)))
					}
				}
				skip := draw.IntN(2) == 0
				o := tok.NewOffsets()
				var got []int
				for i, id := range ids {
					if got = o.Push(got, id, skip); len(got) > i+1 {
						t.Fatalf("%d places of %d tokens", len(got), i+1)
					}
				}
				got = o.Flush(got)
				if want := wantOffsets(tok, ids, skip); !slices.Equal(got, want) {
					t.Errorf("%v (skip %v), %q: at %v, want %v", ids, skip, tok.Decode(ids, skip), got, want)
				}
				if want := utf8.RuneCountInString(tok.Decode(ids, skip)); o.Chars() != want {
					t.Errorf("%v: %d characters, want %d", ids, o.Chars(), want)
				}
			}
		})
	}
}
