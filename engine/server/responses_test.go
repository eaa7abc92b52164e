package server

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/infinite-llm/infinite/engine/grammar"
)

// gotResponse has every field of a response; a test of its shape knows no others.
type gotResponse struct {
	ID           string                   `json:"id"`
	Object       string                   `json:"object"`
	Created      int64                    `json:"created_at"`
	Status       string                   `json:"status"`
	Background   *bool                    `json:"background"`
	Completed    *int64                   `json:"completed_at"`
	Error        *gotError                `json:"error"`
	Details      *struct{ Reason string } `json:"incomplete_details"`
	Instructions *string                  `json:"instructions"`
	MaxOutput    *int                     `json:"max_output_tokens"`
	MaxCalls     *int                     `json:"max_tool_calls"`
	Model        string                   `json:"model"`
	Output       []gotItem                `json:"output"`
	Parallel     bool                     `json:"parallel_tool_calls"`
	Previous     *string                  `json:"previous_response_id"`
	CacheKey     *string                  `json:"prompt_cache_key"`
	Reasoning    struct{ Effort, Summary *string }
	Safety       *string  `json:"safety_identifier"`
	Tier         string   `json:"service_tier"`
	Store        bool     `json:"store"`
	Temperature  *float64 `json:"temperature"`
	Text         struct {
		Format    map[string]any
		Verbosity string
	}
	Choice     any              `json:"tool_choice"`
	Tools      []map[string]any `json:"tools"`
	Top        int              `json:"top_logprobs"`
	TopP       *float64         `json:"top_p"`
	Truncation string           `json:"truncation"`
	Usage      *responseUsage   `json:"usage"`
	User       *string          `json:"user"`
	Metadata   map[string]string
	Placement  []SpanView `json:"kv_placement"`
}

type gotError struct{ Code, Message string }

type responseUsage struct {
	Input   int `json:"input_tokens"`
	Details struct {
		Cached  int `json:"cached_tokens"`
		Written int `json:"cache_write_tokens"`
	} `json:"input_tokens_details"`
	Output        int `json:"output_tokens"`
	OutputDetails struct {
		Reasoning int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	Total int `json:"total_tokens"`
}

type gotPart struct {
	Type        string         `json:"type"`
	Text        *string        `json:"text"`
	Refusal     *string        `json:"refusal"`
	Annotations []any          `json:"annotations"`
	Logprobs    []tokenLogprob `json:"logprobs"`
}

type tokenLogprob struct {
	Token   string         `json:"token"`
	Logprob float64        `json:"logprob"`
	Bytes   []int          `json:"bytes"`
	Top     []tokenLogprob `json:"top_logprobs"`
}

// gotItem is an item of any kind.
type gotItem struct {
	ID        string          `json:"id"`
	Type      string          `json:"type"`
	Status    string          `json:"status"`
	Role      string          `json:"role"`
	Content   []gotPart       `json:"content"`
	Summary   []gotPart       `json:"summary"`
	CallID    string          `json:"call_id"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Arguments *string         `json:"arguments"`
	Output    json.RawMessage `json:"output"`
}

// words are an item in short.
func (it gotItem) words() string {
	var texts []string
	for _, p := range slices.Concat(it.Summary, it.Content) {
		texts = append(texts, orDefault(p.Text, "")+orDefault(p.Refusal, ""))
	}
	return strings.Join([]string{it.Type, it.Status, it.Role, it.Name, orDefault(it.Arguments, ""), string(it.Output), strings.Join(texts, "|")}, ";")
}

func (r *gotResponse) words() (words []string) {
	for _, it := range r.Output {
		words = append(words, it.words())
	}
	return words
}

var (
	responseID = regexp.MustCompile(`^resp_[0-9a-f]{24}$`)
	itemID     = regexp.MustCompile(`^(msg|fc|fco|rs)_[0-9a-f]{24}$`)
)

func (a *api) response(body obj) (r gotResponse) {
	a.t.Helper()
	a.ok(responsesPath, body.String(), &r)
	return r
}

func TestResponse(t *testing.T) {
	b := scripted(says(t, "Hello 😀.")...)
	a := serve(t, b)
	r := a.response(obj{"input": "Hi"})
	if !responseID.MatchString(r.ID) || r.Object != "response" || r.Created == 0 || r.Status != "completed" || r.Completed == nil || r.Error != nil || r.Details != nil {
		t.Errorf("%+v", r)
	}
	if len(r.Output) != 1 || !itemID.MatchString(r.Output[0].ID) || r.Output[0].words() != "message;completed;assistant;;;;Hello 😀." || r.Output[0].Content[0].Type != "output_text" || r.Output[0].Content[0].Annotations == nil || r.Output[0].Content[0].Logprobs == nil {
		t.Errorf("%q %+v", r.words(), r.Output)
	}
	tokens := len(says(t, "Hello 😀."))
	if u := r.Usage; u == nil || u.Input == 0 || u.Output != tokens || u.Total != u.Input+u.Output {
		t.Errorf("usage %+v", r.Usage)
	}
	if r.Model != modelName || !r.Parallel || r.Previous != nil || !r.Store || *r.Temperature != 1 || *r.TopP != 1 || r.Choice != "auto" || r.Tools == nil || len(r.Tools) != 0 || r.Truncation != "disabled" ||
		r.Text.Format["type"] != "text" || r.Text.Verbosity != "medium" || r.Metadata == nil || r.Tier != "default" {
		t.Errorf("%+v", r)
	}
	if id := b.last(t).ID; id != r.ID+"-0" {
		t.Errorf("the engine's request is %q", id)
	}
}

// What a client asked for comes back in the answer, and goes to the engine as a chat's does.
func TestResponseEcho(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	r := a.response(obj{
		"input": "Hi", "instructions": "Be\nbrief.", "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.25, "metadata": obj{"a": "1", "b": "<é>"}, "user": "u", "safety_identifier": "s",
		"prompt_cache_key": "k", "service_tier": "flex", "store": false, "parallel_tool_calls": false, "truncation": "auto", "reasoning": obj{"effort": "low", "summary": "auto"},
		"text": obj{"format": obj{"type": "json_object"}, "verbosity": "low"}, "include": []string{"reasoning.encrypted_content"}, "model": "org/alias", "top_k": 3, "seed": 5, "background": false,
		"stream_options": nil, "unknown": 1, "return_kv_placement": true,
	})
	if str(r.Instructions) != "Be\nbrief." || *r.MaxOutput != 7 || *r.Temperature != 0.5 || *r.TopP != 0.25 || r.Metadata["b"] != "<é>" || str(r.User) != "u" || str(r.Safety) != "s" || str(r.CacheKey) != "k" ||
		r.Store || r.Parallel || r.Truncation != "auto" || str(r.Reasoning.Effort) != "low" || str(r.Reasoning.Summary) != "auto" || r.Text.Format["type"] != "json_object" || r.Text.Verbosity != "low" || r.Model != "org/alias" {
		t.Errorf("%+v", r)
	}
	if r.Status != "incomplete" || r.Details.Reason != "max_output_tokens" || r.Completed != nil || r.Output[0].Status != "incomplete" {
		t.Errorf("%s %+v %+v", r.Status, r.Details, r.Output)
	}
	req := b.last(t)
	if s := req.Sampling; s.TopK != 3 || s.Seed != 5 || s.Temperature != 0.5 || s.TopP != 0.25 || req.MaxTokens != 7 || req.Guide.Kind != grammar.JSONObject {
		t.Errorf("%+v", req)
	}
	r = a.response(obj{"input": "Hi", "text": obj{"format": obj{"type": "json_schema", "name": "n", "schema": obj{"type": "object"}}}})
	if diff := cmp.Diff(map[string]any{"type": "json_schema", "name": "n", "description": nil, "strict": true, "schema": map[string]any{"type": "object"}}, r.Text.Format); diff != "" {
		t.Error(diff)
	}
	if g := b.last(t).Guide; g.Kind != grammar.JSONSchema || g.Source != `{"type":"object"}` {
		t.Errorf("%+v", g)
	}
}

func message(role, content string) obj { return obj{"role": role, "content": content} }

func called(id, name, arguments string) obj {
	return obj{"type": "function_call", "call_id": id, "name": name, "arguments": arguments}
}

// Items make the prompt that the messages of a chat make.
func TestResponsePrompts(t *testing.T) {
	b := scripted(tokens(5)...)
	parts := func(kind string, texts ...string) (list []obj) {
		for _, text := range texts {
			list = append(list, obj{"type": kind, "text": text})
		}
		return list
	}
	chatCall := func(id, name, arguments string) obj {
		return obj{"id": id, "type": "function", "function": obj{"name": name, "arguments": arguments}}
	}
	result := func(id, text string) obj {
		return obj{"type": "function_call_output", "call_id": id, "output": text}
	}
	tool := func(id, text string) obj {
		return obj{"role": "tool", "tool_call_id": id, "content": text}
	}
	ask := message("user", "a")
	for _, x := range []struct {
		name     string
		body     obj
		messages []obj
	}{
		{"a string", obj{"input": "a"}, []obj{ask}},
		{"instructions", obj{"input": "a", "instructions": "i"}, []obj{message("system", "i"), ask}},
		{"a message by its role alone", obj{"input": []obj{ask}}, []obj{ask}},
		{"parts", obj{"input": []obj{{"type": "message", "role": "user", "content": parts("input_text", "a", "b")}}}, []obj{message("user", "a\nb")}},
		{"instructions, and what system and developer say", obj{"instructions": "i", "input": []obj{message("system", "s"), message("developer", "d"), ask, message("developer", "later")}},
			[]obj{message("system", "i\n\ns\n\nd"), ask, message("system", "later")}},
		{"turns", obj{"input": []obj{ask, {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": parts("output_text", "b")}, message("user", "c")}},
			[]obj{ask, message("assistant", "b"), message("user", "c")}},
		{"a refusal", obj{"input": []obj{ask, {"role": "assistant", "content": []obj{{"type": "refusal", "refusal": "no"}}}, ask}}, []obj{ask, message("assistant", "no"), ask}},
		{"a text and calls are one turn", obj{"input": []obj{ask, message("assistant", "b"), called("1", "f", `{"x": 1}`), called("2", "g", `{}`), result("1", "r"), result("2", "s")}},
			[]obj{ask, {"role": "assistant", "content": "b", "tool_calls": []obj{chatCall("1", "f", `{"x": 1}`), chatCall("2", "g", `{}`)}}, tool("1", "r"), tool("2", "s")}},
		{"a call alone, with a result of parts", obj{"input": []obj{ask, called("1", "f", `{}`), {"type": "function_call_output", "call_id": "1", "output": parts("input_text", "r", "s")}}},
			[]obj{ask, {"role": "assistant", "tool_calls": []obj{chatCall("1", "f", `{}`)}}, tool("1", "r\ns")}},
		{"a text behind calls", obj{"input": []obj{ask, called("1", "f", `{}`), message("assistant", "b"), result("1", "r")}},
			[]obj{ask, {"role": "assistant", "tool_calls": []obj{chatCall("1", "f", `{}`)}}, message("assistant", "b"), tool("1", "r")}},
		{"thoughts", obj{"input": []obj{ask, {"type": "reasoning", "summary": []obj{}, "content": parts("reasoning_text", "t")}, called("1", "f", `{}`), result("1", "r")}},
			[]obj{ask, {"role": "assistant", "reasoning": "t", "tool_calls": []obj{chatCall("1", "f", `{}`)}}, tool("1", "r")}},
		{"a summary, and what is encrypted", obj{"input": []obj{ask, {"type": "reasoning", "summary": []obj{}, "encrypted_content": "x"}, {"type": "reasoning", "summary": parts("summary_text", "t")}, message("assistant", ""), called("1", "f", `{}`), result("1", "r")}},
			[]obj{ask, {"role": "assistant", "reasoning": "t", "content": "", "tool_calls": []obj{chatCall("1", "f", `{}`)}}, tool("1", "r")}},
		{"thoughts that led to nothing", obj{"input": []obj{{"type": "reasoning", "summary": parts("summary_text", "t")}, ask, called("1", "f", `{}`), result("1", "r")}},
			[]obj{ask, {"role": "assistant", "tool_calls": []obj{chatCall("1", "f", `{}`)}}, tool("1", "r")}},
		{"template variables", obj{"input": "a", "chat_template_kwargs": obj{"enable_thinking": false}}, nil},
	} {
		a := serveWith(t, templated(t, "qwen3"), b, wide)
		chat := obj{"messages": x.messages}
		if x.messages == nil {
			chat = obj{"messages": []obj{ask}, "chat_template_kwargs": obj{"enable_thinking": false}}
		}
		a.json("/v1/chat/completions", chat, &struct{}{})
		want := b.last(t).Prompt
		a.response(x.body)
		if got := b.last(t).Prompt; !slices.Equal(got, want) {
			tok := testTokenizer(t)
			t.Errorf("%s:\n%s\nwant\n%s", x.name, tok.Decode(got, false), tok.Decode(want, false))
		}
	}
}

func TestResponseErrors(t *testing.T) {
	a := serveWith(t, templated(t, "qwen25"), scripted(tokens(5)...), func(c *Config) { c.MaxBodySize = 4 << 20 })
	with := func(field, value string) string { return fmt.Sprintf(`{"input":"a",%q:%s}`, field, value) }
	input := func(list string) string { return `{"input":` + list + `}` }
	content := func(part string) string { return input(`[{"role":"user","content":[` + part + `]}]`) }
	tool := func(t string) string { return with("tools", `[`+t+`]`) }
	const f = `{"type":"function","name":"f","parameters":{"type":"object"}}`
	choice := func(c string) string { return `{"input":"a","tools":[` + f + `],"tool_choice":` + c + `}` }
	metadata := `{`
	for i := range maxMetadata + 1 {
		metadata += fmt.Sprintf(`"%d":"",`, i)
	}
	metadata = strings.TrimSuffix(metadata, ",") + `}`
	cases := []struct{ body, param, words string }{
		{`{}`, "input", "needed"},
		{`{"input":null}`, "input", "needed"},
		{input(`5`), "input", "string or a list"},
		{input(`{}`), "input", "string or a list"},
		{input(`[]`), "input", "at least one"},
		{input(`[{"type":"reasoning","summary":[]}]`), "input", "at least one message"},
		{input(`[5]`), "input", "input[0]: it is not an object"},
		{input(`[null]`), "input", "input[0]: it is not an object"},
		{input(`["a"]`), "input", "input[0]: it is not an object"},
		{input(`[{}]`), "input", "neither type nor role"},
		{input(`[{"role":"tool","content":"a"}]`), "input", `"tool"`},
		{input(`[{"role":5,"content":"a"}]`), "input", "its role must be a string"},
		{input(`[{"role":"user"}]`), "input", "its content must be"},
		{input(`[{"role":"user","content":5}]`), "input", "its content must be"},
		{input(`[{"type":"web_search_call","id":"a"}]`), "input", `"web_search_call"`},
		{input(`[{"type":"custom_tool_call","call_id":"a"}]`), "input", `"custom_tool_call"`},
		{input(`[{"type":"item_reference"}]`), "input", "needs an id"},
		{input(`[{"type":"item_reference","id":"msg_1"}]`), "input", `"msg_1"`},
		{input(`[{"id":"msg_1"}]`), "input", `"msg_1"`},
		{input(`[{"type":"function_call","name":"f","arguments":"{}"}]`), "input", "call_id"},
		{input(`[{"type":"function_call","call_id":"a","arguments":"{}"}]`), "input", "name"},
		{input(`[{"type":"function_call","call_id":"a","name":"f"}]`), "input", "arguments"},
		{input(`[{"type":"function_call","call_id":"a","name":"f","arguments":{}}]`), "input", "its arguments must be a string"},
		{input(`[{"type":"function_call_output","output":"a"}]`), "input", "call_id"},
		{input(`[{"type":"function_call_output","call_id":"a"}]`), "input", "output"},
		{input(`[{"type":"function_call_output","call_id":"a","output":"b"}]`), "input", "no such function_call"},
		{input(`[{"type":"function_call_output","call_id":"a","output":[{"type":"input_image","image_url":"x"}]}]`), "input", `"input_image"`},
		{input(`[{"type":"reasoning","summary":5}]`), "input", "summary"},
		{input(`[{"type":"reasoning","content":[{"type":"input_text","text":"a"}]}]`), "input", `"input_text"`},
		{content(`{"type":"input_image","image_url":"x"}`), "input", `content[0] is of type "input_image"`},
		{content(`{"type":"input_file","file_id":"x"}`), "input", `"input_file"`},
		{content(`{"type":"input_audio"}`), "input", `"input_audio"`},
		{content(`{"type":"refusal","refusal":"x"}`), "input", `"refusal"`},
		{content(`{"type":"input_text"}`), "input", "no text"},
		{content(`{"text":"a"}`), "input", "type and text"},
		{content(`5`), "input", "type and text"},
		{content(`null`), "input", "type and text"},
		{input(`"` + strings.Repeat("a ", 2000) + `"`), "input", "maximum context length"},
		{input(`"` + strings.Repeat("a ", 200_000) + `"`), "input", "maximum context length"},
		{with("max_output_tokens", "0"), "max_output_tokens", "max_output_tokens must be"},
		{with("max_output_tokens", "100000"), "max_output_tokens", "maximum context length"},
		{with("temperature", "-1"), "temperature", "at least"},
		{with("top_logprobs", "2"), "top_logprobs", "include"},
		{`{"input":"a","top_logprobs":21,"include":["message.output_text.logprobs"]}`, "top_logprobs", "between"},
		{with("include", `["all"]`), "include", `"all"`},
		{with("include", `"message.output_text.logprobs"`), "include", "list"},
		{with("instructions", `[]`), "instructions", "string"},
		{with("model", `"nobody"`), "model", "nobody"},
		{with("n", "2"), "n", "n other than 1"},
		{with("prompt_logprobs", "1"), "prompt_logprobs", "not supported"},
		{with("return_token_ids", "true"), "return_token_ids", "not supported"},
		{with("stream_options", "{}"), "stream_options", "stream is true"},
		{with("background", "true"), "background", "not supported"},
		{with("conversation", `"conv_1"`), "conversation", "not supported"},
		{with("prompt", `{"id":"p"}`), "prompt", "not supported"},
		{with("max_tool_calls", "3"), "max_tool_calls", "not supported"},
		{with("context_management", `[{"type":"compaction"}]`), "context_management", "not supported"},
		{with("messages", `[{"role":"user","content":"a"}]`), "messages", "it is input"},
		{with("max_tokens", "5"), "max_tokens", "max_output_tokens"},
		{with("max_completion_tokens", "5"), "max_completion_tokens", "max_output_tokens"},
		{with("response_format", `{"type":"json_object"}`), "response_format", "text.format"},
		{with("reasoning_effort", `"low"`), "reasoning_effort", "reasoning.effort"},
		{with("logprobs", "true"), "logprobs", "include"},
		{with("functions", `[{"name":"f"}]`), "functions", "not supported"},
		{with("metadata", metadata), "metadata", "17"},
		{with("metadata", `{"a":"`+strings.Repeat("é", 513)+`"}`), "metadata", "512"},
		{with("metadata", `{"`+strings.Repeat("é", 65)+`":""}`), "metadata", "64"},
		{with("metadata", `{"a":5}`), "metadata", "string"},
		{with("store", `"yes"`), "store", "true or false"},
		{with("truncation", `"some"`), "truncation", "auto or disabled"},
		{with("previous_response_id", `"resp_1"`), "previous_response_id", "resp_1"},
		{with("previous_response_id", `""`), "previous_response_id", "not found"},
		{with("previous_response_id", `5`), "previous_response_id", "string"},
		{with("reasoning", `{"effort":"huge"}`), "reasoning.effort", "reasoning.effort must be one of"},
		{with("reasoning", `{"effort":""}`), "reasoning.effort", "empty"},
		{with("reasoning", `{"summary":"long"}`), "reasoning.summary", "concise"},
		{with("reasoning", `"low"`), "reasoning", "object"},
		{with("text", `{"verbosity":"huge"}`), "text.verbosity", "low, medium or high"},
		{with("text", `{"format":{"type":"xml"}}`), "text.format", "text.format of a type"},
		{with("text", `{"format":{"type":5}}`), "text.format.type", "string"},
		{with("text", `{"format":{"type":"json_schema","schema":{}}}`), "text.format", "name"},
		{with("text", `{"format":{"type":"json_schema","name":"n"}}`), "text.format", "schema"},
		{with("text", `{"format":{"type":"json_schema","name":"n","schema":"{}"}}`), "text.format", "schema"},
		{with("text", `{"format":{"type":"json_schema","name":"n","schema":{"type":"object","properties":{"a":{"type":"x"}}}}}`), "text.format", "cannot use text.format: $.properties.a"},
		{`{"input":"a","guided_regex":"a","text":{"format":{"type":"json_object"}}}`, "guided_regex", "only one form"},
		{with("tools", `{"a":1}`), "tools", "list"},
		{tool(`5`), "tools", "tools[0]"},
		{tool(`null`), "tools", "tools[0]"},
		{tool(`{"type":"function","name":"f","parameters":[]}`), "tools", "not an object"},
		{tool(`{"type":"function"}`), "tools", "needs a name"},
		{tool(`{"type":"function","name":"f","strict":5}`), "tools", "strict"},
		{tool(`{"type":"function","function":{"name":"f"}}`), "tools", "needs a name"},
		{tool(f + "," + f), "tools", "tools[1]"},
		{choice(`"any"`), "tool_choice", "allowed_tools"},
		{choice(`{"type":"function","name":"g"}`), "tool_choice", `"g"`},
		{choice(`{"type":"function","function":{"name":"f"}}`), "tool_choice", "allowed_tools"},
		{choice(`{"type":"file_search"}`), "tool_choice", `"file_search"`},
		{choice(`{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"g"}]}`), "tool_choice", `"g"`},
		{choice(`{"type":"allowed_tools","mode":"auto","tools":[{"type":"mcp"}]}`), "tool_choice", "tools[0]"},
		{choice(`{"type":"allowed_tools","mode":"none","tools":[{"type":"function","name":"f"}]}`), "tool_choice", "allowed_tools"},
		{with("tool_choice", `"required"`), "tool_choice", "there are none"},
		{`{"input":"a","tool_choice":"required","tools":[{"type":"function","name":"f","parameters":{"type":"object","properties":{"a":{"type":"nothing"}}}}]}`, "tools", "tools[0].parameters.properties.a"},
	}
	for _, kind := range []string{"web_search", "web_search_preview", "file_search", "computer_use_preview", "code_interpreter", "mcp", "image_generation", "local_shell", "custom"} {
		cases = append(cases, struct{ body, param, words string }{tool(f + `,{"type":"` + kind + `"}`), "tools", "tools[1]: a tool of type \"" + kind + `"`})
	}
	for _, x := range cases {
		for _, stream := range []bool{false, true} {
			body := x.body
			if stream {
				if strings.Contains(body, "stream_options") {
					continue
				}
				body = strings.TrimSuffix(body, "}") + `,"stream":true}`
				body = strings.Replace(body, "{,", "{", 1)
			}
			status, kind := 400, "BadRequestError"
			if x.param == "model" {
				status, kind = 404, "NotFoundError"
			}
			wantError(t, a.post(responsesPath, body), status, kind, x.param, x.words)
		}
	}
	if got, want := a.counters()[`infinite_request_failures_total{code="400",path="/v1/responses"}`], fmt.Sprint(2*len(cases)-3); got != want {
		t.Errorf("%s failures counted, want %s", got, want)
	}
}

// The end of a call and what follows it may come in one token: each goes where it belongs.
func TestCallEndsInAToken(t *testing.T) {
	tok := withTemplate(t, withTokens(t, "}}."), "llama31")
	ids := append(tok.Encode(`{"name":"now","parameters":{"a":1`, false), vocab, eos)
	events := tokens(ids...)
	events[len(events)-1].Finish, events[len(events)-1].StopToken = "stop", eos
	a := serveWith(t, tok, scripted(events...), wide)
	r := a.response(asking(obj{"skip_special_tokens": false}))
	if got := r.words(); len(got) != 2 || !strings.Contains(got[0], `;{"a":1};`) || !strings.HasSuffix(got[1], ";.") {
		t.Errorf("%q", got)
	}
}

// Log probabilities are those of the message: also of tokens whose text came later, and none of a call's.
func TestLogprobsBesideThoughtsAndCalls(t *testing.T) {
	asks := obj{"include": []string{"message.output_text.logprobs"}}
	for _, c := range []struct{ text, stop, said string }{
		{"<think>Hm</think>🦪 yes", "", "🦪 yes"},
		{"<think>Hm</think>Yes, it is", "Yes, it was", "Yes, it is"},
		{"Let me see.<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": 1}}\n</tool_call>", "", "Let me see."},
	} {
		a := serveWith(t, templated(t, "qwen3"), scripted(withLogprobs(says(t, c.text), nil)...), wide)
		if asks["stop"] = c.stop; c.stop == "" {
			delete(asks, "stop")
		}
		r := bothResponses(t, a, asking(asks))
		for _, it := range r.Output {
			if it.Type != "message" {
				continue
			}
			var said []byte
			for _, l := range it.Content[0].Logprobs {
				for _, b := range l.Bytes {
					said = append(said, byte(b))
				}
			}
			// A token may hold the end of thoughts as well, or the beginning of a call.
			if text := strings.TrimSuffix(string(said), "<|eot_id|>"); !strings.HasSuffix(text, c.said) && !strings.HasPrefix(text, c.said) || len(text) > len(c.said)+len("</think>") {
				t.Errorf("%q: the tokens say %q", c.said, said)
			}
		}
	}
}
