package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// validator is another implementation's judgement of a document.
func validator(t testing.TB, schema string) func(doc string) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("mem:schema", v); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("mem:schema")
	if err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	return func(doc string) error {
		if !json.Valid([]byte(doc)) {
			return fmt.Errorf("it is no JSON")
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(doc))
		if err != nil {
			return err
		}
		return s.Validate(v)
	}
}

var schemas = []string{
	`{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},"email":{"type":"string","format":"email"}},"required":["name","age"],"additionalProperties":false}`,
	`{"type":"array","items":{"type":"number","exclusiveMinimum":-1.25,"maximum":10.5},"minItems":2,"maxItems":5}`,
	`{"type":"array","prefixItems":[{"type":"string","pattern":"^[A-Z]{2}\\d+$"},{"type":"boolean"},{"const":null}],"minItems":2,"items":{"type":"integer"}}`,
	`{"anyOf":[{"type":"string","format":"date-time"},{"type":"null"},{"type":"object","properties":{"d":{"type":"string","format":"date"},"t":{"type":"string","format":"time"},"u":{"type":"string","format":"uuid"}}}]}`,
	`{"$defs":{"node":{"type":"object","properties":{"v":{"type":["integer","null"]},"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["v","next"]}},"$ref":"#/$defs/node"}`,
	`{"type":"object","required":["kind"],"oneOf":[{"properties":{"kind":{"const":"a"},"x":{"type":"integer","exclusiveMinimum":3,"exclusiveMaximum":12}},"required":["kind"]},{"properties":{"kind":{"enum":["b","c"]},"y":{"type":"string","minLength":1,"maxLength":3}},"required":["kind","y"]}]}`,
	`{"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"string"},"a":{"minimum":5,"type":"number"}},"required":["b"]}]}`,
	`{"type":"object","properties":{"a":{"type":"string"},"ab":{"type":"integer"},"ä":{"type":"null"}},"additionalProperties":{"type":"boolean"}}`,
	`{"type":"object","additionalProperties":{"type":"array","items":{"enum":[1,"two",null,{"x":[1,2]}]}}}`,
	`{"type":"object","required":["q","r"]}`,
	`{"type":"string","pattern":"a\"b|\\\\$|\\t"}`,
	`{"type":"string","format":"ipv4"}`,
	`{"type":"string","format":"hostname"}`,
	`{"type":"string","format":"duration"}`,
	`{"type":"string","format":"uri"}`,
	`{"minLength":2}`,
	`true`,
}

// Whatever way tokens are drawn, the text that comes out is JSON and satisfies the schema.
func TestWalksSatisfySchemas(t *testing.T) {
	for i, s := range schemas {
		valid := validator(t, s)
		v := vocabulary(uint64(i), 300, s, `{"name": "x", "age": 12, "a": [1.5, true, null]}`, `2024-02-11T10:20:30Z", `, `a@b.cd xyz`)
		u := guide(t, JSONSchema, s, v)
		r := rand.New(rand.NewPCG(uint64(i), 2))
		for range 150 {
			if doc := walk(t, u, r, 30); valid(doc) != nil {
				t.Fatalf("%s\nmakes %q: %v", s, doc, valid(doc))
			}
		}
	}
}

// Valid documents, with members in the schema's order, are accepted from the first byte to the last.
func TestDocumentsAreAccepted(t *testing.T) {
	v := vocabulary(1, 0)
	for _, c := range []struct {
		schema string
		docs   []string
	}{
		{schemas[0], []string{`{"name":"a\u00e4\ud83d\ude00\n\"ß😀","age":0}`, "{\n  \"name\": \"\",\n  \"age\": 150,\n  \"email\": \"a.b@c.de\"\n}"}},
		{schemas[1], []string{`[-1.249,10.5]`, `[-1, 10.50, 0, 3.14159]`, `[0.0,-0.5,9]`}},
		{schemas[2], []string{`["AB1",true]`, `["ZZ99", false, null, -12, 0]`}},
		{schemas[3], []string{`"2024-02-11T10:20:30.5+01:00"`, `null`, `{}`, `{"t":"23:59:59Z","u":"01234567-89ab-cdef-0123-456789abcdef"}`}},
		{schemas[4], []string{`{"v":1,"next":{"v":null,"next":null}}`}},
		{schemas[5], []string{`{"kind":"a","x":4}`, `{"kind":"a","x":11}`, `{"kind":"c","y":"äöü"}`}},
		{schemas[6], []string{`{"a":5,"b":""}`, `{"a":12345678901234567890,"b":"x"}`}},
		{schemas[7], []string{`{}`, `{"a":"","ab":-1,"ä":null,"":true,"abc":false,"b":true,"äx":true}`}},
		{schemas[8], []string{`{"k":[1,"two",{"x":[1,2]}],"l":[]}`}},
		{schemas[9], []string{`{"q":1,"r":[{}],"s":null}`}},
		{schemas[10], []string{`"xa\"by"`, `"xyz\\"`, `"a\tb"`}},
		{schemas[15], []string{`"ab"`, `"\u0000\\ long enough"`}},
		{`true`, []string{`[1.5e-7, "x", {"a": {"b": [true, false, null]}}]`, `-0.1`, `"\u00e9"`}},
	} {
		u, valid := guide(t, JSONSchema, c.schema, v), validator(t, c.schema)
		for _, doc := range c.docs {
			if err := valid(doc); err != nil {
				t.Fatalf("the test's document %s is none of %s: %v", doc, c.schema, err)
			}
			if n, ends := accepts(t, u, doc); n < len(doc) || !ends {
				t.Errorf("%s\ndoes not take %s: stops at %q, ends %v", c.schema, doc, doc[n:], ends)
			}
		}
	}
}

// What a schema forbids is not accepted.
func TestDocumentsAreRefused(t *testing.T) {
	v := vocabulary(1, 0)
	for _, c := range []struct{ schema, doc string }{
		{schemas[0], `{"name":"a"}`}, {schemas[0], `{"name":"a","age":151}`}, {schemas[0], `{"name":"a","age":1,"x":2}`}, {schemas[0], `{"name":"a","age":01}`},
		{schemas[0], "{\"name\":\"\x01\",\"age\":1}"}, {schemas[0], "{\"name\":\"\xc3\",\"age\":1}"}, {schemas[0], `{"name":"\ud83d","age":1}`},
		{schemas[1], `[-1.25,1]`}, {schemas[1], `[1,10.51]`}, {schemas[1], `[1]`}, {schemas[1], `[1,2,3,4,5,6]`}, {schemas[2], `["AB1"]`}, {schemas[2], `["ab1",true]`},
		{schemas[5], `{"kind":"a","x":3}`}, {schemas[5], `{"kind":"a","x":12}`}, {schemas[5], `{"kind":"b","y":"äöüx"}`},
		{schemas[7], `{"a":true}`}, {schemas[7], `{"ab":true}`}, {schemas[7], `{"\u0061":true}`}, {schemas[9], `{"q":1}`},
	} {
		if u := guide(t, JSONSchema, c.schema, v); whole(t, u, c.doc) {
			t.Errorf("%s takes %s", c.schema, c.doc)
		}
	}
}

// drawSchema makes a schema of what is supported.
func drawSchema(t *rapid.T, depth int) map[string]any {
	kinds := []string{"string", "integer", "number", "boolean", "null", "enum", "const"}
	if depth > 0 {
		kinds = append(kinds, "object", "array", "anyOf", "object", "array")
	}
	n := func(lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, "n") }
	name := rapid.SampledFrom([]string{"a", "b", "aa", "ab", "é", "x y", `q"`, ""})
	switch k := rapid.SampledFrom(kinds).Draw(t, "kind"); k {
	case "string":
		s := map[string]any{"type": k}
		switch n(0, 3) {
		case 0:
			s["minLength"] = n(0, 3)
			s["maxLength"] = n(3, 6)
		case 1:
			s["pattern"] = rapid.SampledFrom([]string{"^a+$", "b|^c", `\d"`, "(x|y){2}$"}).Draw(t, "pattern")
		}
		return s
	case "integer", "number":
		s := map[string]any{"type": k}
		lo := float64(n(-3000, 3000)) / rapid.SampledFrom([]float64{1, 10, 100, 8}).Draw(t, "by")
		if n(0, 2) > 0 {
			s[rapid.SampledFrom([]string{"minimum", "exclusiveMinimum"}).Draw(t, "least")] = lo
		}
		if n(0, 2) > 0 {
			s[rapid.SampledFrom([]string{"maximum", "exclusiveMaximum"}).Draw(t, "most")] = lo + 2 + float64(n(0, 2000))/16
		}
		return s
	case "enum":
		return map[string]any{"enum": []any{"x", 1, nil, []any{true, map[string]any{"k": 1.5}}}[:n(1, 4)]}
	case "const":
		return map[string]any{"const": rapid.SampledFrom([]any{"ä\n", -2, false}).Draw(t, "const")}
	case "array":
		s := map[string]any{"type": k, "items": drawSchema(t, depth-1), "minItems": n(0, 2)}
		if n(0, 1) == 0 {
			s["maxItems"] = n(2, 4)
		}
		if n(0, 2) == 0 {
			s["prefixItems"] = []any{drawSchema(t, depth-1), drawSchema(t, 0)}
		}
		return s
	case "anyOf":
		return map[string]any{"anyOf": []any{drawSchema(t, depth-1), drawSchema(t, depth-1)}}
	case "object":
		props, required := map[string]any{}, []any{}
		for range n(0, 4) {
			key := name.Draw(t, "name")
			if props[key] = drawSchema(t, depth-1); n(0, 1) == 0 && !strings.Contains(fmt.Sprint(required), key) {
				required = append(required, key)
			}
		}
		s := map[string]any{"type": k, "properties": props, "required": required}
		switch n(0, 2) {
		case 0:
			s["additionalProperties"] = false
		case 1:
			s["additionalProperties"] = drawSchema(t, 0)
		}
		return s
	default:
		return map[string]any{"type": k}
	}
}

// drawDocument makes a document that a schema of drawSchema may allow: it has the types, and members in its order.
func drawDocument(t *rapid.T, s map[string]any) any {
	if branches, ok := s["anyOf"].([]any); ok {
		return drawDocument(t, rapid.SampledFrom(branches).Draw(t, "branch").(map[string]any))
	}
	if enum, ok := s["enum"].([]any); ok {
		return rapid.SampledFrom(enum).Draw(t, "one of")
	}
	switch s["type"] {
	case "string":
		return rapid.SampledFrom([]string{"", "a", "aa", "aab", "b", "bcd", `1"`, "xy", "xyyx", "é\n\u007f", "😀<", "\\\x01"}).Draw(t, "text")
	case "integer":
		return rapid.IntRange(-3200, 3200).Draw(t, "integer")
	case "number":
		return float64(rapid.IntRange(-3200*16, 3200*16).Draw(t, "sixteenths")) / 16
	case "boolean":
		return rapid.Bool().Draw(t, "boolean")
	case "array":
		out := []any{}
		first, _ := s["prefixItems"].([]any)
		for i := range rapid.IntRange(0, 4).Draw(t, "items") {
			item := s["items"]
			if i < len(first) {
				item = first[i]
			}
			out = append(out, drawDocument(t, item.(map[string]any)))
		}
		return out
	case "object":
		out := map[string]any{}
		for key, v := range s["properties"].(map[string]any) {
			if slices.Contains(s["required"].([]any), any(key)) || rapid.Bool().Draw(t, "there") {
				out[key] = drawDocument(t, v.(map[string]any))
			}
		}
		return out
	}
	return s["const"]
}

// closedObjects is the schema as it is taken: objects with properties have no others, unless they say so. Another branch of an
// anyOf would allow them.
func closedObjects(s any) any {
	switch s := s.(type) {
	case []any:
		out := make([]any, len(s))
		for i, v := range s {
			out[i] = closedObjects(v)
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, v := range s {
			if k == "const" || k == "enum" {
				out[k] = v
			} else {
				out[k] = closedObjects(v)
			}
		}
		if _, more := s["additionalProperties"]; s["type"] == "object" && !more {
			out["additionalProperties"] = false
		}
		return out
	}
	return s
}

func TestRandomSchemas(t *testing.T) {
	accepted := 0
	defer func() {
		if accepted < 100 {
			t.Errorf("only %d documents were valid", accepted)
		}
	}()
	v := vocabulary(5, 200, `{"a": "x", "ab": 12.5, "é": [1, true, null]}`, `aabcc xy\"1"`, "-3000.125")
	rapid.Check(t, func(rt *rapid.T) {
		schema := drawSchema(rt, 3)
		b, err := json.Marshal(schema)
		if err != nil {
			rt.Fatal(err)
		}
		g, err := Compile(JSONSchema, string(b))
		if err != nil {
			var e *Error
			if errors.As(err, &e) && strings.Contains(e.Msg, "no text") {
				rt.Skip("nothing satisfies it")
			}
			rt.Fatalf("%s: %v", b, err)
		}
		closed, err := json.Marshal(closedObjects(schema))
		if err != nil {
			rt.Fatal(err)
		}
		u, valid := NewGuide(g, v), validator(t, string(closed))
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		for range 5 {
			if doc := walk(t, u, r, 20); valid(doc) != nil {
				rt.Fatalf("%s\nmakes %q: %v", b, doc, valid(doc))
			}
			doc, err := json.MarshalIndent(drawDocument(rt, schema), "", rapid.SampledFrom([]string{"", "  "}).Draw(rt, "indent"))
			if err != nil {
				rt.Fatal(err)
			}
			if valid(string(doc)) == nil {
				accepted++
				if n, ends := accepts(t, u, string(doc)); n < len(doc) || !ends {
					rt.Fatalf("%s\ndoes not take %s: stops at %q, ends %v", b, doc, doc[n:], ends)
				}
			}
		}
	})
}

// A dot of a pattern takes no end of a line that ECMA-262 knows, that of a regular expression only \n.
func TestDots(t *testing.T) {
	v := vocabulary(1, 0)
	for _, c := range []struct{ pattern, yes, no string }{
		{"^a.b$", "a-b a\u0085b", "a\nb a\rb a\u2028b a\u2029b"},
		{"^(.|x)$", "x - .", "\r \u2028"},
		{`^(.|\n)$`, "x \n", "\r \u2028"},
		{`^[.]\.\\.$`, `..\\-`, `-.\\- .-\\- ..\\` + "\u2028"},
		{`^[]a.]$`, "] . a", "- \u2028"},
		{`^[^]a.]$`, "- \u2028", "] . a"},
		{`^[[:digit:].a].$`, "1- .- a-", "-- 1\u2028"},
		{`^[[:].$`, "[- :-", "[ [ "},
		{`^\Q.[\E.$`, ".[-", "-[- .[\u2028"},
		{`^[\].].$`, "]- .-", "-- ]\u2029"},
		{`^(?s:.)$`, "- \u2028 \n", "--"},
		{`^a{0}.\p{L}$`, "-ß", "-- \u2028ß"},
	} {
		text, _ := json.Marshal(map[string]string{"type": "string", "pattern": c.pattern})
		u := guide(t, JSONSchema, string(text), v)
		for want, list := range map[bool]string{true: c.yes, false: c.no} {
			for _, s := range strings.Split(list, " ") {
				doc := strings.NewReplacer("\r", `\r`, "\n", `\n`).Replace(`"` + s + `"`)
				if got := whole(t, u, doc); got != want {
					t.Errorf("the pattern %s takes %q: %v", c.pattern, doc, got)
				}
			}
		}
	}
	if u := guide(t, Regex, "a.b", v); !whole(t, u, "a\u2028b") || !whole(t, u, "a\rb") || whole(t, u, "a\nb") {
		t.Error("a regular expression's dot is another")
	}
}

func TestUnsupportedSchemas(t *testing.T) {
	for _, c := range []struct{ schema, path, msg string }{
		{`{"type":"object","properties":{"a":{"not":{}}}}`, "$.properties.a.not", "not is not supported"},
		{`{"type":"array","items":{"type":"string","format":"iri"}}`, "$.items.format", "format"},
		{`{"type":"strin"}`, "$.type", "none of the types"},
		{`{"$ref":"other.json"}`, "$.$ref", "within the schema"},
		{`{"$ref":"#/$defs/x"}`, "$", "nothing is at"},
		{`{"oneOf":[{"type":"integer"},{"type":"number"}]}`, "$.oneOf", "both hold"},
		{`{"type":"number","multipleOf":0.5}`, "$.multipleOf", "multipleOf"},
		{`{"type":"string","pattern":"(?=x)"}`, "$.pattern", "Perl syntax"},
		{`{"type":"string","pattern":"\\bx"}`, "$.pattern", "not supported"},
		{`{"type":"string","pattern":"x","maxLength":3}`, "$.pattern", "beside"},
		{`{"allOf":[{"properties":{"a":{}},"additionalProperties":false},{"properties":{"b":{}}}]}`, "$.allOf[0].additionalProperties", "excludes \"b\""},
		{`{"allOf":[{"prefixItems":[true]},{"items":{"type":"string"}}]}`, "$.allOf[1].items", "prefixItems"},
		{`{"items":false,"$ref":"#/$defs/a","$defs":{"a":{"prefixItems":[{"type":"integer"}]}}}`, "$.items", "prefixItems"},
		{`{"$ref":"#"}`, "$", "itself"},
		{`{"type":"array","items":{"$ref":"#"},"minItems":1}`, "", "no text"},
		{`{"a":1,"a":2}`, "$", "twice"},
		{`{"type":"string","maxLength":1000000}`, "$.maxLength", "too large"},
		{`{"type":"string","minLength":140000}`, "", "too large"},
		{`[1`, "", "JSON"},
		{`3`, "$", "a schema is"},
		{`{"enum":["a"],"maxLength":3}`, "$.maxLength", "beside enum"},
		{`{"type":"object","patternProperties":{"^a":{}}}`, "$.patternProperties", "not supported"},
		{`{"type":"array","uniqueItems":true}`, "$.uniqueItems", "not supported"},
		{`{"const":""}` + " x", "", "JSON"},
	} {
		_, err := Compile(JSONSchema, c.schema)
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(e.Path, c.path) || !strings.Contains(e.Msg, c.msg) {
			t.Errorf("%s: %v; wanted %s at %s", c.schema, err, c.msg, c.path)
		}
	}
}
