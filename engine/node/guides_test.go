package node

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine/grammar"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// draw makes an answer of allowed tokens until the form's end.
func draw(t *testing.T, tok *tokenizer.Tokenizer, u *grammar.Guide, r *rand.Rand) []int32 {
	t.Helper()
	m := u.Matcher()
	var answer []int32
	for !m.MustEnd() && !(m.MayEnd() && r.IntN(3) == 0) {
		mask, some, err := m.Mask()
		if err != nil || !some {
			t.Fatalf("nothing goes on after %q: %v", tok.Decode(answer, true), err)
		}
		var ids []int32
		for id := range int32(u.Vocabulary().Size()) {
			if mask[id/32]>>(id%32)&1 == 1 {
				ids = append(ids, id)
			}
		}
		id := ids[r.IntN(len(ids))]
		if err := m.Accept(id); err != nil {
			t.Fatal(err)
		}
		answer = append(answer, id)
	}
	return answer
}

// spells tells whether a vocabulary has a token for each character of JSON: two that are made for tests do not.
func spells(tok *tokenizer.Tokenizer, v *grammar.Vocabulary) bool {
	var have [128]bool
	for id := range int32(v.Size()) {
		if b := tok.TextBytes(id, false); v.Has(id) && len(b) == 1 && b[0] < 128 {
			have[b[0]] = true
		}
	}
	for c := ' '; c < 127; c++ {
		if !have[c] {
			return false
		}
	}
	return true
}

// What clients read of an answer has the form, with every kind of tokenizer: also where a blank at the beginning is not
// written, and where characters come in bytes.
func TestFormsOfDecodedAnswers(t *testing.T) {
	dirs, err := filepath.Glob("../tokenizer/testdata/*/tokenizer.json")
	if err != nil || len(dirs) < 8 {
		t.Fatalf("%d tokenizers: %v", len(dirs), err)
	}
	pattern := regexp.MustCompile(`\A(?:(?: a| the|b){1,3}[ é]{2}|[^a\x00-\x1f]{1,4})\z`)
	tried := 0
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			tok, err := tokenizer.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			v := Vocabulary(tok, tok.VocabSize()+5, nil)
			if !spells(tok, v) {
				return
			}
			tried++
			r := rand.New(rand.NewPCG(1, 1))
			guides := map[string]*grammar.Guide{}
			for kind, source := range map[string]string{
				grammar.Regex:      pattern.String(),
				grammar.JSONSchema: `{"type":"object","properties":{"text":{"type":"string","maxLength":8},"n":{"type":"integer","minimum":-5,"maximum":300}},"required":["text","n"]}`,
			} {
				g, err := grammar.Compile(kind, source)
				if err != nil {
					t.Fatal(err)
				}
				guides[kind] = grammar.NewGuide(g, v)
			}
			for range 150 {
				if text := tok.Decode(draw(t, tok, guides[grammar.Regex], r), true); !pattern.MatchString(text) {
					t.Fatalf("%q does not match", text)
				}
				text := tok.Decode(draw(t, tok, guides[grammar.JSONSchema], r), true)
				var doc struct {
					Text *string `json:"text"`
					N    *int    `json:"n"`
				}
				d := json.NewDecoder(bytes.NewReader([]byte(text)))
				d.DisallowUnknownFields()
				if err := d.Decode(&doc); err != nil || doc.Text == nil || doc.N == nil || utf8.RuneCountInString(*doc.Text) > 8 || *doc.N < -5 || *doc.N > 300 {
					t.Fatalf("%q: %v", text, err)
				}
			}
		})
	}
	if tried < 8 {
		t.Errorf("only %d tokenizers were tried", tried)
	}
}

// A vocabulary that could not be loaded is tried again: a folder may come back.
func TestGuidesLoadAgain(t *testing.T) {
	dir := t.TempDir()
	files, err := filepath.Glob("../tokenizer/testdata/*/tokenizer.json")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	guides := newGuides(dir, &model.Config{VocabSize: 300})
	if _, err := guides.Get(t.Context(), grammar.Regex, "[a-z]+"); err == nil {
		t.Fatal("there is a vocabulary")
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(files[0]))); err != nil {
		t.Fatal(err)
	}
	u, err := guides.Get(t.Context(), grammar.Regex, "[a-z]+")
	if err != nil || u.Vocabulary().Size() != 300 {
		t.Fatal(err)
	}
	if again, err := guides.Get(t.Context(), grammar.Regex, "[a-z]*"); err != nil || again.Vocabulary() != u.Vocabulary() {
		t.Errorf("the vocabulary is loaded again: %v", err)
	}
}
