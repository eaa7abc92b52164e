package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/infinite-llm/infinite/engine/model/bundled"
	"github.com/infinite-llm/infinite/engine/tokenizer"
	"github.com/infinite-llm/infinite/engine/toolcall"
)

// templated is the bundled model's tokenizer with a template of the tokenizer's test data.
func templated(t testing.TB, name string) *tokenizer.Tokenizer {
	t.Helper()
	return withTemplate(t, testTokenizer(t), name)
}

func withTemplate(t testing.TB, tok *tokenizer.Tokenizer, name string) *tokenizer.Tokenizer {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("../tokenizer/testdata/chat", name+".jinja"))
	if err != nil {
		t.Fatal(err)
	}
	tok, err = tok.WithChatTemplate(string(source))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// tooled is a chat with two functions.
func tooled(more obj) obj {
	b := chatBody(obj{"tools": []obj{
		{"type": "function", "function": obj{"name": "get_weather", "parameters": obj{"type": "object", "properties": obj{"city": obj{"type": "string"}}}}},
		{"type": "function", "function": obj{"name": "now"}},
	}})
	for k, v := range more {
		b[k] = v
	}
	return b
}

func wide(c *Config) { c.MaxModelLen = 1 << 20 }

// What a template does with tools is seen by what it writes.
func TestProbeTools(t *testing.T) {
	for name, want := range map[string]toolSupport{
		"qwen25": {true, true, toolcall.Hermes, false}, "qwen3": {true, true, toolcall.Hermes, false},
		"llama31": {true, true, toolcall.Llama3JSON, false}, "llama32": {true, true, toolcall.Llama3JSON, false},
		"mistral_v03": {true, true, toolcall.Mistral, false}, "mistral_v11": {true, true, toolcall.Mistral, false},
		"chatml": {unknown: true}, "llama2": {unknown: true}, "zephyr": {unknown: true}, "mistral_v01": {unknown: true},
		"gemma": {unknown: true}, "gemma3": {unknown: true}, "phi3": {unknown: true},
	} {
		if got := probeTools(templated(t, name), "auto"); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if got := probeTools(testTokenizer(t), ""); got != (toolSupport{unknown: true}) {
		t.Errorf("the bundled model: %+v", got)
	}
	qwen := templated(t, "qwen25")
	if got := probeTools(qwen, "mistral"); got.form != toolcall.Mistral || got.unknown {
		t.Errorf("with another parser: %+v", got)
	}
	if got := probeTools(qwen, "none"); got.form != "" || got.unknown || !got.offers {
		t.Errorf("without parser: %+v", got)
	}
}

func TestToolErrors(t *testing.T) {
	a := serveWith(t, templated(t, "qwen25"), scripted(tokens(5)...), wide, func(c *Config) { c.MaxBodySize = 4 << 20 })
	tools := func(list string) string {
		return `{"messages":[{"role":"user","content":"a"}],"tools":` + list + `}`
	}
	function := func(f string) string { return tools(`[{"type":"function","function":` + f + `}]`) }
	choice := func(c string) string {
		return `{"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":` + c + `}`
	}
	calls := func(list string) string {
		return `{"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":` + list + `}]}`
	}
	for _, x := range []struct{ name, body, param, words string }{
		{"no list", tools(`{"a":1}`), "tools", "list"},
		{"no object", tools(`[5]`), "tools", "tools[0]: it is not an object"},
		{"null", tools(`[null]`), "tools", "tools[0]"},
		{"no type", tools(`[{"function":{"name":"f"}}]`), "tools", "type"},
		{"another type", tools(`[{"type":"custom","custom":{"name":"f"}}]`), "tools", "type"},
		{"type of another type", tools(`[{"type":5,"function":{"name":"f"}}]`), "tools", "type"},
		{"no function", tools(`[{"type":"function"}]`), "tools", "no function"},
		{"function of another type", function(`"f"`), "tools", "no function"},
		{"no name", function(`{"description":"f"}`), "tools", "needs a name"},
		{"name", function(`{"name":"a b"}`), "tools", "needs a name"},
		{"name of another type", function(`{"name":5}`), "tools", "name"},
		{"long name", function(`{"name":"` + strings.Repeat("n", 129) + `"}`), "tools", "128"},
		{"description", function(`{"name":"f","description":5}`), "tools", "description"},
		{"strict", function(`{"name":"f","strict":"yes"}`), "tools", "strict"},
		{"parameters", function(`{"name":"f","parameters":[]}`), "tools", "not an object"},
		{"twice", tools(`[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]`), "tools", "tools[1]"},
		{"too many", tools(`[` + strings.TrimSuffix(strings.Repeat(`{},`, maxTools+1), ",") + `]`), "tools", "513"},
		{"too large", function(`{"name":"f","description":"` + strings.Repeat("a", maxToolBytes) + `"}`), "tools", "bytes"},
		{"too deep", function(`{"name":"f","parameters":{"a":` + strings.Repeat("[", 1200) + strings.Repeat("]", 1200) + `}}`), "messages", "deep"},
		{"also with none", `{"messages":[{"role":"user","content":"a"}],"tool_choice":"none","tools":[{}]}`, "tools", "type"},
		{"choice", choice(`"any"`), "tool_choice", "none, auto, required"},
		{"choice of another type", choice(`[5]`), "tool_choice", "none, auto, required"},
		{"choice of no function", choice(`{"type":"function"}`), "tool_choice", "none, auto, required"},
		{"choice of a function without a name", choice(`{"type":"function","function":{"name":""}}`), "tool_choice", "none, auto, required"},
		{"choice of some", choice(`{"type":"allowed_tools","allowed_tools":{}}`), "tool_choice", "none, auto, required"},
		{"choice of an unknown function", choice(`{"type":"function","function":{"name":"g"}}`), "tool_choice", `"g"`},
		{"a demand without tools", `{"messages":[{"role":"user","content":"a"}],"tool_choice":"required"}`, "tool_choice", "no"},
		{"a demand of a schema that cannot be used", `{"messages":[{"role":"user","content":"a"}],"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"nothing"}}}}}]}`, "tools", "parameters"},
		{"a demand of arguments that are no object", `{"messages":[{"role":"user","content":"a"}],"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"string"}}}]}`, "tools", "no text"},
		{"a demand and another form", `{"messages":[{"role":"user","content":"a"}],"guided_regex":"a+","tool_choice":"required","tools":[{"type":"function","function":{"name":"f"}}]}`, "tool_choice", "both"},
		{"parallel_tool_calls", `{"messages":[{"role":"user","content":"a"}],"parallel_tool_calls":5}`, "parallel_tool_calls", "true or false"},
		{"calls of another type", calls(`"x"`), "messages", "not a list"},
		{"call of another type", calls(`[5]`), "messages", "tool_calls[0]"},
		{"call without function", calls(`[{"id":"1","type":"function"}]`), "messages", "tool_calls[0]"},
		{"call without name", calls(`[{"id":"1","function":{"arguments":"{}"}}]`), "messages", "tool_calls[0]"},
		{"call with an id of another type", calls(`[{"id":1,"function":{"name":"f"}}]`), "messages", "tool_calls[0]"},
		{"call of another kind", calls(`[{"id":"1","type":"custom","function":{"name":"f"}}]`), "messages", "tool_calls[0]"},
		{"arguments", calls(`[{"id":"1","function":{"name":"f","arguments":5}}]`), "messages", "arguments"},
		{"too many calls", calls(`[` + strings.TrimSuffix(strings.Repeat(`{},`, maxCalls+1), ",") + `]`), "messages", "512"},
		{"calls of a user", `{"messages":[{"role":"user","content":"a","tool_calls":[{"function":{"name":"f"}}]}]}`, "messages", "role"},
		{"functions", `{"messages":[{"role":"user","content":"a"}],"functions":[{"name":"f"}]}`, "functions", "functions"},
		{"function_call", `{"messages":[{"role":"user","content":"a"}],"function_call":{"name":"f"}}`, "function_call", "function_call"},
	} {
		t.Run(x.name, func(t *testing.T) {
			wantError(t, a.post("/v1/chat/completions", x.body), 400, "BadRequestError", x.param, x.words)
			if !strings.HasPrefix(x.name, "parallel") && !strings.HasPrefix(x.name, "a demand ") || x.name == "a demand without tools" { // /tokenize generates nothing
				wantError(t, a.post("/tokenize", x.body), 400, "BadRequestError", x.param, x.words)
			}
		})
	}
}

// What a template or a parser cannot do is refused, whatever it is that cannot.
func TestToolsThatAreNotSupported(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), wide) // the bundled model's template shows neither tools nor calls
	wantError(t, a.post("/v1/chat/completions", tooled(nil).String()), 400, "BadRequestError", "tools", "chat template does not know tools")
	called := obj{"role": "assistant", "tool_calls": []obj{{"id": "1", "type": "function", "function": obj{"name": "f", "arguments": "{}"}}}}
	wantError(t, a.post("/v1/chat/completions", obj{"messages": []obj{called}}.String()), 400, "BadRequestError", "messages", "does not show")
	var out chatAnswer
	a.ok("/v1/chat/completions", tooled(obj{"tool_choice": "none"}).String(), &out)

	tok, err := testTokenizer(t).WithChatTemplate("{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}CALL {{ c.function.name }}{% endfor %}{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	b := scripted(says(t, `<tool_call>{"name":"f","arguments":{}}</tool_call>`)...)
	a = serveWith(t, tok, b, wide)
	wantError(t, a.post("/v1/chat/completions", tooled(nil).String()), 400, "BadRequestError", "tools", "--tool-call-parser")
	a.ok("/v1/chat/completions", obj{"messages": []obj{called}}.String(), &out)
	a = serveWith(t, tok, b, wide, func(c *Config) { c.ToolCallParser = "none" })
	a.ok("/v1/chat/completions", tooled(nil).String(), &out)
	if m := out.Choices[0].Message; len(m.Calls) != 0 || str(m.Content) != `<tool_call>{"name":"f","arguments":{}}</tool_call>` {
		t.Errorf("%+v", m)
	}
	a = serveWith(t, tok, b, wide, func(c *Config) { c.ToolCallParser = "hermes" })
	a.ok("/v1/chat/completions", tooled(nil).String(), &out)
	if m := out.Choices[0].Message; len(m.Calls) != 1 {
		t.Errorf("%+v", m)
	}
}

// A conversation with a call and its result comes to the model as transformers renders it; tools and arguments keep
// the order of their keys.
func TestToolConversation(t *testing.T) {
	b := scripted(tokens(5)...)
	tok := templated(t, "qwen25")
	a := serveWith(t, tok, b, wide)
	const messages = `{"role":"user","content":"Weather?"},
		{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"b\": 1.0, \"a\": \"é\"}"}},
			{"id":"call_2","type":"function","function":{"name":"g","arguments":{"z":1,"y":2}}}]},
		{"role":"tool","tool_call_id":"call_1","content":"{\"t\": 4}"},{"role":"tool","tool_call_id":"call_2","content":[{"type":"text","text":"5"}]}`
	const body = `{"messages":[` + messages + `],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"b":{},"a":{"default":1.0}}},"description":"<é>","strict":true}}]`
	const rest = "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n" +
		`{"name": "f", "arguments": {"b": 1.0, "a": "é"}}` + "\n</tool_call>\n<tool_call>\n" + `{"name": "g", "arguments": {"z": 1, "y": 2}}` +
		"\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n{\"t\": 4}\n</tool_response>\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
	var out chatAnswer
	a.ok("/v1/chat/completions", body+`}`, &out)
	got := tok.Decode(b.last(t).Prompt, false)
	const offer = `{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"b": {}, "a": {"default": 1.0}}}, "description": "<é>", "strict": true}}`
	if !strings.Contains(got, "<tools>\n"+offer+"\n</tools>") || !strings.HasSuffix(got, rest) {
		t.Errorf("%s", got)
	}
	var counted struct{ Count int }
	if err := json.Unmarshal(a.post("/tokenize", body+`}`).body, &counted); err != nil || counted.Count != len(b.last(t).Prompt) {
		t.Errorf("/tokenize counts %d tokens of %d: %v", counted.Count, len(b.last(t).Prompt), err)
	}
	// Without a choice the model does not see the tools.
	a.ok("/v1/chat/completions", body+`,"tool_choice":"none"}`, &out)
	if got := tok.Decode(b.last(t).Prompt, false); strings.Contains(got, "<tools>") || !strings.HasSuffix(got, rest) {
		t.Errorf("%s", got)
	}
	// Nor is anything looked for.
	b.setScript(scripted(says(t, `<tool_call>{"name":"f","arguments":{}}</tool_call>`)...).script)
	a.ok("/v1/chat/completions", body+`,"tool_choice":"none"}`, &out)
	if c := out.Choices[0]; len(c.Message.Calls) != 0 || !strings.Contains(str(c.Message.Content), "tool_call") || str(c.Finish) != "stop" {
		t.Errorf("%+v", c)
	}
}

// withTokens is the bundled model's tokenizer with special tokens from vocab on.
func withTokens(t testing.TB, contents ...string) *tokenizer.Tokenizer {
	t.Helper()
	raw, err := bundled.FS.ReadFile("tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	added := file["added_tokens"].([]any)
	for i, content := range contents {
		added = append(added, obj{"id": vocab + i, "content": content, "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false})
	}
	file["added_tokens"] = added
	if raw, err = json.Marshal(file); err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.LoadFS(fstest.MapFS{"tokenizer.json": {Data: raw}})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// The tokens that mark calls are special in some vocabularies; they reach the parser, and others are still left out.
func TestSpecialMarkers(t *testing.T) {
	tok := withTemplate(t, withTokens(t, "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[OTHER]"), "mistral_v11")
	ids := tok.Encode(`Yes.[OTHER][TOOL_CALLS]f[CALL_ID]abc[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}[OTHER]`, false)
	events := tokens(append(ids, eos)...)
	events[len(events)-1].Finish, events[len(events)-1].StopToken = "stop", eos
	a := serveWith(t, tok, scripted(events...), wide)
	var out chatAnswer
	a.ok("/v1/chat/completions", tooled(nil).String(), &out)
	m := out.Choices[0].Message
	if len(m.Calls) != 2 || str(m.Content) != "Yes." || m.Calls[0].Function.Arguments != `{"a": 1}` || str(m.Calls[1].Function.Name) != "g" {
		t.Fatalf("%+v", m)
	}
	if id := str(m.Calls[0].ID); len(id) != 9 || id == str(m.Calls[1].ID) {
		t.Errorf("the id %q is not one that Mistral's templates take", id)
	}
	a.ok("/v1/chat/completions", chatBody(nil).String(), &out) // without tools they are left out as ever
	if got := str(out.Choices[0].Message.Content); got != `Yes.fabc{"a": 1}g{}` {
		t.Errorf("%q", got)
	}
}

// FuzzTools reads any tools, choice and calls in messages. What is taken must have come to a prompt with the tools' names.
func FuzzTools(f *testing.F) {
	for _, x := range [][3]string{
		{`[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`, `"auto"`, `[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]`},
		{`[{"type":"function","function":{"name":"f"}}]`, `{"type":"function","function":{"name":"f"}}`, `[]`},
		{`[{"type":"function","function":{"name":"f","parameters":{"$defs":{"a":{}}}}},{"type":"function","function":{"name":"g"}}]`, `"required"`, `null`},
		{`[{}]`, `"none"`, `[{"function":{"name":"f","arguments":{}}}]`}, {`5`, `5`, `5`}, {`[null]`, `{"type":5}`, `[null]`}, {`[]`, `null`, `[{"function":null}]`},
	} {
		f.Add(x[0], x[1], x[2])
	}
	cfg := testConfig()
	wide(&cfg)
	s, err := New(cfg, templated(f, "qwen25"), scripted())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		s.cancel(nil)
		s.watcher.close()
	})
	f.Fuzz(func(t *testing.T, tools, choice, calls string) {
		var req chatRequest
		body := `{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"a","tool_calls":` + calls + `}],"tools":` + tools + `,"tool_choice":` + choice + `}`
		if decode([]byte(body), &req) != nil {
			return
		}
		asked := askedTools{req.Tools, req.ToolChoice}
		p, err := s.planChat(t.Context(), &req, nil)
		if err != nil {
			if e := asError(err); e.Status != 400 || e.Param == "" {
				t.Errorf("%s: refused with %d %s", body, e.Status, e.body())
			}
			return
		}
		offered, err := s.planTools(asked, true)
		if err != nil {
			t.Fatal(err)
		}
		if (p.jobs[0].calls != nil) != (offered.list != nil) {
			t.Errorf("%s: calls are looked for: %v", body, p.jobs[0].calls != nil)
		}
		if offered.list == nil {
			return
		}
		list, err := readTools(offered.list)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range list {
			if prompt := s.tok.Decode(p.jobs[0].req.Prompt, false); !strings.Contains(prompt, one.name) {
				t.Errorf("%s: %q is not in the prompt %q", body, one.name, prompt)
			}
		}
	})
}
