package server

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// messageRequest is the body of POST /v1/messages, and of the request for its number of tokens. Beside Anthropic's fields it
// takes those of vLLM that a chat takes. What Anthropic has for its own cloud (metadata, service_tier, inference_geo, cache_control
// and the like) changes no answer here, and context_management only what is left out of a conversation: these are ignored.
type messageRequest struct {
	common
	Messages      json.RawMessage `json:"messages"`
	System        json.RawMessage `json:"system"`
	StopSequences []string        `json:"stop_sequences"`
	Thinking      *askedThinking  `json:"thinking"`
	OutputConfig  *outputConfig   `json:"output_config"`
	OutputFormat  *messageFormat  `json:"output_format"` // the former place of its format
	TemplateVars  map[string]any  `json:"chat_template_kwargs"`
	formField     string          // where the form of the answer was asked for
	lateSystem    bool            // the chat template shows what a system says behind the first turn
	hideThoughts  bool            // they are not shown, but come back with the conversation
	foreignToMessage
}

// threadField is asked for by the SDKs' loops over tools, which send all of a conversation when it is refused.
const threadField = "thread"

// foreignToMessage are refused: to pass over them would be to answer another request than the client's.
type foreignToMessage struct {
	Thread              json.RawMessage `json:"thread"` // of a conversation that the server keeps
	Compaction          json.RawMessage `json:"compaction"`
	Container           json.RawMessage `json:"container"`
	MCPServers          json.RawMessage `json:"mcp_servers"`
	MaxCompletionTokens json.RawMessage `json:"max_completion_tokens"`
	ReasoningEffort     json.RawMessage `json:"reasoning_effort"`
}

type askedThinking struct {
	Type    string   `json:"type"`
	Budget  *integer `json:"budget_tokens"`
	Display *string  `json:"display"`
}

func (t *askedThinking) UnmarshalJSON(b []byte) error { return readObject(b, t) }

type outputConfig struct {
	Effort *string        `json:"effort"`
	Format *messageFormat `json:"format"`
}

func (c *outputConfig) UnmarshalJSON(b []byte) error { return readObject(b, c) }

type messageFormat struct {
	Type   string          `json:"type"`
	Schema json.RawMessage `json:"schema"`
}

func (f *messageFormat) UnmarshalJSON(b []byte) error { return readObject(b, f) }

// chat is the chat that a request comes to, without a limit of its answer.
func (r *messageRequest) chat() (*chatRequest, error) {
	if err := r.refuseFields(); err != nil {
		return nil, err
	}
	chat := &chatRequest{common: r.common, prefix: "msg_", object: "message"}
	chat.MaxTokens, chat.StreamOptions, chat.Stop = nil, nil, r.StopSequences
	chat.TemplateVars = maps.Clone(r.TemplateVars)
	for _, translate := range []func(*chatRequest) error{r.takeThinking, r.takeOutput, r.takeTools, r.takeTurns} {
		if err := translate(chat); err != nil {
			return nil, err
		}
	}
	return chat, nil
}

// refuseFields refuses what this API does not do, or has under another name.
func (r *messageRequest) refuseFields() error {
	f := &r.foreignToMessage
	for _, x := range []struct {
		name string
		raw  json.RawMessage
	}{{threadField, f.Thread}, {"compaction", f.Compaction}, {"container", f.Container}, {"mcp_servers", f.MCPServers}} {
		if !isUnset(x.raw) {
			return badRequest(x.name, "%s is not supported.", x.name)
		}
	}
	for _, x := range []struct {
		name, own string
		given     bool
	}{
		{"stop", "stop_sequences", len(r.Stop) > 0}, {"max_completion_tokens", "max_tokens", !isUnset(f.MaxCompletionTokens)},
		{"reasoning_effort", "output_config.effort", !isUnset(f.ReasoningEffort)}, {"response_format", "output_config.format", !isUnset(r.ResponseFormat)},
	} {
		if x.given {
			return badRequest(x.name, "%s is not a field of messages; it is %s.", x.name, x.own)
		}
	}
	switch {
	case orDefault(r.N, 1) != 1:
		return badRequest("n", "n other than 1 is not supported in messages.")
	case r.PromptLogprobs != nil:
		return badRequest("prompt_logprobs", "prompt_logprobs is not supported in messages.")
	case r.ReturnTokenIDs:
		return badRequest("return_token_ids", "return_token_ids is not supported in messages.")
	}
	return nil
}

// setVar gives the chat template a variable, unless the client did so itself.
func setVar(chat *chatRequest, name string, value any) {
	if _, given := chat.TemplateVars[name]; given {
		return
	}
	if chat.TemplateVars == nil {
		chat.TemplateVars = map[string]any{}
	}
	chat.TemplateVars[name] = value
}

// takeThinking tells the chat template whether the model is to think; where the client does not say, the template decides. A
// budget is held where the model's thoughts can be ended.
func (r *messageRequest) takeThinking(chat *chatRequest) error {
	t := r.Thinking
	if t == nil {
		return nil
	}
	switch t.Type {
	case "enabled", "adaptive":
		setVar(chat, "enable_thinking", true)
		if t.Budget == nil || t.Type != "enabled" || chat.ThinkingBudget != nil {
			break
		}
		if *t.Budget < 1 {
			return badRequest("thinking", "thinking.budget_tokens must be at least 1, got %d.", *t.Budget)
		}
		chat.ThinkingBudget, chat.softBudget = t.Budget, true
	case "disabled":
		setVar(chat, "enable_thinking", false)
	default:
		return badRequest("thinking", "thinking.type must be enabled, disabled or adaptive, got %q.", t.Type)
	}
	display := orDefault(t.Display, "summarized")
	if display != "summarized" && display != "omitted" {
		return badRequest("thinking", "thinking.display must be summarized or omitted, got %q.", display)
	}
	r.hideThoughts = display == "omitted"
	return nil
}

// takeOutput makes response_format of the format. The effort is a variable of the chat template.
func (r *messageRequest) takeOutput(chat *chatRequest) error {
	asked := orDefault(r.OutputConfig, outputConfig{})
	if asked.Effort != nil {
		efforts := []string{"low", "medium", "high", "xhigh", "max"}
		if !slices.Contains(efforts, *asked.Effort) {
			return badRequest("output_config", "output_config.effort must be one of %s, got %q.", strings.Join(efforts, ", "), *asked.Effort)
		}
		setVar(chat, "reasoning_effort", *asked.Effort)
	}
	f := asked.Format
	r.formField = "output_config.format"
	if r.OutputFormat != nil {
		if f != nil {
			return badRequest("output_format", "output_format and output_config.format cannot both be given.")
		}
		f, r.formField = r.OutputFormat, "output_format"
	}
	switch {
	case f == nil:
		return nil
	case f.Type != "json_schema":
		return badRequest(r.formField, "%s of a type other than json_schema is not supported.", r.formField)
	case isNull(orNull(f.Schema)) || f.Schema[0] != '{':
		return badRequest(r.formField, "%s needs a schema, which is an object.", r.formField)
	}
	chat.ResponseFormat = slices.Concat([]byte(`{"type":"json_schema","json_schema":{"schema":`), f.Schema, []byte(`}}`))
	return nil
}

// messageTool is a tool of the client's.
type messageTool struct {
	Type        *string         `json:"type"`
	Name        string          `json:"name"`
	Description *string         `json:"description"`
	Schema      json.RawMessage `json:"input_schema"`
}

// takeTools makes a chat's tools and tool_choice.
func (r *messageRequest) takeTools(chat *chatRequest) error {
	asked := r.unsupported.takeTools()
	chat.Tools, chat.ToolChoice = nil, nil
	var list []json.RawMessage
	switch {
	case isUnset(asked.list):
	case len(asked.list) > maxToolBytes:
		return badRequest("tools", "tools may have at most %d bytes, got %d.", maxToolBytes, len(asked.list))
	case json.Unmarshal(asked.list, &list) != nil:
		return badRequest("tools", "tools must be a list.")
	}
	for i, one := range list {
		tool, err := readMessageTool(i, one)
		if err != nil {
			return err
		}
		if i > 0 {
			chat.Tools = append(chat.Tools, ',')
		}
		chat.Tools = append(chat.Tools, tool...)
	}
	if len(list) > 0 {
		chat.Tools = slices.Concat([]byte{'['}, chat.Tools, []byte{']'})
	}
	return takeMessageChoice(asked.choice, chat)
}

// readMessageTool makes a chat's function of a tool. Those that Anthropic defines have no schema here, also where they would
// run at the client.
func readMessageTool(i int, raw json.RawMessage) ([]byte, error) {
	var kind struct {
		Type *string `json:"type"`
	}
	var t messageTool
	switch {
	case raw[0] != '{' || readObject(raw, &kind) != nil:
		return nil, badRequest("tools", "cannot use tools[%d]: it is not an object with a name and an input_schema.", i)
	case orDefault(kind.Type, "custom") != "custom":
		return nil, badRequest("tools", "cannot use tools[%d]: a tool of type %q is not supported, only the client's own with an input_schema are.", i, *kind.Type)
	case readObject(raw, &t) != nil:
		return nil, badRequest("tools", "cannot use tools[%d]: its name or description is no string.", i)
	case isNull(orNull(t.Schema)) || t.Schema[0] != '{':
		return nil, badRequest("tools", "cannot use tools[%d]: it needs an input_schema, which is an object.", i)
	}
	f := responseTool{Name: t.Name, Description: t.Description, Parameters: t.Schema}
	return f.chat(), nil
}

func takeMessageChoice(raw json.RawMessage, chat *chatRequest) error {
	if isUnset(raw) {
		return nil
	}
	var choice struct {
		Type   string `json:"type"`
		Name   string `json:"name"`
		Single *bool  `json:"disable_parallel_tool_use"`
	}
	if raw[0] != '{' || readObject(raw, &choice) != nil {
		choice.Type = ""
	}
	switch words := map[string]string{"auto": `"auto"`, "any": `"required"`, "none": `"none"`}; {
	case choice.Type == "tool" && choice.Name != "":
		chat.ToolChoice = slices.Concat([]byte(`{"type":"function","function":{"name":`), quoted(choice.Name), []byte(`}}`))
	case words[choice.Type] != "":
		chat.ToolChoice = json.RawMessage(words[choice.Type])
	default:
		return badRequest("tool_choice", "tool_choice must be {\"type\": \"auto\"}, \"any\" or \"none\", or {\"type\": \"tool\", \"name\": ...}.")
	}
	parallel := !orDefault(choice.Single, false)
	chat.ParallelToolCalls = &parallel
	return nil
}
