package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// responseTool is a tool as this API has it: a function's fields beside its type.
type responseTool struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	Description *string         `json:"description"`
	Parameters  json.RawMessage `json:"parameters"`
	Strict      *bool           `json:"strict"`
}

// takeTools makes a chat's tools and tool_choice, and what the answer says of them.
func (r *responseRequest) takeTools(chat *chatRequest) error {
	asked := r.unsupported.takeTools()
	tools, err := readResponseTools(orNull(asked.list))
	if err != nil {
		return err
	}
	choice, allowed, err := r.readToolChoice(orNull(asked.choice))
	if err != nil {
		return err
	}
	chat.ToolChoice = choice
	var list [][]byte
	r.echoedTools = []byte{'['}
	for i, t := range tools {
		if i > 0 {
			r.echoedTools = append(r.echoedTools, ',')
		}
		if r.echoedTools, err = t.echo(r.echoedTools); err != nil {
			return err
		}
		if allowed == nil || allowed[t.Name] {
			delete(allowed, t.Name)
			list = append(list, t.chat())
		}
	}
	r.echoedTools = append(r.echoedTools, ']')
	for name := range allowed {
		return badRequest("tool_choice", "tool_choice allows the function %q, which is not among the tools.", name)
	}
	chat.Tools = nil
	if len(list) > 0 {
		chat.Tools = slices.Concat([]byte{'['}, bytes.Join(list, []byte{','}), []byte{']'})
	}
	return nil
}

// readResponseTools reads the list. What it leaves to a chat's own check are names and parameters.
func readResponseTools(raw json.RawMessage) ([]responseTool, error) {
	if isUnset(raw) {
		return nil, nil
	}
	if len(raw) > maxToolBytes {
		return nil, badRequest("tools", "tools may have at most %d bytes, got %d.", maxToolBytes, len(raw))
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil, badRequest("tools", "tools must be a list.")
	}
	if len(list) > maxTools {
		return nil, badRequest("tools", "tools may have at most %d entries, got %d.", maxTools, len(list))
	}
	tools := make([]responseTool, len(list))
	for i, one := range list {
		t := &tools[i]
		var kind struct {
			Type string `json:"type"`
		}
		switch {
		case one[0] != '{' || readObject(one, &kind) != nil || kind.Type == "":
			return nil, badRequest("tools", "cannot use tools[%d]: it is not an object with a type.", i)
		case kind.Type != "function":
			return nil, badRequest("tools", "cannot use tools[%d]: a tool of type %q is not supported, only functions are.", i, kind.Type)
		case readObject(one, t) != nil:
			return nil, badRequest("tools", "cannot use tools[%d]: its name or description is no string, or strict neither true nor false.", i)
		}
	}
	return tools, nil
}

// chat is the tool as a chat has it. strict is nothing that a model should see.
func (t *responseTool) chat() []byte {
	b := append([]byte(`{"type":"function","function":{"name":`), quoted(t.Name)...)
	if t.Description != nil {
		b = append(append(b, `,"description":`...), quoted(*t.Description)...)
	}
	if !isNull(orNull(t.Parameters)) {
		b = append(append(b, `,"parameters":`...), t.Parameters...)
	}
	return append(b, `}}`...)
}

// echo appends the tool as answers have it. Clients may have written it over several lines, which an event cannot hold.
func (t *responseTool) echo(b []byte) ([]byte, error) {
	b = append(append(b, `{"type":"function","name":`...), quoted(t.Name)...)
	b = appendOptional(append(b, `,"description":`...), t.Description)
	b, err := appendCompact(append(b, `,"parameters":`...), t.Parameters)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"strict":`...)
	if t.Strict == nil {
		return append(b, `null}`...), nil
	}
	return fmt.Appendf(b, "%t}", *t.Strict), nil
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
