package tokenizer

import (
	"errors"
	"fmt"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
)

// Message is one message of a chat.
type Message struct {
	Role, Content, Name string
}

// ErrNoChatTemplate is returned by ApplyChat for a model without a chat template.
var ErrNoChatTemplate = errors.New("the model has no chat template")

// TemplateError is what a chat template itself says against its messages, with raise_exception.
type TemplateError struct{ Message string }

func (e *TemplateError) Error() string { return e.Message }

type chatTemplate struct{ template *exec.Template }

func newChatTemplate(source string) (*chatTemplate, error) {
	cfg := config.New()
	cfg.TrimBlocks, cfg.LeftStripBlocks = true, true
	loader, err := loaders.NewMemoryLoader(map[string]string{"/chat": source})
	if err != nil {
		return nil, err
	}
	template, err := exec.NewTemplate("/chat", cfg, loader, &exec.Environment{
		Context: exec.EmptyContext().Update(builtins.GlobalFunctions), Filters: builtins.Filters, Tests: builtins.Tests,
		ControlStructures: builtins.ControlStructures, Methods: builtins.Methods,
	})
	if err != nil {
		return nil, err
	}
	return &chatTemplate{template}, nil
}

// HasChatTemplate tells whether the model has a chat template.
func (t *Tokenizer) HasChatTemplate() bool { return t.chat != nil }

// ApplyChat renders the messages with the model's chat template. vars are further variables for the template.
func (t *Tokenizer) ApplyChat(messages []Message, addGenerationPrompt bool, vars map[string]any) (text string, err error) {
	if t.chat == nil {
		return "", ErrNoChatTemplate
	}
	defer func() {
		if r := recover(); r != nil {
			text, err = "", fmt.Errorf("cannot render the chat template: %v", r)
		}
	}()
	data := map[string]any{}
	for key, content := range t.specials {
		data[key] = content
	}
	for key, value := range vars {
		data[key] = value
	}
	list := make([]any, len(messages))
	for i, m := range messages {
		d := &exec.Dict{Pairs: []*exec.Pair{
			{Key: exec.AsValue("role"), Value: exec.AsValue(m.Role)},
			{Key: exec.AsValue("content"), Value: exec.AsValue(m.Content)},
		}}
		if m.Name != "" {
			d.Pairs = append(d.Pairs, &exec.Pair{Key: exec.AsValue("name"), Value: exec.AsValue(m.Name)})
		}
		list[i] = d
	}
	data["messages"], data["add_generation_prompt"] = list, addGenerationPrompt
	data["raise_exception"] = func(message string) (string, error) { return "", &TemplateError{message} }
	return t.chat.template.ExecuteToString(exec.NewContext(data))
}
