package server

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/infinite-llm/infinite/engine/grammar"
)

// What is wrong with a tool's parameters is told by the path in the client's list.
func TestToolPaths(t *testing.T) {
	fine := `{"type":"object","properties":{"a":{"type":"string"}}}`
	for _, x := range []struct{ parameters, path string }{
		{`{"type":"object","properties":{"x":{"not":{}}}}`, ".properties.x.not"},
		{`{"properties":{"a b":{"type":"strin"}}}`, `.properties["a b"].type`},
		{`{"anyOf":[{"type":"object"},{"type":"object","minProperties":2}]}`, ".anyOf[1].minProperties"},
		{`{"type":"object","properties":{"x":{"$ref":"#/$defs/d e"}},"$defs":{"d":true,"d e":{"if":{}}}}`, `.$defs["d e"].if`},
		{`{"$ref":"#/definitions/d","definitions":{"d":{"type":"object","contains":{}}}}`, ".definitions.d.contains"},
		{`{"type":"object","properties":{"x":{"items":{"$ref":"#/$defs/none"}}}}`, ".properties.x.items.$ref"},
		{`{"type":["object"],"not":{}}`, ".not"},
		{`{"type":"object","allOf":[{"not":{}}]}`, ".allOf[0].not"},
		{`{"type":["object"],"properties":{"allOf":{"allOf":[{"not":{}}]}}}`, ".properties.allOf.allOf[0].not"},
	} {
		tools := []tool{{"f", json.RawMessage(fine)}, {"g", json.RawMessage(x.parameters)}, {"h", nil}}
		for _, named := range []string{"g", ""} {
			schema, err := requiredSchema(tools, false)
			if named != "" {
				schema, err = namedSchema(tools, named)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = grammar.Compile(grammar.JSONSchema, string(schema))
			var wrong *grammar.Error
			if !errors.As(err, &wrong) {
				t.Fatalf("%s: %v", x.parameters, err)
			}
			if got, want := (toolPaths{tools, named}).client(wrong.Path), "tools[1].function.parameters"+x.path; got != want {
				t.Errorf("%s, %q: %s is told as %s, wanted %s", x.parameters, named, wrong.Path, got, want)
			}
		}
	}
	f := form{at: toolPaths{[]tool{{"f", json.RawMessage(fine)}}, "f"}.client}
	if got, want := f.words(&grammar.Error{Path: "$.a", Msg: "beside $.b, no"}), "tools[0].function.parameters.a: beside tools[0].function.parameters.b, no"; got != want {
		t.Error(got)
	}
}

// The same over the API.
func TestToolPathsOverTheAPI(t *testing.T) {
	a := serveWith(t, templated(t, "qwen25"), scripted(), wide)
	for _, choice := range []any{"required", obj{"type": "function", "function": obj{"name": "f"}}} {
		body := obj{
			"messages": []obj{{"role": "user", "content": "a"}}, "tool_choice": choice,
			"tools": []obj{{"type": "function", "function": obj{"name": "f", "parameters": obj{"type": "object", "not": obj{}}}}},
		}
		wantError(t, a.post("/v1/chat/completions", body.String()), 400, "BadRequestError", "tools", "cannot use tools: tools[0].function.parameters.not: not is not supported")
	}
}
