package tokenizer

import (
	"errors"
	"fmt"

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
}

// ErrNoChatTemplate is the error of ApplyChat for a model without a chat template.
var ErrNoChatTemplate = errors.New("the model has no chat template")

// TemplateError is what a chat template itself says against the messages, with raise_exception: that the roles must
// alternate, for example. It is meant for whoever wrote the messages.
type TemplateError struct{ Message string }

func (e *TemplateError) Error() string { return e.Message }

// HasChatTemplate tells whether the model has a chat template.
func (t *Tokenizer) HasChatTemplate() bool { return t.chat != nil }

// ApplyChat renders messages with the model's chat template. vars are further variables of the template, such as
// enable_thinking; they may replace the special tokens but not the messages. The text holds the BOS if the template
// writes one, so it is to be encoded without special tokens.
//
// An error comes from the messages or the variables, not from the model's files, which Load has checked: it wraps a
// *TemplateError if the template refuses them, and else says where the template fails on them.
func (t *Tokenizer) ApplyChat(messages []Message, addGenerationPrompt bool, vars map[string]any) (string, error) {
	if t.chat == nil {
		return "", ErrNoChatTemplate
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
	}
	data := map[string]any{"tools": nil, "documents": nil}
	for key, content := range t.specials {
		data[key] = content
	}
	for key, value := range vars {
		data[key] = value
	}
	data["messages"], data["add_generation_prompt"] = list, addGenerationPrompt
	text, err := t.chat.Render(data)
	if err != nil {
		var raised *jinja.Raised
		if errors.As(err, &raised) {
			return "", &TemplateError{raised.Message}
		}
		return "", fmt.Errorf("cannot render the chat template: %w", err)
	}
	return text, nil
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
