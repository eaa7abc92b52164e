package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/infinite-llm/infinite/engine/tokenizer/jinja"
)

func TestZZReal(t *testing.T) {
	raw, _ := os.ReadFile("/tmp/real.json")
	var g struct {
		Tokens    map[string]string
		Chats     [][]Message
		Vars      []map[string]any
		Templates []json.RawMessage
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	refused, bad, ok, total := 0, 0, 0, 0
	for _, r := range g.Templates {
		var name, src string
		var cases []chatCase
		if err := json.Unmarshal(r, &[]any{&name, &src, &cases}); err != nil {
			t.Fatal(err)
		}
		tok, err := withTemplate(t, src, g.Tokens)
		if err != nil {
			fmt.Println("REFUSED", name, err, "python compiles:", cases != nil)
			refused++
			continue
		}
		n, unsup := 0, 0
		first := ""
		for _, c := range cases {
			total++
			got, err := tok.ApplyChat(g.Chats[c.chat], c.prompt, g.Vars[c.vars])
			var raised *TemplateError
			fail := c.text != nil && (err != nil || got != *c.text) || c.said != nil && (!errors.As(err, &raised) || raised.Message != *c.said) || c.text == nil && err == nil
			if fail {
				if errors.Is(err, jinja.ErrUnsupported) {
					unsup++
				}
				n++
				if first == "" {
					w := "<nil>"
					if c.text != nil {
						w = *c.text
					}
					first = fmt.Sprintf("chat %d vars %d err %v\n got  %.300q\n want %.300q", c.chat, c.vars, err, got, w)
				}
			}
		}
		if n > 0 {
			bad++
			fmt.Println("DIFF", name, n, "of", len(cases), "unsupported", unsup, first)
		} else {
			ok++
		}
	}
	fmt.Println("ok", ok, "bad", bad, "refused", refused, "cases", total)
}
