package server

import (
	"encoding/json"
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
		{`"response_format":null,"guided_json":null,"guided_regex":"","guided_choice":[],"structured_outputs":{}`, engine.Guide{}},
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
	} {
		for path, body := range map[string]string{"/v1/completions": `{"prompt":"a",`, "/v1/chat/completions": `{"messages":[{"role":"user","content":"a"}],`} {
			wantError(t, a.post(path, body+x.fields+`}`), 400, "BadRequestError", x.param, x.words)
		}
	}
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
