package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// loadConfig reads tokenizer_config.json and chat_template.jinja, both of which may be absent.
func (t *Tokenizer) loadConfig(fsys fs.FS) error {
	config := map[string]json.RawMessage{}
	data, err := fs.ReadFile(fsys, "tokenizer_config.json")
	if err == nil {
		if err := json.Unmarshal(data, &config); err != nil {
			return fmt.Errorf("cannot use tokenizer_config.json: %w", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read tokenizer_config.json: %w", err)
	}
	for key, raw := range config {
		if content := tokenContent(raw); content != "" && strings.HasSuffix(key, "_token") {
			t.specials[key] = content
		}
	}
	t.bos, t.eos = t.lookUp("bos_token"), t.lookUp("eos_token")
	source, err := chatSource(fsys, config["chat_template"])
	if err != nil {
		return err
	}
	if source != "" {
		if t.chat, err = parseChat(source); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tokenizer) lookUp(key string) named {
	id, ok := t.ids[t.specials[key]]
	return named{id: id, ok: ok && t.specials[key] != ""}
}

// tokenContent reads "<s>" or {"content": "<s>", ...}; "" for anything else.
func tokenContent(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var token struct {
		Content string `json:"content"`
	}
	if json.Unmarshal(raw, &token) == nil {
		return token.Content
	}
	return ""
}

// chatSource finds the template: chat_template.jinja, or else chat_template of the config, which is a text or a list
// of named templates with one named "default".
func chatSource(fsys fs.FS, raw json.RawMessage) (string, error) {
	data, err := fs.ReadFile(fsys, "chat_template.jinja")
	if err == nil {
		return string(data), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read chat_template.jinja: %w", err)
	}
	if isNull(raw) {
		return "", nil
	}
	var source string
	if json.Unmarshal(raw, &source) == nil {
		return source, nil
	}
	var list []struct {
		Name     string `json:"name"`
		Template string `json:"template"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return "", fmt.Errorf("cannot use chat_template of tokenizer_config.json: %w", err)
	}
	for _, entry := range list {
		if entry.Name == "default" {
			return entry.Template, nil
		}
	}
	return "", nil
}
