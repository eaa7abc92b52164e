package server

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// namedSchema is the JSON schema of an answer that is the arguments of one function.
func namedSchema(tools []tool, name string) ([]byte, error) {
	at := slices.IndexFunc(tools, func(t tool) bool { return t.name == name })
	if at < 0 {
		return nil, nil
	}
	schema := tools[at].schema()
	if isObject(schema) {
		return schema, nil
	}
	defs := definitions{}
	rest, err := defs.lift(tools[at])
	if err == nil {
		err = tools[at].checkRefs()
	}
	if err != nil {
		return nil, err
	}
	b := append([]byte(nil), objects(rest)...)
	if b, err = defs.add(b[:len(b)-1]); err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// isObject says whether a schema says of itself that it is of objects alone.
func isObject(schema json.RawMessage) bool {
	for key, value := range members(schema) {
		if key == "type" {
			return string(value) == `"object"`
		}
	}
	return false
}

// objects are of a schema's values those that are objects: arguments are nothing else.
func objects(schema json.RawMessage) json.RawMessage {
	if isObject(schema) {
		return schema
	}
	return slices.Concat(json.RawMessage(`{"allOf":[`), schema, []byte(`,{"type":"object"}]}`))
}

// schema of the arguments, which are an object also where the function does not say so.
func (t tool) schema() json.RawMessage {
	if t.parameters == nil {
		return json.RawMessage(`{"type":"object"}`)
	}
	for key := range members(t.parameters) {
		if slices.Contains([]string{"type", "$ref", "anyOf", "oneOf", "allOf"}, key) {
			return t.parameters
		}
	}
	rest := bytes.TrimLeft(t.parameters[1:], " \t\r\n")
	if rest[0] != '}' {
		rest = append([]byte{','}, rest...)
	}
	return append([]byte(`{"type":"object"`), rest...)
}

// requiredSchema is that of an answer that is a list of calls of any of these functions: what toolcall.NewList reads.
// A schema may refer to definitions at its root, which are the whole's now.
func requiredSchema(tools []tool, single bool) ([]byte, error) {
	var items []json.RawMessage
	defs := definitions{}
	for _, t := range tools {
		parameters, err := defs.lift(t)
		if err == nil {
			err = t.checkRefs()
		}
		if err != nil {
			return nil, err
		}
		name, _ := json.Marshal(t.name) // a string
		items = append(items, json.RawMessage(`{"type":"object","properties":{"name":{"enum":[`+string(name)+`]},"parameters":`+
			string(objects(parameters))+`},"required":["name","parameters"],"additionalProperties":false}`))
	}
	list, err := json.Marshal(items)
	if err != nil {
		return nil, err
	}
	b := append([]byte(`{"type":"array","minItems":1,`), `"items":{"anyOf":`...)
	b = append(append(b, list...), '}')
	if single {
		b = append(b, `,"maxItems":1`...)
	}
	if b, err = defs.add(b); err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// checkRefs refuses references to anything but definitions: the root is another schema where calls are demanded.
func (t tool) checkRefs() error {
	d := json.NewDecoder(bytes.NewReader(t.schema()))
	for ref := false; ; {
		token, err := d.Token()
		if err != nil {
			return nil // its end: it was read before
		}
		text, isText := token.(string)
		if ref && isText && !strings.HasPrefix(text, "#/$defs/") && !strings.HasPrefix(text, "#/definitions/") {
			return badRequest("tools", "the parameters of %q refer to %q, which tool_choice that demands a call cannot serve: only #/$defs/ and #/definitions/ can be referred to.", t.name, text)
		}
		ref = isText && text == "$ref" && !ref
	}
}

// definitions are those of all schemas, by the key they stand under and by name.
type definitions map[string]map[string]json.RawMessage

// lift moves the definitions of a function's parameters into defs and returns the rest.
func (defs definitions) lift(t tool) (json.RawMessage, error) {
	rest := []byte{'{'}
	for key, value := range members(t.schema()) {
		if (key == "$defs" || key == "definitions") && value[0] == '{' {
			for name, def := range members(value) {
				if defs[key] == nil {
					defs[key] = map[string]json.RawMessage{}
				}
				if was, ok := defs[key][name]; ok && !bytes.Equal(was, def) {
					return nil, badRequest("tools", "tools define %q in %s in different ways, which tool_choice required cannot serve.", name, key)
				}
				defs[key][name] = def
			}
			continue
		}
		if len(rest) > 1 {
			rest = append(rest, ',')
		}
		name, _ := json.Marshal(key) // a string
		rest = append(append(append(rest, name...), ':'), value...)
	}
	return append(rest, '}'), nil
}

// add writes them behind the members of an object.
func (defs definitions) add(b []byte) ([]byte, error) {
	for _, key := range slices.Sorted(maps.Keys(defs)) {
		all, err := json.Marshal(defs[key])
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"`+key+`":`...), all...)
	}
	return b, nil
}

// guideTools holds the answer to the schema of what is demanded. response_format is about content, of which there is
// none then.
func (s *Server) guideTools(ctx context.Context, c *common, p *toolPlan) error {
	if content, err := c.responseFormat(); err != nil || c.guide != (engine.Guide{}) && len(content) == 0 {
		return badRequest("tool_choice", "tool_choice that demands a call and another form of the answer cannot both be asked for.")
	}
	return s.useForm(ctx, c, form{"tools", engine.Guide{Kind: grammar.JSONSchema, Source: string(p.schema)}, p.paths.client})
}
