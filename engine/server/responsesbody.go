package server

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"
)

// responseRequest is the body of POST /v1/responses. Beside OpenAI's fields it takes those of vLLM that a chat takes.
type responseRequest struct {
	common
	Input             json.RawMessage   `json:"input"`
	Instructions      *string           `json:"instructions"`
	Previous          *string           `json:"previous_response_id"`
	MaxOutputTokens   *integer          `json:"max_output_tokens"`
	TopLogprobs       *integer          `json:"top_logprobs"`
	Include           []string          `json:"include"`
	ParallelToolCalls *bool             `json:"parallel_tool_calls"`
	Text              *responseText     `json:"text"`
	Reasoning         *askedReasoning   `json:"reasoning"`
	Metadata          map[string]string `json:"metadata"`
	Store             *bool             `json:"store"`
	Truncation        *string           `json:"truncation"`
	User              *string           `json:"user"`
	SafetyIdentifier  *string           `json:"safety_identifier"`
	PromptCacheKey    *string           `json:"prompt_cache_key"`
	ServiceTier       *string           `json:"service_tier"`
	TemplateVars      map[string]any    `json:"chat_template_kwargs"`
	IncludeReasoning  *bool             `json:"include_reasoning"`
	offered           []responseTool    // the functions that the model gets
	echoedTools       []byte            // what an answer says of tools and tool_choice
	echoedChoice      []byte
	foreignFields
}

// foreignFields are those that have another place or name in this API, and those that ask for what is not there. To pass
// over the former would be to answer another request than the client's.
type foreignFields struct {
	Background          json.RawMessage `json:"background"`
	Conversation        json.RawMessage `json:"conversation"`
	PromptTemplate      json.RawMessage `json:"prompt"`
	MaxToolCalls        json.RawMessage `json:"max_tool_calls"`
	ContextManagement   json.RawMessage `json:"context_management"`
	Moderation          json.RawMessage `json:"moderation"`
	Messages            json.RawMessage `json:"messages"`
	MaxCompletionTokens json.RawMessage `json:"max_completion_tokens"`
	ReasoningEffort     json.RawMessage `json:"reasoning_effort"`
	Logprobs            json.RawMessage `json:"logprobs"`
}

type responseText struct {
	Format    *responseFormat `json:"format"`
	Verbosity *string         `json:"verbosity"`
}

func (t *responseText) UnmarshalJSON(b []byte) error { return readObject(b, t) }

type responseFormat struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	Description *string         `json:"description"`
	Schema      json.RawMessage `json:"schema"`
	Strict      *bool           `json:"strict"`
}

func (f *responseFormat) UnmarshalJSON(b []byte) error { return readObject(b, f) }

type askedReasoning struct {
	Effort          *string `json:"effort"`
	Summary         *string `json:"summary"`
	GenerateSummary *string `json:"generate_summary"` // its former name
}

func (r *askedReasoning) UnmarshalJSON(b []byte) error { return readObject(b, r) }

// Limits of metadata, as OpenAI has them.
const (
	maxMetadata      = 16
	maxMetadataKey   = 64 // characters
	maxMetadataValue = 512
)

// refuseFields refuses what this API does not do, or has under another name.
func (r *responseRequest) refuseFields() error {
	f := &r.foreignFields
	for _, x := range []struct {
		name string
		raw  json.RawMessage
	}{
		{"background", f.Background}, {"conversation", f.Conversation}, {"prompt", f.PromptTemplate}, {"max_tool_calls", f.MaxToolCalls},
		{"context_management", f.ContextManagement}, {"moderation", f.Moderation},
	} {
		if !isUnset(x.raw) {
			return badRequest(x.name, "%s is not supported.", x.name)
		}
	}
	for _, x := range []struct {
		name, own string
		given     bool
	}{
		{"messages", "input", !isUnset(f.Messages)}, {"max_tokens", "max_output_tokens", r.MaxTokens != nil},
		{"max_completion_tokens", "max_output_tokens", !isUnset(f.MaxCompletionTokens)}, {"response_format", "text.format", !isUnset(r.ResponseFormat)},
		{"reasoning_effort", "reasoning.effort", !isUnset(f.ReasoningEffort)}, {"verbosity", "text.verbosity", !isUnset(r.Verbosity)},
		{"logprobs", "include with message.output_text.logprobs", !isUnset(f.Logprobs)},
	} {
		if x.given {
			return badRequest(x.name, "%s is not a field of responses; it is %s.", x.name, x.own)
		}
	}
	switch {
	case orDefault(r.N, 1) != 1:
		return badRequest("n", "n other than 1 is not supported in a response.")
	case r.PromptLogprobs != nil:
		return badRequest("prompt_logprobs", "prompt_logprobs is not supported in a response.")
	case r.ReturnTokenIDs:
		return badRequest("return_token_ids", "return_token_ids is not supported in a response.")
	}
	return r.checkMetadata()
}

func (r *responseRequest) checkMetadata() error {
	if len(r.Metadata) > maxMetadata {
		return badRequest("metadata", "metadata may have at most %d entries, got %d.", maxMetadata, len(r.Metadata))
	}
	for key, value := range r.Metadata {
		if utf8.RuneCountInString(key) > maxMetadataKey || utf8.RuneCountInString(value) > maxMetadataValue {
			return badRequest("metadata", "metadata may have keys of at most %d characters, and values of at most %d.", maxMetadataKey, maxMetadataValue)
		}
	}
	return nil
}

// includes are what a client may ask to have in an answer. All but log probabilities are of what no answer has here.
var includes = []string{
	"message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
	"message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
}

func (r *responseRequest) takeInclude(chat *chatRequest) error {
	for _, what := range r.Include {
		if !slices.Contains(includes, what) {
			return badRequest("include", "include may have %s, got %q.", strings.Join(includes, ", "), what)
		}
	}
	chat.Logprobs = slices.Contains(r.Include, includes[0])
	if orDefault(r.TopLogprobs, 0) > 0 && !chat.Logprobs {
		return badRequest("top_logprobs", "top_logprobs needs include with %s.", includes[0])
	}
	return nil
}

// takeText makes response_format of text.format. verbosity is about a model's training, and these have none for it.
func (r *responseRequest) takeText(chat *chatRequest) error {
	if r.Text == nil {
		return nil
	}
	if v := orDefault(r.Text.Verbosity, "medium"); !slices.Contains([]string{"low", "medium", "high"}, v) {
		return badRequest("text.verbosity", "text.verbosity must be low, medium or high, got %q.", v)
	}
	f := r.Text.Format
	if f == nil {
		return nil
	}
	switch f.Type {
	case "text":
	case "json_object":
		chat.ResponseFormat = json.RawMessage(`{"type":"json_object"}`)
	case "json_schema":
		switch {
		case f.Name == "" || utf8.RuneCountInString(f.Name) > 64:
			return badRequest("text.format", "text.format of type json_schema needs a name of at most 64 characters.")
		case isNull(orNull(f.Schema)) || f.Schema[0] != '{':
			return badRequest("text.format", "text.format of type json_schema needs a schema, which is an object.")
		}
		chat.ResponseFormat = slices.Concat([]byte(`{"type":"json_schema","json_schema":{"schema":`), f.Schema, []byte(`}}`))
	default:
		return badRequest("text.format", "text.format of a type other than text, json_object and json_schema is not supported.")
	}
	return nil
}

// takeReasoning: the effort is a chat's. Of thoughts there are no summaries, but the thoughts themselves.
func (r *responseRequest) takeReasoning(chat *chatRequest) error {
	if r.Reasoning == nil {
		return nil
	}
	for _, x := range []struct {
		name  string
		value *string
	}{{"reasoning.summary", r.Reasoning.Summary}, {"reasoning.generate_summary", r.Reasoning.GenerateSummary}} {
		if x.value != nil && !slices.Contains([]string{"auto", "concise", "detailed"}, *x.value) {
			return badRequest(x.name, "%s must be auto, concise or detailed, got %q.", x.name, *x.value)
		}
	}
	if r.Reasoning.Effort != nil {
		if *r.Reasoning.Effort == "" { // a chat takes that for none said
			return badRequest("reasoning.effort", "reasoning.effort must not be empty.")
		}
		chat.ReasoningEffort = *r.Reasoning.Effort
	}
	return nil
}

// takeTruncation: auto cuts the beginning of what does not fit, as in vLLM by tokens.
func (r *responseRequest) takeTruncation(chat *chatRequest) error {
	switch truncation := orDefault(r.Truncation, "disabled"); truncation {
	case "disabled":
	case "auto":
		if chat.TruncatePrompt == nil {
			all := integer(-1)
			chat.TruncatePrompt = &all
		}
	default:
		return badRequest("truncation", "truncation must be auto or disabled, got %q.", truncation)
	}
	return nil
}
