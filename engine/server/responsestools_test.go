package server

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func asking(more obj) obj {
	b := obj{"input": "a", "tools": []obj{
		{"type": "function", "name": "get_weather", "description": "d", "strict": true, "parameters": obj{"type": "object", "properties": obj{"city": obj{"type": "string"}}}},
		{"type": "function", "name": "now"},
	}}
	for k, v := range more {
		b[k] = v
	}
	return b
}

func TestResponseTools(t *testing.T) {
	const form = "<tool_call>\n%s\n</tool_call>"
	weather := fmt.Sprintf(form, `{"name": "get_weather", "arguments": {"city": "Os\"lo"}}`)
	now := fmt.Sprintf(form, `{"name": "now", "arguments": {}}`)
	const gotWeather, gotNow = `function_call;completed;;get_weather;{"city": "Os\"lo"};;`, `function_call;completed;;now;{};;`
	const list = `[{"name":"get_weather","parameters":{"city": "Os\"lo"}}, {"name":"now","parameters":{}}]`
	named := func(name string) obj { return obj{"type": "function", "name": name} }
	for _, x := range []struct {
		text   string
		more   obj
		want   []string
		prompt string // a part of it, or of the schema
	}{
		{"Let me see.\n" + weather + "\n" + now, nil, []string{"message;completed;assistant;;;;Let me see.", gotWeather, gotNow}, `{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {"properties"`},
		{weather + "\n" + now, obj{"parallel_tool_calls": false}, []string{gotWeather}, `"now"`},
		{weather, obj{"tool_choice": "none"}, []string{"message;completed;assistant;;;;" + weather}, ""},
		{`{"city": "Os\"lo"}`, obj{"tool_choice": named("get_weather")}, []string{gotWeather}, `{"properties":{"city":{"type":"string"}},"type":"object"}`},
		{list, obj{"tool_choice": "required"}, []string{gotWeather, gotNow}, `"name":{"enum":["now"]}`},
		{now, obj{"tool_choice": obj{"type": "allowed_tools", "mode": "auto", "tools": []obj{named("now")}}}, []string{gotNow}, `"now"`},
		{list, obj{"tool_choice": obj{"type": "allowed_tools", "mode": "required", "tools": []obj{named("now"), named("get_weather")}}}, []string{gotWeather, gotNow}, `"name":{"enum":["now"]}`},
	} {
		b := scripted(says(t, x.text)...)
		a := serveWith(t, templated(t, "qwen25"), b, wide)
		r := bothResponses(t, a, asking(x.more))
		if diff := cmp.Diff(x.want, r.words()); diff != "" || r.Status != "completed" || len(r.Tools) != 2 {
			t.Errorf("%v: %s %s %v", x.more, r.Status, diff, r.Tools)
		}
		for _, it := range r.Output {
			if it.Type == "function_call" && (!callID.MatchString(it.CallID) || !itemID.MatchString(it.ID)) {
				t.Errorf("%+v", it)
			}
		}
		req := b.last(t)
		if seen := testTokenizer(t).Decode(req.Prompt, false) + req.Guide.Source; !strings.Contains(seen, x.prompt) || strings.Contains(seen, "strict") {
			t.Errorf("%v: %s", x.more, seen)
		}
	}
	r := serveWith(t, templated(t, "qwen25"), scripted(says(t, "a")...), wide).response(asking(obj{"tool_choice": "auto"}))
	want := []map[string]any{
		{"type": "function", "name": "get_weather", "description": "d", "strict": true, "parameters": map[string]any{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}}},
		{"type": "function", "name": "now", "description": nil, "strict": nil, "parameters": nil},
	}
	if diff := cmp.Diff(want, r.Tools); diff != "" {
		t.Error(diff)
	}
}

// Functions of a namespace are called by both names, and told by each.
func TestResponseNamespaces(t *testing.T) {
	b := scripted(says(t, "<tool_call>\n{\"name\": \"n.f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>")...)
	a := serveWith(t, templated(t, "qwen25"), b, wide)
	f := obj{"type": "function", "name": "f", "parameters": obj{"type": "object"}}
	space := obj{"type": "namespace", "name": "n", "description": "d", "tools": []obj{f, {"type": "function", "name": "g"}}}
	body := obj{"input": "a", "tools": []obj{f, space}}
	r := bothResponses(t, a, body)
	if len(r.Output) != 2 || r.Output[0].Namespace != "n" || r.Output[0].Name != "f" || r.Output[1].Namespace != "" || r.Output[1].Name != "f" {
		t.Errorf("%+v", r.Output)
	}
	if diff := cmp.Diff(map[string]any{"type": "namespace", "name": "n", "description": "d", "tools": []any{
		map[string]any{"type": "function", "name": "f", "description": nil, "parameters": map[string]any{"type": "object"}, "strict": nil},
		map[string]any{"type": "function", "name": "g", "description": nil, "parameters": nil, "strict": nil},
	}}, r.Tools[1]); diff != "" {
		t.Error(diff)
	}
	result := obj{"type": "function_call_output", "call_id": r.Output[0].CallID, "output": "4"}
	a.response(obj{"previous_response_id": r.ID, "input": []obj{result}, "tools": body["tools"]})
	if prompt := testTokenizer(t).Decode(b.last(t).Prompt, false); strings.Count(prompt, `{"name": "n.f", "arguments": {}}`) != 1 {
		t.Errorf("%s", prompt)
	}
	for _, x := range []struct {
		tools []obj
		more  obj
		words string
	}{
		{[]obj{f, {"type": "namespace", "name": "a b"}}, nil, "tools[1]: a namespace needs a name"},
		{[]obj{{"type": "namespace", "name": "n", "tools": []obj{f, f}}}, nil, "tools[0].tools[1]: its function has the name"},
		{[]obj{{"type": "namespace", "name": "n", "tools": []obj{space}}}, nil, "tools[0].tools[0]: only functions"},
		{[]obj{{"type": "namespace", "name": "n", "tools": []obj{{"type": "custom", "name": "c"}}}}, nil, `tools[0].tools[0]: a tool of type "custom"`},
		{[]obj{f, {"type": "namespace", "name": "n", "tools": []obj{{"type": "function", "name": "g", "parameters": obj{"type": "object", "properties": obj{"a": obj{"type": "x"}}}}}}}, obj{"tool_choice": "required"}, "tools[1].tools[0].parameters.properties.a"},
	} {
		body := obj{"input": "a", "tools": x.tools}
		for k, v := range x.more {
			body[k] = v
		}
		wantError(t, a.post(responsesPath, body.String()), 400, "BadRequestError", "tools", x.words)
	}
}

// Thoughts are an item of their own, which a conversation goes on with.
func TestResponseThoughts(t *testing.T) {
	const thought, call = "Hm.\n\nI need the time.", "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"
	const think = "<think>\n" + thought + "\n</think>"
	items := map[string]string{"think": "reasoning;;;;;;" + thought, "say": "message;completed;assistant;;;;Let me see.", "call": "function_call;completed;;now;{};;"}
	for _, x := range []struct {
		text string
		want []string
	}{
		{think + "\n\nLet me see.\n" + call, []string{"think", "say", "call"}}, {think + call, []string{"think", "call"}}, {think + "Let me see.", []string{"think", "say"}},
		{think, []string{"think"}}, {"Let me see.", []string{"say"}},
	} {
		events := withLogprobs(says(t, x.text), nil)
		b := scripted(events...)
		a := serveWith(t, templated(t, "qwen3"), b, wide)
		var want, silent []string
		for _, name := range x.want {
			want = append(want, items[name])
			if name != "think" {
				silent = append(silent, items[name])
			}
		}
		body := asking(obj{"include": []string{"message.output_text.logprobs"}})
		r := bothResponses(t, a, body)
		if diff := cmp.Diff(want, r.words()); diff != "" || (r.Usage.OutputDetails.Reasoning > 0) != (len(silent) < len(want)) {
			t.Errorf("%q: %s %+v", x.text, diff, r.Usage)
		}
		message := func(r *gotResponse) (spelled string) {
			for _, it := range r.Output {
				for _, p := range it.Content {
					for _, l := range p.Logprobs {
						spelled += l.Token
					}
				}
			}
			return spelled
		}
		if spelled := message(r); strings.Contains(spelled, "Hm") || strings.Contains(x.text, "Let") != strings.Contains(spelled, "see") {
			t.Errorf("%q: log probabilities of %q", x.text, spelled)
		}
		body["include_reasoning"] = false
		if len(silent) == 0 {
			silent = []string{"message;completed;assistant;;;;"}
		}
		less := bothResponses(t, a, body)
		if diff := cmp.Diff(silent, less.words()); diff != "" || strings.Contains(message(less), "Hm") || less.Usage.OutputDetails != r.Usage.OutputDetails {
			t.Errorf("%q: %s %q %+v", x.text, diff, message(less), less.Usage)
		}
	}
	b := scripted(says(t, think+"\n\n"+call)...)
	a := serveWith(t, templated(t, "qwen3"), b, wide)
	r := a.response(asking(nil))
	result := obj{"type": "function_call_output", "call_id": r.Output[1].CallID, "output": "noon"}
	a.response(asking(obj{"previous_response_id": r.ID, "input": []obj{result}}))
	prompt := testTokenizer(t).Decode(b.last(t).Prompt, false)
	if !strings.Contains(prompt, "<|im_start|>assistant\n"+think+"\n\n"+call+"<|im_end|>\n<|im_start|>user\n<tool_response>\nnoon") {
		t.Errorf("%s", prompt)
	}
}
