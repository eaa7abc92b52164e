package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

// toolGoldens are conversations with tools; Tools is a list of values of that variable.
type toolGoldens struct {
	Tokens    map[string]string     `json:"tokens"`
	Chats     [][]Message           `json:"chats"`
	Tools     []json.RawMessage     `json:"tools"`
	Templates map[string][]chatCase `json:"templates"` // in place of the variables' index that of the tools
}

func TestToolGoldens(t *testing.T) {
	var g toolGoldens
	readGz(t, "chat/tools.json.gz", &g)
	if len(g.Templates) < 15 || len(g.Chats) < 13 || len(g.Tools) < 4 {
		t.Fatalf("only %d templates, %d chats and %d lists of tools", len(g.Templates), len(g.Chats), len(g.Tools))
	}
	for name, cases := range g.Templates {
		t.Run(name, func(t *testing.T) {
			tok, err := withTemplate(t, chatSourceOf(t, name), g.Tokens)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range cases {
				where := fmt.Sprintf("chat %d, tools %d, prompt %v", c.chat, c.vars, c.prompt)
				vars := map[string]any{"tools": g.Tools[c.vars], "date_string": "26 Jul 2024"}
				got, err := tok.ApplyChat(g.Chats[c.chat], c.prompt, vars)
				var raised *TemplateError
				switch {
				case c.text != nil && (err != nil || got != *c.text):
					t.Errorf("%s:\ngot  %q, %v\nwant %q", where, got, err, *c.text)
				case c.said != nil && (!errors.As(err, &raised) || raised.Message != *c.said):
					t.Errorf("%s: %q, %v; want the template to raise %q", where, got, err, *c.said)
				case c.text == nil && err == nil:
					t.Errorf("%s: %q, want an error", where, got)
				}
			}
		})
	}
}

// A model's template for tool use is taken where there are tools, or calls of them.
func TestToolUseTemplate(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	named := `{"chat_template":[{"name":"default","template":"plain"},{"name":"tool_use","template":"tools {{ tools }}"},{"name":"rag","template":"{% broken"}]}`
	for name, fsys := range map[string]fstest.MapFS{
		"list":  {"tokenizer_config.json": file(named)},
		"files": {"chat_template.jinja": file("plain"), "additional_chat_templates/tool_use.jinja": file("tools {{ tools }}")},
	} {
		fsys["tokenizer.json"] = file(tiny(``))
		tok, err := LoadFS(fsys)
		if err != nil {
			t.Fatal(err)
		}
		call := []Message{{Role: "assistant", ToolCalls: json.RawMessage(`[{"function":{"name":"f","arguments":"{}"}}]`)}}
		for _, x := range []struct {
			messages []Message
			tools    any
			want     string
		}{
			{nil, nil, "plain"}, {nil, json.RawMessage(`[{"b":1,"a":2.0}]`), "tools [{'b': 1, 'a': 2.0}]"}, {call, nil, "tools None"},
		} {
			if got, err := tok.ApplyChat(x.messages, false, map[string]any{"tools": x.tools}); err != nil || got != x.want {
				t.Errorf("%s: %q, %v; want %q", name, got, err, x.want)
			}
		}
		other, err := tok.WithChatTemplate("other")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := other.ApplyChat(call, false, map[string]any{"tools": json.RawMessage(`[]`)}); err != nil || got != "other" {
			t.Errorf("%s: %q, %v; want the template that was given", name, got, err)
		}
		if got, err := tok.ApplyChat(nil, false, nil); err != nil || got != "plain" {
			t.Errorf("%s: %q, %v; the tokenizer itself has changed", name, got, err)
		}
		if _, err := tok.WithChatTemplate("{% if %}"); err == nil || !strings.Contains(err.Error(), "cannot use the chat template") {
			t.Errorf("%v", err)
		}
	}
	broken := fstest.MapFS{"tokenizer.json": file(tiny(``)), "chat_template.jinja": file("plain"), "additional_chat_templates/tool_use.jinja": file("{% if %}")}
	if _, err := LoadFS(broken); err == nil {
		t.Error("a broken template for tool use is taken")
	}
}

func TestBrokenToolCalls(t *testing.T) {
	tok, err := withTemplate(t, "{{ messages }}", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{`[`, `[{"a":1}] x`, `[{"a":1}]]`, strings.Repeat("[", 2000) + strings.Repeat("]", 2000), `{"function":5`} {
		if got, err := tok.ApplyChat([]Message{{Role: "assistant", ToolCalls: json.RawMessage(raw)}}, false, nil); err == nil {
			t.Errorf("%.20q gives %q", raw, got)
		}
	}
	for _, raw := range []string{`5`, `{}`, `[5]`, `[{"function":5}]`, `[{"function":{"arguments":5}}]`} { // the API refuses them
		if _, err := tok.ApplyChat([]Message{{Role: "assistant", ToolCalls: json.RawMessage(raw)}}, false, nil); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// Special tokens that are kept come through, others do not.
func TestKeptTokens(t *testing.T) {
	tok := load(t, "llama3")
	var special []int32
	for id := range int32(tok.VocabSize()) {
		if tok.IsSpecial(id) {
			special = append(special, id)
		}
	}
	if len(special) < 2 {
		t.Fatalf("the tokenizer has %d special tokens", len(special))
	}
	s := tok.NewStream(true)
	s.Keep(tok.TokenString(special[1]))
	if got := s.Push(special[0]) + s.Push(special[1]) + s.Flush(); got != tok.TokenString(special[1]) {
		t.Errorf("%q, want %q alone", got, tok.TokenString(special[1]))
	}
}
