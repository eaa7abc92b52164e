package server

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// opening is Qwen3's template, which opens thoughts in the prompt, as those of models that always think do.
func opening(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := testTokenizer(t).WithChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}assistant: <think>\n")
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// Thoughts are apart from content and calls, whole and in pieces, and counted.
func TestThoughts(t *testing.T) {
	const thought = "Hm.\n\nI need <b> the time</b>, \"now\"."
	const call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"
	for _, c := range []struct {
		name   string
		tok    *tokenizer.Tokenizer
		parser string
		text   string
		want   gotChoice
		counts string // the text of the tokens that usage counts as thoughts
	}{
		{"qwen3", templated(t, "qwen3"), "auto", "<think>\n" + thought + "\n</think>\n\nLet me see.\n" + call,
			gotChoice{Thought: thought, Content: "Let me see.", Calls: []gotCall{{"", "now", "{}"}}, Finish: "tool_calls"}, "<think>\n" + thought + "\n</think>"},
		{"only a call", templated(t, "qwen3"), "", "<think>\n" + thought + "\n</think>\n\n" + call,
			gotChoice{Thought: thought, Calls: []gotCall{{"", "now", "{}"}}, Finish: "tool_calls"}, "<think>\n" + thought + "\n</think>"},
		{"a call among thoughts is none", templated(t, "qwen3"), "auto", "<think>" + call + "</think>Yes",
			gotChoice{Thought: call, Content: "Yes", Finish: "stop"}, "<think>" + call + "</think>"},
		{"no thoughts", templated(t, "qwen3"), "auto", "Yes", gotChoice{Content: "Yes", Finish: "stop"}, ""},
		{"no parser", templated(t, "qwen3"), "none", "<think>a</think>Yes", gotChoice{Content: "<think>a</think>Yes", Finish: "stop"}, ""},
		{"another template", templated(t, "qwen25"), "auto", "<think>a</think>Yes", gotChoice{Content: "<think>a</think>Yes", Finish: "stop"}, ""},
		{"another template and a parser", templated(t, "qwen25"), "deepseek_r1", "Hm</think>Yes", gotChoice{Thought: "Hm", Content: "Yes", Finish: "stop"}, "Hm</think>"},
		{"cut off", templated(t, "qwen3"), "auto", "<think>\nHm", gotChoice{Thought: "Hm", Finish: "stop"}, "<think>\nHm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			events := says(t, c.text)
			a := serveWith(t, c.tok, scripted(withLogprobs(events, nil)...), wide, func(cfg *Config) { cfg.ReasoningParser = c.parser })
			c.want.Tokens = len(events)
			got := both(t, a, 1, tooled(obj{"logprobs": true}))
			if diff := cmp.Diff([]gotChoice{c.want}, anonymous(got)); diff != "" {
				t.Error(diff)
			}
			var out chatAnswer
			a.json("/v1/chat/completions", tooled(nil), &out)
			least := len(testTokenizer(t).Encode(c.counts, false))
			// A token may be a part of the mark's end and of what follows; EOS is no thought unless one was cut off.
			if n := out.Usage.Answer.Reasoning; n < least || n > least+1 || least == 0 && n != 0 {
				t.Errorf("%d tokens of thoughts, %d are sure", n, least)
			}
			var less chatAnswer
			a.json("/v1/chat/completions", tooled(obj{"include_reasoning": false}), &less)
			if m := less.Choices[0].Message; m.Reasoning != nil || orDefault(m.Content, "") != c.want.Content || *less.Usage != *out.Usage {
				t.Errorf("without: %+v, %+v", m, less.Usage)
			}
			for _, e := range a.chunks("/v1/chat/completions", tooled(obj{"include_reasoning": false})) {
				if strings.Contains(string(e), "reasoning") {
					t.Errorf("without: %s", e)
				}
			}
		})
	}
}

// What the template has opened needs no mark, and stands before the form of an answer too.
func TestOpenedThoughts(t *testing.T) {
	marked := withTokens(t, "<think>", "</think>")
	hybrid := withTemplate(t, marked, "qwen3")
	shown, err := marked.WithChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	opened := engine.Thoughts{Opened: true, Open: -1, Close: "</think>", CloseToken: -1}
	for _, c := range []struct {
		name   string
		tok    *tokenizer.Tokenizer
		parser string
		text   string
		body   obj
		want   engine.Thoughts
		think  string
	}{
		{"no form", opening(t), "", "Hm\n</think>\n\n{}", chatBody(nil), engine.Thoughts{}, "Hm"},
		{"a form", opening(t), "", "Hm\n</think>\n\n{}", chatBody(obj{"response_format": obj{"type": "json_object"}}), opened, "Hm"},
		{"of a model whose thoughts nobody opens", templated(t, "qwen3"), "deepseek_r1", `Hm</think>[{"name": "now", "parameters": {}}]`, tooled(obj{"tool_choice": "required"}), opened, "Hm"},
		{"thoughts that the model may open", hybrid, "", "<think>Hm</think>{}", chatBody(obj{"response_format": obj{"type": "json_object"}}),
			engine.Thoughts{Open: vocab, Close: "</think>", CloseToken: vocab + 1}, "Hm"},
		{"and does not", hybrid, "", "{}", chatBody(obj{"response_format": obj{"type": "json_object"}}),
			engine.Thoughts{Open: vocab, Close: "</think>", CloseToken: vocab + 1}, ""},
		{"before a call", hybrid, "", `<think>Hm</think>[{"name": "now", "parameters": {}}]`, tooled(obj{"tool_choice": "required"}),
			engine.Thoughts{Open: vocab, Close: "</think>", CloseToken: vocab + 1}, "Hm"},
		{"that it is not to have", hybrid, "", "{}", chatBody(obj{"response_format": obj{"type": "json_object"}, "chat_template_kwargs": obj{"enable_thinking": false}}), engine.Thoughts{}, ""},
		{"continued in thoughts", hybrid, "", " of it</think>{}", goOn("<think>Hm,", obj{"response_format": obj{"type": "json_object"}}),
			engine.Thoughts{Opened: true, Open: -1, Close: "</think>", CloseToken: vocab + 1}, " of it"},
		{"continued behind them", shown, "deepseek_r1", "{}", goOn("<think>Hm</think>", obj{"response_format": obj{"type": "json_object"}}), engine.Thoughts{}, ""},
		{"that nobody could see begin", templated(t, "qwen3"), "", "{}", chatBody(obj{"response_format": obj{"type": "json_object"}}), engine.Thoughts{}, ""},
	} {
		ids := c.tok.Encode(c.text, false)
		events := tokens(append(ids, eos)...)
		events[len(events)-1].Finish, events[len(events)-1].StopToken = "stop", eos
		b := scripted(events...)
		a := serveWith(t, c.tok, b, wide, func(cfg *Config) { cfg.ReasoningParser = c.parser })
		var out chatAnswer
		a.json("/v1/chat/completions", c.body, &out)
		if m := out.Choices[0].Message; orDefault(m.Reasoning, "") != c.think || str(m.Content) != "{}" && len(m.Calls) != 1 {
			t.Errorf("%s: %+v", c.name, m)
		}
		if got := b.last(t).Guide.Thoughts; got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// goOn is a chat whose last turn is to be continued.
func goOn(turn string, more obj) obj {
	b := chatBody(more)
	b["messages"] = []obj{{"role": "user", "content": "Hi"}, {"role": "assistant", "content": turn}}
	b["continue_final_message"], b["add_generation_prompt"] = true, false
	return b
}

// thinking_token_budget, and that of messages, bound thoughts which a token ends; elsewhere what must be held is refused.
func TestThinkingBudget(t *testing.T) {
	marked := withTokens(t, "<think>", "</think>")
	hybrid := withTemplate(t, marked, "qwen3")
	opens, err := marked.WithChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}assistant: <think>\n")
	if err != nil {
		t.Fatal(err)
	}
	const chats, messages, responses = "/v1/chat/completions", "/v1/messages", "/v1/responses"
	message := func(thinking obj) obj {
		return obj{"max_tokens": 50, "messages": []obj{{"role": "user", "content": "a"}}, "thinking": thinking}
	}
	limit := func(most int, opened bool, open int32) *engine.ThoughtLimit {
		return &engine.ThoughtLimit{Most: most, Close: vocab + 1, Opened: opened, Open: open}
	}
	for _, c := range []struct {
		name, path string
		tok        *tokenizer.Tokenizer
		body       obj
		want       *engine.ThoughtLimit
		refused    bool
	}{
		{"opened by the prompt", chats, opens, chatBody(obj{"thinking_token_budget": 7}), limit(7, true, -1), false},
		{"that the model may open", chats, hybrid, chatBody(obj{"thinking_token_budget": 0}), limit(0, false, vocab), false},
		{"more than can be", chats, hybrid, chatBody(obj{"thinking_token_budget": 1 << 40}), limit(1<<31-1, false, vocab), false},
		{"of a response", responses, opens, obj{"input": "a", "thinking_token_budget": 7}, limit(7, true, -1), false},
		{"continued in thoughts", chats, hybrid, goOn("<think>Hm,", obj{"thinking_token_budget": 7}), limit(7, true, -1), false},
		{"that are not to be", chats, hybrid, chatBody(obj{"thinking_token_budget": 7, "chat_template_kwargs": obj{"enable_thinking": false}}), nil, false},
		{"unbounded", chats, opens, chatBody(obj{"thinking_token_budget": -1}), nil, false},
		{"below nothing", chats, opens, chatBody(obj{"thinking_token_budget": -2}), nil, true},
		{"none", chats, testTokenizer(t), chatBody(obj{"thinking_token_budget": 7}), nil, true},
		{"of a model whose mark is several tokens", chats, opening(t), chatBody(obj{"thinking_token_budget": 7}), nil, true},
		{"of a message", messages, opens, message(obj{"type": "enabled", "budget_tokens": 7}), limit(7, true, -1), false},
		{"of a message, which adapts", messages, opens, message(obj{"type": "adaptive", "budget_tokens": 7}), nil, false},
		{"of a message, below one", messages, opens, message(obj{"type": "enabled", "budget_tokens": 0}), nil, true},
		{"of a message without thoughts", messages, testTokenizer(t), message(obj{"type": "enabled", "budget_tokens": 7}), nil, false},
		{"of a text", "/v1/completions", opens, obj{"prompt": "a", "thinking_token_budget": 7}, nil, true},
	} {
		b := scripted(tokens(5)...)
		r := serveWith(t, c.tok, b, wide).post(c.path, c.body.String())
		if c.refused {
			if r.status != 400 {
				t.Errorf("%s: %d %s", c.name, r.status, r.body)
			}
			continue
		}
		if r.status != 200 {
			t.Errorf("%s: %d %s", c.name, r.status, r.body)
			continue
		}
		if diff := cmp.Diff(c.want, b.last(t).Limits.Thought); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}
