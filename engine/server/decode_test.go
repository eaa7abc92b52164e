package server

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"testing"
)

// Keys are case-sensitive at every depth; others are unknown fields, which are ignored.
func TestKeysAreExact(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":"a","Max_Tokens":1,"MAX_TOKENS":"x","max_tokens":7,"Max_tokens":9,"Tools":[{}],"N":3,"Stream":true,
		"response_format":{"Type":"json_object","type":"text"},"logit_bias":{"5":1},"Logit_Bias":{"6":1}}`, &out)
	if r := b.last(t); r.MaxTokens != 7 || len(r.Bias) != 1 || len(out.Choices) != 1 {
		t.Errorf("%+v", r)
	}
	a.ok("/v1/completions", `{"prompt":"a","Max_Tokens":1}`, &out)
	if got := b.last(t).MaxTokens; got != 16 {
		t.Errorf("%d tokens", got)
	}
	for _, e := range a.chunks("/v1/completions", obj{"prompt": "a", "stream_options": obj{"Include_Usage": true}}) {
		if _, ok := e.hasUsage(t); ok {
			t.Errorf("usage that nobody asked for: %s", e)
		}
	}
	const chat = "/v1/chat/completions"
	wantError(t, a.post("/v1/completions", `{"Prompt":"a"}`), 400, "BadRequestError", "prompt")
	wantError(t, a.post(chat, `{"Messages":[{"role":"user","content":"a"}]}`), 400, "BadRequestError", "messages")
	wantError(t, a.post(chat, `{"messages":[{"Role":"user","content":"a"}]}`), 400, "BadRequestError", "messages", "no role")
	wantError(t, a.post(chat, `{"messages":[{"role":"user","content":[{"Type":"text","text":"a"}]}]}`), 400, "BadRequestError", "messages", "without a type")
	wantError(t, a.post("/v1/completions", `{"prompt":"a","response_format":{"Type":"text"}}`), 400, "BadRequestError", "response_format")
	wantError(t, a.post("/tokenize", `{"Prompt":"a"}`), 400, "BadRequestError", "prompt")
	wantError(t, a.post("/detokenize", `{"TOKENS":[5]}`), 400, "BadRequestError", "tokens")
	// Errors name fields as ever.
	for body, field := range map[string]string{
		`{"messages":[{"role":5}]}`: "messages.role", `{"messages":[5]}`: "messages", `{"stream_options":{"include_usage":"x"}}`: "stream_options.include_usage",
		`{"logit_bias":{"5":"x"}}`: "logit_bias", `{"chat_template_kwargs":5}`: "chat_template_kwargs",
	} {
		wantError(t, a.post(chat, body), 400, "BadRequestError", field)
	}
}

// But for the letters' case a struct is filled as encoding/json does it; of a key that comes twice the last
// value counts, and objects are merged.
func TestReadObject(t *testing.T) {
	for _, body := range []string{
		`{}`, `null`, ` { } `, `{"prompt":"a"}`, `{"n":2,"n":3,"prompt":"x","prompt":"y"}`, `{"n":2,"n":null}`,
		`{"logit_bias":{"5":1,"6":2},"logit_bias":{"6":3}}`, `{"stream_options":{"include_usage":true},"stream_options":{"continuous_usage_stats":true}}`,
		`{"stream_options":{"include_usage":true},"stream_options":null}`, `{"max\u005ftokens":4}`, `{"unknown":{"n":4,"a":[{"n":"}"}]},"n":5}`,
		"{ \"n\"\t:\n 5 ,\r\n\"stop\" : [ \"a\\\"}\" , \"b\\\\\" ] , \"echo\" : true }", `{"stop":"\\","echo":true}`, `{"":1,"-":2,"common":{"n":3}}`,
		`{"tools":[{}],"best_of":1,"prompt_embeds":"x","min_tokens":3,"temperature":"0.5"}`, `{"prompt":[[1,2],[3]],"stop_token_ids":[4]}`,
	} {
		var got, want completionRequest
		if err := json.Unmarshal([]byte(body), &want); err != nil {
			t.Fatal(err)
		}
		if err := decode([]byte(body), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", body, err, got, want)
		}
	}
}

// No field is hidden by another of the same name.
func TestFieldNames(t *testing.T) {
	for _, v := range []any{completionRequest{}, chatRequest{}, chatMessage{}, streamOptions{}, responseRequest{}, responseText{}, responseFormat{}, askedReasoning{}, responseTool{}, wireItem{}} {
		var names []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			if name := f.Tag.Get("json"); name != "" {
				names = append(names, name)
			}
		}
		if slices.Sort(names); len(slices.Compact(slices.Clone(names))) != len(names) || len(names) != len(fieldsOf(reflect.TypeOf(v))) {
			t.Errorf("%T: %v", v, names)
		}
	}
}

func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, `{ "a" : 1 , "b" : [ ] }`, `{"a":{"b":"}\"]"},"c":"\\","d":-1.5e3,"e":null}`, `{"\u0061":true,"a":false}`, "{\"a\":[[],{}],\n\"\":\"\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.TrimSpace(b)
		if !json.Valid(b) || b[0] != '{' {
			return
		}
		d := json.NewDecoder(bytes.NewReader(b))
		if _, err := d.Token(); err != nil {
			t.Fatal(err)
		}
		for key, value := range members(b) {
			wantKey, err := d.Token()
			if err != nil {
				t.Fatalf("%q: no more after %q: %v", b, key, err)
			}
			var want json.RawMessage
			if err = d.Decode(&want); err != nil || key != wantKey || !bytes.Equal(value, want) {
				t.Fatalf("%q: %q: %q, want %q: %q (%v)", b, key, value, wantKey, want, err)
			}
		}
		if d.More() {
			t.Errorf("%q: not all members", b)
		}
	})
}
