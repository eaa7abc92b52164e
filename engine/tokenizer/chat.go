package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/infinite-llm/infinite/engine/tokenizer/jinja"
)

// Message is one message of a chat. The template sees role and content, and the others if there are any; the
// reasoning under both of the names that templates know.
type Message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	Name       string `json:"name"`
	ToolCallID string `json:"tool_call_id"`
	Reasoning  string `json:"reasoning"`
	// ToolCalls is a JSON list of OpenAI's shape, empty for none. Templates get the keys in this order, and a
	// function's arguments as an object, where their text is one.
	ToolCalls json.RawMessage `json:"tool_calls"`
}

// ErrNoChatTemplate is the error of ApplyChat for a model without a chat template.
var ErrNoChatTemplate = errors.New("the model has no chat template")

// TemplateError is what a chat template itself says against the messages, with raise_exception: that the roles must
// alternate, for example. It is meant for whoever wrote the messages.
type TemplateError struct{ Message string }

func (e *TemplateError) Error() string { return e.Message }

// HasChatTemplate tells whether the model has a chat template.
func (t *Tokenizer) HasChatTemplate() bool { return t.chat != nil }

// ChatTemplate is the text of the model's chat templates, "" without any.
func (t *Tokenizer) ChatTemplate() string { return t.chatText }

// ApplyChat renders messages with the model's chat template. vars are further variables of the template, such as tools
// (JSON is best given as a json.RawMessage, which keeps the order of keys) and enable_thinking; they may replace the
// special tokens but not the messages. Where there are tools or calls of them, a template that the model has for tool
// use is taken. The text holds the BOS if the template writes one, so it is to be encoded without special tokens.
//
// An error comes from the messages or the variables, not from the model's files, which Load has checked: it wraps a
// *TemplateError if the template refuses them, and else says where the template fails on them.
func (t *Tokenizer) ApplyChat(messages []Message, addGenerationPrompt bool, vars map[string]any) (string, error) {
	if t.chat == nil {
		return "", ErrNoChatTemplate
	}
	template := t.chat
	if t.toolChat != nil && vars["tools"] != nil {
		template = t.toolChat
	}
	list := make([]jinja.Dict, len(messages))
	for i, m := range messages {
		list[i] = jinja.Dict{{Key: "role", Value: m.Role}, {Key: "content", Value: m.Content}}
		for _, more := range []struct{ key, value string }{
			{"name", m.Name}, {"tool_call_id", m.ToolCallID}, {"reasoning", m.Reasoning}, {"reasoning_content", m.Reasoning},
		} {
			if more.value != "" {
				list[i] = append(list[i], jinja.Item{Key: more.key, Value: more.value})
			}
		}
		if len(m.ToolCalls) > 0 {
			calls, err := callsForTemplate(m.ToolCalls)
			if err != nil {
				return "", fmt.Errorf("cannot use the tool calls of message %d: %w", i, err)
			}
			list[i] = append(list[i], jinja.Item{Key: "tool_calls", Value: calls})
			if t.toolChat != nil {
				template = t.toolChat
			}
		}
	}
	data := map[string]any{"tools": nil, "documents": nil}
	for key, content := range t.specials {
		data[key] = content
	}
	for key, value := range vars {
		data[key] = value
	}
	data["messages"], data["add_generation_prompt"] = list, addGenerationPrompt
	text, err := template.Render(data)
	if err != nil {
		var raised *jinja.Raised
		if errors.As(err, &raised) {
			return "", &TemplateError{raised.Message}
		}
		return "", fmt.Errorf("cannot render the chat template: %w", err)
	}
	return text, nil
}

// callsForTemplate reads a list of calls. OpenAI's API has a function's arguments as text, templates expect an object.
func callsForTemplate(raw json.RawMessage) (any, error) {
	calls, err := jinja.DecodeOrdered(raw)
	if err != nil {
		return nil, err
	}
	list, _ := calls.([]any)
	for _, call := range list {
		function, _ := get(call, "function").(jinja.Dict)
		for i, it := range function {
			text, isText := it.Value.(string)
			if it.Key != "arguments" || !isText {
				continue
			}
			if args, err := jinja.DecodeOrdered([]byte(text)); err == nil {
				if _, isObject := args.(jinja.Dict); isObject {
					function[i].Value = args
				}
			}
		}
	}
	return calls, nil
}

func get(v any, key string) any {
	dict, _ := v.(jinja.Dict)
	for _, it := range dict {
		if it.Key == key {
			return it.Value
		}
	}
	return nil
}

// WithChatTemplate is the tokenizer with another chat template, for all requests.
func (t *Tokenizer) WithChatTemplate(source string) (*Tokenizer, error) {
	chat, err := parseChat(source)
	if err != nil {
		return nil, err
	}
	with := *t
	with.chat, with.toolChat, with.chatText = chat, nil, source
	return &with, nil
}

// WithChatTemplateFile is WithChatTemplate with what a file holds.
func (t *Tokenizer) WithChatTemplateFile(path string) (*Tokenizer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the chat template: %w", err)
	}
	defer func() { _ = f.Close() }()
	source, err := io.ReadAll(io.LimitReader(f, jinja.MaxSource+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the chat template: %w", err)
	}
	return t.WithChatTemplate(string(source))
}

func parseChat(source string) (*jinja.Template, error) {
	template, err := jinja.Parse(source)
	switch {
	case errors.Is(err, jinja.ErrUnsupported):
		return nil, fmt.Errorf("cannot use the chat template: %w: %w", ErrUnsupported, err)
	case err != nil:
		return nil, fmt.Errorf("cannot use the chat template: %w", err)
	}
	return template, nil
}
