package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/infinite-llm/infinite/engine/server"
)

// noMasksEnv makes instances sample as if rows had no masks.
const noMasksEnv = "INFINITE_TEST_NO_MASKS"

// guidedSchemas are of several kinds; all their documents are short.
var guidedSchemas = []string{
	`{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":120},"tags":{"type":"array","items":{"enum":["red","green","blue"]},"maxItems":3}},"required":["name","age","tags"],"additionalProperties":false}`,
	`{"type":"array","items":{"type":"number","minimum":-10,"maximum":10},"minItems":3,"maxItems":3}`,
	`{"$defs":{"tree":{"type":"object","properties":{"v":{"type":"boolean"},"left":{"anyOf":[{"$ref":"#/$defs/tree"},{"type":"null"}]}},"required":["v","left"]}},"$ref":"#/$defs/tree"}`,
	`{"anyOf":[{"type":"string","format":"date"},{"type":"object","properties":{"when":{"type":"string","format":"date-time"},"id":{"type":"string","pattern":"^[A-Z]{2}-\\d{3}$"}},"required":["when","id"]}]}`,
}

// guidedBody asks for an answer at temperature 1.
func guidedBody(seed, most int, fields map[string]any) map[string]any {
	b := map[string]any{"prompt": prompt(40, seed), "max_tokens": most, "temperature": 1, "top_p": 1, "top_k": 0, "seed": seed, "logprobs": 1}
	for k, v := range fields {
		b[k] = v
	}
	return b
}

func jsonSchema(schema string) map[string]any {
	return map[string]any{"response_format": map[string]any{"type": "json_schema", "json_schema": map[string]any{
		"name": "x", "strict": true, "schema": json.RawMessage(schema),
	}}}
}

// validates says what is wrong with a document.
func validates(t *testing.T, schema, doc string) error {
	t.Helper()
	s, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("mem:schema", s); err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(doc))
	if err != nil {
		return err
	}
	return c.MustCompile("mem:schema").Validate(v)
}

// Answers have the form that was asked for, whole and in events, whatever is drawn; beside them others have none.
func TestGuided(t *testing.T) {
	p := serve(t, "--dtype", "float32", poolFlag(t, 400))
	free := p.complete(guidedBody(99, 60, nil))
	var all sync.WaitGroup
	var among answer
	all.Go(func() { among = p.complete(guidedBody(99, 60, nil)) })
	stopped := 0
	for i, schema := range guidedSchemas {
		for seed := range 5 {
			a := p.complete(guidedBody(seed, 400, jsonSchema(schema)))
			if a.status != 200 {
				t.Fatalf("%s: %s", schema, a.message)
			}
			if a.finish == "stop" {
				stopped++
				if err := validates(t, schema, a.text); err != nil {
					t.Errorf("%s\nanswers %q: %v", schema, a.text, err)
				}
			}
			if len(a.lps) != a.usage.Completion {
				t.Errorf("%d log probabilities of %d tokens", len(a.lps), a.usage.Completion)
			}
			if seed == i { // the same in events
				if s := p.stream(guidedBody(seed, 400, jsonSchema(schema))).rest(); s.text != a.text || s.finish != a.finish || s.usage != a.usage {
					t.Errorf("in events %q, %s; else %q, %s", s.text, s.finish, a.text, a.finish)
				}
			}
		}
	}
	if stopped < 15 {
		t.Errorf("only %d of 20 answers came to an end", stopped)
	}
	for _, x := range []struct {
		fields  map[string]any
		pattern string
	}{
		{map[string]any{"guided_regex": `\d{3}-[a-f]+!`}, `^\d{3}-[a-f]+!$`},
		{map[string]any{"guided_choice": []string{"yes", "no", "maybe, but"}}, `^(yes|no|maybe, but)$`},
		{map[string]any{"guided_grammar": "root ::= \"<\" item (\", \" item)* \">\"\nitem ::= [a-z]{1,4} | \"(\" item \")\""}, `^<\(*[a-z]{1,4}\)*(, \(*[a-z]{1,4}\)*)*>$`},
		{map[string]any{"structured_outputs": map[string]any{"regex": "é+ß"}, "temperature": 0}, "^é+ß$"},
		{map[string]any{"guided_regex": "[ab]{30}", "ignore_eos": true, "min_tokens": 300}, "^[ab]{30}$"},
	} {
		a := p.complete(guidedBody(3, 500, x.fields))
		if a.status != 200 || a.finish == "stop" && !regexp.MustCompile(x.pattern).MatchString(a.text) || a.finish != "stop" && a.usage.Completion < 500 {
			t.Errorf("%v: %d %s %q %s", x.fields, a.status, a.message, a.text, a.finish)
		}
	}
	all.Wait()
	sameAnswer(t, free, among)
	p.eventually("all blocks free", idle)
}

// Without masks the same requests do not have their form, and the instance says so.
func TestGuidedNeedsMasks(t *testing.T) {
	t.Setenv(noMasksEnv, "1")
	p := serve(t, "--dtype", "float32", poolFlag(t, 100))
	for _, schema := range guidedSchemas {
		if a := p.complete(guidedBody(1, 400, jsonSchema(schema))); a.status != 500 || !strings.Contains(a.message, "form") {
			t.Errorf("%s: %d %q %s", schema, a.status, a.text, a.message)
		}
	}
}

// An answer whose KV lies with three instances is that of one.
func TestGuidedSpread(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 100))
	b := guidedBody(5, 700, jsonSchema(`{"type":"array","items":{"type":"integer"},"minItems":200}`))
	b["prompt"] = prompt(700, 1)
	want := single.complete(b)
	p := serve(t, "--dtype", "float32", "--instances", "3", poolFlag(t, 32))
	got := p.complete(b)
	sameAnswer(t, want, got)
	if len(got.tokens) < 600 || got.text != want.text {
		t.Errorf("%d tokens, %q", len(got.tokens), got.text)
	}
	p.eventually("all blocks free", idle)
}

// SIGKILL of a home in mid-answer: another one goes on, and the whole has the form.
func TestGuidedHomeIsKilled(t *testing.T) {
	const schema = `{"type":"object","properties":{"list":{"type":"array","items":{"type":"integer","maximum":99,"minimum":0},"minItems":60,"maxItems":60}},"required":["list"]}`
	single := serve(t, "--dtype", "float32", poolFlag(t, 100))
	want := single.complete(guidedBody(2, 600, jsonSchema(schema)))
	if err := validates(t, schema, want.text); err != nil || want.finish != "stop" {
		t.Fatalf("%q, %s: %v", want.text, want.finish, err)
	}
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--dtype", "float32", "--instances", "3", poolFlag(t, 100))
	s := p.stream(guidedBody(2, 600, jsonSchema(schema)))
	s.next()
	var home string
	p.eventually("the request decodes", func(v server.ClusterView) bool {
		for _, r := range v.Requests {
			home = r.Home
		}
		return len(v.Instances) == 3 && len(v.Requests) == 1 && v.Requests[0].Tokens > 40
	})
	pid := p.pid(home)
	h.release()
	for range 20 { // of more than sixty
		s.next()
	}
	h.from(1)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.logged(`a request's home is lost; another one goes on with it.* from=` + home)
	h.release()
	got := s.rest()
	sameAnswer(t, want, got)
	if got.text != want.text || got.finish != "stop" || got.usage != want.usage {
		t.Errorf("%q, %s, %+v", got.text, got.finish, got.usage)
	}
}

// Every reference model has its own weights, and the bundled tokenizer knows more ids than some have.
func TestGuidedReferenceModels(t *testing.T) {
	for _, r := range references(t)[:3] {
		p := r.serve(t, 1, exactBlocks)
		b := map[string]any{"prompt": r.Prompt[:20], "max_tokens": 200, "temperature": 1, "seed": 1, "guided_choice": []string{"alpha", "beta"}}
		if a := p.complete(b); a.status != 200 || !slices.Contains([]string{"alpha", "beta"}, a.text) || a.finish != "stop" {
			t.Errorf("%s: %s", r.name, fmt.Sprint(a))
		}
	}
}
