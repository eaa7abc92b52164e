package tokenizer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse reads any bytes as a tokenizer.json. What is taken must work.
func FuzzParse(f *testing.F) {
	for _, file := range brokenFiles {
		f.Add([]byte(file.json))
	}
	f.Add([]byte(tiny(``)))
	for _, form := range []string{"added", "unigram_bytes", "words"} {
		data, err := os.ReadFile(filepath.Join("testdata", form, "tokenizer.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := parse(data)
		if err != nil {
			return
		}
		if tok.VocabSize() > len(data)+maxHoles {
			t.Errorf("%d bytes make a vocabulary of %d", len(data), tok.VocabSize())
		}
		for _, text := range []string{"", "a b\u0301 <s>\n12中😀", "\xff\xf0\x9f"} {
			ids := tok.Encode(text, true)
			for _, id := range ids {
				if !tok.known(id) {
					t.Errorf("Encode(%q) = %v, but there is no %d", text, ids, id)
				}
			}
			for _, skip := range []bool{false, true} {
				if whole, parts := tok.Decode(ids, skip), streamed(t, tok, ids, skip); whole != parts {
					t.Errorf("Decode(%v, %v) = %q, but the stream gives %q", ids, skip, whole, parts)
				}
			}
		}
		for id := int32(-1); id < 300; id++ {
			tok.TokenBytes(id)
			tok.TokenString(id)
			tok.Decode([]int32{id, id}, false)
		}
	})
}

// FuzzEncode encodes any text and decodes any ids with every form. Byte-level BPE without a normalizer must give back
// the text.
func FuzzEncode(f *testing.F) {
	toks := map[string]*Tokenizer{}
	for _, form := range forms(f) {
		toks[form] = load(f, form)
	}
	for i, text := range corpus(f) {
		if i%20 == 0 {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		valid := validUTF8(text)
		if !utf8.ValidString(valid) {
			t.Fatalf("validUTF8(%q) = %q", text, valid)
		}
		raw := make([]int32, 0, len(text))
		for _, b := range []byte(text) {
			raw = append(raw, int32(b)*3)
		}
		for form, tok := range toks {
			ids := tok.Encode(text, false)
			whole := tok.Decode(ids, false)
			if parts := streamed(t, tok, ids, false); whole != parts {
				t.Errorf("%s: Decode(%v) = %q, but the stream gives %q", form, ids, whole, parts)
			}
			if (form == "gpt2" || form == "llama3") && whole != valid {
				t.Errorf("%s: %q comes back as %q", form, text, whole)
			}
			if whole, parts := tok.Decode(raw, true), streamed(t, tok, raw, true); whole != parts {
				t.Errorf("%s: Decode(%v) = %q, but the stream gives %q", form, raw, whole, parts)
			}
		}
	})
}

// FuzzChat renders any messages with every template.
func FuzzChat(f *testing.F) {
	tokens := map[string]string{"bos_token": "<s>", "eos_token": "</s>"}
	paths, err := filepath.Glob("testdata/chat/*.jinja")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no templates: %v", err)
	}
	var toks []*Tokenizer
	for _, p := range paths {
		tok, err := withTemplate(f, chatSourceOf(f, strings.TrimSuffix(filepath.Base(p), ".jinja")), tokens)
		if err != nil {
			f.Fatal(err)
		}
		toks = append(toks, tok)
	}
	f.Add("user", "Hello", "assistant", "<think>\n</think>\nhi", "user", "{{ bos_token }}{% if %}", true)
	f.Add("system", "\xff", "user", "</think>", "assistant", "", false)
	f.Add("tool", "x", "tool", "<tool_response>", "critic", "\u2028\x1c", true)
	f.Fuzz(func(t *testing.T, role1, content1, role2, content2, role3, content3 string, prompt bool) {
		messages := []Message{
			{Role: role1, Content: content1}, {Role: role2, Content: content2, Name: role3}, {Role: role3, Content: content3},
		}
		for n := 1; n <= len(messages); n++ {
			for i, tok := range toks {
				text, err := tok.ApplyChat(messages[:n], prompt, map[string]any{"enable_thinking": prompt, "x": content1})
				var raised *TemplateError
				if err != nil && !errors.As(err, &raised) {
					t.Errorf("%s: %q: %v", paths[i], messages[:n], err)
				}
				if !utf8.ValidString(text) {
					t.Errorf("%s: %q gives %q", paths[i], messages[:n], text)
				}
			}
		}
	})
}
