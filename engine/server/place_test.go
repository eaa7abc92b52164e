package server

import (
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// Where a token begins is told in the text as it is sent, whatever bytes the tokens are of, whole and in a stream; and no
// sooner than that text.
func TestOffsetsOfAnyBytes(t *testing.T) {
	llama, err := tokenizer.Load("../tokenizer/testdata/llama2") // <s> is 1, a byte is its value and 3, ▁ is 327, ▁a 330, ▁b 339, b 286
	if err != nil {
		t.Fatal(err)
	}
	own := testTokenizer(t) // 9F is 257, a 68, b 69, 😀 176 257 250 226
	for _, x := range []struct {
		name    string
		tok     *tokenizer.Tokenizer
		prompt  any
		encoded []int32
		answer  []int32
		text    string
		offsets []int
	}{
		{"bytes of no character", own, []int32{257, 257, 68}, []int32{257, 257, 68}, []int32{69, 257, 69}, "\ufffd\ufffdab\ufffdb", []int{0, 1, 2, 3, 4, 5}},
		{"a character that prompt and answer share", own, []int32{68, 176, 257}, []int32{68, 176, 257}, []int32{250, 226, 69}, "a\ufffd\ufffd\ufffdb", []int{0, 1, 2, 2, 3, 4}},
		{"a whole character", own, "a", []int32{68}, []int32{176, 257, 250, 226, 69}, "a😀b", []int{0, 1, 2, 2, 2, 2}},
		{"half of one", own, "a", []int32{68}, []int32{176, 257, 69, 176}, "a\ufffdb\ufffd", []int{0, 1, 2, 2, 3}},
		{"half of one and a special token", own, []int32{68}, []int32{68}, []int32{176, 0, 257, 250, 226, 69}, "a😀b", []int{0, 1, 2, 2, 2, 2, 2}},
		{"a blank that is left out", llama, "b", []int32{1, 339}, []int32{330, 330}, "ba a", []int{0, 0, 1, 2}},
		{"a text that says what is added", llama, "<s>a", []int32{1, 1, 330}, []int32{330}, "<s>aa", []int{0, 0, 3, 4}},
		{"and says it twice", llama, "<s><s>a", []int32{1, 1, 1, 330}, []int32{330}, "<s><s>aa", []int{0, 0, 3, 6, 7}},
		{"byte tokens", llama, []int32{330}, []int32{330}, []int32{243, 162, 155, 131, 286}, "a😀b", []int{0, 1, 2, 2, 2, 2}},
		{"byte tokens of no character", llama, []int32{330, 198}, []int32{330, 198}, []int32{243, 162, 1, 155, 286, 286}, "a\ufffd\ufffd\ufffd\ufffdbb", []int{0, 1, 2, 3, 4, 4, 5, 6}},
		{"byte tokens at the end", llama, []int32{330}, []int32{330}, []int32{198, 172, 198}, "a\ufffd\ufffd\ufffd", []int{0, 1, 2, 3}},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := scripted(withLogprobs(tokens(x.answer...), x.encoded)...)
			a := serveWith(t, x.tok, b)
			body := obj{"prompt": x.prompt, "echo": true, "logprobs": 0}
			var out completion
			a.ok("/v1/completions", body.String(), &out)
			if got := b.last(t).Prompt; !slices.Equal(got, x.encoded) {
				t.Fatalf("the prompt is %v", got)
			}
			if c := out.Choices[0]; c.Text != x.text || !slices.Equal(c.Logprobs.Offset, x.offsets) || len(c.Logprobs.Tokens) != len(x.offsets) {
				t.Errorf("%q at %v, want %q at %v", c.Text, c.Logprobs.Offset, x.text, x.offsets)
			}
			body["stream"] = true
			text := ""
			var offsets []int
			for _, d := range a.chunks("/v1/completions", body) {
				c := d.text(t).Choices[0]
				text += c.Text
				if c.Logprobs == nil {
					continue
				}
				if offsets = append(offsets, c.Logprobs.Offset...); offsets[len(offsets)-1] > utf8.RuneCountInString(text)+1 {
					t.Errorf("%v in chunks that have %q so far", offsets, text)
				}
			}
			if text != x.text || !slices.Equal(offsets, x.offsets) {
				t.Errorf("in a stream %q at %v, want %q at %v", text, offsets, x.text, x.offsets)
			}
		})
	}
	// Without an answer, and without echo.
	a := serve(t, scripted(withLogprobs(tokens(257, 257, 68), nil)...))
	var out completion
	a.ok("/v1/completions", `{"prompt":"a","logprobs":0}`, &out)
	if c := out.Choices[0]; !slices.Equal(c.Logprobs.Offset, []int{0, 1, 2}) {
		t.Errorf("%q at %v", c.Text, c.Logprobs.Offset)
	}
}
