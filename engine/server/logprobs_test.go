package server

import (
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// checkOffsets checks that every entry's text begins at its offset, counted in characters. Tokens that are
// parts of a character have U+FFFD for a text and are passed over.
func checkOffsets(t *testing.T, text string, l *textLogprobs) {
	t.Helper()
	if n := len(l.Tokens); len(l.Offset) != n || len(l.Logprobs) != n || len(l.Top) != n {
		t.Fatalf("lists of %d offsets, %d logprobs, %d tokens, %d tops", len(l.Offset), len(l.Logprobs), n, len(l.Top))
	}
	if !slices.IsSorted(l.Offset) {
		t.Errorf("offsets %v", l.Offset)
	}
	runes := []rune(text)
	for i, tok := range l.Tokens {
		if l.Offset[i] > len(runes) {
			t.Errorf("token %d %q at %d of %d", i, tok, l.Offset[i], len(runes))
			continue
		}
		if rest := string(runes[l.Offset[i]:]); !strings.Contains(tok, "\ufffd") && tok != "<|eot_id|>" && !strings.HasPrefix(rest, tok) {
			t.Errorf("token %d %q at %d, where %q is", i, tok, l.Offset[i], rest)
		}
	}
}

func TestTextLogprobs(t *testing.T) {
	const text = " naïve 😀 end"
	events := withLogprobs(says(t, text), nil)
	a := serve(t, scripted(events...))
	var out completion
	a.ok("/v1/completions", `{"prompt":"Hello","logprobs":2}`, &out)
	c := out.Choices[0]
	if c.Text != text || c.Logprobs == nil || len(c.Logprobs.Tokens) != len(events) {
		t.Fatalf("%+v", c)
	}
	checkOffsets(t, text, c.Logprobs)
	if last := c.Logprobs.Offset[len(events)-1]; last != utf8.RuneCountInString(text) {
		t.Errorf("EOS at %d of %d characters", last, utf8.RuneCountInString(text))
	}
	for i, lp := range c.Logprobs.Logprobs {
		if lp == nil || *lp != -float64(i+1)/8 {
			t.Errorf("logprob %d is %v", i, lp)
		}
		// The chosen token is among its own alternatives.
		if top := c.Logprobs.Top[i][c.Logprobs.Tokens[i]]; top == nil || *top != *lp || len(c.Logprobs.Top[i]) < 1 {
			t.Errorf("alternatives %d: %v", i, c.Logprobs.Top[i])
		}
	}
}

func TestEchoLogprobs(t *testing.T) {
	tok := testTokenizer(t)
	for _, x := range []struct {
		name, text string
		body       obj
	}{
		{"text", "Hello naïve 😀 there", obj{"prompt": "Hello naïve 😀 there"}},
		{"text with special tokens", "<|begin_of_text|>a<|eot_id|>b", obj{"prompt": "<|begin_of_text|>a<|eot_id|>b"}},
		{"ids", "Hello there", obj{"prompt": append([]int32{0}, tok.Encode("Hello there", false)...)}},
		{"one token", "a", obj{"prompt": "a"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			ids, ok := x.body["prompt"].([]int32)
			if !ok {
				ids = tok.Encode(x.text, true)
			}
			b := scripted(withLogprobs(says(t, " yes."), ids)...)
			a := serve(t, b)
			x.body["echo"], x.body["logprobs"] = true, 1
			var out completion
			a.ok("/v1/completions", x.body.String(), &out)
			if got := b.last(t); got.PromptLogprobs != 1 || got.Logprobs != 1 {
				t.Errorf("asked for %d and %d", got.PromptLogprobs, got.Logprobs)
			}
			c, generated := out.Choices[0], len(says(t, " yes."))
			if c.Text != x.text+" yes." {
				t.Errorf("text %q", c.Text)
			}
			if c.Logprobs == nil || len(c.Logprobs.Tokens) != len(ids)+generated {
				t.Fatalf("%+v", c.Logprobs)
			}
			if c.Logprobs.Offset[len(ids)] != utf8.RuneCountInString(x.text) {
				t.Errorf("the answer begins at %d of %q", c.Logprobs.Offset[len(ids)], c.Text)
			}
			for i, lp := range c.Logprobs.Logprobs {
				if (lp == nil) != (i == 0) || (c.Logprobs.Top[i] == nil) != (i == 0) {
					t.Errorf("entry %d: %v %v", i, lp, c.Logprobs.Top[i])
				}
			}
			if !strings.Contains(x.name, "special") && x.name != "ids" {
				checkOffsets(t, c.Text, c.Logprobs)
			}
			// The stream's chunks make the same answer.
			x.body["stream"] = true
			var text string
			var sum textLogprobs
			for _, d := range a.chunks("/v1/completions", x.body) {
				d := d.text(t).Choices[0]
				text += d.Text
				if d.Logprobs != nil {
					sum.Offset = append(sum.Offset, d.Logprobs.Offset...)
					sum.Tokens = append(sum.Tokens, d.Logprobs.Tokens...)
					sum.Logprobs = append(sum.Logprobs, d.Logprobs.Logprobs...)
				}
			}
			if text != c.Text || !slices.Equal(sum.Offset, c.Logprobs.Offset) || !slices.Equal(sum.Tokens, c.Logprobs.Tokens) || len(sum.Logprobs) != len(c.Logprobs.Logprobs) || sum.Logprobs[0] != nil {
				t.Errorf("stream: %q %+v\nwhole:  %q %+v", text, sum, c.Text, c.Logprobs)
			}
		})
	}
}

func TestChatLogprobs(t *testing.T) {
	const text = "Yes 😀"
	events := withLogprobs(says(t, text), nil)
	inf := float32(math.Inf(-1))
	events[0].Logprob.Top[1].Logprob = inf
	a := serve(t, scripted(events...))
	body := obj{"messages": []obj{{"role": "user", "content": []obj{{"type": "text", "text": "H"}, {"type": "text", "text": "i"}}}}, "logprobs": true, "top_logprobs": 2}
	var out chatAnswer
	a.ok("/v1/chat/completions", body.String(), &out)
	c := out.Choices[0]
	if out.Object != "chat.completion" || !strings.HasPrefix(out.ID, "chatcmpl-") || c.Message == nil || c.Message.Role != "assistant" || str(c.Message.Content) != text || c.Delta != nil || str(c.Finish) != "stop" {
		t.Fatalf("%+v", out)
	}
	check := func(entries []tokenEntry) {
		t.Helper()
		if len(entries) != len(events) {
			t.Fatalf("%d entries of %d tokens", len(entries), len(events))
		}
		var raw []byte
		for i, e := range entries {
			for _, b := range e.Bytes {
				raw = append(raw, byte(b))
			}
			if e.Logprob != -float64(i+1)/8 || len(e.Top) != 2 || e.Top[0].Token != e.Token || !slices.Equal(e.Top[0].Bytes, e.Bytes) || len(e.Bytes) == 0 {
				t.Errorf("entry %d: %+v", i, e)
			}
		}
		if string(raw) != text+"<|eot_id|>" {
			t.Errorf("bytes %q", raw)
		}
		if entries[0].Top[1].Logprob != -9999 {
			t.Errorf("no infinity in JSON: %v", entries[0].Top[1].Logprob)
		}
	}
	check(c.Logprobs.Content)
	body["stream"] = true
	var all []tokenEntry
	for _, d := range a.chunks("/v1/chat/completions", body) {
		if l := d.chat(t).Choices[0].Logprobs; l != nil {
			all = append(all, l.Content...)
		}
	}
	check(all)
	delete(body, "logprobs")
	delete(body, "top_logprobs")
	for _, d := range a.chunks("/v1/chat/completions", body) {
		if l := d.chat(t).Choices[0].Logprobs; l != nil {
			t.Errorf("log probabilities that nobody asked for: %+v", l)
		}
	}
}
