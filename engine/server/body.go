package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine"
)

// common holds the fields that both completion endpoints share, with vLLM's extensions. Fields that
// nobody knows are ignored, as vLLM does.
type common struct {
	Model             string            `json:"model"`
	MaxTokens         *integer          `json:"max_tokens"`
	maxTokensField    string            // what the client calls max_tokens, where that is another name
	MinTokens         integer           `json:"min_tokens"`
	Temperature       *number           `json:"temperature"`
	TopP              *number           `json:"top_p"`
	TopK              *integer          `json:"top_k"`
	MinP              *number           `json:"min_p"`
	RepetitionPenalty *number           `json:"repetition_penalty"`
	PresencePenalty   *number           `json:"presence_penalty"`
	FrequencyPenalty  *number           `json:"frequency_penalty"`
	LogitBias         map[string]number `json:"logit_bias"`
	Seed              *integer          `json:"seed"`
	N                 *integer          `json:"n"`
	Stop              stops             `json:"stop"`
	StopTokenIDs      tokenIDs          `json:"stop_token_ids"`
	AllowedTokenIDs   tokenIDs          `json:"allowed_token_ids"`
	BadWords          []string          `json:"bad_words"`
	IncludeStop       bool              `json:"include_stop_str_in_output"`
	IgnoreEOS         bool              `json:"ignore_eos"`
	SkipSpecial       *bool             `json:"skip_special_tokens"`
	PromptLogprobs    *integer          `json:"prompt_logprobs"`
	TokensAsIDs       bool              `json:"return_tokens_as_token_ids"`
	TruncatePrompt    *integer          `json:"truncate_prompt_tokens"`
	TruncationSide    string            `json:"truncation_side"`
	RequestID         string            `json:"request_id"`
	Priority          integer           `json:"priority"`
	ThinkingBudget    *integer          `json:"thinking_token_budget"`
	ReturnTokenIDs    bool              `json:"return_token_ids"`
	CacheSalt         *string           `json:"cache_salt"`
	KVPlacement       bool              `json:"return_kv_placement"`
	Stream            bool              `json:"stream"`
	StreamOptions     *streamOptions    `json:"stream_options"`
	guideFields
	guide   engine.Guide         // what those ask for
	thought *engine.ThoughtLimit // what ThinkingBudget asks for
	unsupported
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
	Continuous   bool `json:"continuous_usage_stats"`
}

func (o *streamOptions) UnmarshalJSON(b []byte) error { return readObject(b, o) }

// completionRequest is the body of POST /v1/completions.
type completionRequest struct {
	common
	Prompt           prompts  `json:"prompt"`
	Logprobs         *integer `json:"logprobs"`
	Echo             bool     `json:"echo"`
	AddSpecialTokens *bool    `json:"add_special_tokens"`
}

// chatRequest is the body of POST /v1/chat/completions.
type chatRequest struct {
	common
	conversation
	MaxCompletionTokens *integer `json:"max_completion_tokens"`
	Logprobs            bool     `json:"logprobs"`
	TopLogprobs         *integer `json:"top_logprobs"`
	Echo                bool     `json:"echo"`
	ParallelToolCalls   *bool    `json:"parallel_tool_calls"`
	IncludeReasoning    *bool    `json:"include_reasoning"`
	prefix, object      string   // of the answer, where it is not a chat's
	softBudget          bool     // ThinkingBudget need not be held
	most                int      // tokens of the answer, fewer where there is no room for them, if it is not MaxTokens that says
}

// conversation is what a chat's prompt is made of; /tokenize takes it too.
type conversation struct {
	Messages            []chatMessage  `json:"messages"`
	AddGenerationPrompt *bool          `json:"add_generation_prompt"`
	ContinueFinal       bool           `json:"continue_final_message"`
	AddSpecialTokens    *bool          `json:"add_special_tokens"`
	TemplateVars        map[string]any `json:"chat_template_kwargs"`
	ReasoningEffort     string         `json:"reasoning_effort"`
}

type chatMessage struct {
	Role             string          `json:"role"`
	Content          *content        `json:"content"` // nil: absent or null
	Name             string          `json:"name"`
	ToolCallID       string          `json:"tool_call_id"`
	Reasoning        *string         `json:"reasoning"`
	ReasoningContent *string         `json:"reasoning_content"` // its former name
	ToolCalls        json.RawMessage `json:"tool_calls"`
	FunctionCall     json.RawMessage `json:"function_call"`
	Audio            json.RawMessage `json:"audio"`
}

func (m *chatMessage) UnmarshalJSON(b []byte) error { return readObject(b, m) }

// integer takes what vLLM takes for one: some clients write 16.0 or "16".
type integer int

func (n *integer) UnmarshalJSON(b []byte) error {
	if isNull(b) {
		return nil
	}
	text := unquote(b)
	if i, err := strconv.ParseInt(text, 10, 64); err == nil {
		*n = integer(i)
		return nil
	}
	var f float64
	if json.Unmarshal([]byte(text), &f) != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 || isNull([]byte(text)) {
		return mismatch(b, reflect.TypeFor[integer]())
	}
	*n = integer(f)
	return nil
}

// number is a finite number, also in quotes.
type number float64

func (n *number) UnmarshalJSON(b []byte) error {
	if isNull(b) {
		return nil
	}
	var f float64
	if text := unquote(b); json.Unmarshal([]byte(text), &f) != nil || isNull([]byte(text)) {
		return mismatch(b, reflect.TypeFor[number]())
	}
	*n = number(f)
	return nil
}

func unquote(b []byte) string {
	var s string
	if len(b) > 0 && b[0] == '"' && json.Unmarshal(b, &s) == nil {
		return strings.TrimSpace(s)
	}
	return string(b)
}

// mismatch is a value of another type than its field; the decoder adds the field's name.
func mismatch(b []byte, want reflect.Type) error {
	kinds := map[byte]string{'"': "string", '[': "array", '{': "object", 't': "bool", 'f': "bool"}
	kind, ok := kinds[b[0]]
	if !ok {
		kind = "number " + string(b[:min(len(b), 40)])
	}
	return &json.UnmarshalTypeError{Value: kind, Type: want}
}

func isNull(b []byte) bool { return string(b) == "null" }

// element is the first byte of a list's first element, 0 if b is no list or has none.
func element(b []byte) byte {
	if b[0] != '[' {
		return 0
	}
	rest := bytes.TrimLeft(b[1:], " \t\r\n")
	return rest[0]
}

// tokenIDs is a list of token ids; encoding/json alone would read null as 0.
type tokenIDs []int32

func (t *tokenIDs) UnmarshalJSON(b []byte) error {
	if isNull(b) {
		return nil
	}
	if b[0] != '[' || bytes.Contains(b, []byte("null")) {
		return mismatch(b, reflect.TypeFor[tokenIDs]())
	}
	return json.Unmarshal(b, (*[]int32)(t))
}

// stops is a string or a list of strings.
type stops []string

func (s *stops) UnmarshalJSON(b []byte) error {
	switch {
	case isNull(b):
		return nil
	case b[0] == '"':
		*s = stops{""}
		return json.Unmarshal(b, &(*s)[0])
	case json.Unmarshal(b, (*[]string)(s)) != nil:
		return badRequest("stop", "cannot read stop: it is neither a string nor a list of strings")
	}
	return nil
}

// content is a string or a list of parts: texts that are joined by newlines, as vLLM does.
type content string

func (c *content) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return json.Unmarshal(b, (*string)(c))
	}
	var parts []contentPart
	if err := json.Unmarshal(b, &parts); err != nil {
		var mine *Error
		if errors.As(err, &mine) {
			return mine
		}
		return badRequest("messages", "cannot read a message's content: it is neither a string nor a list of parts")
	}
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = string(p)
	}
	*c = content(strings.Join(texts, "\n"))
	return nil
}

// contentPart is one text of a message's content: a string, or an object with a type.
type contentPart string

func (p *contentPart) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return json.Unmarshal(b, (*string)(p))
	}
	var part struct {
		Type    string  `json:"type"`
		Text    *string `json:"text"`
		Refusal *string `json:"refusal"`
	}
	if b[0] != '{' || readObject(b, &part) != nil {
		return badRequest("messages", "cannot read a part of a message's content: it is neither a string nor an object with type and text")
	}
	text := part.Text
	switch part.Type {
	case "text", "input_text", "output_text":
	case "refusal":
		text = part.Refusal
	case "":
		return badRequest("messages", "cannot use a content part without a type.")
	default:
		return badRequest("messages", "cannot use a content part of type %q: this model reads text only", part.Type)
	}
	if text == nil {
		return badRequest("messages", "cannot use a content part of type %q without its text.", part.Type)
	}
	*p = contentPart(*text)
	return nil
}

// prompt is one prompt, as text or as token ids.
type prompt struct {
	text   string
	tokens []int32
	isText bool
}

// prompts is a string, a list of strings, a list of token ids, or a list of lists of token ids.
type prompts []prompt

func (p *prompts) UnmarshalJSON(b []byte) error {
	*p = nil
	if isNull(b) {
		return nil
	}
	read := (*prompts).tokenIDs
	switch {
	case b[0] == '"':
		read = (*prompts).text
	case element(b) == ']':
		return nil
	case element(b) == '"':
		read = (*prompts).texts
	case element(b) == '[':
		read = (*prompts).lists
	}
	if read(p, b) {
		return nil
	}
	return badRequest("prompt", "cannot read prompt: it must be a string, a list of strings, a list of token ids, or a list of such lists")
}

func (p *prompts) text(b []byte) bool {
	*p = prompts{{isText: true}}
	return json.Unmarshal(b, &(*p)[0].text) == nil
}

func (p *prompts) texts(b []byte) bool {
	var texts []*string // null would be an empty string
	if json.Unmarshal(b, &texts) != nil || slices.Contains(texts, nil) {
		return false
	}
	for _, t := range texts {
		*p = append(*p, prompt{text: *t, isText: true})
	}
	return true
}

func (p *prompts) tokenIDs(b []byte) bool {
	var ids tokenIDs
	err := json.Unmarshal(b, &ids)
	*p = prompts{{tokens: ids}}
	return err == nil
}

func (p *prompts) lists(b []byte) bool {
	var lists []tokenIDs
	if json.Unmarshal(b, &lists) != nil || bytes.Contains(b, []byte("null")) {
		return false
	}
	for _, l := range lists {
		*p = append(*p, prompt{tokens: l})
	}
	return true
}
