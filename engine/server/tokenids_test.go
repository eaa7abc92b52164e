package server

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
)

// withIDs is an answer or a chunk of either endpoint, as far as it tells token ids.
type withIDs struct {
	Prompt  []int32 `json:"prompt_token_ids"`
	Choices []struct {
		Index   int
		Text    string
		Message chatText
		Prompt  []int32 `json:"prompt_token_ids"`
		IDs     []int32 `json:"token_ids"`
	}
}

// The ids are those that the model read and made, the one that ended the answer among them.
func TestReturnTokenIDs(t *testing.T) {
	events := says(t, "naïve 😀 end")
	var want []int32
	for _, ev := range events {
		want = append(want, ev.Token)
	}
	b := scripted(events...)
	a := serve(t, b)
	var out withIDs
	a.json("/v1/completions", obj{"prompt": [][]int32{{9, 8}, {7}}, "n": 2, "return_token_ids": true}, &out)
	if len(out.Choices) != 4 || out.Prompt != nil {
		t.Fatalf("%+v", out)
	}
	for i, c := range out.Choices {
		prompt := []int32{9, 8}
		if i >= 2 {
			prompt = []int32{7}
		}
		if !slices.Equal(c.IDs, want) || !slices.Equal(c.Prompt, prompt) {
			t.Errorf("%d: %+v", i, c)
		}
	}
	// An echo is of the text alone.
	out = withIDs{}
	a.json("/v1/completions", obj{"prompt": "Hello", "echo": true, "stop": "ve", "return_token_ids": true}, &out)
	if c := out.Choices[0]; c.Text != "Hellonaï" || !slices.Equal(c.Prompt, b.last(t).Prompt) || len(c.IDs) == 0 || !slices.Equal(c.IDs, want[:len(c.IDs)]) {
		t.Errorf("%+v", c)
	}
	out = withIDs{}
	a.json("/v1/chat/completions", chatBody(obj{"n": 2, "return_token_ids": true}), &out)
	if !slices.Equal(out.Prompt, b.last(t).Prompt) || !slices.Equal(out.Choices[1].IDs, want) || out.Choices[0].Prompt != nil {
		t.Errorf("%+v", out)
	}
	for path, body := range map[string]obj{"/v1/completions": {"prompt": "a"}, "/v1/chat/completions": chatBody(nil)} {
		body["return_token_ids"] = nil
		if r := a.post(path, body.String()); bytes.Contains(r.body, []byte("token_ids")) {
			t.Errorf("nobody asked: %s", r.body)
		}
		for _, e := range a.chunks(path, body) {
			if bytes.Contains(e, []byte("token_ids")) {
				t.Errorf("nobody asked: %s", e)
			}
		}
	}
}

// In a stream each choice's first chunk has the prompt's ids, and every chunk those of its own tokens, also of
// tokens that have no text yet.
func TestStreamTokenIDs(t *testing.T) {
	events := says(t, "naïve 😀 end")
	b := scripted(events...)
	a := serve(t, b)
	for path, body := range map[string]obj{"/v1/completions": {"prompt": "a"}, "/v1/chat/completions": chatBody(nil)} {
		chat := path == "/v1/chat/completions"
		body["return_token_ids"], body["n"] = true, 2
		begun, ids := map[int]bool{}, map[int][]int32{}
		for _, e := range a.chunks(path, body) {
			var chunk withIDs
			if err := json.Unmarshal(e, &chunk); err != nil {
				t.Fatal(err)
			}
			c := chunk.Choices[0]
			prompt, none := c.Prompt, chunk.Prompt
			if chat {
				prompt, none = none, prompt
			}
			if none != nil || (prompt == nil) != begun[c.Index] || prompt != nil && !slices.Equal(prompt, b.last(t).Prompt) {
				t.Errorf("%s: %s", path, e)
			}
			if role := chat && !begun[c.Index]; role != (len(c.IDs) == 0) {
				t.Errorf("%s: %s", path, e)
			}
			begun[c.Index] = true
			ids[c.Index] = append(ids[c.Index], c.IDs...)
		}
		for i := range 2 {
			if len(ids[i]) != len(events) {
				t.Fatalf("%s: %v", path, ids)
			}
			for k, ev := range events {
				if ids[i][k] != ev.Token {
					t.Errorf("%s: choice %d: %v", path, i, ids[i])
				}
			}
		}
	}
}
