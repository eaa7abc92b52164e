package server

import "encoding/json"

// turns makes a chat's messages of items.
type turns struct {
	messages []chatMessage
	calls    map[string]bool // ids of the calls so far
	open     *chatMessage    // the assistant's turn, to which more may come
	list     []byte          // its calls
	thoughts []part          // of the assistant's next turn
}

// messagesOf are the messages of a conversation, the instructions in front. Templates expect one system message, in front
// of all: what instructions, system and developer say there is put together. An assistant's turn is its thoughts, a text
// and calls, each of which is an item.
func messagesOf(instructions string, items []item) ([]chatMessage, error) {
	t := turns{calls: map[string]bool{}}
	if instructions != "" {
		t.say("system", instructions)
	}
	for i := range items {
		it := &items[i]
		switch it.kind {
		case messageItem:
			t.message(it.role, joined(it.parts))
		case callItem:
			t.call(it)
		case resultItem:
			if !t.calls[it.callID] {
				return nil, badRequest("input", "there is a function_call_output of the call %q, but no such function_call before it.", it.callID)
			}
			t.end()
			t.say("tool", joined(it.parts))
			t.messages[len(t.messages)-1].ToolCallID = it.callID
		case reasoningItem:
			t.think(it)
		}
	}
	if t.end(); len(t.messages) == 0 {
		return nil, badRequest("input", "input must have at least one message, call or result.")
	}
	return t.messages, nil
}

func (t *turns) say(role, words string) {
	c := content(words)
	t.messages = append(t.messages, chatMessage{Role: role, Content: &c})
}

func (t *turns) message(role, words string) {
	if role == "assistant" {
		if t.open != nil { // a second text, or one behind calls
			t.end()
		}
		c := content(words)
		t.turn().Content = &c
		return
	}
	t.end()
	if role == "developer" {
		role = "system"
	}
	if n := len(t.messages); role == "system" && n == 1 && t.messages[0].Role == "system" {
		c := *t.messages[0].Content + "\n\n" + content(words)
		t.messages[0].Content = &c
		return
	}
	t.say(role, words)
}

// turn is the assistant's, which begins where there is none.
func (t *turns) turn() *chatMessage {
	if t.open == nil {
		t.open = &chatMessage{Role: "assistant"}
		if len(t.thoughts) > 0 {
			words := joined(t.thoughts)
			t.open.Reasoning, t.thoughts = &words, nil
		}
	}
	return t.open
}

func (t *turns) call(it *item) {
	t.turn()
	t.calls[it.callID] = true
	if len(t.list) > 0 {
		t.list = append(t.list, ',')
	}
	t.list = appendString(append(t.list, `{"id":`...), it.callID)
	f := responseTool{Name: it.name, space: it.space}
	t.list = appendString(append(t.list, `,"type":"function","function":{"name":`...), f.fullName())
	t.list = append(appendString(append(t.list, `,"arguments":`...), it.arguments), `}}`...)
}

// think keeps thoughts for the turn that follows them.
func (t *turns) think(it *item) {
	if t.open != nil {
		t.end()
	}
	if len(it.parts) > 0 {
		t.thoughts = append(t.thoughts, it.parts...)
	} else {
		t.thoughts = append(t.thoughts, it.summary...)
	}
}

// end ends the assistant's turn; thoughts that led to none are dropped.
func (t *turns) end() {
	t.thoughts = nil
	if t.open == nil {
		return
	}
	if t.list != nil {
		t.open.ToolCalls = json.RawMessage("[" + string(t.list) + "]")
	}
	t.messages = append(t.messages, *t.open)
	t.open, t.list = nil, nil
}
