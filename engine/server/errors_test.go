package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine"
)

// wantError checks the status, OpenAI's error shape, the type, the field, and words of the message.
func wantError(t *testing.T, r reply, status int, kind, param string, words ...string) {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if ct := r.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	var body map[string]map[string]any
	if err := json.Unmarshal(r.body, &body); err != nil || len(body) != 1 {
		t.Fatalf("body %s: %v", r.body, err)
	}
	e := body["error"]
	var keys []string
	for k := range e {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"code", "message", "param", "type"}) {
		t.Fatalf("keys %v", keys)
	}
	if e["code"] != float64(status) || e["type"] != kind {
		t.Errorf("code %v type %v, want %d %s", e["code"], e["type"], status, kind)
	}
	var wantParam any
	if param != "" {
		wantParam = param
	}
	if e["param"] != wantParam {
		t.Errorf("param %v, want %v in %s", e["param"], wantParam, r.body)
	}
	message, _ := e["message"].(string)
	if message == "" {
		t.Error("no message")
	}
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("message %q does not have %q", message, w)
		}
	}
}

func TestBadBodies(t *testing.T) {
	a := serve(t, scripted())
	completion := func(fields string) string { return `{"prompt":"Hello",` + fields + `}` }
	chat := func(fields string) string { return `{"messages":[{"role":"user","content":"Hi"}],` + fields + `}` }
	const c, ch = "/v1/completions", "/v1/chat/completions"
	many := strings.Repeat(`"x",`, maxStops) + `"x"`
	bias := obj{}
	for i := range maxBias + 1 {
		bias[fmt.Sprint(i)] = 1
	}
	for _, x := range []struct{ name, path, body, param, words string }{
		{"empty", c, ``, "", ""},
		{"not JSON", c, `{"prompt":`, "", ""},
		{"NaN", c, completion(`"temperature":NaN`), "", ""},
		{"array", c, `[1]`, "", "array"},
		{"null", c, `null`, "prompt", ""},
		{"invalid UTF-8", c, "{\"prompt\":\"\xff\"}", "", "UTF-8"},
		{"trailing garbage", c, `{"prompt":"a"} x`, "", ""},
		{"second object", c, `{"prompt":"a"}{}`, "", "more after"},
		{"no prompt", c, `{}`, "prompt", ""},
		{"empty salt", c, completion(`"cache_salt":""`), "cache_salt", "not empty"},
		{"salt of a wrong type", ch, chat(`"cache_salt":7`), "cache_salt", ""},
		{"prompt of a wrong type", c, `{"prompt":{"a":1}}`, "prompt", ""},
		{"mixed prompt", c, `{"prompt":["a",1]}`, "prompt", ""},
		{"empty list", c, `{"prompt":[]}`, "prompt", ""},
		{"empty text", c, `{"prompt":""}`, "prompt", "empty"},
		{"empty ids", c, `{"prompt":[[]]}`, "prompt", "empty"},
		{"id too large", c, `{"prompt":[1,2048]}`, "prompt", "2048"},
		{"id negative", c, `{"prompt":[[-1]]}`, "prompt", "-1"},
		{"too many prompts", c, `{"prompt":[` + strings.Repeat(`"a",`, maxPrompts) + `"a"]}`, "prompt", "2049"},
		{"max_tokens text", c, completion(`"max_tokens":"a"`), "max_tokens", "string"},
		{"max_tokens fraction", c, completion(`"max_tokens":1.5`), "max_tokens", ""},
		{"max_tokens zero", c, completion(`"max_tokens":0`), "max_tokens", "0"},
		{"max_tokens too large", c, completion(`"max_tokens":512`), "max_tokens", "requested 512"},
		{"max_tokens overflow", c, completion(`"max_tokens":9223372036854775807`), "max_tokens", ""},
		{"max_tokens no int64", c, completion(`"max_tokens":1e30`), "max_tokens", ""},
		{"stream text", c, completion(`"stream":"yes"`), "stream", ""},
		{"include_usage", c, completion(`"stream":true,"stream_options":{"include_usage":1}`), "stream_options.include_usage", ""},
		{"stream_options alone", c, completion(`"stream_options":{"include_usage":true}`), "stream_options", ""},
		{"n zero", c, completion(`"n":0`), "n", "0"},
		{"n large", c, completion(`"n":129`), "n", "129"},
		{"best_of", c, completion(`"best_of":3`), "best_of", ""},
		{"suffix", c, completion(`"suffix":"x"`), "suffix", ""},
		{"temperature low", c, completion(`"temperature":-0.1`), "temperature", "at least 0, got -0.1"},
		{"temperature infinite", c, completion(`"temperature":1e999`), "temperature", ""},
		{"temperature beyond float32", c, completion(`"temperature":1e300`), "temperature", "at most 3.4028234663852886e+38, got 1e+300"},
		{"temperature text", c, completion(`"temperature":"NaN"`), "temperature", ""},
		{"top_p below zero", c, completion(`"top_p":-1e-300`), "top_p", "above 0, got -1e-300"},
		{"top_p barely high", c, completion(`"top_p":1.000000001`), "top_p", "at most 1, got 1.000000001"},
		{"min_p barely low", c, completion(`"min_p":-1e-300`), "min_p", "at least 0, got -1e-300"},
		{"top_p zero", c, completion(`"top_p":0`), "top_p", "above 0, got 0"},
		{"top_p high", c, completion(`"top_p":1.01`), "top_p", "at most 1, got 1.01"},
		{"top_k", c, completion(`"top_k":-2`), "top_k", "-2"},
		{"top_k large", c, completion(`"top_k":3000000000`), "top_k", ""},
		{"min_p high", c, completion(`"min_p":1.1`), "min_p", "at most 1, got 1.1"},
		{"min_p low", c, completion(`"min_p":-1`), "min_p", "at least 0, got -1"},
		{"repetition_penalty", c, completion(`"repetition_penalty":0`), "repetition_penalty", "at least 0.001, got 0"},
		{"repetition_penalty tiny", c, completion(`"repetition_penalty":1e-38`), "repetition_penalty", "at least 0.001, got 1e-38"},
		{"repetition_penalty huge", c, completion(`"repetition_penalty":3e38`), "repetition_penalty", "at most 1000, got 3e+38"},
		{"presence_penalty", c, completion(`"presence_penalty":2.5`), "presence_penalty", "at most 2, got 2.5"},
		{"frequency_penalty", c, completion(`"frequency_penalty":-2.5`), "frequency_penalty", "at least -2, got -2.5"},
		{"bias key", c, completion(`"logit_bias":{"a":1}`), "logit_bias", `"a"`},
		{"bias id", c, completion(`"logit_bias":{"2048":1}`), "logit_bias", "2048"},
		{"bias negative id", c, completion(`"logit_bias":{"-1":1}`), "logit_bias", "-1"},
		{"bias key with a zero", c, completion(`"logit_bias":{"5":1,"05":2}`), "logit_bias", `"05"`},
		{"bias key with a sign", c, completion(`"logit_bias":{"+5":1}`), "logit_bias", `"+5"`},
		{"bias type", c, completion(`"logit_bias":{"5":"x"}`), "logit_bias", ""},
		{"bias count", c, completion(`"logit_bias":` + bias.String()), "logit_bias", "1025"},
		{"stop type", c, completion(`"stop":5`), "stop", ""},
		{"stop list type", c, completion(`"stop":["a",5]`), "stop", ""},
		{"stop empty", c, completion(`"stop":""`), "stop", ""},
		{"stop null in list", c, completion(`"stop":[null]`), "stop", ""},
		{"stop count", c, completion(`"stop":[` + many + `]`), "stop", "257"},
		{"stop long", c, completion(`"stop":"` + strings.Repeat("x", maxStopBytes+1) + `"`), "stop", ""},
		{"stop_token_ids", c, completion(`"stop_token_ids":[2048]`), "stop_token_ids", "2048"},
		{"allowed_token_ids", c, completion(`"allowed_token_ids":[2048]`), "allowed_token_ids", "2048"},
		{"allowed_token_ids empty", c, completion(`"allowed_token_ids":[]`), "allowed_token_ids", "empty"},
		{"allowed_token_ids type", c, completion(`"allowed_token_ids":5`), "allowed_token_ids", "a list"},
		{"bad_words blank", c, completion(`"bad_words":["a"," "]`), "bad_words", "spaces"},
		{"bad_words null", c, completion(`"bad_words":["a",null]`), "bad_words", "spaces"},
		{"bad_words type", c, completion(`"bad_words":"a"`), "bad_words", "a list"},
		{"bad_words long", c, completion(`"bad_words":["` + strings.Repeat("x", maxBadBytes+1) + `"]`), "bad_words", "1024 bytes"},
		{"bad_words count", c, completion(`"bad_words":[` + strings.Repeat(`"a",`, maxBadWords) + `"a"]`), "bad_words", "1025"},
		{"bad_words in all", c, completion(`"bad_words":[` + strings.Repeat(`"`+strings.Repeat("x", maxBadBytes)+`",`, 16) + `"a"]`), "bad_words", "together"},
		{"min_tokens", c, completion(`"min_tokens":-1`), "min_tokens", "-1"},
		{"min_tokens over max", c, completion(`"min_tokens":5,"max_tokens":4`), "min_tokens", "5"},
		{"logprobs low", c, completion(`"logprobs":-1`), "logprobs", ""},
		{"logprobs high", c, completion(`"logprobs":21`), "logprobs", "21"},
		{"tools", c, completion(`"tools":[{}]`), "tools", ""},
		{"response_format", c, completion(`"response_format":{"type":"xml"}`), "response_format", ""},
		{"response_format type", c, completion(`"response_format":5`), "response_format", ""},
		{"no messages", ch, `{}`, "messages", ""},
		{"messages type", ch, `{"messages":"x"}`, "messages", "string"},
		{"no role", ch, `{"messages":[{"content":"x"}]}`, "messages", "role"},
		{"content type", ch, `{"messages":[{"role":"user","content":5}]}`, "messages", ""},
		{"image part", ch, `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, "messages", "image_url"},
		{"top_logprobs alone", ch, chat(`"top_logprobs":2`), "top_logprobs", ""},
		{"top_logprobs high", ch, chat(`"logprobs":true,"top_logprobs":21`), "top_logprobs", "21"},
		{"chat logprobs number", ch, chat(`"logprobs":3`), "logprobs", ""},
		{"max_completion_tokens", ch, chat(`"max_completion_tokens":-1`), "max_completion_tokens", "-1"},
		{"max_completion_tokens large", ch, chat(`"max_completion_tokens":9999`), "max_completion_tokens", "9999"},
		{"chat tools", ch, chat(`"tools":[{"type":"function"}]`), "tools", ""},
		{"chat response_format", ch, chat(`"response_format":{"type":"json_schema"}`), "response_format", ""},
		{"chat n", ch, chat(`"n":-1`), "n", "-1"},
		{"tokenize nothing", "/tokenize", `{}`, "prompt", ""},
		{"tokenize both", "/tokenize", `{"prompt":"a","messages":[]}`, "prompt", ""},
		{"detokenize nothing", "/detokenize", `{}`, "tokens", ""},
		{"detokenize id", "/detokenize", `{"tokens":[2048]}`, "tokens", "2048"},
		{"detokenize type", "/detokenize", `{"tokens":"x"}`, "tokens", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			wantError(t, a.post(x.path, x.body), 400, "BadRequestError", x.param, x.words)
		})
	}
	if n := a.srv.backend.(*fakeBackend).submitted(); n != 0 {
		t.Errorf("%d refused requests reached the backend", n)
	}
}

func TestPromptTooLong(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	ids := func(n int) string { return obj{"prompt": make([]int32, n), "max_tokens": 1}.String() }
	wantError(t, a.post("/v1/completions", ids(maxLen)), 400, "BadRequestError", "prompt", "maximum context length is 512", "has 512 tokens", "at most 511")
	var out completion
	a.ok("/v1/completions", ids(maxLen-1), &out)
	wantError(t, a.post("/v1/completions", obj{"prompt": make([]int32, 500), "max_tokens": 13}.String()),
		400, "BadRequestError", "max_tokens", "prompt has 500 tokens", "requested 13", "at most 12")
	// The cluster may hold less than the model reads.
	b.setCapacity(100)
	wantError(t, a.post("/v1/completions", ids(100)), 400, "BadRequestError", "prompt", "holds at most 100 tokens", "at most 99")
	a.ok("/v1/completions", ids(99), &out)
	// The default length is cut to what fits.
	a.ok("/v1/completions", obj{"prompt": make([]int32, 98)}.String(), &out)
	if got := b.last(t).MaxTokens; got != 2 {
		t.Errorf("max tokens %d, want 2", got)
	}
	// What cannot fit however it is encoded is not encoded.
	b.setCapacity(10)
	long := strings.Repeat("a", 11*a.srv.longest)
	wantError(t, a.post("/v1/completions", obj{"prompt": long}.String()), 400, "BadRequestError", "prompt", "at least 11 tokens", "at most 9")
	wantError(t, a.post("/v1/chat/completions", obj{"messages": []obj{{"role": "user", "content": long}}}.String()), 400, "BadRequestError", "messages", "at least", "at most 9")
	a.ok("/v1/completions", obj{"prompt": long, "truncate_prompt_tokens": 5}.String(), &out)
	// With no instance the prompt is not at fault.
	b.setCapacity(0)
	wantError(t, a.post("/v1/completions", ids(1)), 503, "ServiceUnavailableError", "")
}

func TestModelAndRoutes(t *testing.T) {
	a := serve(t, scripted(tokens(5)...))
	for _, x := range []struct{ path, body string }{
		{"/v1/completions", `{"model":"gpt","prompt":"a"}`},
		{"/v1/chat/completions", `{"model":"gpt","messages":[{"role":"user","content":"a"}]}`},
		{"/tokenize", `{"model":"gpt","prompt":"a"}`},
		{"/detokenize", `{"model":"gpt","tokens":[5]}`},
	} {
		wantError(t, a.post(x.path, x.body), 404, "NotFoundError", "model", "`gpt`")
	}
	wantError(t, a.do("GET", "/v1/models/gpt", ""), 404, "NotFoundError", "model", "`gpt`")
	wantError(t, a.do("GET", "/nothing", ""), 404, "NotFoundError", "", "/nothing")
	wantError(t, a.do("GET", "/v1/completions", ""), 405, "BadRequestError", "", "GET")
	for _, model := range []string{modelName, "org/alias"} {
		var out completion
		a.ok("/v1/completions", obj{"model": model, "prompt": "a"}.String(), &out)
		if out.Model != model {
			t.Errorf("answer of %q, asked %q", out.Model, model)
		}
	}
}

func TestAPIKey(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), func(c *Config) { c.APIKey = "secret" })
	const body = `{"prompt":"a"}`
	for _, h := range [][]string{nil, {"Authorization", "secret"}, {"Authorization", "Bearer wrong"}, {"Authorization", "Bearer "}, {"Authorization", "Bearer secrets"}} {
		wantError(t, a.do("POST", "/v1/completions", body, h...), 401, "AuthenticationError", "")
	}
	for _, path := range []string{"/v1/models", "/cluster", "/nothing"} {
		wantError(t, a.do("GET", path, ""), 401, "AuthenticationError", "")
	}
	for _, path := range []string{"/health", "/metrics"} {
		if r := a.do("GET", path, ""); r.status != 200 {
			t.Errorf("%s: %d", path, r.status)
		}
	}
	if r := a.do("POST", "/v1/completions", body, "Authorization", "Bearer secret"); r.status != 200 {
		t.Errorf("right key: %d %s", r.status, r.body)
	}
}

func TestBodyTooLarge(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), func(c *Config) { c.MaxBodySize = 1000 })
	wantError(t, a.post("/v1/completions", obj{"prompt": strings.Repeat("a", 1000)}.String()), http.StatusRequestEntityTooLarge, "BadRequestError", "", "1000")
	var out completion
	a.ok("/v1/completions", obj{"prompt": strings.Repeat("a", 500)}.String(), &out)
}

type kindError string

func (k kindError) Error() string { return "failed: " + string(k) }
func (k kindError) Kind() string  { return string(k) }

// failures are what each kind of failure becomes.
var failures = []struct {
	err    error
	status int
	kind   string
}{
	{kindError(KindQueueFull), 429, "RateLimitError"},
	{kindError(KindNoRoom), 503, "ServiceUnavailableError"},
	{kindError(KindPeerLost), 500, "InternalServerError"},
	{kindError(KindUnavailable), 503, "ServiceUnavailableError"},
	{kindError("other"), 500, "InternalServerError"},
	{fmt.Errorf("wrapped: %w", kindError(KindQueueFull)), 429, "RateLimitError"},
	{errors.New("plain"), 500, "InternalServerError"},
}

func TestBackendFailures(t *testing.T) {
	b := scripted()
	a := serve(t, b)
	submit := func(st engine.Stream, err error) func(context.Context, *engine.Request) (engine.Stream, error) {
		return func(context.Context, *engine.Request) (engine.Stream, error) { return st, err }
	}
	for _, f := range failures {
		for _, stream := range []bool{false, true} {
			b.setScript(submit(nil, f.err))
			wantError(t, a.post("/v1/completions", obj{"prompt": "a", "stream": stream}.String()), f.status, f.kind, "", f.err.Error())
		}
		s := ended(engine.Event{Token: 5, HasToken: true}, engine.Event{Finish: "error", Err: f.err})
		b.setScript(submit(s, nil))
		wantError(t, a.post("/v1/completions", `{"prompt":"a"}`), f.status, f.kind, "", f.err.Error())
		within(t, "closing of a failed stream", s.closed)
	}
	// A stream that ends without a finishing event is a failure too.
	b.setScript(submit(ended(engine.Event{Token: 5, HasToken: true}), nil))
	wantError(t, a.post("/v1/completions", `{"prompt":"a"}`), 500, "InternalServerError", "")
}

// Of n choices either all are taken or none.
func TestSecondChoiceRefused(t *testing.T) {
	first := newFakeStream()
	b := scripted()
	b.setScript(func(_ context.Context, req *engine.Request) (engine.Stream, error) {
		if strings.HasSuffix(req.ID, "-0") {
			return first, nil
		}
		return nil, kindError(KindQueueFull)
	})
	a := serve(t, b)
	wantError(t, a.post("/v1/completions", `{"prompt":"a","n":3}`), 429, "RateLimitError", "")
	within(t, "closing of the first choice", first.closed)
	if n := b.submitted(); n != 2 {
		t.Errorf("%d submitted, want 2", n)
	}
}

type panicStream struct{ *fakeStream }

func (panicStream) Next(context.Context) (engine.Event, error) { panic("a bug") }

// A bug that one request meets is that request's failure alone.
func TestPanicsAreAnswered(t *testing.T) {
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) {
		return panicStream{newFakeStream()}, nil
	})
	a := serve(t, b)
	wantError(t, a.post("/v1/completions", `{"prompt":"a"}`), 500, "InternalServerError", "", "internal error")
	events := a.chunks("/v1/completions", obj{"prompt": "a"})
	if len(events) != 1 || !strings.Contains(string(events[0]), "internal error") {
		t.Errorf("%s", events)
	}
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { panic("a bug") })
	wantError(t, a.post("/v1/completions", `{"prompt":"a"}`), 500, "InternalServerError", "", "internal error")
	a.idle()
}
