package tokenizer

import (
	"strings"
	"testing"
	"time"
)

// adversaries are texts that a careless tokenizer takes quadratic time for.
var adversaries = map[string]string{
	"letter":     "a",
	"blanks":     " ",
	"newlines":   "\n",
	"mixed":      " \n\t",
	"emoji":      "😀",
	"marks":      "\u0301",
	"two_marks":  "\u0301\u0323",
	"marked":     "e\u0301",
	"digits":     "7",
	"apostrophe": "'",
	"ideograph":  "中",
	"hangul":     "\u1100\u1161\u11a8",
	"invalid":    "\xf0\x9f",
	"special":    "<s>",
	"metaspace":  "▁",
	"prose":      "The quick brown fox jumps over 13 lazy dogs, and isn't it fun? Größe, naïve, 東京。\n",
}

func repeatTo(s string, size int) string { return strings.Repeat(s, size/len(s)) }

// TestEncodeIsLinear encodes a quarter of a megabyte of each, which takes minutes where the time is quadratic.
func TestEncodeIsLinear(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	for _, form := range []string{"gpt2", "qwen2", "added", "llama2", "metaspace", "unigram_plain"} {
		tok := load(t, form)
		for name, s := range adversaries {
			text := repeatTo(s, 1<<18)
			begin := time.Now()
			ids := tok.Encode(text, true)
			tok.Decode(ids, true)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("%s: a quarter of a megabyte of %s takes %v", form, name, took)
			}
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, form := range []string{"gpt2", "llama3", "qwen2", "llama2", "unigram_bytes"} {
		tok := load(b, form)
		for name, s := range adversaries {
			text := repeatTo(s, 1<<20)
			b.Run(form+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					tok.Encode(text, false)
				}
			})
		}
	}
}

func BenchmarkStream(b *testing.B) {
	tok := load(b, "llama3")
	ids := tok.Encode(repeatTo(adversaries["prose"], 1<<16), false)
	for b.Loop() {
		s := tok.NewStream(true)
		for _, id := range ids {
			s.Push(id)
		}
		s.Flush()
	}
	b.ReportMetric(float64(b.N)*float64(len(ids))/b.Elapsed().Seconds(), "tokens/s")
}
