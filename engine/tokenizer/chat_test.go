package tokenizer

import (
	"errors"
	"strings"
	"sync"
	"testing"
)

func TestApplyChat(t *testing.T) {
	const source = "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('bad role') }}{% endif %}" +
		"{{ m.role ~ ':' ~ m.content ~ m.name|default('-') ~ ';' }}{% endfor %}" +
		"{{ add_generation_prompt }}{{ bos_token }}{{ x }}"
	tok, err := withTemplate(t, source, map[string]string{"bos_token": "<s>"})
	if err != nil {
		t.Fatal(err)
	}
	hello := []Message{{Role: "user", Content: "hi", Name: "Ann"}, {Role: "assistant", Content: "\xff"}}
	tests := []struct {
		name     string
		messages []Message
		vars     map[string]any
		want     string
	}{
		{"plain", hello, nil, "user:hiAnn;assistant:\uFFFD-;True<s>"},
		{"none", nil, nil, "True<s>"},
		{"variable", nil, map[string]any{"x": []any{1.0, "a"}}, "True<s>[1, 'a']"},
		{"special token", nil, map[string]any{"bos_token": "<t>"}, "True<t>"},
		{"what is fixed", hello[:1], map[string]any{"messages": []any{}, "add_generation_prompt": false}, "user:hiAnn;True<s>"},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			if got, err := tok.ApplyChat(c.messages, true, c.vars); err != nil || got != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
	var raised *TemplateError
	_, err = tok.ApplyChat([]Message{{Role: "bad"}}, true, nil)
	if !errors.As(err, &raised) || raised.Message != "bad role" {
		t.Errorf("the error is %v, want what the template raises", err)
	}
	_, err = tok.ApplyChat(nil, true, map[string]any{"x": struct{}{}})
	if err == nil || errors.As(err, &raised) || !strings.Contains(err.Error(), `variable "x"`) {
		t.Errorf("the error is %v, want one about the variable", err)
	}
}

func TestApplyChatWithoutTemplate(t *testing.T) {
	tok := load(t, "gpt2")
	if _, err := tok.ApplyChat(nil, true, nil); tok.HasChatTemplate() || !errors.Is(err, ErrNoChatTemplate) {
		t.Errorf("the error is %v, want %v", err, ErrNoChatTemplate)
	}
}

// Reasoning has a name of its own in templates that know it, and two for those that know the one or the other.
func TestReasoning(t *testing.T) {
	tok, err := withTemplate(t, chatSourceOf(t, "qwen3"), nil)
	if err != nil {
		t.Fatal(err)
	}
	render := func(tok *Tokenizer, answer Message) string {
		text, err := tok.ApplyChat([]Message{{Role: "user", Content: "hello"}, answer}, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	apart := render(tok, Message{Role: "assistant", Content: "world", Reasoning: "because"})
	if within := render(tok, Message{Role: "assistant", Content: "<think>\nbecause\n</think>\n\nworld"}); apart != within || !strings.Contains(apart, "because") {
		t.Errorf("%q, want %q", apart, within)
	}
	const others = "{{ messages[1].reasoning }} {{ messages[1].reasoning_content }} {{ messages[1].tool_call_id }} {{ messages[0].reasoning is defined }} {{ messages[0].tool_call_id is defined }}"
	if tok, err = withTemplate(t, others, nil); err != nil {
		t.Fatal(err)
	}
	if got := render(tok, Message{Role: "assistant", Reasoning: "x", ToolCallID: "y"}); got != "x x y False False" {
		t.Errorf("%q", got)
	}
}

// TestConcurrentUse shares one tokenizer among goroutines; the race detector watches.
func TestConcurrentUse(t *testing.T) {
	tok, err := withTemplate(t, chatSourceOf(t, "qwen3"), nil)
	if err != nil {
		t.Fatal(err)
	}
	messages := []Message{{Role: "user", Content: "hello"}, {Role: "assistant", Content: "<think>\nx\n</think>\nworld"}}
	text, err := tok.ApplyChat(messages, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				got, err := tok.ApplyChat(messages, true, nil)
				if back := tok.Decode(tok.Encode(got, true), false); err != nil || back != text {
					t.Errorf("got %q, %v; want %q", back, err, text)
				}
			}
		})
	}
	wg.Wait()
}
