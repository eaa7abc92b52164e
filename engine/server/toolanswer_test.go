package server

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
)

type gotCall struct{ ID, Name, Args string }

// gotChoice is what a choice comes to.
type gotChoice struct {
	Content string
	Calls   []gotCall
	Finish  string
	Tokens  int // with log probabilities
	Thought string
}

var callID = regexp.MustCompile(`^call_[0-9a-f]{24}$`)

func whole(t rapid.TB, c chatChoice) gotChoice {
	t.Helper()
	if str(c.Message.Reasoning) != str(c.Message.ReasoningContent) {
		t.Fatalf("%q and %q", str(c.Message.Reasoning), str(c.Message.ReasoningContent))
	}
	got := gotChoice{Thought: orDefault(c.Message.Reasoning, ""), Content: str(c.Message.Content), Finish: str(c.Finish)}
	if c.Message.Content == nil {
		if got.Content = ""; len(c.Message.Calls) == 0 {
			t.Fatal("neither content nor calls")
		}
	}
	for _, one := range c.Message.Calls {
		if one.Index != nil || str(one.Type) != "function" {
			t.Fatalf("%+v", one)
		}
		got.Calls = append(got.Calls, gotCall{str(one.ID), str(one.Function.Name), one.Function.Arguments})
	}
	if c.Logprobs != nil {
		got.Tokens = len(c.Logprobs.Content)
	}
	return got
}

// sum adds the deltas of all choices up, and checks the shape of each.
func sum(t rapid.TB, events []event, n int) []gotChoice {
	t.Helper()
	got := make([]gotChoice, n)
	for _, e := range events {
		var chunk chatAnswer
		if err := json.Unmarshal(e, &chunk); err != nil {
			t.Fatal(err)
		}
		for _, c := range chunk.Choices {
			g := &got[c.Index]
			if g.Finish != "" {
				t.Fatalf("%s behind the end of the choice", e)
			}
			if thought := c.Delta.Reasoning; thought != nil {
				if *thought != str(c.Delta.ReasoningContent) || *thought == "" || c.Delta.Content != nil || len(c.Delta.Calls) > 0 {
					t.Fatalf("%s has more than a thought", e)
				}
				g.Thought += *thought
			}
			if c.Delta.Content != nil {
				g.Content += *c.Delta.Content
			}
			if len(c.Delta.Calls) > 1 || len(c.Delta.Calls) == 1 && c.Delta.Content != nil {
				t.Fatalf("%s has more than one thing", e)
			}
			for _, one := range c.Delta.Calls {
				switch {
				case one.Index == nil:
					t.Fatalf("%s has no index", e)
				case *one.Index == len(g.Calls) && one.ID != nil && str(one.Type) == "function" && one.Function.Name != nil && one.Function.Arguments == "":
					g.Calls = append(g.Calls, gotCall{*one.ID, *one.Function.Name, ""})
				case *one.Index == len(g.Calls)-1 && one.ID == nil && one.Type == nil && one.Function.Name == nil && one.Function.Arguments != "":
					g.Calls[*one.Index].Args += one.Function.Arguments
				default:
					t.Fatalf("%s after %d calls", e, len(g.Calls))
				}
			}
			if c.Logprobs != nil {
				g.Tokens += len(c.Logprobs.Content)
			}
			if c.Finish != nil {
				g.Finish = *c.Finish
			}
		}
	}
	return got
}

// anonymous is a choice without the ids, which are random.
func anonymous(choices []gotChoice) []gotChoice {
	out := slices.Clone(choices)
	for i := range out {
		out[i].Calls = slices.Clone(out[i].Calls)
		for k := range out[i].Calls {
			out[i].Calls[k].ID = ""
		}
	}
	return out
}

// both asks for a whole answer and for a stream, which must come to the same.
func both(t rapid.TB, a *api, n int, body obj) []gotChoice {
	t.Helper()
	var out chatAnswer
	a.json("/v1/chat/completions", body, &out)
	var wanted []gotChoice
	for _, c := range out.Choices {
		wanted = append(wanted, whole(t, c))
	}
	if len(wanted) != n {
		t.Fatalf("%d choices", len(wanted))
	}
	body = tooled(body)
	body["stream_options"] = obj{"include_usage": true}
	events := a.chunks("/v1/chat/completions", body)
	last := events[len(events)-1].chat(a.t)
	if last.Usage == nil || *last.Usage != *out.Usage {
		t.Fatalf("usage %+v, whole %+v", last.Usage, out.Usage)
	}
	if diff := cmp.Diff(anonymous(wanted), anonymous(sum(t, events, n))); diff != "" {
		t.Fatalf("the stream is not the whole answer:\n%s", diff)
	}
	return wanted
}

func TestToolCalls(t *testing.T) {
	const one, two = `{"city": "Oslo", "x": "é\n<b>"}`, `{"a":[1,{}]}`
	want := gotChoice{Content: "Let me see.", Calls: []gotCall{{"", "get_weather", one}, {"", "now", two}}, Finish: "tool_calls"}
	for template, text := range map[string]string{
		"qwen3":       "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": " + one + "}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": " + two + "}\n</tool_call>",
		"llama31":     `Let me see.<|python_tag|>{"name": "get_weather", "parameters": ` + one + `}; {"name": "now", "parameters": ` + two + `}`,
		"mistral_v03": `Let me see.[TOOL_CALLS] [{"name": "get_weather", "arguments": ` + one + `}, {"name": "now", "arguments": ` + two + `}]`,
		"mistral_v11": `Let me see.[TOOL_CALLS]get_weather` + one + `[TOOL_CALLS]now` + two,
	} {
		t.Run(template, func(t *testing.T) {
			events := says(t, text)
			a := serveWith(t, templated(t, template), scripted(withLogprobs(events, nil)...), wide)
			got := both(t, a, 2, tooled(obj{"n": 2, "logprobs": true, "messages": []obj{{"role": "user", "content": "Hi"}}}))
			ids := map[string]bool{}
			for _, c := range got {
				for _, call := range c.Calls {
					ids[call.ID] = true
					if strings.HasPrefix(template, "mistral") != (len(call.ID) == 9) || len(call.ID) != 9 && !callID.MatchString(call.ID) {
						t.Errorf("the id %q", call.ID)
					}
				}
			}
			if len(ids) != 4 {
				t.Errorf("the ids are %v", ids)
			}
			want.Tokens = len(events)
			if diff := cmp.Diff([]gotChoice{want, want}, anonymous(got)); diff != "" {
				t.Error(diff)
			}
			first := want
			first.Calls = want.Calls[:1]
			if diff := cmp.Diff([]gotChoice{first}, anonymous(both(t, a, 1, tooled(obj{"logprobs": true, "parallel_tool_calls": false})))); diff != "" {
				t.Errorf("one call alone: %s", diff)
			}
		})
	}
}

// However an answer ends, what was told before stays.
func TestToolCallsThatEndEarly(t *testing.T) {
	const text = `So: <tool_call>{"name": "now", "arguments": {"city": "Oslo"}}</tool_call>`
	b := scripted()
	a := serveWith(t, templated(t, "qwen25"), b, wide)
	events := says(t, text)
	cut := func(to string) []engine.Event {
		ids := testTokenizer(t).Encode(text, false)
		for n := range ids {
			if strings.Contains(testTokenizer(t).Decode(ids[:n], true), to) {
				return tokens(ids[:n]...)
			}
		}
		t.Fatalf("%q is not in the text", to)
		return nil
	}
	for _, x := range []struct {
		name   string
		events []engine.Event
		more   obj
		want   gotChoice
	}{
		{"whole", events, nil, gotChoice{"So:", []gotCall{{"", "now", `{"city": "Oslo"}`}}, "tool_calls", 0, ""}},
		{"stop string in the arguments", events, obj{"stop": "slo"}, gotChoice{"So:", []gotCall{{"", "now", `{"city": "O`}}, "tool_calls", 0, ""}},
		{"stop string in the content", events, obj{"stop": ":"}, gotChoice{"So", nil, "stop", 0, ""}},
		{"stop string in the marker", events, obj{"stop": "_call"}, gotChoice{"So: <tool", nil, "stop", 0, ""}},
		{"length, before the call", cut(`"name": "n`), nil, gotChoice{Finish: "length"}},
		{"length, in the arguments", cut(`{"ci`), nil, gotChoice{Finish: "length"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			b.setScript(scripted(x.events...).script)
			got := anonymous(both(t, a, 1, tooled(x.more)))
			if x.want.Finish == "length" { // where a token ends depends on the vocabulary
				told := got[0].Content
				for _, c := range got[0].Calls {
					told += c.Args
				}
				if got[0].Finish != "length" || (len(got[0].Calls) == 1) != strings.Contains(x.name, "arguments") || !strings.HasPrefix(told, "So:") {
					t.Errorf("%+v", got)
				}
				return
			}
			if diff := cmp.Diff([]gotChoice{x.want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Of any answer a stream's deltas add up to the whole, with each parser, also for answers that are guided.
func TestAnyToolAnswer(t *testing.T) {
	fragments := []string{
		"<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "f", "é", " ", "\n", ";", ",", "[", "]", "{", "}",
		`{"name": "f", "arguments": {"a": "x"}}`, `{"name": "g", "parameters": {}}`, `"`, `\`, "<",
	}
	b := scripted()
	apis := map[string]*api{}
	for _, form := range []string{"hermes", "llama3_json", "mistral", "none"} {
		apis[form] = serveWith(t, templated(t, "qwen25"), b, wide, func(c *Config) { c.ToolCallParser = form })
	}
	rapid.Check(t, func(rt *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(fragments), 1, 12).Draw(rt, "text"), "")
		b.setScript(scripted(says(t, text)...).script)
		form := rapid.SampledFrom([]string{"hermes", "llama3_json", "mistral", "none"}).Draw(rt, "form")
		got := both(rt, apis[form], 1, tooled(nil))[0]
		if (got.Finish == "tool_calls") != (len(got.Calls) > 0) || len(got.Calls) == 0 && got.Content != text {
			rt.Fatalf("%s: %+v of %q", form, got, text)
		}
	})
}

// Chunks have what belongs to their tokens, though a token may end content and begin a call.
func TestPartsOfADelta(t *testing.T) {
	d := delta{index: 1, text: "a", ids: []int32{5}, cached: 3, tokens: []engine.TokenLogprob{{Token: 5}}, finish: "tool_calls", stopReason: "x",
		calls: []callDelta{{index: 0, id: "i", name: "f", at: 1}, {index: 0, args: "{", at: 1}}}
	parts := d.parts()
	if len(parts) != 3 || parts[0].text != "a" || parts[1].calls[0].id != "i" || parts[2].calls[0].args != "{" {
		t.Fatalf("%+v", parts)
	}
	for i, p := range parts {
		if p.index != 1 || (len(p.ids) > 0) != (i == 0) || (len(p.tokens) > 0) != (i == 0) || (p.cached > 0) != (i == 0) || (p.finish != "") != (i == 2) || (p.stopReason != nil) != (i == 2) {
			t.Errorf("part %d: %+v", i, p)
		}
	}
	d = delta{text: "abc", calls: []callDelta{{args: "}"}, {id: "j", name: "g", at: 2}, {args: "{}", at: 2}}}
	var order []string
	for _, p := range d.parts() {
		order = append(order, p.text)
		if len(p.calls) > 0 {
			order[len(order)-1] = p.calls[0].name + p.calls[0].args
		}
	}
	if want := []string{"}", "ab", "g", "{}", "c"}; !slices.Equal(order, want) {
		t.Errorf("%q, want %q", order, want)
	}
	if plain := (delta{text: "a", finish: "stop"}).parts(); len(plain) != 1 || plain[0].finish != "stop" {
		t.Errorf("%+v", plain)
	}
}

// A client that leaves in the middle of a call frees its request.
func TestHangingUpInACall(t *testing.T) {
	events := tokens(testTokenizer(t).Encode(`<tool_call>{"name":"f","arguments":{"a": 1`, false)...)
	events[len(events)-1].Finish = ""
	stream := newFakeStream(events...)
	b := &fakeBackend{capacity: 1 << 20, script: func(context.Context, *engine.Request) (engine.Stream, error) { return stream, nil }}
	s := serveWith(t, templated(t, "qwen25"), b, wide).open("/v1/chat/completions", tooled(nil))
	for args := ""; !strings.Contains(args, "1"); {
		for _, c := range s.next().chat(t).Choices[0].Delta.Calls {
			args += c.Function.Arguments
		}
	}
	s.close()
	within(t, "the end of the request", stream.closed)
}

// A client that demands calls gets them from an answer that keeps to a schema, with what else it asked of the content
// left aside.
func TestDemandedCallsOverTheAPI(t *testing.T) {
	named := obj{"type": "function", "function": obj{"name": "get_weather"}}
	two := []gotCall{{"", "get_weather", `{"city": "Oslo"}`}, {"", "now", `{}`}}
	const list = `[{"name":"get_weather","parameters":{"city": "Oslo"}}, {"name":"now","parameters":{}}]`
	for _, x := range []struct {
		text   string
		more   obj
		want   gotChoice
		schema string // a part of it
	}{
		{`{"city": "Oslo"}`, obj{"tool_choice": named}, gotChoice{"", two[:1], "stop", 0, ""}, `{"properties":{"city":{"type":"string"}},"type":"object"}`},
		{list, obj{"tool_choice": "required"}, gotChoice{"", two, "tool_calls", 0, ""}, `"name":{"enum":["now"]},"parameters":{"type":"object"}`},
		{list, obj{"tool_choice": "required", "parallel_tool_calls": false, "response_format": obj{"type": "json_object"}}, gotChoice{"", two[:1], "tool_calls", 0, ""}, `"maxItems":1`},
	} {
		b := scripted(says(t, x.text)...)
		// No parser is needed: the form of the answer is not the model's own.
		a := serveWith(t, templated(t, "qwen25"), b, wide, func(c *Config) { c.ToolCallParser = "none" })
		if diff := cmp.Diff([]gotChoice{x.want}, anonymous(both(t, a, 1, tooled(x.more)))); diff != "" {
			t.Errorf("%v: %s", x.more, diff)
		}
		if g := b.last(t).Guide; g.Kind != grammar.JSONSchema || !strings.Contains(g.Source, x.schema) {
			t.Errorf("%v: the answer is held to %+v", x.more, g)
		}
	}
}

// What a client demands is read from an answer that keeps to a schema.
func TestDemandedCalls(t *testing.T) {
	tools, err := readTools([]byte(`[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"type":"string"}}}}},
		{"type":"function","function":{"name":"g"}},{"type":"function","function":{"name":"h","parameters":{"$defs":{"x":{"type":"string"},"y":{}}}}}]`))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := namedSchema(tools, "g"); err != nil || string(got) != `{"type":"object"}` {
		t.Errorf("%s %v", got, err)
	}
	if got, err := namedSchema(tools, "f"); err != nil || !strings.Contains(string(got), `"$ref":"#/$defs/x"`) || !strings.Contains(string(got), `"$defs"`) {
		t.Errorf("%s %v", got, err)
	}
	// Arguments are objects, whatever else a function's schema allows.
	for in, want := range map[string]string{
		`{"type":["object","null"]}`: `{"allOf":[{"type":["object","null"]},{"type":"object"}]}`,
		`{"anyOf":[{"$ref":"#/$defs/a"},{"type":"string"}],"$defs":{"a":{"type":"object"}}}`: `{"allOf":[{"anyOf":[{"$ref":"#/$defs/a"},{"type":"string"}]},{"type":"object"}],"$defs":{"a":{"type":"object"}}}`,
	} {
		if got, err := namedSchema([]tool{{"f", json.RawMessage(in)}}, "f"); err != nil || string(got) != want {
			t.Errorf("%s: %s %v, want %s", in, got, err, want)
		} else if _, err := grammar.Compile(grammar.JSONSchema, string(got)); err != nil {
			t.Errorf("%s: %v", got, err)
		}
	}
	// A root that is another one in a list of calls is refused; alone it is the same.
	root := []tool{{"f", json.RawMessage(`{"type":"object","properties":{"child":{"$ref":"#"},"$ref":{"type":"string"}}}`)}}
	if got, err := namedSchema(root, "f"); err != nil || string(got) != string(root[0].parameters) {
		t.Errorf("%s %v", got, err)
	}
	if _, err := requiredSchema(root, false); err == nil || !strings.Contains(err.Error(), `"#"`) {
		t.Errorf("a reference to the root: %v", err)
	}
	for in, want := range map[string]string{
		`{}`: `{"type":"object"}`, `{ "description": "d" }`: `{"type":"object","description": "d" }`, `{"$ref":"#"}`: `{"$ref":"#"}`, `{"type":"object"}`: `{"type":"object"}`,
	} {
		if got := string(tool{"f", json.RawMessage(in)}.schema()); got != want || !json.Valid([]byte(got)) {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	item := func(name, parameters string) string {
		return fmt.Sprintf(`{"type":"object","properties":{"name":{"enum":["%s"]},"parameters":%s},"required":["name","parameters"],"additionalProperties":false}`, name, parameters)
	}
	for _, single := range []bool{false, true} {
		got, err := requiredSchema(tools, single)
		want := `{"type":"array","minItems":1,"items":{"anyOf":[` + item("f", `{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}}}`) + `,` + item("g", `{"type":"object"}`) + `,` +
			item("h", `{"type":"object"}`) + `]}`
		if single {
			want += `,"maxItems":1`
		}
		if want += `,"$defs":{"x":{"type":"string"},"y":{}}}`; err != nil || string(got) != want {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
	tools[2].parameters = json.RawMessage(`{"$defs":{"x":{"type":"number"}}}`)
	if _, err := requiredSchema(tools, false); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("two definitions of one name: %v", err)
	}
	for _, x := range []struct {
		plan   toolPlan
		text   string
		finish string
		want   []gotCall
	}{
		{toolPlan{forced: "f"}, `{"a": 1}`, "stop", []gotCall{{"", "f", `{"a": 1}`}}},
		{toolPlan{require: true}, `[{"name":"f","parameters":{"a": 1}}, {"name": "g", "parameters": {}}]`, "tool_calls", []gotCall{{"", "f", `{"a": 1}`}, {"", "g", "{}"}}},
		{toolPlan{require: true, single: true}, `[{"name":"f","parameters":{"a": 1}}, {"name": "g", "parameters": {}}]`, "tool_calls", []gotCall{{"", "f", `{"a": 1}`}}},
	} {
		r := x.plan.reader()
		var c choice
		for i := range x.text {
			content, calls := r.read(x.text[i:i+1], i == len(x.text)-1)
			if content != "" {
				t.Errorf("%q is content", content)
			}
			c.add(calls)
		}
		var got []gotCall
		for _, one := range c.calls {
			if !callID.MatchString(one.id) {
				t.Errorf("the id %q", one.id)
			}
			got = append(got, gotCall{"", one.name, string(one.args)})
		}
		if !cmp.Equal(x.want, got) || r.finish("stop") != x.finish || r.finish("length") != "length" || r.finish("") != "" {
			t.Errorf("%+v, %q; want %+v, %q", got, r.finish("stop"), x.want, x.finish)
		}
	}
}
