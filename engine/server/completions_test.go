package server

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
)

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
	Answer struct {
		Reasoning int `json:"reasoning_tokens"`
	} `json:"completion_tokens_details"`
}

func used(prompt, completion int) usage {
	return usage{Prompt: prompt, Completion: completion, Total: prompt + completion}
}

type textLogprobs struct {
	Offset   []int                 `json:"text_offset"`
	Logprobs []*float64            `json:"token_logprobs"`
	Tokens   []string              `json:"tokens"`
	Top      []map[string]*float64 `json:"top_logprobs"`
}

type textChoice struct {
	Index      int           `json:"index"`
	Text       string        `json:"text"`
	Logprobs   *textLogprobs `json:"logprobs"`
	Finish     *string       `json:"finish_reason"`
	StopReason any           `json:"stop_reason"`
}

// completion is an answer or a chunk of /v1/completions.
type completion struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []textChoice `json:"choices"`
	Usage   *usage       `json:"usage"`
}

type tokenEntry struct {
	Token   string       `json:"token"`
	Logprob float64      `json:"logprob"`
	Bytes   []int        `json:"bytes"`
	Top     []tokenEntry `json:"top_logprobs"`
}

type chatText struct {
	Role    string  `json:"role"`
	Content *string `json:"content"`
	Refusal *string `json:"refusal"`
	Calls   []struct {
		Index    *int    `json:"index"`
		ID       *string `json:"id"`
		Type     *string `json:"type"`
		Function struct {
			Name      *string `json:"name"`
			Arguments string  `json:"arguments"`
		} `json:"function"`
	} `json:"tool_calls"`
	Reasoning        *string `json:"reasoning"`
	ReasoningContent *string `json:"reasoning_content"`
}

type chatChoice struct {
	Index    int       `json:"index"`
	Message  *chatText `json:"message"`
	Delta    *chatText `json:"delta"`
	Logprobs *struct {
		Content []tokenEntry `json:"content"`
	} `json:"logprobs"`
	Finish     *string `json:"finish_reason"`
	StopReason any     `json:"stop_reason"`
}

// chatAnswer is an answer or a chunk of /v1/chat/completions.
type chatAnswer struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []chatChoice `json:"choices"`
	Usage   *usage       `json:"usage"`
}

// withLogprobs gives every event a log probability, two alternatives, and the first one those of a prompt.
func withLogprobs(events []engine.Event, prompt []int32) []engine.Event {
	entry := func(id int32, i int) engine.TokenLogprob {
		lp := -float32(i+1) / 8
		return engine.TokenLogprob{Token: id, Logprob: lp, Rank: 1, Top: []engine.Alt{{Token: id, Logprob: lp}, {Token: id%1000 + 300, Logprob: lp - 1}}}
	}
	for i := range events {
		e := entry(events[i].Token, i)
		events[i].Logprob = &e
	}
	for i := 1; i < len(prompt); i++ {
		events[0].Prompt = append(events[0].Prompt, entry(prompt[i], i))
	}
	return events
}

func str(p *string) string {
	if p == nil {
		return "null"
	}
	return *p
}

func TestCompletion(t *testing.T) {
	b := scripted(says(t, " there.")...)
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":"Hello","max_tokens":20}`, &out)
	n := len(says(t, " there."))
	if out.Object != "text_completion" || !strings.HasPrefix(out.ID, "cmpl-") || out.Created == 0 || out.Model != modelName || len(out.Choices) != 1 {
		t.Fatalf("%+v", out)
	}
	if c := out.Choices[0]; c.Text != " there." || str(c.Finish) != "stop" || c.StopReason != nil || c.Logprobs != nil {
		t.Errorf("%+v", c)
	}
	if p := len(b.last(t).Prompt); *out.Usage != used(p, n) {
		t.Errorf("usage %+v", out.Usage)
	}
	if s := b.last(t).StopTokens; !slices.Equal(s, []int32{eos}) {
		t.Errorf("stop tokens %v", s)
	}
}

func TestRequestFields(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":[9,8,7],"max_tokens":11,"min_tokens":2,"temperature":0.5,"top_p":0.25,"top_k":40,"min_p":0.125,
		"repetition_penalty":1.5,"presence_penalty":-1,"frequency_penalty":2,"logit_bias":{"7":1.5,"5":-100},"seed":-3,
		"stop_token_ids":[10],"ignore_eos":true,"logprobs":4,"allowed_token_ids":[9,4,9],"bad_words":["two words"," also"],"unknown_field":1}`, &out)
	want := engine.Request{
		ID: b.last(t).ID, Prompt: []int32{9, 8, 7}, MaxTokens: 11, MinTokens: 2, IgnoreEOS: true, Logprobs: 4, PromptLogprobs: -1,
		StopTokens: []int32{10}, Bias: []batch.Bias{{Token: 5, Value: -100}, {Token: 7, Value: 1.5}},
		Limits:   engine.Limits{Allowed: []int32{4, 9}, Bad: [][]int32{testTokenizer(t).Encode("two words", false), testTokenizer(t).Encode("also", false)}},
		Sampling: batch.Sampling{Temperature: .5, TopP: .25, TopK: 40, MinP: .125, Repetition: 1.5, Presence: -1, Frequency: 2, Seed: 1<<64 - 3},
	}
	if got := *b.last(t); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if id := b.last(t).ID; id != out.ID+"-0" {
		t.Errorf("the request is %s, the answer %s", id, out.ID)
	}
	// The model's own defaults, and none of them where the client says otherwise.
	d := serve(t, b, func(c *Config) {
		c.Defaults.Temperature, c.Defaults.TopP, c.Defaults.TopK, c.Defaults.RepetitionPenalty = .75, .5, 20, 1.25
	})
	d.ok("/v1/completions", `{"prompt":"a"}`, &out)
	got := b.last(t)
	if s := got.Sampling; s.Temperature != .75 || s.TopP != .5 || s.TopK != 20 || s.Repetition != 1.25 {
		t.Errorf("defaults %+v", s)
	}
	if !slices.Equal(got.StopTokens, []int32{eos}) || got.IgnoreEOS || got.MaxTokens != 16 || got.Logprobs != -1 {
		t.Errorf("%+v", got)
	}
	d.ok("/v1/completions", `{"prompt":"a","top_k":-1,"temperature":1e-9}`, &out)
	if s := b.last(t).Sampling; s.TopK != 0 || s.Temperature != 0 {
		t.Errorf("asked for all tokens, greedy: %+v", s)
	}
	d.ok("/v1/completions", `{"prompt":"a","top_p":1e-300}`, &out)
	if s := b.last(t).Sampling; !(s.TopP > 0 && s.TopP < 1e-30) {
		t.Errorf("asked for the likeliest token alone: %+v", s)
	}
	var chat chatAnswer
	const message = `{"messages":[{"role":"user","content":"Hi"}]`
	d.ok("/v1/chat/completions", message+`}`, &chat)
	if got := b.last(t); got.MaxTokens != maxLen-len(got.Prompt) {
		t.Errorf("a chat of %d tokens may have %d more", len(got.Prompt), got.MaxTokens)
	}
	d.ok("/v1/chat/completions", message+`,"max_completion_tokens":7,"max_tokens":9}`, &chat)
	if got := b.last(t).MaxTokens; got != 7 {
		t.Errorf("max_completion_tokens 7 became %d", got)
	}
}

func TestSeeds(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	seeds := func(body string) (out []uint64) {
		before := b.submitted()
		var c completion
		a.ok("/v1/completions", body, &c)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range b.requests[before:] {
			out = append(out, r.Sampling.Seed)
		}
		return out
	}
	one, again := seeds(`{"prompt":"a","n":3,"seed":7}`), seeds(`{"prompt":"a","n":3,"seed":7}`)
	if !slices.Equal(one, again) || one[0] != 7 || one[0] == one[1] || one[1] == one[2] {
		t.Errorf("seeds %v and %v", one, again)
	}
	if x, y := seeds(`{"prompt":"a"}`), seeds(`{"prompt":"a"}`); x[0] == y[0] {
		t.Errorf("two requests without a seed both have %d", x[0])
	}
}

// Choices come in order of their index, whatever order they end in; each prompt has n of them.
func TestChoices(t *testing.T) {
	b := scripted()
	tok := testTokenizer(t)
	b.setScript(func(_ context.Context, r *engine.Request) (engine.Stream, error) {
		return ended(tokens(append(tok.Encode(" and", false), r.Prompt[0])...)...), nil
	})
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":[[70,71],[72]],"n":2,"echo":true}`, &out)
	if len(out.Choices) != 4 {
		t.Fatalf("%+v", out)
	}
	for i, c := range out.Choices {
		prompt := []int32{70, 71}
		if i >= 2 {
			prompt = []int32{72}
		}
		if want := tok.Decode(prompt, true) + " and" + tok.Decode(prompt[:1], true); c.Index != i || c.Text != want || c.Logprobs != nil {
			t.Errorf("choice %d: %+v, want %q", i, c, want)
		}
	}
	if n := 4 * len(tokens(append(tok.Encode(" and", false), 1)...)); *out.Usage != used(3, n) {
		t.Errorf("usage %+v", out.Usage)
	}
}

func TestStops(t *testing.T) {
	a := serve(t, scripted(says(t, "one two three four")...))
	for _, x := range []struct {
		fields, text, finish string
		reason               any
	}{
		{``, "one two three four", "stop", nil},
		{`,"stop":"ee f"`, "one two thr", "stop", "ee f"},
		{`,"stop":["zzz","e tw","two"]`, "on", "stop", "e tw"},
		{`,"stop":"wo th","include_stop_str_in_output":true`, "one two th", "stop", "wo th"},
		{`,"stop":"fourx"`, "one two three four", "stop", nil},
		{`,"stop":[]`, "one two three four", "stop", nil},
		{`,"stop":"o","min_tokens":1`, "one tw", "stop", "o"},
		{`,"stop":" ","min_tokens":2,"max_tokens":20`, "one two", "stop", " "},
		{`,"skip_special_tokens":false,"include_stop_str_in_output":true`, "one two three four<|eot_id|>", "stop", nil},
	} {
		var out completion
		a.ok("/v1/completions", `{"prompt":"a"`+x.fields+`}`, &out)
		if c := out.Choices[0]; c.Text != x.text || str(c.Finish) != x.finish || c.StopReason != x.reason {
			t.Errorf("%s: %q %s %v", x.fields, c.Text, str(c.Finish), c.StopReason)
		}
	}
}

// A stop token's text is left out, unless it is asked for; its id is the reason. EOS that does not end the
// answer is a token like any other.
func TestStopTokens(t *testing.T) {
	tok := testTokenizer(t)
	ids := tok.Encode("one two", false)
	last := ids[len(ids)-1]
	events := tokens(ids...)
	events[len(events)-1].Finish, events[len(events)-1].StopToken = "stop", last
	a := serve(t, scripted(events...))
	whole, part := tok.Decode(ids, true), tok.Decode(ids[:len(ids)-1], true)
	for fields, want := range map[string]string{``: part, `,"ignore_eos":true`: part, `,"include_stop_str_in_output":true`: whole} {
		var out completion
		a.ok("/v1/completions", fmt.Sprintf(`{"prompt":"a","stop_token_ids":[%d]%s}`, last, fields), &out)
		if c := out.Choices[0]; c.Text != want || str(c.Finish) != "stop" || c.StopReason != float64(last) {
			t.Errorf("%s: %+v, want %q", fields, c, want)
		}
	}
	// EOS among them counts, whatever ignore_eos says; without that it needs no reason.
	end := tokens(ids[0], eos)
	end[1].Finish, end[1].StopToken = "stop", eos
	e := scripted(end...)
	es := serve(t, e)
	for fields, reason := range map[string]any{``: nil, `,"ignore_eos":true`: float64(eos)} {
		var out completion
		es.ok("/v1/completions", fmt.Sprintf(`{"prompt":"a","stop_token_ids":[%d]%s}`, eos, fields), &out)
		if c, r := out.Choices[0], e.last(t); c.StopReason != reason || r.IgnoreEOS || !slices.Contains(r.StopTokens, eos) {
			t.Errorf("%s: %+v, asked %+v", fields, c, r)
		}
	}
	b := serve(t, scripted(tokens(ids[0], eos, ids[1])...))
	for fields, want := range map[string]string{``: whole, `,"skip_special_tokens":false`: tok.Decode([]int32{ids[0], eos, ids[1]}, false)} {
		var out completion
		b.ok("/v1/completions", `{"prompt":"a","ignore_eos":true`+fields+`}`, &out)
		if c := out.Choices[0]; c.Text != want || str(c.Finish) != "length" || out.Usage.Completion != 3 {
			t.Errorf("%s: %+v, want %q", fields, c, want)
		}
	}
}

// A special token may be a client's own stop token; then it is the reason too.
func TestSpecialStopToken(t *testing.T) {
	events := tokens(5, 1)
	events[1].Finish, events[1].StopToken = "stop", 1
	a := serve(t, scripted(events...))
	var out completion
	a.ok("/v1/completions", `{"prompt":"a","stop_token_ids":[1]}`, &out)
	if c := out.Choices[0]; c.StopReason != 1.0 {
		t.Errorf("%+v", c)
	}
}
