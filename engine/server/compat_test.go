package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine"
)

// Clients whose language has one type of number, or none, write 16.0 or "16".
func TestNumbersOfAnyClient(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	for value, want := range map[string]int{`3`: 3, `3.0`: 3, `"3"`: 3, `" 3 "`: 3, `3e0`: 3, `"3.0"`: 3, `null`: 16} {
		var out completion
		a.ok("/v1/completions", `{"prompt":"a","max_tokens":`+value+`,"seed":`+value+`,"temperature":"0.5"}`, &out)
		if r := b.last(t); r.MaxTokens != want || r.Sampling.Temperature != .5 || want == 3 && r.Sampling.Seed != 3 {
			t.Errorf("%s: %d tokens, temperature %g, seed %d", value, r.MaxTokens, r.Sampling.Temperature, r.Sampling.Seed)
		}
	}
	for _, value := range []string{`3.5`, `"3.5"`, `"a"`, `""`, `true`, `[3]`, `{}`, `"0x3"`, `"1_0"`, `"null"`, `1e400`, `9e18`} {
		wantError(t, a.post("/v1/completions", `{"prompt":"a","max_tokens":`+value+`}`), 400, "BadRequestError", "max_tokens", "whole number")
	}
	for _, value := range []string{`"NaN"`, `"inf"`, `"a"`, `false`, `[]`, `"null"`, `"0x3"`} {
		wantError(t, a.post("/v1/completions", `{"prompt":"a","top_p":`+value+`}`), 400, "BadRequestError", "top_p", "a number")
	}
}

// A null among ids or texts is no token 0 and no empty text.
func TestNullElements(t *testing.T) {
	a := serve(t, scripted(tokens(5)...))
	for _, prompt := range []string{`[1,null,3]`, `[null]`, `[[1],null]`, `[[1,null]]`, `["a",null]`, `null`, `[[1],"a"]`, `5`, `true`, `[true]`, `[1,"a"]`, `[1.5]`, `[4294967296]`} {
		wantError(t, a.post("/v1/completions", `{"prompt":`+prompt+`}`), 400, "BadRequestError", "prompt", "prompt")
	}
	wantError(t, a.post("/v1/completions", `{"prompt":"a","stop_token_ids":[null]}`), 400, "BadRequestError", "stop_token_ids", "a list")
	wantError(t, a.post("/detokenize", `{"tokens":[5,null]}`), 400, "BadRequestError", "tokens", "a list")
	var out completion
	a.ok("/v1/completions", `{"prompt": [ 9 , 8 ] , "stop_token_ids":null, "stop":null}`, &out)
	a.ok("/v1/completions", `{"prompt":"null","stop":"null"}`, &out)
	a.ok("/v1/completions", `{"prompt":["null"],"stop":["null"]}`, &out)
}

// Errors speak of JSON's types.
func TestTypeNames(t *testing.T) {
	a := serve(t, scripted())
	for body, words := range map[string]string{
		`{"messages":"x"}`: "a string for messages: a list is needed", `{"messages":[5]}`: "an object is needed",
		`{"messages":[],"logprobs":1}`: "true or false is needed", `{"messages":[],"model":5}`: "a string is needed",
		`5`: "a number for the body: an object is needed", ``: "it is empty",
	} {
		r := a.post("/v1/chat/completions", body)
		if r.status != 400 || !strings.Contains(string(r.body), words) && !strings.Contains(string(r.body), strings.Replace(words, "a number", "a number 5", 1)) {
			t.Errorf("%s: %d %s, want %q", body, r.status, r.body, words)
		}
	}
}

// What would change the answer and cannot be done is refused; a value that asks for nothing is not.
func TestUnsupportedFields(t *testing.T) {
	a := serve(t, scripted(tokens(5)...))
	for field, value := range map[string]string{
		"functions": `[{"name":"f"}]`, "suffix": `"x"`, "use_beam_search": `true`,
		"guided_whitespace_pattern": `"[ ]?"`,
		"logits_processors":         `["x"]`, "prompt_embeds": `"AAAA"`,
		"chat_template": `"{{ messages }}"`, "documents": `[{"text":"a"}]`, "tools": `[{"type":"function"}]`,
		"tool_choice": `"required"`, "response_format": `{"type":"structural_tag"}`, "best_of": `2`,
		"function_call": `{"name":"f"}`, "modalities": `["text","audio"]`, "audio": `{"voice":"a","format":"wav"}`,
		"verbosity": `"low"`, "web_search_options": `{}`, "structural_tag": `"t"`, "logprob_token_ids": `[5]`,
		"repetition_detection": `{"max_pattern_size":3}`, "watermarking": `true`, "return_prompt_text": `true`,
		"kv_transfer_params": `{"do_remote_decode":true}`, "ec_transfer_params": `{"a":1}`, "vllm_xargs": `{"a":1}`,
		"priority": `1`, "thinking_token_budget": `100`,
	} {
		wantError(t, a.post("/v1/completions", `{"prompt":"a","`+field+`":`+value+`}`), 400, "BadRequestError", field, field)
		wantError(t, a.post("/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"`+field+`":`+value+`}`), 400, "BadRequestError", field, field)
		if slices.Contains([]string{"best_of", "priority", "thinking_token_budget", "web_search_options"}, field) {
			continue
		}
		for _, unset := range []string{`null`, `false`, `""`, `[ ]`, `{}`} {
			if r := a.post("/v1/completions", `{"prompt":"a","`+field+`":`+unset+`}`); r.status != 200 {
				t.Errorf("%s: %s: %d %s", field, unset, r.status, r.body)
			}
		}
	}
	var out chatAnswer
	a.ok("/v1/chat/completions", chatBody(obj{"tools": []obj{{"type": "function", "function": obj{"name": "f"}}}, "tool_choice": "none"}).String(), &out)
	a.ok("/v1/chat/completions", chatBody(obj{"tool_choice": "auto", "user": "u", "metadata": obj{"a": "b"}, "store": false, "parallel_tool_calls": true}).String(), &out)
	a.ok("/v1/chat/completions", chatBody(obj{"modalities": []string{"text"}, "verbosity": "medium", "web_search_options": nil, "priority": 0, "thinking_token_budget": -1, "function_call": "auto"}).String(), &out)
	wantError(t, a.post("/v1/chat/completions", chatBody(obj{"modalities": []string{"audio"}}).String()), 400, "BadRequestError", "modalities", "text")
	wantError(t, a.post("/v1/chat/completions", chatBody(obj{"echo": true}).String()), 400, "BadRequestError", "echo")
	for field, value := range map[string]any{"tool_calls": []obj{{"id": "1"}}, "function_call": obj{"name": "f"}, "audio": obj{"id": "a"}} {
		body := obj{"messages": []obj{{"role": "assistant", "content": nil, field: value}}}
		wantError(t, a.post("/v1/chat/completions", body.String()), 400, "BadRequestError", "messages", field)
	}
	// /tokenize would count another prompt than the one that is meant.
	wantError(t, a.post("/tokenize", chatBody(obj{"tools": []obj{{"type": "function"}}}).String()), 400, "BadRequestError", "tools")
}

// reasoning_effort reaches the template, and turns thinking on or off unless the client says so itself.
func TestReasoningEffort(t *testing.T) {
	a := serve(t, scripted(tokens(5)...))
	for _, x := range []struct {
		c    conversation
		want map[string]any
	}{
		{conversation{}, nil},
		{conversation{TemplateVars: map[string]any{"a": 1}}, map[string]any{"a": 1}},
		{conversation{ReasoningEffort: "none"}, map[string]any{"reasoning_effort": "none", "enable_thinking": false}},
		{conversation{ReasoningEffort: "high"}, map[string]any{"reasoning_effort": "high", "enable_thinking": true}},
		{conversation{ReasoningEffort: "high", TemplateVars: map[string]any{"enable_thinking": false, "reasoning_effort": "low"}}, map[string]any{"reasoning_effort": "high", "enable_thinking": false}},
	} {
		if got, err := x.c.templateVars(); err != nil || !maps.Equal(got, x.want) {
			t.Errorf("%+v: %v %v", x.c, got, err)
		}
	}
	var out chatAnswer
	a.ok("/v1/chat/completions", chatBody(obj{"reasoning_effort": "low"}).String(), &out)
	wantError(t, a.post("/v1/chat/completions", chatBody(obj{"reasoning_effort": "very"}).String()), 400, "BadRequestError", "reasoning_effort", "very")
}

// What an assistant thought goes to the template apart from what it said, under either of its names.
func TestReasoningOfMessages(t *testing.T) {
	var c conversation
	if err := decode([]byte(`{"messages":[{"role":"user","content":"a","reasoning":"w"},{"role":"assistant","content":"b","reasoning":"x"},
		{"role":"assistant","content":"c","reasoning_content":"y"},{"role":"assistant","content":"d","reasoning":"x","reasoning_content":"y"},
		{"role":"assistant","content":"e","reasoning":null},{"role":"tool","content":"f","tool_call_id":"z"}]}`), &c); err != nil {
		t.Fatal(err)
	}
	list, err := c.list()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "x", "y", "x", "", ""} {
		if list[i].Reasoning != want || (list[i].ToolCallID == "z") != (i == 5) {
			t.Errorf("%+v, want %q", list[i], want)
		}
	}
}

// vLLM takes these, so clients send them.
func TestWideRanges(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":"a","temperature":7.5,"min_p":1,"repetition_penalty":20,"logit_bias":{"5":1000,"6":-1e9}}`, &out)
	s, bias := b.last(t).Sampling, b.last(t).Bias
	if s.Temperature != 7.5 || s.MinP <= .999 || s.MinP >= 1 || s.Repetition != 20 || bias[0].Value != 100 || bias[1].Value != -100 {
		t.Errorf("%+v %+v", s, bias)
	}
	var chat chatAnswer
	a.ok("/v1/chat/completions", chatBody(obj{"top_logprobs": 0, "logprobs": false}).String(), &chat)
	prompts := slices.Repeat([]string{"a"}, 300)
	a.ok("/v1/completions", obj{"prompt": prompts, "max_tokens": 1}.String(), &out)
	if len(out.Choices) != 300 || out.Choices[299].Index != 299 {
		t.Errorf("%d choices of 300 prompts", len(out.Choices))
	}
	wantError(t, a.post("/v1/completions", obj{"prompt": prompts, "n": 100}.String()), 400, "BadRequestError", "n", "30000")
	many := make([]string, maxStops)
	for i := range many {
		many[i] = fmt.Sprint("stop ", i)
	}
	a.ok("/v1/completions", obj{"prompt": "a", "stop": many}.String(), &out)
	for i := range many {
		many[i] = strings.Repeat("x", maxStopsBytes/maxStops+1)
	}
	wantError(t, a.post("/v1/completions", obj{"prompt": "a", "stop": many}.String()), 400, "BadRequestError", "stop", "together")
	bias2 := obj{}
	for i := range maxBias {
		bias2[fmt.Sprint(i)] = 1
	}
	a.ok("/v1/completions", obj{"prompt": "a", "logit_bias": bias2}.String(), &out)
	// The engine needs room for the tokens that must not end the answer yet.
	wantError(t, a.post("/v1/completions", obj{"prompt": "a", "logit_bias": bias2, "min_tokens": 1}.String()), 400, "BadRequestError", "logit_bias", "1023")
}

// The prompt's own log probabilities without any generation: how evaluation tools score a text.
func TestEchoAlone(t *testing.T) {
	ids := testTokenizer(t).Encode("Hello naïve", true)
	event := withLogprobs(tokens(5), ids)[0]
	b := scripted(engine.Event{Prompt: event.Prompt, Finish: "length", StopToken: -1})
	a := serve(t, b)
	body := obj{"prompt": "Hello naïve", "max_tokens": 0, "echo": true, "logprobs": 1}
	var out completion
	a.ok("/v1/completions", body.String(), &out)
	c := out.Choices[0]
	if c.Text != "Hello naïve" || str(c.Finish) != "length" || b.last(t).MaxTokens != 0 || *out.Usage != used(len(ids), 0) {
		t.Errorf("%+v %+v", c, out.Usage)
	}
	if c.Logprobs == nil || len(c.Logprobs.Tokens) != len(ids) || c.Logprobs.Logprobs[0] != nil || *c.Logprobs.Logprobs[1] != -.25 {
		t.Fatalf("%+v", c.Logprobs)
	}
	checkOffsets(t, c.Text, c.Logprobs)
	events := a.chunks("/v1/completions", body)
	if d := events[0].text(t).Choices[0]; len(events) != 1 || d.Text != c.Text || str(d.Finish) != "length" || len(d.Logprobs.Tokens) != len(ids) {
		t.Errorf("stream: %s", events)
	}
	a.ok("/v1/completions", obj{"prompt": make([]int32, maxLen), "max_tokens": 0, "echo": true}.String(), &out)
	wantError(t, a.post("/v1/completions", obj{"prompt": make([]int32, maxLen+1), "max_tokens": 0, "echo": true}.String()), 400, "BadRequestError", "prompt", "at most 512")
	wantError(t, a.post("/v1/completions", `{"prompt":"a","max_tokens":0}`), 400, "BadRequestError", "max_tokens", "0")
	wantError(t, a.post("/v1/chat/completions", chatBody(obj{"max_tokens": 0}).String()), 400, "BadRequestError", "max_tokens", "0")
}

type promptEntry struct {
	Logprob float64 `json:"logprob"`
	Rank    int     `json:"rank"`
	Text    string  `json:"decoded_token"`
}

func TestPromptLogprobs(t *testing.T) {
	ids := []int32{70, 71, 72}
	b := scripted(withLogprobs(tokens(5), ids)...)
	a := serve(t, b)
	check := func(got []map[string]promptEntry, each int) {
		t.Helper()
		if len(got) != len(ids) || got[0] != nil {
			t.Fatalf("%v", got)
		}
		for i, m := range got[1:] {
			key := fmt.Sprint(ids[i+1])
			if e := m[key]; len(m) != each || e.Rank != 1 || e.Logprob != -float64(i+2)/8 || e.Text != testTokenizer(t).Decode(ids[i+1:i+2], false) {
				t.Errorf("token %d: %v", i+1, m)
			}
			if other := m[fmt.Sprint(ids[i+1]%1000+300)]; each == 2 && (other.Rank != 2 || other.Logprob >= m[key].Logprob) {
				t.Errorf("token %d: %v", i+1, m)
			}
		}
	}
	type answer struct {
		Choices []struct {
			Logprobs *textLogprobs
			Prompt   []map[string]promptEntry `json:"prompt_logprobs"`
		}
		Prompt []map[string]promptEntry `json:"prompt_logprobs"`
	}
	get := func(path string, body obj) (out answer) { a.json(path, body, &out); return out }
	out := get("/v1/completions", obj{"prompt": ids, "prompt_logprobs": 2, "n": 2})
	check(out.Choices[0].Prompt, 2)
	check(out.Choices[1].Prompt, 2)
	if r := b.last(t); r.PromptLogprobs != 2 || r.Logprobs != -1 || out.Choices[0].Logprobs != nil || out.Prompt != nil {
		t.Errorf("%+v", r)
	}
	out = get("/v1/completions", obj{"prompt": ids, "prompt_logprobs": 0})
	check(out.Choices[0].Prompt, 1)
	// Beside echo each list has as many alternatives as were asked for there.
	out = get("/v1/completions", obj{"prompt": ids, "prompt_logprobs": 2, "echo": true, "logprobs": 0})
	check(out.Choices[0].Prompt, 2)
	if top := out.Choices[0].Logprobs.Top; b.last(t).PromptLogprobs != 2 || len(top) != 4 || len(top[1]) != 1 {
		t.Errorf("%v", top)
	}
	before := b.submitted()
	out = get("/v1/chat/completions", chatBody(obj{"prompt_logprobs": 2, "n": 3}))
	check(out.Prompt, 2)
	// A chat shows the list once, and so only its first choice asks for one.
	var asked []int
	b.mu.Lock()
	for _, r := range b.requests[before:] {
		asked = append(asked, r.PromptLogprobs)
	}
	b.mu.Unlock()
	if !slices.Equal(asked, []int{2, -1, -1}) {
		t.Errorf("the choices ask for %d", asked)
	}
	for _, bad := range []string{`-1`, `21`, `1,"stream":true`} {
		wantError(t, a.post("/v1/completions", `{"prompt":"a","prompt_logprobs":`+bad+`}`), 400, "BadRequestError", "prompt_logprobs")
	}
}

func TestContentParts(t *testing.T) {
	b := scripted(tokens(5)...)
	a, tok := serve(t, b), testTokenizer(t)
	prompt := func(content any) string {
		var out chatAnswer
		a.ok("/v1/chat/completions", obj{"messages": []obj{{"role": "user", "content": content}}}.String(), &out)
		return tok.Decode(b.last(t).Prompt, false)
	}
	want := prompt("one\ntwo\nthree")
	if got := prompt([]any{"one", obj{"type": "text", "text": "two"}, obj{"type": "input_text", "text": "three"}}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := prompt([]any{obj{"type": "output_text", "text": "one\ntwo"}, obj{"type": "refusal", "refusal": "three"}}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := prompt([]any{}); got != prompt("") {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{`[5]`, `[null]`, `[{"text":"a"}]`, `[{"type":"text"}]`, `[{"type":"text","text":5}]`, `[{"type":"input_audio"}]`, `{"type":"text","text":"a"}`} {
		wantError(t, a.post("/v1/chat/completions", `{"messages":[{"role":"user","content":`+bad+`}]}`), 400, "BadRequestError", "messages", "content")
	}
}

// A past answer without content is an empty one, also beside an empty list of calls or a refusal; whoever else speaks says
// something.
func TestMessagesWithoutContent(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	prompt := func(answer string) []int32 {
		t.Helper()
		var out chatAnswer
		a.ok("/v1/chat/completions", `{"messages":[{"role":"user","content":"a"},`+answer+`,{"role":"user","content":"b"}]}`, &out)
		return b.last(t).Prompt
	}
	want := prompt(`{"role":"assistant","content":""}`)
	for _, x := range []string{``, `,"content":null`, `,"content":null,"tool_calls":[]`, `,"tool_calls":[]`, `,"content":null,"refusal":"No."`, `,"refusal":null`, `,"content":[]`} {
		if got := prompt(`{"role":"assistant"` + x + `}`); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", x, got, want)
		}
	}
	for _, none := range []string{
		`{"role":"user"}`, `{"role":"user","content":null}`, `{"role":"system","content":null,"tool_calls":[]}`, `{"role":"developer"}`, `{"role":"tool","tool_call_id":"1"}`,
	} {
		for _, path := range []string{"/v1/chat/completions", "/tokenize"} {
			wantError(t, a.post(path, `{"messages":[`+none+`]}`), 400, "BadRequestError", "messages", "message 0 has no content")
		}
	}
}

func TestContinueFinalMessage(t *testing.T) {
	b := scripted(tokens(5)...)
	a, tok := serve(t, b), testTokenizer(t)
	messages := []obj{{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The word is "}}
	body := obj{"messages": messages, "continue_final_message": true}
	var out chatAnswer
	a.ok("/v1/chat/completions", body.String(), &out)
	if got := tok.Decode(b.last(t).Prompt, false); !strings.HasSuffix(got, "The word is ") || strings.Count(got, "<|eot_id|>") != 1 {
		t.Errorf("prompt %q", got)
	}
	var counted struct{ Tokens []int32 }
	a.json("/tokenize", body, &counted)
	if !slices.Equal(counted.Tokens, b.last(t).Prompt) {
		t.Errorf("/tokenize says %v, the prompt is %v", counted.Tokens, b.last(t).Prompt)
	}
	body["add_generation_prompt"] = true
	wantError(t, a.post("/v1/chat/completions", body.String()), 400, "BadRequestError", "continue_final_message")
	messages[1]["content"] = "  "
	delete(body, "add_generation_prompt")
	wantError(t, a.post("/v1/chat/completions", body.String()), 400, "BadRequestError", "continue_final_message")
	// What the template puts behind a message has such words too.
	for _, last := range []string{"end", "e", "<", "|", "eot_id", "<|", "The word is e"} {
		messages[1]["content"] = last
		a.ok("/v1/chat/completions", body.String(), &out)
		got := tok.Decode(b.last(t).Prompt, false)
		if strings.Count(got, "<|eot_id|>") != 1 || !strings.HasSuffix(got, "<|end_header_id|>\n\n"+last) {
			t.Errorf("%q: prompt %q", last, got)
		}
	}
}

func TestTokensAsIDs(t *testing.T) {
	a := serve(t, scripted(withLogprobs(tokens(70, 71), nil)...))
	var text completion
	a.ok("/v1/completions", `{"prompt":"a","logprobs":1,"return_tokens_as_token_ids":true}`, &text)
	l := text.Choices[0].Logprobs
	if !slices.Equal(l.Tokens, []string{"token_id:70", "token_id:71"}) || !slices.Equal(slices.Sorted(maps.Keys(l.Top[0])), []string{"token_id:370", "token_id:70"}) {
		t.Errorf("%+v", l)
	}
	var chat chatAnswer
	a.ok("/v1/chat/completions", chatBody(obj{"logprobs": true, "top_logprobs": 2, "return_tokens_as_token_ids": true}).String(), &chat)
	if e := chat.Choices[0].Logprobs.Content[0]; e.Token != "token_id:70" || e.Top[1].Token != "token_id:370" {
		t.Errorf("%+v", e)
	}
}

// Where a choice's KV lay is told at its end to those who ask.
func TestPlacement(t *testing.T) {
	events := tokens(70, 71)
	events[1].Spans = []engine.SpanInfo{{Instance: "i1", Blocks: 7}, {Instance: "i0", Blocks: 2}}
	a := serve(t, scripted(events...))
	const want = `,"kv_placement":[{"instance":"i1","blocks":7},{"instance":"i0","blocks":2}]}`
	for _, body := range []string{`"return_kv_placement":true`, `"return_kv_placement":true,"stream":true`, `"stream":true`, `"n":1`} {
		r := a.do("POST", "/v1/completions", `{"prompt":"a",`+body+`}`)
		asked := strings.Contains(body, "kv_placement")
		if r.status != 200 || strings.Count(string(r.body), want) != map[bool]int{true: 1}[asked] || !asked && strings.Contains(string(r.body), "kv_placement") {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
	}
}

// A client's own name for a request is its id, if it is fit for a log.
func TestRequestNames(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	for _, x := range []struct{ header, field, want string }{
		{"trace-1", "", "cmpl-trace-1"}, {"", "mine", "cmpl-mine"}, {"trace-1", "mine", "cmpl-trace-1"},
		{"two words", "", ""}, {strings.Repeat("x", 129), "", ""}, {"", "naïve", ""},
	} {
		r := a.do("POST", "/v1/completions", obj{"prompt": "a", "request_id": x.field}.String(), "X-Request-Id", x.header)
		var out completion
		strict(t, r.body, &out)
		if out.ID != x.want && (x.want != "" || len(out.ID) != len("cmpl-")+24) || b.last(t).ID != out.ID+"-0" {
			t.Errorf("%+v: answer %s, request %s", x, out.ID, b.last(t).ID)
		}
	}
}
