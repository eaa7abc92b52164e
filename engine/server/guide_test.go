package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// Each way to ask for a form reaches the engine as kind and source, from both endpoints.
func TestGuides(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	schema := `{"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}`
	quoted, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		fields string
		want   engine.Guide
	}{
		{`"response_format":{"type":"text"}`, engine.Guide{}},
		{`"response_format":null,"guided_json":null,"guided_regex":null,"guided_choice":null,"guided_grammar":null,"structured_outputs":null`, engine.Guide{}},
		{`"structured_outputs":{"json":null,"regex":"x","choice":null,"whitespace_pattern":null}`, engine.Guide{Kind: grammar.Regex, Source: "x"}},
		{`"response_format":{"type":"json_object"}`, engine.Guide{Kind: grammar.JSONObject}},
		{`"response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":` + schema + `}}`, engine.Guide{Kind: grammar.JSONSchema, Source: schema}},
		{`"guided_json":` + schema, engine.Guide{Kind: grammar.JSONSchema, Source: schema}},
		{`"guided_json":` + string(quoted), engine.Guide{Kind: grammar.JSONSchema, Source: schema}},
		{`"guided_json":{}`, engine.Guide{Kind: grammar.JSONSchema, Source: "{}"}},
		{`"guided_regex":"a+\\d"`, engine.Guide{Kind: grammar.Regex, Source: `a+\d`}},
		{`"guided_regex":" "`, engine.Guide{Kind: grammar.Regex, Source: " "}},
		{`"guided_choice":["yes", "n\u00f6"]`, engine.Guide{Kind: grammar.Choice, Source: `["yes", "n\u00f6"]`}},
		{`"guided_grammar":"root ::= \"a\""`, engine.Guide{Kind: grammar.GBNF, Source: `root ::= "a"`}},
		{`"structured_outputs":{"json":` + schema + `}`, engine.Guide{Kind: grammar.JSONSchema, Source: schema}},
		{`"structured_outputs":{"json":{}}`, engine.Guide{Kind: grammar.JSONSchema, Source: "{}"}},
		{`"structured_outputs":{"regex":"x"}`, engine.Guide{Kind: grammar.Regex, Source: "x"}},
		{`"structured_outputs":{"choice":["a"]}`, engine.Guide{Kind: grammar.Choice, Source: `["a"]`}},
		{`"structured_outputs":{"grammar":"root ::= \"b\""}`, engine.Guide{Kind: grammar.GBNF, Source: `root ::= "b"`}},
		{`"structured_outputs":{"json_object":true}`, engine.Guide{Kind: grammar.JSONObject}},
	} {
		for path, body := range map[string]string{"/v1/completions": `{"prompt":"a",`, "/v1/chat/completions": `{"messages":[{"role":"user","content":"a"}],`} {
			if r := a.post(path, body+x.fields+`}`); r.status != 200 {
				t.Errorf("%s: %d %s", x.fields, r.status, r.body)
				continue
			}
			if got := b.last(t).Guide; got != x.want {
				t.Errorf("%s: %+v", x.fields, got)
			}
		}
	}
}

func TestRefusedGuides(t *testing.T) {
	a := serve(t, scripted(tokens(5)...))
	for _, x := range []struct{ fields, param, words string }{
		{`"response_format":{"type":"json_schema"}`, "response_format", "json_schema.schema"},
		{`"response_format":{"type":"json_schema","json_schema":{"name":"x"}}`, "response_format", "json_schema.schema"},
		{`"response_format":{"type":"structural_tag"}`, "response_format", "not supported"},
		{`"response_format":5`, "response_format", "an object"},
		{`"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"a b":{"not":{}}}}}}`, "response_format", `$.properties["a b"].not: not is not supported`},
		{`"guided_json":{"type":"strin"}`, "guided_json", "$.type"},
		{`"guided_json":"{"`, "guided_json", "JSON"},
		{`"guided_json":[1]`, "guided_json", "a schema is"},
		{`"guided_json":{"type":"string","minLength":` + strings.Repeat("9", 9) + `}`, "guided_json", "too large"},
		{`"guided_regex":"("`, "guided_regex", "missing closing"},
		{`"guided_regex":"\\p{L}{1000}"`, "guided_regex", "too large"},
		{`"guided_regex":5`, "guided_regex", "must be a string"},
		{`"guided_choice":["a",null]`, "guided_choice", "list of strings"},
		{`"guided_choice":"a"`, "guided_choice", "list of strings"},
		{`"guided_grammar":"root ::= x"`, "guided_grammar", "x is not defined"},
		{`"guided_grammar":"root ::= \"a\"\nb ::= ("`, "guided_grammar", "line 2"},
		{`"guided_whitespace_pattern":"[ ]?"`, "guided_whitespace_pattern", "not supported"},
		{`"structured_outputs":{"json":{},"whitespace_pattern":" "}`, "structured_outputs", "whitespace_pattern"},
		{`"structured_outputs":{"regex":"a","choice":["a"]}`, "structured_outputs", "only one"},
		{`"structured_outputs":5`, "structured_outputs", "an object"},
		{`"guided_regex":"a","response_format":{"type":"json_object"}`, "guided_regex", "only one"},
		{`"guided_regex":""`, "guided_regex", "only the empty text"},
		{`"guided_choice":[]`, "guided_choice", "1 to 10000 texts"},
		{`"guided_grammar":""`, "guided_grammar", "root is not defined"},
		{`"guided_json":""`, "guided_json", "JSON"},
		{`"guided_json":false`, "guided_json", "no text satisfies"},
		{`"guided_regex":false`, "guided_regex", "must be a string"},
		{`"guided_regex":"","guided_json":{}`, "guided_regex", "only one"},
		{`"structured_outputs":{}`, "structured_outputs", "names none"},
		{`"structured_outputs":{"json_object":false}`, "structured_outputs", "names none"},
		{`"structured_outputs":{"regex":""}`, "structured_outputs", "only the empty text"},
		{`"structured_outputs":{"json":null}`, "structured_outputs", "names none"},
	} {
		for path, body := range map[string]string{"/v1/completions": `{"prompt":"a",`, "/v1/chat/completions": `{"messages":[{"role":"user","content":"a"}],`} {
			wantError(t, a.post(path, body+x.fields+`}`), 400, "BadRequestError", x.param, x.words)
		}
	}
}

// A client that goes away while its form is compiled ends that, and others' forms are compiled meanwhile. Where too many
// wait the answer is 429.
func TestGoneWhileCompiling(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	a := serve(t, scripted(tokens(5)...))
	a.srv.grammars = grammar.NewCache(func(ctx context.Context, _ int, _, source string) (struct{}, error) {
		switch source {
		case "long":
			close(begun)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return struct{}{}, context.Cause(ctx)
		case "busy":
			return struct{}{}, grammar.ErrBusy
		}
		return struct{}{}, nil
	})
	both := make(chan struct{})
	go func() {
		<-begun
		if r := a.post("/v1/completions", `{"prompt":"a","guided_regex":"short"}`); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
		close(both)
	}()
	a.hangUp("/v1/completions", obj{"prompt": "a", "guided_regex": "long"}, both)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	a.idle()
	wantError(t, a.post("/v1/completions", `{"prompt":"a","guided_regex":"busy"}`), 429, "RateLimitError", "guided_regex", "too many")
}

// The text of an answer that ends with its form, and not by a stop token, is whole.
func TestFormEnds(t *testing.T) {
	events := tokens(testTokenizer(t).Encode("one two", false)...)
	events[len(events)-1].Finish = "stop"
	a := serve(t, scripted(events...))
	var out completion
	a.ok("/v1/completions", `{"prompt":"a","guided_regex":"one two"}`, &out)
	if c := out.Choices[0]; c.Text != "one two" || str(c.Finish) != "stop" || c.StopReason != nil {
		t.Errorf("%q %s %v", c.Text, str(c.Finish), c.StopReason)
	}
}
