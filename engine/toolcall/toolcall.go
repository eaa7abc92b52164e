// Package toolcall finds a model's calls of functions in the text of its answer, while the text comes.
//
//	toolcall.go  forms, events, Parser
//	states.go    what a byte means, by where in a call it stands
//	object.go    the JSON of a call, byte by byte
//	detect.go    which form a chat template writes
//
// A parser goes through the text byte by byte, so that what it finds does not depend on how the text came in pieces.
// It holds text back only as long as that may be the beginning of a call. A call has begun when its name and the
// beginning of its arguments were seen; from there on the arguments leave as they come, as the model wrote them, and
// a JSON object that is broken behind that leaves broken. What does not come as far as that stays content. Only a
// call's own syntax, and blanks beside it, are neither content nor arguments.
//
// It is our own because the one parser in Go, Ollama's, is a part of that server and tells of calls when they are over.
package toolcall

// Form is how a model writes calls. The names are vLLM's.
type Form string

const (
	// Hermes is <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen2.5, Qwen3.
	Hermes Form = "hermes"
	// Llama3JSON is {"name": ..., "parameters": {...}} at the beginning of the answer or behind <|python_tag|>, more
	// of them behind a semicolon or a line break: Llama 3.1 and 3.2.
	Llama3JSON Form = "llama3_json"
	// Mistral is [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] or [TOOL_CALLS]name{...}, the latter also with
	// [CALL_ID]...[ARGS] before the arguments.
	Mistral Form = "mistral"
)

// Forms are all forms.
func Forms() []Form { return []Form{Hermes, Llama3JSON, Mistral} }

const (
	toolCall, toolCallEnd = "<tool_call>", "</tool_call>"
	pythonTag             = "<|python_tag|>"
	toolCalls             = "[TOOL_CALLS]"
	callID, args          = "[CALL_ID]", "[ARGS]"
)

// Markers are the texts that mark calls. In some vocabularies they are special tokens, which answers leave out.
func (f Form) Markers() []string {
	switch f {
	case Hermes:
		return []string{toolCall, toolCallEnd}
	case Llama3JSON:
		return []string{pythonTag}
	case Mistral:
		return []string{toolCalls, callID, args}
	}
	return nil
}

// Kind says what an event adds.
type Kind uint8

const (
	Content   Kind = iota // text that is not part of a call
	Begin                 // a call, by its name
	Arguments             // a piece of the arguments of the call that began last
)

// Event is a part of what was found.
type Event struct {
	Kind Kind
	Call int    // of Begin and Arguments: which call, from 0
	Text string // content, the name, or a piece of arguments
}

// Parser reads one answer.
type Parser struct {
	at      state
	opener  string // what marks calls, "" where nothing more can
	opened  state  // what follows it
	closed  state  // what follows a call's object
	held    []byte // read, but no event yet: content again if it is no part of a call
	matched int    // bytes of a marker at the end of held
	object  object
	name    []byte // of a call whose name stands before its arguments
	args    []byte // of a call that has not begun
	begun   bool   // the object's call
	calls   int
	list    bool // the answer is a list of calls and nothing else
	out     []Event
	text    []byte // of the last event, which may go on
}

// New makes a parser of a form. For another form than those all text is content.
func New(f Form) *Parser {
	switch f {
	case Hermes:
		return &Parser{opener: toolCall, opened: beforeObject, closed: inClosing}
	case Llama3JSON:
		return &Parser{at: atStart, opener: pythonTag, opened: beforeObject, closed: betweenObjects}
	case Mistral:
		return &Parser{opener: toolCalls, opened: afterToolCalls, closed: afterItem}
	}
	return &Parser{}
}

// NewList reads an answer that is a JSON list of {"name": ..., "parameters": {...}}. Since it is held to that form, the
// beginning of a call that it was cut off in is no content behind another call.
func NewList() *Parser { return &Parser{at: beforeList, closed: afterItem, list: true} }

// NewNamed reads an answer that is the arguments of one function.
func NewNamed(function string) *Parser { return &Parser{at: beforeNamed, name: []byte(function)} }

// Feed takes the next piece of the text and returns what is certain by now. Events whose pieces follow each other
// are one.
func (p *Parser) Feed(text string) []Event {
	for i := range len(text) {
		p.take(text[i])
	}
	return p.events()
}

// Finish ends the answer. A call that has begun is not taken back when its end is missing.
func (p *Parser) Finish() []Event {
	blanks := p.matched == 0 && p.at == inText && p.calls > 0
	syntax := p.at == inClosing || p.at == betweenObjects || p.at == afterItem || p.at == beforeItem && p.calls > 0 ||
		p.at == inObject && (p.begun || p.list && p.calls > 0)
	if blanks || syntax {
		p.held = p.held[:0]
	}
	p.release()
	p.at, p.opener, p.matched = inText, "", 0
	return p.events()
}

// take reads one byte. A state that does not take it has moved on to another one.
func (p *Parser) take(c byte) {
	for !p.step(c) {
	}
}

func (p *Parser) events() []Event {
	p.flush()
	out := p.out
	p.out = nil
	return out
}

func (p *Parser) flush() {
	if len(p.text) > 0 {
		p.out[len(p.out)-1].Text = string(p.text)
		p.text = p.text[:0]
	}
}

// emit adds to the last event, if it is of this kind, and else makes another one.
func (p *Parser) emit(kind Kind, text ...byte) {
	if len(text) == 0 {
		return
	}
	if n := len(p.out); n == 0 || p.out[n-1].Kind != kind || kind == Begin {
		p.flush()
		ev := Event{Kind: kind}
		if kind != Content {
			ev.Call = p.calls - 1
		}
		p.out = append(p.out, ev)
	}
	p.text = append(p.text, text...)
}

// begin tells of a call; what was held of it were its first bytes.
func (p *Parser) begin(name string) {
	p.calls++
	p.emit(Begin, []byte(name)...)
	p.held = p.held[:0]
}

func (p *Parser) hold(c byte) { p.held = append(p.held, c) }

// release makes content of what was held.
func (p *Parser) release() {
	p.emit(Content, p.held...)
	p.held, p.matched = p.held[:0], 0
}
