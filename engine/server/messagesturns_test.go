package server

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// using is a request with two tools.
func using(more obj) obj {
	b := saying("a", obj{"tools": []obj{
		{"name": "get_weather", "description": "d", "strict": true, "cache_control": obj{"type": "ephemeral"}, "input_schema": obj{"type": "object", "properties": obj{"city": obj{"type": "string"}}}},
		{"name": "now", "type": "custom", "input_schema": obj{"type": "object"}},
	}})
	for k, v := range more {
		b[k] = v
	}
	return b
}

// A request's prompt is that of the chat which says the same, and has as many tokens as are counted.
func TestMessagePrompts(t *testing.T) {
	type list = []obj
	text := func(s string) obj { return obj{"type": "text", "text": s, "cache_control": obj{"type": "ephemeral"}} }
	say := func(role string, content any) obj { return obj{"role": role, "content": content} }
	use := func(id, name string, input obj) obj {
		return obj{"type": "tool_use", "id": id, "name": name, "input": input}
	}
	result := func(id string, content any, more obj) obj {
		b := obj{"type": "tool_result", "tool_use_id": id, "content": content}
		for k, v := range more {
			b[k] = v
		}
		return b
	}
	call := func(id, name, arguments string) obj {
		return obj{"id": id, "type": "function", "function": obj{"name": name, "arguments": arguments}}
	}
	answer := func(content, thoughts string, calls ...obj) obj {
		m := obj{"role": "assistant", "content": content}
		if thoughts != "" {
			m["reasoning"] = thoughts
		}
		if len(calls) > 0 {
			m["tool_calls"] = calls
		}
		return m
	}
	told := func(id, content string) obj {
		return obj{"role": "tool", "tool_call_id": id, "content": content}
	}
	tools := json.RawMessage(`[{"type":"function","function":{"name":"get_weather","description":"d","parameters":{"properties":{"city":{"type":"string"}},"type":"object"}}},` +
		`{"type":"function","function":{"name":"now","parameters":{"type":"object"}}}]`) // in the order in which the template has to get the keys
	const billing = "x-anthropic-billing-header: cc_version=1; cch=5;"
	hidden := sign("Hm 😀", true)
	ask := say("user", "What?")
	for name, x := range map[string]struct{ own, chat obj }{
		"a text":             {obj{"messages": list{ask}}, obj{"messages": list{ask}}},
		"blocks":             {obj{"messages": list{say("user", list{text("a"), text("b")})}}, obj{"messages": list{say("user", "a\nb")}}},
		"turns in a row":     {obj{"messages": list{ask, say("user", list{text("b")}), say("assistant", "c"), say("assistant", "d"), ask}}, obj{"messages": list{say("user", "What?\nb"), answer("c\nd", ""), ask}}},
		"nothing said":       {obj{"messages": list{say("user", list{}), say("assistant", list{}), ask}}, obj{"messages": list{say("user", ""), answer("", ""), ask}}},
		"a system":           {obj{"system": "Be brief.", "messages": list{ask}}, obj{"messages": list{say("system", "Be brief."), ask}}},
		"a system of blocks": {obj{"system": list{text(billing), text("a"), text("b")}, "messages": list{ask}}, obj{"messages": list{say("system", "a\nb"), ask}}},
		"no system":          {obj{"system": list{text(billing)}, "messages": list{ask}}, obj{"messages": list{ask}}},
		"a system's message": {obj{"system": "a", "messages": list{say("system", "b"), ask}}, obj{"messages": list{say("system", "a\n\nb"), ask}}},
		"a later one":        {obj{"system": "a", "messages": list{ask, say("system", list{text("b")})}}, obj{"messages": list{say("system", "a"), ask, say("system", "b")}}},
		"an empty prefill":   {obj{"messages": list{ask, say("assistant", "")}}, obj{"messages": list{ask}}},
		"a prefill":          {obj{"messages": list{ask, say("assistant", list{text("It is (")})}}, obj{"messages": list{ask, answer("It is (", "")}, "continue_final_message": true, "add_generation_prompt": false}},
		"a prefill with thoughts": {obj{"messages": list{ask, say("assistant", list{{"type": "thinking", "thinking": "Hm.", "signature": "s"}, text("It")})}},
			obj{"messages": list{ask, answer("It", "Hm.")}, "continue_final_message": true, "add_generation_prompt": false}},
		"tools":    {using(nil), obj{"messages": list{say("user", "a")}, "tools": tools}},
		"no tools": {using(obj{"tool_choice": obj{"type": "none"}}), obj{"messages": list{say("user", "a")}}},
		"calls": {
			using(obj{"messages": list{ask, say("assistant", list{
				{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}, text("Let me see."), use("1", "get_weather", obj{"city": "Oslo"}), use("2", "now", obj{}),
			}), say("user", list{text("And?"), result("1", "4", nil), result("2", list{text("noon"), text("sharp")}, nil)})}}),
			obj{"tools": tools, "messages": list{ask, answer("Let me see.", "Hm.", call("1", "get_weather", `{"city":"Oslo"}`), call("2", "now", "{}")), told("1", "4"), told("2", "noon\nsharp"), say("user", "And?")}},
		},
		"hidden thoughts, an error, nothing": {
			using(obj{"messages": list{ask, say("assistant", list{{"type": "thinking", "thinking": "", "signature": hidden}, use("1", "now", obj{})}), say("user", list{result("1", "broken", obj{"is_error": true})}),
				say("assistant", list{use("2", "now", obj{})}), say("user", list{{"type": "tool_result", "tool_use_id": "2"}})}}),
			obj{"tools": tools, "messages": list{ask, answer("", "Hm 😀", call("1", "now", "{}")), told("1", "Error: broken"), answer("", "", call("2", "now", "{}")), told("2", "")}},
		},
		"a signature of others": {obj{"messages": list{ask, say("assistant", list{{"type": "thinking", "thinking": "", "signature": "thoughts.!"}, {"type": "thinking", "thinking": "", "signature": "thoughts._w"}, text("b")}), ask}},
			obj{"messages": list{ask, answer("b", ""), ask}}},
		"not to think":      {obj{"messages": list{ask}, "thinking": obj{"type": "disabled"}}, obj{"messages": list{ask}, "chat_template_kwargs": obj{"enable_thinking": false}}},
		"to think":          {obj{"messages": list{ask}, "thinking": obj{"type": "enabled", "budget_tokens": 1024}}, obj{"messages": list{ask}, "chat_template_kwargs": obj{"enable_thinking": true}}},
		"by the own fields": {obj{"messages": list{ask}, "thinking": obj{"type": "adaptive"}, "chat_template_kwargs": obj{"enable_thinking": false}}, obj{"messages": list{ask}, "chat_template_kwargs": obj{"enable_thinking": false}}},
	} {
		b := scripted(says(t, "a")...)
		a := serveWith(t, templated(t, "qwen3"), b, wide)
		var chat chatAnswer
		a.json(chatPath, x.chat, &chat)
		want := b.last(t).Prompt
		var counted struct {
			Tokens int `json:"input_tokens"`
		}
		a.ok(messagesPath+"/count_tokens", x.own.String(), &counted)
		x.own["max_tokens"] = 5
		bothMessages(t, a, x.own)
		if got := b.last(t).Prompt; !slices.Equal(got, want) {
			t.Errorf("%s: %s\nwant %s", name, testTokenizer(t).Decode(got, false), testTokenizer(t).Decode(want, false))
		}
		if counted.Tokens != len(want) {
			t.Errorf("%s: %d tokens are counted, there are %d", name, counted.Tokens, len(want))
		}
	}
}

// What is too long for an answer is counted all the same; what would be refused is refused.
func TestCountTokens(t *testing.T) {
	a := serve(t, scripted())
	var counted struct {
		Tokens int `json:"input_tokens"`
	}
	const path = messagesPath + "/count_tokens"
	if a.ok(path, saying(strings.Repeat("word ", 2*maxLen), nil).String(), &counted); counted.Tokens < maxLen {
		t.Errorf("%d", counted.Tokens)
	}
	wantMessageError(t, a.post(path, `{"messages":[]}`), 400, "invalid_request_error", "at least one message")
	wantMessageError(t, a.post(path, `{`), 400, "invalid_request_error", "JSON")
	wantMessageError(t, a.post(path, saying("a", obj{"functions": []obj{{"name": "f"}}}).String()), 400, "invalid_request_error", "functions")
	wantMessageError(t, a.post(path, saying("a", obj{"model": "x"}).String()), 404, "not_found_error", "`x`")
	wantMessageError(t, a.post(path, using(nil).String()), 400, "invalid_request_error", "tools")
}

// Where the template does not show a system in the middle of a conversation, what it says is a part of the user's turn.
func TestLateSystem(t *testing.T) {
	for name, late := range map[string]bool{"qwen3": true, "llama31": true, "chatml": true, "mistral_v03": false, "mistral_v11": false, "llama2": false} {
		tok := templated(t, name)
		if got := probeSystem(tok); got != late {
			t.Errorf("%s: %v, want %v", name, got, late)
			continue
		}
		b := scripted(says(t, "a")...)
		a := serveWith(t, tok, b, wide)
		said := []obj{{"role": "user", "content": "one"}, {"role": "system", "content": "two"}, {"role": "user", "content": "three"}}
		a.message(obj{"max_tokens": 5, "messages": said})
		whole := []tokenizer.Message{{Role: "user", Content: "one\ntwo\nthree"}}
		if late {
			whole = []tokenizer.Message{{Role: "user", Content: "one"}, {Role: "system", Content: "two"}, {Role: "user", Content: "three"}}
		}
		want, err := tok.ApplyChat(whole, true, nil)
		if got := tok.Decode(b.last(t).Prompt, false); err != nil || got != want {
			t.Errorf("%s: %q, want %q (%v)", name, got, want, err)
		}
	}
}

func TestMessageTools(t *testing.T) {
	const form = "<tool_call>\n%s\n</tool_call>"
	calling := func(calls ...string) string {
		for i, c := range calls {
			calls[i] = strings.Replace(form, "%s", c, 1)
		}
		return strings.Join(calls, "\n")
	}
	const weather, now = `{"name": "get_weather", "arguments": {"city": "Oslo",  "z": 1, "a": "<é>"}}`, `{"name": "now", "arguments": {}}`
	for _, x := range []struct {
		text  string
		more  obj
		words []string
		stop  string
	}{
		{"Let me see.\n" + calling(weather, now), nil, []string{"text;Let me see.", `tool_use;get_weather{"city":"Oslo","z":1,"a":"<é>"}`, "tool_use;now{}"}, "tool_use"},
		{calling(weather, now), obj{"tool_choice": obj{"type": "auto", "disable_parallel_tool_use": true}}, []string{`tool_use;get_weather{"city":"Oslo","z":1,"a":"<é>"}`}, "tool_use"},
		{calling(now), obj{"tool_choice": obj{"type": "none"}}, []string{"text;" + calling(now)}, "end_turn"},
		{`[{"name": "now", "parameters": {}}]`, obj{"tool_choice": obj{"type": "any"}}, []string{"tool_use;now{}"}, "tool_use"},
		{`{"city": "Oslo"}`, obj{"tool_choice": obj{"type": "tool", "name": "get_weather"}}, []string{`tool_use;get_weather{"city":"Oslo"}`}, "tool_use"},
		{calling(`{"name": "now", "arguments": {"a": }}`), nil, []string{`tool_use;now{"INVALID_JSON":"{\"a\": }"}`}, "tool_use"},
		{calling(now) + "\nDone.", nil, []string{"tool_use;now{}", "text;\nDone."}, "tool_use"},
		{"a" + calling(weather), obj{"stop_sequences": []string{"Oslo"}}, []string{"text;a", `tool_use;get_weather{"INVALID_JSON":"{\"city\": \""}`}, "stop_sequence"},
	} {
		a := serveWith(t, templated(t, "qwen3"), scripted(says(t, x.text)...), wide)
		m := bothMessages(t, a, using(x.more))
		if !slices.Equal(m.words(), x.words) || *m.StopReason != x.stop {
			t.Errorf("%q %s, want %q %s", m.words(), *m.StopReason, x.words, x.stop)
		}
		ids := map[string]bool{}
		for _, b := range m.Content {
			if b.Type == "tool_use" && (!strings.HasPrefix(b.ID, "toolu_") || ids[b.ID]) {
				t.Errorf("id %q", b.ID)
			}
			ids[b.ID] = true
		}
	}
	// Mistral's templates take no ids but their own.
	a := serveWith(t, templated(t, "mistral_v11"), scripted(says(t, `[TOOL_CALLS]now{}`)...), wide)
	if m := a.message(using(nil)); len(m.Content) != 1 || len(m.Content[0].ID) != 9 {
		t.Errorf("%+v", m)
	}
}

func TestMessageThoughts(t *testing.T) {
	events := says(t, "<think>\nHm 😀.\n</think>\n\nYes.")
	b := scripted(events...)
	a := serveWith(t, templated(t, "qwen3"), b, wide)
	shown := bothMessages(t, a, saying("a", obj{"thinking": obj{"type": "enabled", "budget_tokens": 1024}}))
	if !slices.Equal(shown.words(), []string{"thinking;Hm 😀.", "text;Yes."}) || *shown.Content[0].Signature == "" || shown.Usage.Details.Thinking == 0 || shown.Usage.Details.Thinking >= shown.Usage.Output {
		t.Errorf("%q %+v", shown.words(), shown)
	}
	hidden := bothMessages(t, a, saying("a", obj{"thinking": obj{"type": "adaptive", "display": "omitted"}}))
	if !slices.Equal(hidden.words(), []string{"thinking;", "text;Yes."}) || hidden.Usage != shown.Usage {
		t.Errorf("%q %+v", hidden.words(), hidden)
	}
	// Sent back, either is what the model has thought.
	var prompts []string
	for _, m := range []gotMessage{shown, hidden} {
		content := m.Content[:1:1]
		content = append(content, gotBlock{Type: "tool_use", ID: "1", Name: "now", Input: json.RawMessage("{}")})
		raw, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		var blocks []obj
		if err := json.Unmarshal(raw, &blocks); err != nil {
			t.Fatal(err)
		}
		a.message(using(obj{"messages": []obj{{"role": "user", "content": "a"}, {"role": "assistant", "content": blocks}, {"role": "user", "content": []obj{{"type": "tool_result", "tool_use_id": "1", "content": "x"}}}}}))
		prompts = append(prompts, testTokenizer(t).Decode(b.last(t).Prompt, false))
	}
	if prompts[0] != prompts[1] || !strings.Contains(prompts[0], "<think>\nHm 😀.\n</think>") {
		t.Errorf("%q", prompts)
	}
}

// Lists of any length are no reason to take memory for as many blocks.
func TestMessagesAreFew(t *testing.T) {
	many := json.RawMessage("[0" + strings.Repeat(",0", maxBlocks) + "]")
	if _, err := readBlocks("content", many, "text"); err == nil || !strings.Contains(err.Error(), "at most 100000 blocks") {
		t.Errorf("blocks: %v", err)
	}
	r := messageRequest{Messages: many}
	if err := r.takeTurns(&chatRequest{}); err == nil || !strings.Contains(err.Error(), "at most 100000 messages") {
		t.Errorf("messages: %v", err)
	}
}
