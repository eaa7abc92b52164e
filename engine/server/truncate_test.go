package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/tokenizer"
)

func TestTruncatedPrompt(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	for _, x := range []struct {
		body obj
		want []int32
	}{
		{obj{"prompt": []int32{9, 8, 7}, "truncate_prompt_tokens": 2}, []int32{8, 7}},
		{obj{"prompt": []int32{9, 8, 7}, "truncate_prompt_tokens": 3}, []int32{9, 8, 7}},
		{obj{"prompt": []int32{9, 8, 7}, "truncate_prompt_tokens": 2, "truncation_side": "left"}, []int32{8, 7}},
		{obj{"prompt": []int32{9, 8, 7}, "truncate_prompt_tokens": 2, "truncation_side": "right"}, []int32{9, 8}},
		{obj{"prompt": []int32{9, 8, 7}, "truncate_prompt_tokens": 4, "truncation_side": "right"}, []int32{9, 8, 7}},
		{obj{"prompt": []int32{9, 8, 7}, "truncation_side": "right"}, []int32{9, 8, 7}},
		{obj{"prompt": []int32{9, 8, 7}, "truncate_prompt_tokens": nil}, []int32{9, 8, 7}},
		{obj{"prompt": slices.Repeat([]int32{6, 7}, maxLen), "truncate_prompt_tokens": -1, "max_tokens": maxLen - 4}, []int32{6, 7, 6, 7}},
	} {
		x.body["echo"] = true
		var out completion
		a.ok("/v1/completions", x.body.String(), &out)
		if got := b.last(t).Prompt; !slices.Equal(got, x.want) || out.Usage.Prompt != len(x.want) || !strings.HasPrefix(out.Choices[0].Text, testTokenizer(t).Decode(x.want, true)) {
			t.Errorf("%s: %v, %+v", x.body, got, out)
		}
	}
	var chat chatAnswer
	a.ok("/v1/chat/completions", chatBody(obj{"truncate_prompt_tokens": 4}).String(), &chat)
	if n := len(b.last(t).Prompt); n != 4 {
		t.Errorf("a chat of %d tokens", n)
	}
	wantError(t, a.post("/v1/completions", `{"prompt":"a","truncation_side":"middle"}`), 400, "BadRequestError", "truncation_side", "middle")
	for _, bad := range []int{0, -2, maxLen + 1} {
		wantError(t, a.post("/v1/completions", obj{"prompt": "a", "truncate_prompt_tokens": bad}.String()), 400, "BadRequestError", "truncate_prompt_tokens", fmt.Sprint(bad))
	}
}

// Of a text its own tokens are cut; those that are added to it stay. The figures are those of HF's tokenizers 0.23.
func TestTruncatedText(t *testing.T) {
	for _, x := range []struct {
		model string
		body  obj
		keep  int
		want  []int32
	}{
		{"llama2", obj{"prompt": "a a a a"}, 2, []int32{1, 330}},
		{"llama2", obj{"prompt": "a b a b"}, 1, []int32{1}},
		{"llama2", obj{"prompt": "a b a b"}, 3, []int32{1, 330, 339}},
		{"llama2", obj{"prompt": "a a a b"}, 2, []int32{1, 339}},
		{"llama2", obj{"prompt": "a a a b", "truncation_side": "right"}, 2, []int32{1, 330}},
		{"llama2", obj{"prompt": "a a a b"}, 5, []int32{1, 330, 330, 330, 339}},
		{"llama2", obj{"prompt": "a a a b", "max_tokens": maxLen - 3}, -1, []int32{1, 330, 339}},
		{"llama2", obj{"prompt": "a a a b", "add_special_tokens": false}, 2, []int32{330, 339}},
		{"llama2", obj{"prompt": []int32{1, 330, 339}}, 2, []int32{330, 339}},
		{"roberta", obj{"prompt": "aaaa"}, 1, nil}, // nil: the whole text
		{"roberta", obj{"prompt": "aaaa"}, 2, []int32{600, 601}},
		{"roberta", obj{"prompt": "a b"}, 3, []int32{600, 274, 601}},
		{"roberta", obj{"prompt": "a b", "truncation_side": "right"}, 3, []int32{600, 260, 601}},
	} {
		tok, err := tokenizer.Load("../tokenizer/testdata/" + x.model)
		if err != nil {
			t.Fatal(err)
		}
		if x.want == nil {
			x.want = tok.Encode(x.body["prompt"].(string), true)
		}
		b := scripted(tokens(330)...)
		x.body["truncate_prompt_tokens"], x.body["echo"] = x.keep, true
		var out completion
		serveWith(t, tok, b).ok("/v1/completions", x.body.String(), &out)
		if got := b.last(t).Prompt; !slices.Equal(got, x.want) || out.Usage.Prompt != len(x.want) {
			t.Errorf("%s: %s: %v, want %v", x.model, x.body, got, x.want)
		}
	}
}

// A prompt is cut to what the cluster has room for, where that is less than what the model reads.
func TestPromptTruncatedToTheRoom(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	b.setCapacity(100)
	ids := make([]int32, 300)
	long := strings.Repeat("word ", 300)
	for _, x := range []struct {
		path       string
		body       obj
		kept, most int
	}{
		{"/v1/completions", obj{"prompt": ids, "max_tokens": 30}, 70, 30},
		{"/v1/completions", obj{"prompt": long}, 84, 16},
		{"/v1/completions", obj{"prompt": ids, "max_tokens": 0, "echo": true}, 100, 0},
		{"/v1/chat/completions", obj{"messages": []obj{{"role": "user", "content": long}}, "max_completion_tokens": 40}, 60, 40},
		{"/v1/chat/completions", obj{"messages": []obj{{"role": "user", "content": long}}}, 99, 1},
		{"/v1/chat/completions", obj{"messages": []obj{{"role": "user", "content": long}}, "min_tokens": 20}, 80, 20},
	} {
		x.body["truncate_prompt_tokens"] = -1
		if r := a.post(x.path, x.body.String()); r.status != 200 {
			t.Errorf("%s: %d %s", x.body, r.status, r.body)
		} else if q := b.last(t); len(q.Prompt) != x.kept || q.MaxTokens != x.most {
			t.Errorf("%s: %d tokens kept for %d, want %d for %d", x.body, len(q.Prompt), q.MaxTokens, x.kept, x.most)
		}
	}
	wantError(t, a.post("/v1/completions", obj{"prompt": ids, "truncate_prompt_tokens": 200}.String()),
		400, "BadRequestError", "truncate_prompt_tokens", "holds at most 100 tokens", "is 200", "has 300")
	// Which is none of the concern of a prompt that fits.
	var out completion
	a.ok("/v1/completions", obj{"prompt": ids[:90], "truncate_prompt_tokens": 200}.String(), &out)
}

// missing is a keeper of which so many instances have died.
type missing int

func (m missing) Restarts() int64 { return int64(m) }
func (m missing) Missing() int    { return int(m) }

// What is too long only until an instance is back may be asked again.
func TestTooLongForNow(t *testing.T) {
	for _, gone := range []missing{0, 1} {
		b := scripted(tokens(5)...)
		b.capacity = 100
		a := serve(t, b, func(cfg *Config) { cfg.Keeper = gone })
		for _, c := range []struct {
			body  obj
			never bool // also with all instances
		}{
			{obj{"prompt": strings.Repeat("a", 100*maxLen)}, true},
			{obj{"prompt": ids(maxLen + 1), "max_tokens": 5}, true},
			{obj{"prompt": ids(5), "max_tokens": 1_000_000}, true},
			{obj{"prompt": ids(110), "max_tokens": 5}, false},
			{obj{"prompt": ids(50), "max_tokens": 100}, false},
			{obj{"prompt": ids(110), "max_tokens": 5, "truncate_prompt_tokens": 105}, false},
			{obj{"prompt": ids(5), "max_tokens": 5, "temperature": -1}, true},
		} {
			status := 400
			if gone > 0 && !c.never {
				status = 503
			}
			if got := a.post("/v1/completions", c.body.String()); got.status != status {
				t.Errorf("%d are missing, %.60s: status %d, want %d", gone, c.body.String(), got.status, status)
			}
		}
		if text := string(a.do("GET", "/metrics", "").body); strings.Contains(text, "\ninfinite_instances_missing 1\n") != (gone > 0) {
			t.Errorf("%d are missing, the metrics say otherwise", gone)
		}
		if text := string(a.do("GET", "/cluster", "").body); !strings.Contains(text, fmt.Sprintf(`"instances_missing":%d,`, gone)) {
			t.Errorf("%d are missing, /cluster says %s", gone, text)
		}
	}
}

func ids(n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(100 + i)
	}
	return out
}
