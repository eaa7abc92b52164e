package main

import (
	"bytes"
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/openai"
)

// The bundled model answers a question about a fact stated far back, while three instances hold the text over
// verbs, of which no two could. It is the whole text of `make run`, in short a seventh. That takes minutes of both
// emulated CPUs, hence a second thread for each instance: at any time most of the work is one's.
func TestVerbsSample(t *testing.T) {
	s, err := readSample()
	if err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		s.excerpt(2000)
	}
	tok, err := node.OpenTokenizer("")
	if err != nil {
		t.Fatal(err)
	}
	tokens, size := len(tok.Encode(s.text, true)), config.Default().BlockSize
	pool := (tokens/size - 1) / 2 // of blocks
	c := startVerbs(t, "--dtype", "float32", "--threads", "2", poolFlag(t, pool))
	var out bytes.Buffer
	right, err := s.ask(context.Background(), &openai.Client{URL: c.url}, &out, tokens, size)
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

// excerpt leaves about so many bytes of the text, from the paragraph before the fact on, and the question at its end.
func (s *sample) excerpt(size int) {
	paragraphs := strings.Split(strings.TrimSpace(s.text), "\n\n")
	question := paragraphs[len(paragraphs)-1]
	first := max(0, slices.IndexFunc(paragraphs, func(p string) bool { return strings.Contains(p, s.answer) })-1)
	s.text = ""
	for _, p := range paragraphs[first : len(paragraphs)-1] {
		if len(s.text) < size {
			s.text += p + "\n\n"
		}
	}
	s.text += question
	s.fact = strings.Index(s.text, s.answer)
	s.body["messages"] = []message{{Role: "user", Content: s.text}}
}
