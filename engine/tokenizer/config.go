package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// loadConfig reads tokenizer_config.json and the chat templates' files, all of which may be absent.
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
	source, err := chatSources(fsys, config["chat_template"])
	if err != nil || source.chat == "" {
		return err
	}
	t.chatText = source.chat + source.toolUse
	if t.chat, err = parseChat(source.chat); err == nil && source.toolUse != "" {
		t.toolChat, err = parseChat(source.toolUse)
	}
	return err
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

// sources are a model's chat templates, "" for none.
type sources struct{ chat, toolUse string }

// chatSources finds the templates: chat_template.jinja, and tool_use.jinja of the folder for further ones, or else
// chat_template of the config, which is a text or a list of named templates with one named "default" and perhaps one
// named "tool_use".
func chatSources(fsys fs.FS, raw json.RawMessage) (found sources, err error) {
	for _, file := range []struct {
		name string
		into *string
	}{{"chat_template.jinja", &found.chat}, {"additional_chat_templates/tool_use.jinja", &found.toolUse}} {
		data, err := fs.ReadFile(fsys, file.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return found, fmt.Errorf("cannot read %s: %w", file.name, err)
		}
		*file.into = string(data)
	}
	if found.chat != "" || isNull(raw) || json.Unmarshal(raw, &found.chat) == nil {
		return found, nil
	}
	var list []struct {
		Name     string `json:"name"`
		Template string `json:"template"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return found, fmt.Errorf("cannot use chat_template of tokenizer_config.json: %w", err)
	}
	for _, entry := range list {
		switch entry.Name {
		case "default":
			found.chat = entry.Template
		case "tool_use":
			found.toolUse = entry.Template
		}
	}
	return found, nil
}
