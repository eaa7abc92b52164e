package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// guideFields are OpenAI's and vLLM's names for the form of an answer.
type guideFields struct {
	ResponseFormat    json.RawMessage `json:"response_format"`
	StructuredOutputs json.RawMessage `json:"structured_outputs"`
	GuidedJSON        json.RawMessage `json:"guided_json"`
	GuidedRegex       json.RawMessage `json:"guided_regex"`
	GuidedChoice      json.RawMessage `json:"guided_choice"`
	GuidedGrammar     json.RawMessage `json:"guided_grammar"`
}

// form is a guide and the field that it came from.
type form struct {
	field string
	guide engine.Guide
	at    func(path string) string // where the client wrote a part of the schema; nil: there
}

// forms reads all that are given.
func (g *guideFields) forms() ([]form, error) {
	var out []form
	for _, read := range []func() ([]form, error){g.responseFormat, g.structuredOutputs, g.guided} {
		forms, err := read()
		if err != nil {
			return nil, err
		}
		out = append(out, forms...)
	}
	return out, nil
}

func (g *guideFields) responseFormat() ([]form, error) {
	const field = "response_format"
	if isUnset(g.ResponseFormat) {
		return nil, nil
	}
	var format struct {
		Type   string          `json:"type"`
		Schema json.RawMessage `json:"json_schema"`
	}
	if readObject(g.ResponseFormat, &format) != nil {
		return nil, badRequest(field, "response_format must be an object with a type.")
	}
	switch format.Type {
	case "text":
		return nil, nil
	case "json_object":
		return []form{{field: field, guide: engine.Guide{Kind: grammar.JSONObject}}}, nil
	case "json_schema":
	default:
		return nil, badRequest(field, "response_format of a type other than text, json_object and json_schema is not supported.")
	}
	// strict is what this server always is; name and description are for people.
	var named struct {
		Schema json.RawMessage `json:"schema"`
	}
	if format.Schema == nil || readObject(format.Schema, &named) != nil || named.Schema == nil || isNull(named.Schema) {
		return nil, badRequest(field, "response_format of type json_schema needs json_schema.schema.")
	}
	return one(field, "json", named.Schema)
}

func (g *guideFields) guided() ([]form, error) {
	var out []form
	for _, f := range []struct {
		field, kind string
		raw         json.RawMessage
	}{
		{"guided_json", "json", g.GuidedJSON}, {"guided_regex", "regex", g.GuidedRegex},
		{"guided_choice", "choice", g.GuidedChoice}, {"guided_grammar", "grammar", g.GuidedGrammar},
	} {
		forms, err := one(f.field, f.kind, f.raw)
		if err != nil {
			return nil, err
		}
		out = append(out, forms...)
	}
	return out, nil
}

// structuredOutputs reads vLLM's newer way to say the same.
func (g *guideFields) structuredOutputs() ([]form, error) {
	const field = "structured_outputs"
	if len(g.StructuredOutputs) == 0 || isNull(g.StructuredOutputs) {
		return nil, nil
	}
	var s struct {
		JSON          json.RawMessage `json:"json"`
		Regex         json.RawMessage `json:"regex"`
		Choice        json.RawMessage `json:"choice"`
		Grammar       json.RawMessage `json:"grammar"`
		JSONObject    bool            `json:"json_object"`
		Whitespace    json.RawMessage `json:"whitespace_pattern"`
		StructuralTag json.RawMessage `json:"structural_tag"`
	}
	if readObject(g.StructuredOutputs, &s) != nil {
		return nil, badRequest(field, "structured_outputs must be an object.")
	}
	if asks(s.Whitespace) || asks(s.StructuralTag) {
		return nil, badRequest(field, "whitespace_pattern and structural_tag of structured_outputs are not supported.")
	}
	var out []form
	for _, f := range []struct {
		kind string
		raw  json.RawMessage
	}{{"json", s.JSON}, {"regex", s.Regex}, {"choice", s.Choice}, {"grammar", s.Grammar}} {
		forms, err := one(field, f.kind, f.raw)
		if err != nil {
			return nil, err
		}
		out = append(out, forms...)
	}
	if s.JSONObject {
		out = append(out, form{field: field, guide: engine.Guide{Kind: grammar.JSONObject}})
	}
	if len(out) == 0 {
		return nil, badRequest(field, "structured_outputs names none of json, regex, choice, grammar and json_object.")
	}
	return out, nil
}

// asks tells whether a field has a text; a regular expression may be a blank.
func asks(raw json.RawMessage) bool { return len(raw) > 0 && !isNull(raw) && string(raw) != `""` }

// one reads a form of a kind; none if it is not given. As in vLLM what is empty is given, and mostly refused for it:
// an answer without a form is not what was asked for.
func one(field, kind string, raw json.RawMessage) ([]form, error) {
	if len(raw) == 0 || isNull(raw) {
		return nil, nil
	}
	var text string
	isText := json.Unmarshal(raw, &text) == nil
	guide := engine.Guide{Source: text}
	switch kind {
	case "json":
		if guide.Kind = grammar.JSONSchema; !isText { // a schema, or one written as a string
			guide.Source, isText = string(raw), true
		}
	case "choice":
		var list []*string
		isText = json.Unmarshal(raw, &list) == nil && !slices.Contains(list, nil)
		if !isText {
			return nil, badRequest(field, "%s must be a list of strings.", field)
		}
		guide = engine.Guide{Kind: grammar.Choice, Source: string(raw)}
	default:
		guide.Kind = map[string]string{"regex": grammar.Regex, "grammar": grammar.GBNF}[kind]
	}
	if !isText {
		return nil, badRequest(field, "%s must be a string.", field)
	}
	return []form{{field: field, guide: guide}}, nil
}

// checkGuide finds the form of a request's answers, and refuses one that cannot be used.
func (s *Server) checkGuide(ctx context.Context, c *common) error {
	forms, err := c.forms()
	if err != nil || len(forms) == 0 {
		return err
	}
	if len(forms) > 1 {
		return badRequest(forms[1].field, "only one form of the answer can be asked for, by response_format, structured_outputs or one of guided_json, guided_regex, guided_choice and guided_grammar.")
	}
	return s.useForm(ctx, c, forms[0])
}

// useForm holds a request's answers to a form.
func (s *Server) useForm(ctx context.Context, c *common, f form) error {
	_, err := s.grammars.Get(ctx, f.guide.Kind, f.guide.Source)
	var wrong *grammar.Error
	switch {
	case errors.As(err, &wrong):
		return badRequest(f.field, "cannot use %s: %s.", f.field, f.words(wrong))
	case errors.Is(err, grammar.ErrBusy):
		return &Error{http.StatusTooManyRequests, "RateLimitError", f.field, "cannot take the request: " + err.Error()}
	}
	c.guide = f.guide
	return err
}

// words are what is wrong with a form, with the client's paths.
func (f form) words(e *grammar.Error) string {
	if f.at == nil || e.Path == "" {
		return e.Error()
	}
	return f.at(e.Path) + ": " + schemaPaths.ReplaceAllStringFunc(e.Msg, f.at)
}

// schemaPaths are paths in messages.
var schemaPaths = regexp.MustCompile(`\$\.[^\s,]+`)

// newGrammars checks sources. What is made of them is dropped: instances, which have a vocabulary, make it anew.
func newGrammars() *grammar.Cache[struct{}] {
	return grammar.NewCache(func(ctx context.Context, steps int, kind, source string) (struct{}, error) {
		_, err := grammar.CompileWithin(ctx, steps, kind, source)
		return struct{}{}, err
	})
}
