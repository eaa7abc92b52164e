package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/node"
)

// cut leaves a part of the sample's text, around the fact that it asks about: an emulated CPU has no time for
// all of it.
func (s *sample) cut(t *testing.T, before, after int) {
	t.Helper()
	paragraphs := strings.Split(strings.TrimSpace(s.text), "\n\n")
	for i, p := range paragraphs {
		if strings.Contains(p, s.answer) {
			kept := append(paragraphs[max(0, i-before):i+after+1:i+after+1], paragraphs[len(paragraphs)-1])
			s.text = strings.Join(kept, "\n\n")
			break
		}
	}
	s.fact = strings.Index(s.text, s.answer)
	s.body["messages"] = []message{{"user", s.text}}
	s.text += "\n"
}

// The bundled model answers a question about a fact stated far back, while three instances hold the text over
// verbs, of which no two could.
func TestVerbsSample(t *testing.T) {
	s, err := readSample()
	if err != nil {
		t.Fatal(err)
	}
	s.cut(t, 2, 8)
	tok, err := node.OpenTokenizer("")
	if err != nil {
		t.Fatal(err)
	}
	tokens, size := len(tok.Encode(s.text, true)), config.Default().BlockSize
	pool := (tokens/size - 1) / 2 // of blocks
	c := startVerbs(t, "--dtype", "float32", poolFlag(t, pool))
	var out bytes.Buffer
	right, err := s.ask(context.Background(), &client{url: c.url}, &out, tokens, size)
	t.Logf("%s", out.String())
	if err != nil || !right {
		t.Fatalf("the answer is right: %v, %v", right, err)
	}
	for id := range c.logOf {
		if !regexp.MustCompile(`(?m)^ +` + id + ` +(creditor|home) `).MatchString(out.String()) {
			t.Errorf("%s held nothing", id)
		}
	}
	if fact := regexp.MustCompile(`(?m)^.*creditor.*<- the fact`); !fact.MatchString(out.String()) {
		t.Error("the fact lay at home")
	}
	c.eventually("all blocks free", idle)
}
