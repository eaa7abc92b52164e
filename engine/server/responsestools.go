package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// responseTool is a tool as this API has it: a function's fields beside its type, or a named list of functions.
type responseTool struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	Description *string           `json:"description"`
	Parameters  json.RawMessage   `json:"parameters"`
	Strict      *bool             `json:"strict"`
	Tools       []json.RawMessage `json:"tools"` // of a namespace
	space       string            // the namespace that a function is in
	at          string            // where the client wrote it
}

// fullName is what the model calls it.
func (t *responseTool) fullName() string {
	if t.space == "" {
		return t.Name
	}
	return t.space + "." + t.Name
}

// takeTools makes a chat's tools and tool_choice, and what the answer says of them.
func (r *responseRequest) takeTools(chat *chatRequest) error {
	asked := r.unsupported.takeTools()
	tools, err := r.readTools(orNull(asked.list))
	if err != nil {
		return err
	}
	choice, allowed, err := r.readToolChoice(orNull(asked.choice))
	if err != nil {
		return err
	}
	chat.Tools, chat.ToolChoice = nil, choice
	var list [][]byte
	for _, t := range tools {
		if allowed == nil || allowed[t.fullName()] {
			delete(allowed, t.fullName())
			list = append(list, t.chat())
			r.offered = append(r.offered, t)
		}
	}
	for name := range allowed {
		return badRequest("tool_choice", "tool_choice allows the function %q, which is not among the tools.", name)
	}
	if len(list) > 0 {
		chat.Tools = slices.Concat([]byte{'['}, bytes.Join(list, []byte{','}), []byte{']'})
	}
	return nil
}

// readTools reads the list: its functions, those of namespaces among them.
func (r *responseRequest) readTools(raw json.RawMessage) (tools []responseTool, err error) {
	r.echoedTools = []byte{'['}
	var list []json.RawMessage
	switch {
	case isUnset(raw):
	case len(raw) > maxToolBytes:
		return nil, badRequest("tools", "tools may have at most %d bytes, got %d.", maxToolBytes, len(raw))
	case json.Unmarshal(raw, &list) != nil:
		return nil, badRequest("tools", "tools must be a list.")
	}
	for i, one := range list {
		t, err := readResponseTool(one, fmt.Sprintf("tools[%d]", i))
		if err != nil {
			return nil, err
		}
		own := []responseTool{t}
		if t.Type == "namespace" {
			if own, err = t.functions(); err != nil {
				return nil, err
			}
		}
		if tools = append(tools, own...); len(tools) > maxTools {
			return nil, badRequest("tools", "tools may have at most %d functions.", maxTools)
		}
		if i > 0 {
			r.echoedTools = append(r.echoedTools, ',')
		}
		if r.echoedTools, err = t.echo(r.echoedTools, own); err != nil {
			return nil, err
		}
	}
	r.echoedTools = append(r.echoedTools, ']')
	seen := map[string]bool{}
	for _, t := range tools {
		_, problem := readTool(t.chat())
		if problem == "" && seen[t.fullName()] {
			problem = "its function has the name of another one"
		}
		if problem != "" {
			return nil, badRequest("tools", "cannot use %s: %s.", t.at, problem)
		}
		seen[t.fullName()] = true
	}
	return tools, nil
}

// readResponseTool reads one tool. Whether a function can be used is a chat's to say.
func readResponseTool(raw json.RawMessage, at string) (t responseTool, err error) {
	var kind struct {
		Type string `json:"type"`
	}
	switch {
	case raw[0] != '{' || readObject(raw, &kind) != nil || kind.Type == "":
		return t, badRequest("tools", "cannot use %s: it is not an object with a type.", at)
	case kind.Type != "function" && kind.Type != "namespace":
		return t, badRequest("tools", "cannot use %s: a tool of type %q is not supported, only functions are.", at, kind.Type)
	case readObject(raw, &t) != nil:
		return t, badRequest("tools", "cannot use %s: its name or description is no string, strict neither true nor false, or its tools no list.", at)
	}
	t.at = at
	return t, nil
}

// functions are those of a namespace. The model knows them by the names of both.
func (t *responseTool) functions() ([]responseTool, error) {
	if !toolName.MatchString(t.Name) {
		return nil, badRequest("tools", "cannot use %s: a namespace needs a name of 1 to 128 letters, digits, underscores, dashes and dots.", t.at)
	}
	var own []responseTool
	for i, one := range t.Tools {
		f, err := readResponseTool(one, fmt.Sprintf("%s.tools[%d]", t.at, i))
		switch {
		case err != nil:
			return nil, err
		case f.Type != "function":
			return nil, badRequest("tools", "cannot use %s: only functions can be in a namespace.", f.at)
		}
		f.space = t.Name
		own = append(own, f)
	}
	return own, nil
}

// chat is the function as a chat has it. strict is nothing that a model should see.
func (t *responseTool) chat() []byte {
	b := append([]byte(`{"type":"function","function":{"name":`), quoted(t.fullName())...)
	if t.Description != nil {
		b = append(append(b, `,"description":`...), quoted(*t.Description)...)
	}
	if !isNull(orNull(t.Parameters)) {
		b = append(append(b, `,"parameters":`...), t.Parameters...)
	}
	return append(b, `}}`...)
}

// echo appends the tool as answers have it. Clients may have written it over several lines, which an event cannot hold.
func (t *responseTool) echo(b []byte, own []responseTool) (_ []byte, err error) {
	b = appendString(append(b, `{"type":`...), t.Type)
	b = appendString(append(b, `,"name":`...), t.Name)
	if b = append(b, `,"description":`...); t.Type == "namespace" {
		b = append(appendString(b, orDefault(t.Description, "")), `,"tools":[`...)
		for i := range own {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = own[i].echo(b, nil); err != nil {
				return nil, err
			}
		}
		return append(b, `]}`...), nil
	}
	b, err = appendCompact(append(appendOptional(b, t.Description), `,"parameters":`...), t.Parameters)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"strict":`...)
	if t.Strict == nil {
		return append(b, `null}`...), nil
	}
	return fmt.Appendf(b, "%t}", *t.Strict), nil
}

// called is the call of a function by the name that the model knows.
func (r *response) called(id, name string) item {
	it := item{kind: callItem, callID: id, name: name}
	for _, t := range r.offered {
		if t.space != "" && t.fullName() == name {
			it.space, it.name = t.space, t.Name
		}
	}
	return it
}

// readToolChoice makes a chat's tool_choice; allowed are the functions that may be called, nil: all.
func (r *responseRequest) readToolChoice(raw json.RawMessage) (choice json.RawMessage, allowed map[string]bool, err error) {
	r.echoedChoice = []byte(`"auto"`)
	if isUnset(raw) {
		return nil, nil, nil
	}
	if slices.Contains([]string{`"none"`, `"auto"`, `"required"`}, string(raw)) {
		r.echoedChoice = raw
		return raw, nil, nil
	}
	var asked struct {
		Type  string            `json:"type"`
		Name  string            `json:"name"`
		Mode  string            `json:"mode"`
		Tools []json.RawMessage `json:"tools"`
	}
	if raw[0] != '{' || readObject(raw, &asked) != nil {
		asked.Type = ""
	}
	r.echoedChoice, err = appendCompact(nil, raw)
	switch {
	case err != nil:
		return nil, nil, err
	case asked.Type == "function" && asked.Name != "":
		return slices.Concat([]byte(`{"type":"function","function":{"name":`), quoted(asked.Name), []byte(`}}`)), nil, nil
	case asked.Type == "allowed_tools" && (asked.Mode == "auto" || asked.Mode == "required") && len(asked.Tools) > 0:
		allowed = map[string]bool{}
		for i, one := range asked.Tools {
			var t responseTool
			if one[0] != '{' || readObject(one, &t) != nil || t.Type != "function" || t.Name == "" {
				return nil, nil, badRequest("tool_choice", "tools[%d] of tool_choice is not an object with type function and a name.", i)
			}
			allowed[t.Name] = true
		}
		return quoted(asked.Mode), allowed, nil
	case asked.Type != "" && asked.Type != "function" && asked.Type != "allowed_tools":
		return nil, nil, badRequest("tool_choice", "tool_choice of type %q is not supported, only functions are.", asked.Type)
	}
	return nil, nil, badRequest("tool_choice", "tool_choice must be none, auto, required, {\"type\": \"function\", \"name\": ...}, or {\"type\": \"allowed_tools\", \"mode\": \"auto\" or \"required\", \"tools\": [...]}.")
}

func quoted(s string) []byte { return appendString(nil, s) }

// appendOptional appends a string, or null where there is none.
func appendOptional(b []byte, s *string) []byte {
	if s == nil {
		return append(b, `null`...)
	}
	return appendString(b, *s)
}

// appendCompact appends a client's own JSON on one line; null where there is none.
func appendCompact(b []byte, raw json.RawMessage) ([]byte, error) {
	to := bytes.NewBuffer(b)
	if err := json.Compact(to, orNull(raw)); err != nil {
		return nil, fmt.Errorf("cannot repeat a part of the request: %w", err)
	}
	return to.Bytes(), nil
}
