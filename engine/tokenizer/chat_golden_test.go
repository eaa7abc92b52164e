package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// chatCase is [index of the chat, index of the variables, add_generation_prompt, the text or null, what
// raise_exception said or null]. Two nulls: the reference fails in another way.
type chatCase struct {
	chat, vars int
	prompt     bool
	text, said *string
}

func (c *chatCase) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&c.chat, &c.vars, &c.prompt, &c.text, &c.said})
}

type chatGoldens struct {
	Tokens    map[string]string     `json:"tokens"`
	Chats     [][]Message           `json:"chats"`
	Vars      []map[string]any      `json:"vars"`
	Templates map[string][]chatCase `json:"templates"`
}

// withTemplate is the tokenizer of testdata/gpt2 with another configuration beside it.
func withTemplate(t testing.TB, source string, tokens map[string]string) (*Tokenizer, error) {
	t.Helper()
	data, err := os.ReadFile("testdata/gpt2/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	config := map[string]string{"chat_template": source}
	for key, content := range tokens {
		config[key] = content
	}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return LoadFS(fstest.MapFS{"tokenizer.json": {Data: data}, "tokenizer_config.json": {Data: raw}})
}

// chatSourceOf reads a template of testdata/chat; "bundled" is the bundled model's.
func chatSourceOf(t testing.TB, name string) string {
	t.Helper()
	if name == "bundled" {
		raw, err := os.ReadFile("../model/bundled/tokenizer_config.json")
		if err != nil {
			t.Fatal(err)
		}
		var config struct {
			ChatTemplate string `json:"chat_template"`
		}
		if err := json.Unmarshal(raw, &config); err != nil {
			t.Fatal(err)
		}
		return config.ChatTemplate
	}
	raw, err := os.ReadFile(filepath.Join("testdata/chat", name+".jinja"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestChatGoldens(t *testing.T) {
	var g chatGoldens
	readGz(t, "chat/renderings.json.gz", &g)
	if len(g.Templates) < 10 || len(g.Chats) < 30 {
		t.Fatalf("only %d templates and %d chats", len(g.Templates), len(g.Chats))
	}
	for name, cases := range g.Templates {
		t.Run(name, func(t *testing.T) {
			tok, err := withTemplate(t, chatSourceOf(t, name), g.Tokens)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range cases {
				where := fmt.Sprintf("chat %d, vars %d, prompt %v", c.chat, c.vars, c.prompt)
				got, err := tok.ApplyChat(g.Chats[c.chat], c.prompt, g.Vars[c.vars])
				var raised *TemplateError
				switch {
				case c.text != nil && err != nil:
					t.Errorf("%s: %v, want %q", where, err, *c.text)
				case c.text != nil && got != *c.text:
					t.Errorf("%s:\ngot  %q\nwant %q", where, got, *c.text)
				case c.said != nil && (!errors.As(err, &raised) || raised.Message != *c.said):
					t.Errorf("%s: %q, %v; want the template to raise %q", where, got, err, *c.said)
				case c.text == nil && err == nil:
					t.Errorf("%s: %q, want an error", where, got)
				}
			}
		})
	}
}
