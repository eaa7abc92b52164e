package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine"
)

// Kinds of items.
const (
	messageItem   = "message"
	callItem      = "function_call"
	resultItem    = "function_call_output"
	reasoningItem = "reasoning"
	referenceItem = "item_reference" // to one that was stored
)

// idPrefixes are what the ids of items begin with.
var idPrefixes = map[string]string{messageItem: "msg_", callItem: "fc_", resultItem: "fco_", reasoningItem: "rs_"}

// item is one step of a conversation: what clients send, what answers are made of, and what is stored.
type item struct {
	kind, id, status string
	role             string // of a message
	parts            []part // a message's content, a call's result, or thoughts
	plain            bool   // a result that was one string
	summary          []part // of thoughts
	callID           string // of a call, and of its result
	name, arguments  string // of a call
	space            string // the namespace of its function, "" for none
}

// part is a text of an item.
type part struct {
	kind, text string
	tokens     []engine.TokenLogprob // with their log probabilities, where these were asked for
}

// joined is the text of all parts, put together as a chat's are.
func joined(parts []part) string {
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.text
	}
	return strings.Join(texts, "\n")
}

func (it *item) rename() { it.id = idPrefixes[it.kind] + newID() }

// append writes an item as it is listed. a knows the tokens of its log probabilities; without them it may be nil.
func (it *item) append(b []byte, a *answer) []byte {
	b = appendString(append(b, `{"id":`...), it.id)
	b = appendString(append(b, `,"type":`...), it.kind)
	switch it.kind {
	case messageItem:
		b = appendString(append(b, `,"status":`...), it.status)
		b = appendString(append(b, `,"role":`...), it.role)
		b = appendParts(append(b, `,"content":`...), it.parts, a)
	case callItem:
		b = appendString(append(b, `,"status":`...), it.status)
		b = appendString(append(b, `,"call_id":`...), it.callID)
		if it.space != "" {
			b = appendString(append(b, `,"namespace":`...), it.space)
		}
		b = appendString(append(b, `,"name":`...), it.name)
		b = appendString(append(b, `,"arguments":`...), it.arguments)
	case resultItem:
		b = appendString(append(b, `,"status":`...), it.status)
		b = appendString(append(b, `,"call_id":`...), it.callID)
		if b = append(b, `,"output":`...); it.plain {
			b = appendString(b, joined(it.parts))
		} else {
			b = appendParts(b, it.parts, a)
		}
	case reasoningItem:
		b = appendParts(append(b, `,"summary":`...), it.summary, a)
		b = appendParts(append(b, `,"content":`...), it.parts, a)
	}
	return append(b, '}')
}

func appendParts(b []byte, parts []part, a *answer) []byte {
	b = append(b, '[')
	for i := range parts {
		if i > 0 {
			b = append(b, ',')
		}
		b = parts[i].append(b, a)
	}
	return append(b, ']')
}

func (p *part) append(b []byte, a *answer) []byte {
	b = appendString(append(b, `{"type":`...), p.kind)
	switch p.kind {
	case "refusal":
		b = appendString(append(b, `,"refusal":`...), p.text)
	case "output_text":
		b = appendString(append(b, `,"text":`...), p.text)
		b = append(b, `,"annotations":[],"logprobs":`...)
		b = a.appendTokens(b, p.tokens)
	default:
		b = appendString(append(b, `,"text":`...), p.text)
	}
	return append(b, '}')
}

// wireItem is any item as clients write it.
type wireItem struct {
	Type      *string         `json:"type"`
	ID        *string         `json:"id"`
	Status    *string         `json:"status"`
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	Summary   json.RawMessage `json:"summary"`
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Namespace *string         `json:"namespace"`
	Arguments *string         `json:"arguments"`
	Output    json.RawMessage `json:"output"`
}

// readInput reads a request's input: a string, or a list of items. What these refer to comes from the store, at most so many
// bytes of it: references are small, whatever they are of.
func readInput(raw json.RawMessage, store *responseStore, most int) ([]item, error) {
	var list []json.RawMessage
	switch {
	case isNull(raw):
		return nil, nil
	case raw[0] == '"':
		it := item{kind: messageItem, status: "completed", role: "user", parts: []part{{kind: "input_text"}}}
		return []item{it}, json.Unmarshal(raw, &it.parts[0].text)
	case json.Unmarshal(raw, &list) != nil:
		return nil, badRequest("input", "input must be a string or a list of items.")
	}
	if len(list) > maxItems {
		return nil, badRequest("input", "input may have at most %d items, got %d.", maxItems, len(list))
	}
	items := make([]item, len(list))
	for i, one := range list {
		it, err := readItem(one)
		if err == nil && it.kind == referenceItem {
			stored := store.item(it.id)
			if stored == nil {
				return nil, badRequest("input", "cannot use input[%d]: there is no item with id %q; what this server keeps of responses is limited.", i, it.id)
			}
			if most -= len(stored); most < 0 {
				return nil, badRequest("input", "cannot use input[%d]: what this conversation refers to is larger than a request may be.", i)
			}
			it, err = readItem(stored)
		}
		if err != nil {
			return nil, badRequest("input", "cannot use input[%d]: %v.", i, err)
		}
		items[i] = it
	}
	return items, nil
}

// readItem reads one item, or says what is wrong with it.
func readItem(raw json.RawMessage) (item, error) {
	var w wireItem
	if raw[0] != '{' {
		return item{}, errors.New("it is not an object")
	}
	if err := readObject(raw, &w); err != nil {
		var typed *json.UnmarshalTypeError
		if errors.As(err, &typed) {
			return item{}, fmt.Errorf("its %s must be %s", typed.Field, jsonType(typed.Type))
		}
		return item{}, err
	}
	it := item{id: orDefault(w.ID, ""), status: "completed", callID: w.CallID, name: w.Name, space: orDefault(w.Namespace, "")}
	if orDefault(w.Status, "") == "incomplete" {
		it.status = "incomplete"
	}
	switch {
	case w.Type != nil:
		it.kind = *w.Type
	case w.Role != "":
		it.kind = messageItem
	case it.id != "":
		it.kind = referenceItem
	default:
		return item{}, errors.New("it has neither type nor role")
	}
	switch it.kind {
	case messageItem:
		return it, it.readMessage(&w)
	case callItem:
		if it.callID == "" || it.name == "" || w.Arguments == nil {
			return item{}, errors.New("a function_call needs call_id, name and arguments")
		}
		it.arguments = *w.Arguments
		return it, nil
	case resultItem:
		return it, it.readResult(&w)
	case reasoningItem:
		return it, it.readReasoning(&w)
	case referenceItem:
		if it.id == "" {
			return item{}, errors.New("an item_reference needs an id")
		}
		return it, nil
	}
	return item{}, fmt.Errorf("items of type %q are not supported", it.kind)
}

// readMessage reads role and content. A developer's message is what a system's is: templates know only the latter.
func (it *item) readMessage(w *wireItem) (err error) {
	it.role = w.Role
	kinds := []string{"input_text", "text", "output_text"}
	switch it.role {
	case "user", "system", "developer":
	case "assistant":
		kinds = []string{"output_text", "text", "input_text", "refusal"}
	default:
		return fmt.Errorf("the role of a message must be user, assistant, system or developer, got %q", it.role)
	}
	it.parts, _, err = readParts("content", w.Content, kinds)
	return err
}

func (it *item) readResult(w *wireItem) (err error) {
	if it.callID == "" {
		return errors.New("a function_call_output needs a call_id")
	}
	it.parts, it.plain, err = readParts("output", w.Output, []string{"input_text", "text", "output_text"})
	return err
}

// readReasoning takes the thoughts, or else their summary. What is encrypted nobody here can read.
func (it *item) readReasoning(w *wireItem) (err error) {
	if !isNull(orNull(w.Summary)) {
		it.summary, _, err = readParts("summary", w.Summary, []string{"summary_text"})
	}
	if err == nil && !isNull(orNull(w.Content)) {
		it.parts, _, err = readParts("content", w.Content, []string{"reasoning_text", "text"})
	}
	return err
}

// readParts reads a field that is a string or a list of parts. kinds are those that may be there; all but refusals become
// the first of them, by which they are listed.
func readParts(field string, raw json.RawMessage, kinds []string) (parts []part, plain bool, err error) {
	raw = orNull(raw)
	if raw[0] == '"' {
		parts = []part{{kind: kinds[0]}}
		return parts, true, json.Unmarshal(raw, &parts[0].text)
	}
	var list []json.RawMessage
	if isNull(raw) || json.Unmarshal(raw, &list) != nil {
		return nil, false, fmt.Errorf("its %s must be a string or a list of parts", field)
	}
	parts = make([]part, len(list))
	for i, one := range list {
		var p struct {
			Type    string  `json:"type"`
			Text    *string `json:"text"`
			Refusal *string `json:"refusal"`
		}
		if one[0] != '{' || readObject(one, &p) != nil || p.Type == "" {
			return nil, false, fmt.Errorf("%s[%d] is not an object with type and text", field, i)
		}
		if !slices.Contains(kinds, p.Type) {
			return nil, false, fmt.Errorf("%s[%d] is of type %q, which this model cannot read here: it reads text only", field, i, p.Type)
		}
		words, kind := p.Text, kinds[0]
		if p.Type == "refusal" {
			words, kind = p.Refusal, p.Type
		}
		if words == nil {
			return nil, false, fmt.Errorf("%s[%d] of type %q has no text", field, i, p.Type)
		}
		parts[i] = part{kind: kind, text: *words}
	}
	return parts, false, nil
}
