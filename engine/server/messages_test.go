package server

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// gotMessage has every field of a whole answer.
type gotMessage struct {
	ID           string            `json:"id"`
	Type         string            `json:"type"`
	Role         string            `json:"role"`
	Model        string            `json:"model"`
	Content      []gotBlock        `json:"content"`
	StopReason   *string           `json:"stop_reason"`
	StopSequence *string           `json:"stop_sequence"`
	Usage        gotMessageUsage   `json:"usage"`
	Placement    []engine.SpanInfo `json:"kv_placement"`
}

type gotMessageUsage struct {
	Input   int `json:"input_tokens"`
	Written int `json:"cache_creation_input_tokens"`
	Read    int `json:"cache_read_input_tokens"`
	Output  int `json:"output_tokens"`
	Details struct {
		Thinking int `json:"thinking_tokens"`
	} `json:"output_tokens_details"`
}

type gotBlock struct {
	Type      string          `json:"type"`
	Text      *string         `json:"text"`
	Thinking  *string         `json:"thinking"`
	Signature *string         `json:"signature"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
}

// words are the blocks in short.
func (m gotMessage) words() (words []string) {
	for _, b := range m.Content {
		word := b.Type + ";" + orDefault(b.Text, "") + orDefault(b.Thinking, "") + b.Name
		if b.Type == "tool_use" {
			word += string(b.Input)
		}
		words = append(words, word)
	}
	return words
}

func (a *api) message(body obj) (m gotMessage) {
	a.t.Helper()
	a.ok(messagesPath, body.String(), &m)
	return m
}

// saying is a request that says one thing.
func saying(text string, more obj) obj {
	b := obj{"max_tokens": 100, "messages": []obj{{"role": "user", "content": text}}}
	for k, v := range more {
		b[k] = v
	}
	return b
}

// wantMessageError checks the status, Anthropic's error shape, the type, and words of the message.
func wantMessageError(t *testing.T, r reply, status int, kind string, words ...string) {
	t.Helper()
	var body struct {
		Type      string           `json:"type"`
		Error     *gotMessageError `json:"error"`
		RequestID string           `json:"request_id"`
	}
	if r.status != status || r.header.Get("Content-Type") != "application/json" {
		t.Fatalf("status %d, want %d: %v %s", r.status, status, r.header, r.body)
	}
	strict(t, r.body, &body)
	if body.Type != "error" || body.Error.Type != kind || !strings.HasPrefix(body.RequestID, "req_") || r.header.Get("Request-Id") != body.RequestID {
		t.Errorf("%s %v, want %s", r.body, r.header, kind)
	}
	for _, w := range words {
		if !strings.Contains(body.Error.Message, w) {
			t.Errorf("message %q does not have %q", body.Error.Message, w)
		}
	}
}

func TestMessage(t *testing.T) {
	events := says(t, "Hello 😀.\n\"end\"")
	events[0].Cached = 2
	b := scripted(events...)
	a := serve(t, b)
	m := bothMessages(t, a, saying("Hi", obj{
		"model": "org/alias", "system": "Be\nbrief.", "temperature": 0.5, "top_p": 0.9, "top_k": 7, "metadata": obj{"user_id": "u"}, "service_tier": "auto",
		"nobody_knows": 1, "seed": 5, "context_management": obj{"edits": []obj{{"type": "clear_thinking_20251015", "keep": "all"}}}, "speed": "standard",
	}))
	if !regexp.MustCompile(`^msg_[0-9a-f]{24}$`).MatchString(m.ID) || m.Type != "message" || m.Role != "assistant" || m.Model != "org/alias" || !slices.Equal(m.words(), []string{"text;Hello 😀.\n\"end\""}) {
		t.Errorf("%+v %q", m, m.words())
	}
	req := b.last(t)
	if u := m.Usage; u.Input != len(req.Prompt)-2 || u.Read != 2 || u.Written != 0 || u.Output != len(events) || u.Details.Thinking != 0 || *m.StopReason != "end_turn" || m.StopSequence != nil {
		t.Errorf("%+v of %d tokens", m, len(req.Prompt))
	}
	if s := req.Sampling; s.Temperature != 0.5 || s.TopP != 0.9 || s.TopK != 7 || req.MaxTokens != 100 || req.Sampling.Seed != 5 {
		t.Errorf("%+v", req)
	}
	r := a.do("POST", messagesPath+"?beta=true", saying("a", nil).String(), "X-Request-Id", "mine", "Anthropic-Version", "2023-06-01", "Anthropic-Beta", "a,b")
	if strict(t, r.body, &m); m.ID != "msg_mine" || r.header.Get("Request-Id") != "req_mine" || b.last(t).ID != "msg_mine-0" || r.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("%s %v", r.body, r.header)
	}
}

// Why an answer ended.
func TestMessageStops(t *testing.T) {
	long := tokens(testTokenizer(t).Encode("Hello there", false)...)
	b := scripted()
	a := serve(t, b)
	room := func(body obj) obj { body["max_tokens"] = 10 * maxLen; return body }
	for _, x := range []struct {
		events                []engine.Event
		body                  obj
		words, stop, sequence string
	}{
		{says(t, "Hello"), saying("a", nil), "text;Hello", "end_turn", ""},
		{says(t, ""), saying("a", nil), "text;", "end_turn", ""},
		{long, saying("a", nil), "text;Hello there", "max_tokens", ""},
		{long, room(saying("a", nil)), "text;Hello there", "model_context_window_exceeded", ""},
		{says(t, "Hello"), room(saying("a", nil)), "text;Hello", "end_turn", ""},
		{says(t, "Hello there"), saying("a", obj{"stop_sequences": []string{"x", "lo t"}}), "text;Hel", "stop_sequence", "lo t"},
		{long, saying("a", obj{"stop_sequences": []string{"Hell"}}), "text;", "stop_sequence", "Hell"},
	} {
		b.setScript(scripted(x.events...).script)
		m := bothMessages(t, a, x.body)
		if m.words()[0] != x.words || *m.StopReason != x.stop || orDefault(m.StopSequence, "") != x.sequence {
			t.Errorf("%q %s %q, want %+v", m.words(), *m.StopReason, orDefault(m.StopSequence, ""), x)
		}
	}
	if r := b.last(t); r.MaxTokens != 100 {
		t.Errorf("%d tokens", r.MaxTokens)
	}
	b.setScript(scripted(says(t, "a")...).script)
	a.message(room(saying("a", nil)))
	if r := b.last(t); r.MaxTokens != maxLen-len(r.Prompt) {
		t.Errorf("%d tokens behind %d", r.MaxTokens, len(r.Prompt))
	}
}

func TestMessageForm(t *testing.T) {
	b := scripted(says(t, `{"a":1}`)...)
	a := serve(t, b)
	format := obj{"type": "json_schema", "schema": obj{"type": "object", "properties": obj{"a": obj{"type": "integer"}}, "required": []string{"a"}}}
	for _, body := range []obj{saying("a", obj{"output_config": obj{"format": format, "effort": "high"}}), saying("a", obj{"output_format": format})} {
		m := bothMessages(t, a, body)
		if g := b.last(t).Guide; g.Kind != grammar.JSONSchema || !strings.Contains(g.Source, `"integer"`) || m.words()[0] != `text;{"a":1}` {
			t.Errorf("%+v %q", g, m.words())
		}
	}
}

// Every refusal has Anthropic's shape, and speaks of what the client wrote.
func TestMessageErrors(t *testing.T) {
	a := serveWith(t, templated(t, "qwen3"), scripted())
	use := obj{"type": "tool_use", "id": "1", "name": "f", "input": obj{}}
	image := obj{"type": "image", "source": obj{"type": "base64", "media_type": "image/png", "data": ""}}
	said := func(messages ...obj) obj { return obj{"max_tokens": 5, "messages": messages} }
	user := func(content any) obj { return obj{"role": "user", "content": content} }
	assistant := func(content any) obj { return obj{"role": "assistant", "content": content} }
	tool := func(t obj) obj { return saying("a", obj{"tools": []obj{t}}) }
	for _, x := range []struct {
		body  obj
		words []string
	}{
		{obj{"messages": []obj{user("a")}}, []string{"max_tokens is needed"}},
		{saying("a", obj{"max_tokens": 0}), []string{"max_tokens", "at least 1"}},
		{saying("a", obj{"max_tokens": "many"}), []string{"max_tokens"}},
		{obj{"max_tokens": 5}, []string{"messages must be a list"}},
		{obj{"max_tokens": 5, "messages": []obj{}}, []string{"at least one message"}},
		{obj{"max_tokens": 5, "messages": []obj{}, "system": "a"}, []string{"at least one message of a user's"}},
		{obj{"max_tokens": 5, "messages": []obj{{"role": "assistant", "content": ""}}, "system": "a"}, []string{"at least one message of a user's"}},
		{obj{"max_tokens": 5, "messages": []obj{user("a"), {"role": "assistant", "content": "{"}},
			"output_config": obj{"format": obj{"type": "json_schema", "schema": obj{"type": "object"}}}}, []string{"cannot be gone on with"}},
		{obj{"max_tokens": 5, "messages": []obj{user("a"), {"role": "assistant", "content": "{"}},
			"tools": []obj{{"name": "f", "input_schema": obj{"type": "object"}}}, "tool_choice": obj{"type": "any"}}, []string{"cannot be gone on with"}},
		{obj{"max_tokens": 5, "messages": "a"}, []string{"messages must be a list"}},
		{said(obj{"role": "tool", "content": "a"}), []string{"messages[0]", `"tool"`}},
		{said(obj{"content": "a"}), []string{"messages[0]", "role"}},
		{said(user(nil)), []string{"messages[0]", "content"}},
		{said(user(5)), []string{"messages[0]", "content"}},
		{said(user("a"), assistant("b"), user([]any{"c"})), []string{"messages[2]", "content[0]", "object"}},
		{said(user([]obj{{"type": "text"}})), []string{"messages[0]", "content[0]", "no text"}},
		{said(user([]obj{{"type": "text", "text": 5}})), []string{"content[0]", "text", "string"}},
		{said(user([]obj{{"text": "a"}})), []string{"content[0]", "type"}},
		{said(user([]obj{{"type": "text", "text": "a"}, image})), []string{"content[1]", `"image"`, "text"}},
		{said(user([]obj{{"type": "document", "source": obj{}}})), []string{`"document"`}},
		{said(user([]obj{use})), []string{"messages[0]", `"tool_use"`}},
		{said(user("a"), assistant([]obj{image})), []string{"messages[1]", `"image"`}},
		{said(user([]obj{{"type": "tool_result", "tool_use_id": "9", "content": "a"}})), []string{"content[0]", "tool_result", `"9"`}},
		{said(user("a"), assistant([]obj{use}), user([]obj{{"type": "tool_result", "tool_use_id": "1", "content": []obj{image}}})), []string{"messages[2]", "content[0]", `"image"`}},
		{said(user("a"), assistant([]obj{{"type": "tool_use", "id": "1", "name": "f", "input": "{}"}})), []string{"messages[1]", "input"}},
		{said(user("a"), assistant([]obj{{"type": "tool_use", "name": "f", "input": obj{}}})), []string{"messages[1]", "id"}},
		{said(user("a"), assistant([]obj{{"type": "thinking"}})), []string{"messages[1]", "thinking"}},
		{said(user("a"), assistant([]obj{use})), []string{"last message", "tool_result"}},
		{said(user("a"), assistant([]obj{{"type": "thinking", "thinking": "a", "signature": ""}})), []string{"last message", "thoughts"}},
		{said(user("a"), assistant("b ")), []string{"last message", "whitespace"}},
		{said(user("a"), assistant([]obj{{"type": "text", "text": "\u00a0"}})), []string{"last message", "whitespace"}},
		{saying("a", obj{"system": []obj{image}}), []string{"system[0]", `"image"`}},
		{saying("a", obj{"system": 5}), []string{"system"}},
		{tool(obj{"type": "web_search_20250305", "name": "web_search"}), []string{"tools[0]", "web_search_20250305"}},
		{tool(obj{"type": "bash_20250124", "name": "bash"}), []string{"tools[0]", "bash_20250124"}},
		{tool(obj{"name": "f"}), []string{"tools[0]", "input_schema"}},
		{tool(obj{"name": "a b", "input_schema": obj{}}), []string{"tools[0]: it needs a name"}},
		{saying("a", obj{"tools": []obj{{"name": "f", "input_schema": obj{}}, {"name": "f", "input_schema": obj{}}}}), []string{"tools[1]: it has the name"}},
		{saying("a", obj{"tools": 5}), []string{"tools"}},
		{saying("a", obj{"tool_choice": obj{"type": "any"}}), []string{"tool_choice", "tools"}},
		{saying("a", obj{"tool_choice": "any"}), []string{"tool_choice must be"}},
		{using(obj{"tool_choice": obj{"type": "tool", "name": "g"}}), []string{"tool_choice", `"g"`}},
		{using(obj{"tool_choice": obj{"type": "tool"}}), []string{"tool_choice must be"}},
		{saying("a", obj{"tools": []obj{{"name": "f", "input_schema": obj{"type": "object", "properties": obj{"a": obj{"not": obj{}}}}}}, "tool_choice": obj{"type": "any"}}), []string{"tools[0].input_schema.properties.a.not"}},
		{saying("a", obj{"stop_sequences": []string{""}}), []string{"stop_sequences"}},
		{saying("a", obj{"stop_sequences": "a"}), []string{"stop_sequences"}},
		{saying("a", obj{"stop": "a"}), []string{"stop_sequences"}},
		{saying("a", obj{"temperature": -1}), []string{"temperature"}},
		{saying("a", obj{"top_p": 2}), []string{"top_p"}},
		{saying("a", obj{"n": 2}), []string{"n other than 1"}},
		{saying("a", obj{"thinking": obj{"type": "between_tools"}}), []string{"thinking.type", "between_tools"}},
		{saying("a", obj{"thinking": obj{"type": "enabled", "budget_tokens": "x"}}), []string{"thinking.budget_tokens"}},
		{saying("a", obj{"thinking": obj{"type": "enabled", "display": "x"}}), []string{"thinking.display"}},
		{saying("a", obj{"output_config": obj{"effort": "x"}}), []string{"output_config.effort"}},
		{saying("a", obj{"output_config": obj{"format": obj{"type": "text"}}}), []string{"output_config.format"}},
		{saying("a", obj{"output_format": obj{"type": "json_schema"}}), []string{"output_format", "schema"}},
		{saying("a", obj{"output_config": obj{"format": obj{"type": "json_schema", "schema": obj{"not": obj{}}}}}), []string{"cannot use output_config.format", "$.not"}},
		{saying("a", obj{"output_format": obj{}, "output_config": obj{"format": obj{}}}), []string{"both"}},
		{saying("a", obj{"response_format": obj{"type": "json_object"}}), []string{"output_config.format"}},
		{saying("a", obj{"container": "c"}), []string{"container"}},
		{saying("a", obj{"compaction": obj{"type": "auto"}}), []string{"compaction"}},
		{saying("a", obj{"mcp_servers": []obj{{"name": "m"}}}), []string{"mcp_servers"}},
		{saying(strings.Repeat("word ", maxLen), nil), []string{"prompt is too long: ", " tokens > 511 maximum. ", "Please shorten"}},
		{saying(strings.Repeat("a", 60000), nil), []string{"prompt is too long: ", " tokens > 511 maximum. ", "at least"}},
	} {
		wantMessageError(t, a.post(messagesPath, x.body.String()), 400, "invalid_request_error", x.words...)
	}
	for body, words := range map[string]string{"": "empty", "[]": "object", "{": "JSON", "\"\xff\"": "UTF-8", `{"max_tokens":5,"messages":[null]}`: "messages[0]"} {
		wantMessageError(t, a.post(messagesPath, body), 400, "invalid_request_error", words)
	}
	wantMessageError(t, a.post(messagesPath, saying("a", obj{"model": "gpt"}).String()), 404, "not_found_error", "`gpt`")
	for _, thread := range []obj{{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}} {
		r := a.post(messagesPath, saying("a", obj{"thread": thread}).String())
		const details = `,"details":{"error_code":"thread_unsupported_request","unsupported":["thread"]}`
		if !strings.Contains(string(r.body), details) {
			t.Errorf("%s", r.body)
		}
		r.body = []byte(strings.Replace(string(r.body), details, "", 1))
		wantMessageError(t, r, 400, "invalid_request_error", "thread")
	}
	plain := serve(t, scripted())
	wantMessageError(t, plain.post(messagesPath, tool(obj{"name": "f", "input_schema": obj{}}).String()), 400, "invalid_request_error", "does not know tools")
}

// So have those that come before the handler, and other APIs keep theirs.
func TestMessageProtocolErrors(t *testing.T) {
	b := scripted(says(t, "a")...)
	a := serve(t, b, func(c *Config) { c.APIKey = "secret"; c.MaxBodySize = 1000 })
	key := []string{"X-Api-Key", "secret"}
	body := saying("a", nil).String()
	for _, path := range []string{messagesPath, messagesPath + "/count_tokens"} {
		for _, h := range [][]string{nil, {"X-Api-Key", ""}, {"X-Api-Key", "secrets"}, {"Authorization", "Bearer wrong"}, {"Authorization", "secret"}} {
			wantMessageError(t, a.do("POST", path, body, h...), 401, "authentication_error", "key")
		}
		for _, h := range [][]string{key, {"Authorization", "Bearer secret"}, {"X-Api-Key", "other", "Authorization", "Bearer secret"}, {"X-Api-Key", "secret", "Authorization", "Bearer other"}} {
			if r := a.do("POST", path, body, h...); r.status != 200 {
				t.Errorf("%v: %d %s", h, r.status, r.body)
			}
		}
		wantMessageError(t, a.do("GET", path, "", key...), 405, "invalid_request_error", "GET")
		wantMessageError(t, a.do("POST", path, saying(strings.Repeat("a", 1000), nil).String(), key...), 413, "request_too_large", "1000")
	}
	wantMessageError(t, a.do("POST", messagesPath+"/batches", "{}", key...), 404, "not_found_error", "/v1/messages/batches")
	wantError(t, a.do("POST", "/v1/messages2", "{}", key...), 404, "NotFoundError", "")
	wantError(t, a.do("POST", chatPath, "{}", append(key, "Anthropic-Version", "2023-06-01")...), 400, "BadRequestError", "messages")
	if r := a.do("GET", "/v1/models", "", key...); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	b.setCapacity(0)
	wantMessageError(t, a.do("POST", messagesPath, body, key...), 503, "overloaded_error")
	counters := a.counters()
	for code, want := range map[string]string{"401": "5", "405": "", "413": "1", "503": "1"} {
		if got := counters[`infinite_request_failures_total{code="`+code+`",path="/v1/messages"}`]; got != want {
			t.Errorf("%s failures with %s, want %s", got, code, want)
		}
	}
}

// A client of Anthropic's gets its list of models, all others OpenAI's.
func TestMessageModels(t *testing.T) {
	a := serve(t, scripted(), func(c *Config) { c.ModelNames = []string{"a", "b/c", "d"} })
	version := []string{"Anthropic-Version", "2023-06-01"}
	type page struct {
		Data    []modelInfo `json:"data"`
		HasMore bool        `json:"has_more"`
		FirstID *string     `json:"first_id"`
		LastID  *string     `json:"last_id"`
	}
	for query, want := range map[string]struct {
		ids  string
		more bool
	}{
		"": {"a,b/c,d", false}, "?limit=2": {"a,b/c", true}, "?limit=2&after_id=b/c": {"d", false}, "?after_id=d": {"", false}, "?limit=3": {"a,b/c,d", false},
		"?limit=1&before_id=d": {"b/c", true}, "?before_id=b/c": {"a", false}, "?limit=1&after_id=a": {"b/c", true},
	} {
		var got page
		strict(t, a.do("GET", "/v1/models"+query, "", version...).body, &got)
		var ids []string
		for _, m := range got.Data {
			if _, err := time.Parse(time.RFC3339, m.Created); err != nil || m.Type != "model" || m.Name != m.ID || m.Lifecycle != "active" || m.MaxInput != maxLen || m.MaxTokens != maxLen {
				t.Errorf("%+v", m)
			}
			ids = append(ids, m.ID)
		}
		if strings.Join(ids, ",") != want.ids || got.HasMore != want.more || len(ids) > 0 && (*got.FirstID != ids[0] || *got.LastID != ids[len(ids)-1]) || len(ids) == 0 && (got.FirstID != nil || got.Data == nil) {
			t.Errorf("%s: %+v", query, got)
		}
	}
	for _, query := range []string{"?limit=0", "?limit=x", "?limit=1001", "?after_id=x", "?before_id=x"} {
		wantMessageError(t, a.do("GET", "/v1/models"+query, "", version...), 400, "invalid_request_error")
	}
	var one modelInfo
	if strict(t, a.do("GET", "/v1/models/b%2Fc", "", version...).body, &one); one.ID != "b/c" {
		t.Errorf("%+v", one)
	}
	wantMessageError(t, a.do("GET", "/v1/models/x", "", version...), 404, "not_found_error", "`x`")
}

func FuzzMessages(f *testing.F) {
	for _, s := range []string{
		`{"max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}`, `{"max_tokens":5,"system":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b"}]}`,
		`{"max_tokens":5,"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"thoughts.SG0"},{"type":"tool_use","id":"1","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","is_error":true,"content":[{"type":"text","text":"x"}]}]}]}`,
		`{"max_tokens":9223372036854775807,"messages":[{"role":"system","content":"a"},{"role":"user","content":"b"},{"role":"system","content":"c"}],"thinking":{"type":"enabled","budget_tokens":1024}}`,
		`{"max_tokens":5,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"f","input_schema":{"type":"object"}}],"tool_choice":{"type":"any","disable_parallel_tool_use":true}}`,
		`{"max_tokens":1,"messages":[{"role":"user","content":[]}],"stop_sequences":["a",null],"output_config":{"effort":"low","format":{"type":"json_schema","schema":{"type":"object"}}}}`,
		`{"max_tokens":5,"messages":[null]}`, `{"max_tokens":5,"messages":[{"role":"user","content":[null]}],"system":null}`, `{"max_tokens":5,"messages":[{"role":"user","content":"\ud800"}]}`,
	} {
		f.Add([]byte(s))
	}
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		var req messageRequest
		if err := decode(body, &req); err != nil {
			checkPlan(t, nil, err)
			return
		}
		counted := req
		n, countErr := s.countMessage(&counted)
		p, err := s.planMessage(t.Context(), &req, nil)
		if checkPlan(t, p, err); err != nil {
			if b := asError(err).messageBody("req_1"); !json.Valid(b) || strings.Contains(string(b), "\n") {
				t.Errorf("%s", b)
			}
			return
		}
		if countErr != nil || n != p.promptTokens && req.TruncatePrompt == nil {
			t.Errorf("%d tokens are counted (%v), there are %d", n, countErr, p.promptTokens)
		}
		m := p.own.(*messageAnswer)
		for _, d := range []delta{{text: "a", ids: []int32{5}}, {calls: []callDelta{{id: "call_1", name: "f", args: "{\n"}}}, {finish: "stop"}} {
			if err := m.add(d); err != nil {
				t.Fatal(err)
			}
		}
		if b := m.append(nil); !json.Valid(b) || strings.Contains(string(b), "\n") {
			t.Errorf("%s", b)
		}
	})
}
