package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// inputBlock is any block of a message as clients write it.
type inputBlock struct {
	Type      string          `json:"type"`
	Text      *string         `json:"text"`
	Thinking  *string         `json:"thinking"`
	Signature string          `json:"signature"`
	ID        string          `json:"id"` // of a tool_use, and from here its others
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"` // of a tool_result, likewise
	Content   json.RawMessage `json:"content"`
	IsError   bool            `json:"is_error"`
}

// billingHeader begins a block of system that Claude Code writes for Anthropic's servers. It is not the same in all conversations,
// and stands in front of what these have in common, so that no KV of one could be used for another.
const billingHeader = "x-anthropic-billing-header:"

// takeTurns makes the chat's messages. The answer goes on from an assistant's that is the last one.
func (r *messageRequest) takeTurns(chat *chatRequest) error {
	var list []json.RawMessage
	if isNull(orNull(r.Messages)) || json.Unmarshal(r.Messages, &list) != nil {
		return badRequest("messages", "messages must be a list of messages.")
	}
	if len(list) > maxBlocks {
		return badRequest("messages", "there may be at most %d messages, got %d.", maxBlocks, len(list))
	}
	t := messageTurns{turns: turns{calls: map[string]bool{}}, late: r.lateSystem}
	if !isNull(orNull(r.System)) {
		blocks, err := readBlocks("system", r.System, "text")
		if err != nil {
			return badRequest("system", "cannot use system: %v.", err)
		}
		texts := make([]part, 0, len(blocks))
		for _, b := range blocks {
			if !strings.HasPrefix(*b.Text, billingHeader) {
				texts = append(texts, part{text: *b.Text})
			}
		}
		if words := joined(texts); words != "" {
			t.say("system", words)
		}
	}
	for i, raw := range list {
		if err := t.add(raw); err != nil {
			return badRequest("messages", "cannot use messages[%d]: %v.", i, err)
		}
	}
	goesOn, err := t.last()
	if err != nil {
		return badRequest("messages", "cannot go on from the last message: %v.", err)
	}
	if !slices.ContainsFunc(t.messages, func(m chatMessage) bool { return m.Role != "system" }) {
		return badRequest("messages", "messages must have at least one message of a user's.")
	}
	choice := unquote(chat.ToolChoice)
	if goesOn && (!isUnset(chat.ResponseFormat) || choice != "" && choice != "auto" && choice != "none") {
		return badRequest("messages", "a last message of the assistant's cannot be gone on with where the answer has a form, or must be a call.")
	}
	chat.Messages, chat.ContinueFinal = t.messages, goesOn
	return nil
}

// messageTurns makes a chat's messages of those of a request. What one role says in a row is one turn, in which an assistant's
// thoughts stand before its text, and that before its calls; of a user's the results of calls come first, as they must follow these.
type messageTurns struct {
	turns
	late            bool // the template shows what a system says behind the first turn; else it is told as a user's
	role            string
	thoughts, texts []part
	uses, results   []item
}

func (t *messageTurns) add(raw json.RawMessage) error {
	var m struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if raw[0] != '{' || readObject(raw, &m) != nil {
		return errors.New("it is not an object with role and content")
	}
	kinds := map[string][]string{
		"user": {"text", "tool_result"}, "assistant": {"text", "thinking", "redacted_thinking", "tool_use"}, "system": {"text"},
	}[m.Role]
	if kinds == nil {
		return fmt.Errorf("its role must be user or assistant, got %q", m.Role)
	}
	if begun := t.role == "user" || t.role == "assistant"; m.Role == "system" && begun && !t.late {
		m.Role = "user"
	}
	if m.Role != t.role {
		t.end()
		t.role = m.Role
	}
	blocks, err := readBlocks("content", m.Content, kinds...)
	for i := 0; i < len(blocks) && err == nil; i++ {
		if err = t.block(&blocks[i]); err != nil {
			err = fmt.Errorf("its content[%d] %w", i, err)
		}
	}
	return err
}

func (t *messageTurns) block(b *inputBlock) error {
	switch b.Type {
	case "text":
		t.texts = append(t.texts, part{text: *b.Text})
	case "thinking":
		if b.Thinking == nil {
			return errors.New("of type thinking has no thinking")
		}
		if words := shownOrHidden(*b.Thinking, b.Signature); words != "" {
			t.thoughts = append(t.thoughts, part{text: words})
		}
	case "tool_use":
		switch {
		case b.ID == "" || b.Name == "" || len(b.Input) == 0 || b.Input[0] != '{':
			return errors.New("of type tool_use needs id, name and an input, which is an object")
		case len(t.uses) == maxCalls:
			return fmt.Errorf("is one tool_use more than the %d that a turn may have", maxCalls)
		}
		t.uses = append(t.uses, item{kind: callItem, callID: b.ID, name: b.Name, arguments: string(b.Input)})
	case "tool_result":
		if !t.calls[b.ToolUseID] {
			return fmt.Errorf("is a tool_result of %q, but there is no such tool_use before it", b.ToolUseID)
		}
		it := item{kind: resultItem, callID: b.ToolUseID}
		if !isNull(orNull(b.Content)) {
			inner, err := readBlocks("content", b.Content, "text")
			if err != nil {
				return fmt.Errorf("cannot be used: %w", err)
			}
			for _, one := range inner {
				it.parts = append(it.parts, part{text: *one.Text})
			}
		}
		if b.IsError { // which templates have no other way to show
			it.parts = []part{{text: "Error: " + joined(it.parts)}}
		}
		t.results = append(t.results, it)
	}
	return nil // nobody here can read thoughts that are redacted
}

// end ends the turn, if there is one.
func (t *messageTurns) end() {
	switch t.role {
	case "assistant":
		t.turns.thoughts = t.thoughts
		turn := t.turn()
		if len(t.texts) > 0 {
			c := content(joined(t.texts))
			turn.Content = &c
		}
		for i := range t.uses {
			t.call(&t.uses[i])
		}
		t.turns.end()
	case "user", "system":
		for _, it := range t.results {
			t.say("tool", joined(it.parts))
			t.messages[len(t.messages)-1].ToolCallID = it.callID
		}
		if len(t.texts) > 0 || len(t.results) == 0 {
			t.message(t.role, joined(t.texts))
		}
	}
	t.role, t.thoughts, t.texts, t.uses, t.results = "", nil, nil, nil, nil
}

// last ends the last turn, and says whether the answer goes on from it. As with Anthropic it must not end with blanks, which
// many templates cut off: the answer would go on from another text. One that is empty is none.
func (t *messageTurns) last() (goesOn bool, err error) {
	if t.role == "assistant" {
		words := joined(t.texts)
		switch {
		case len(t.uses) > 0:
			return false, errors.New("it has a tool_use, and its tool_result must follow")
		case words == "" && len(t.thoughts) > 0:
			return false, errors.New("it has thoughts, but no text behind them")
		case words == "":
			t.role = ""
		case strings.TrimRightFunc(words, unicode.IsSpace) != words:
			return false, errors.New("it must not end with whitespace")
		default:
			goesOn = true
		}
	}
	t.end()
	return goesOn, nil
}

// maxBlocks is how many messages there may be, and blocks of each: as with Anthropic's messages.
const maxBlocks = 100_000

// readBlocks reads a field that is a string or a list of blocks, of these types. Each of type text has one.
func readBlocks(field string, raw json.RawMessage, kinds ...string) ([]inputBlock, error) {
	raw = orNull(raw)
	if raw[0] == '"' {
		var text string
		err := json.Unmarshal(raw, &text)
		return []inputBlock{{Type: "text", Text: &text}}, err
	}
	var list []json.RawMessage
	if isNull(raw) || json.Unmarshal(raw, &list) != nil {
		return nil, fmt.Errorf("its %s must be a string or a list of blocks", field)
	}
	if len(list) > maxBlocks {
		return nil, fmt.Errorf("its %s may have at most %d blocks, and has %d", field, maxBlocks, len(list))
	}
	var blocks []inputBlock // grows with what is read: most lists of a hostile length are none of blocks
	for i, one := range list {
		b, err := readBlock(one, kinds)
		if err != nil {
			return nil, fmt.Errorf("its %s[%d] %w", field, i, err)
		}
		blocks = append(blocks, b)
	}
	return blocks, nil
}

func readBlock(raw json.RawMessage, kinds []string) (b inputBlock, err error) {
	var kind struct {
		Type string `json:"type"`
	}
	if raw[0] != '{' || readObject(raw, &kind) != nil || kind.Type == "" {
		return b, errors.New("is not an object with a type")
	}
	known := false
	for _, k := range kinds {
		known = known || k == kind.Type
	}
	if !known {
		return b, fmt.Errorf("is of type %q, and this model can read %s there", kind.Type, strings.Join(kinds, ", "))
	}
	if err := readObject(raw, &b); err != nil {
		var typed *json.UnmarshalTypeError
		if errors.As(err, &typed) {
			return b, fmt.Errorf("has a field %s that is not %s", typed.Field, jsonType(typed.Type))
		}
		return b, err
	}
	if b.Type == "text" && b.Text == nil {
		return b, errors.New("of type text has no text")
	}
	return b, nil
}

// shownOrHidden are the thoughts of a block: those that it shows, or those that an answer hid in its signature.
func shownOrHidden(thinking, signature string) string {
	if thinking != "" {
		return thinking
	}
	if hidden, ok := unsealed(signature); ok && utf8.ValidString(hidden) {
		return hidden
	}
	return ""
}
