package toolcall

import "strings"

// state is where in an answer the next byte stands.
type state uint8

const (
	inText         state = iota
	atStart              // of an answer that may be a call without a marker
	beforeObject         // behind a marker
	inObject             // in a call's JSON
	inClosing            // before or in </tool_call>
	betweenObjects       // behind an object that another one may follow
	afterToolCalls       // behind [TOOL_CALLS]
	beforeList           // at the beginning of an answer that is a list
	beforeItem           // in a list, before an object
	afterItem            // in a list, behind an object
	inName               // in [TOOL_CALLS]name
	afterName            // before the arguments
	inTag                // in [CALL_ID] or [ARGS]
	inCallID             // behind [CALL_ID]
	inArguments          // in the arguments behind a name
	beforeNamed          // at the beginning of an answer that is arguments
	inNamed
)

// maxName is the most bytes of a function's name, or of another key of a call.
const maxName = 256

// step reads one byte, or moves to another state and takes nothing.
func (p *Parser) step(c byte) (taken bool) {
	switch p.at {
	case inText:
		return p.inText(c)
	case inObject:
		return p.inObject(c)
	case inClosing:
		return p.inClosing(c)
	case inName, afterName, inTag, inCallID, inArguments:
		return p.inNameForm(c)
	case beforeNamed:
		p.begin(string(p.name))
		return p.to(inNamed)
	case inNamed:
		p.emit(Arguments, c)
		return true
	}
	if blank(c) {
		p.hold(c)
		return true
	}
	switch p.at {
	case atStart:
		if c == '{' {
			return p.startObject()
		}
		return p.again()
	case beforeObject, beforeItem:
		return p.startObject()
	case betweenObjects:
		switch c {
		case ';':
			p.hold(c)
			return true
		case '{':
			return p.startObject()
		}
		return p.again()
	case afterToolCalls, beforeList:
		if c == '[' {
			p.hold(c)
			p.at = beforeItem
			return true
		}
		if p.at == afterToolCalls && nameByte(c) {
			p.name = p.name[:0]
			return p.to(inName)
		}
	case afterItem:
		switch c {
		case ',':
			p.hold(c)
			p.at = beforeItem
			return true
		case ']':
			p.held, p.at = p.held[:0], inText
			return true
		}
		return p.again()
	}
	return p.fail()
}

func (p *Parser) to(at state) bool {
	p.at = at
	return false
}

// fail makes content of what was held, and goes on as in text.
func (p *Parser) fail() bool {
	p.release()
	return p.to(inText)
}

// again reads what was held beside a call as text: a marker may have begun in it.
func (p *Parser) again() bool {
	held := p.held
	p.held, p.matched, p.at = nil, 0, inText
	for _, c := range held {
		p.take(c)
	}
	return false
}

// inText holds blanks back, which are dropped beside a call, and what may be a marker. Of a marker only the first
// byte is like that, so that what did not become one can only begin another with the byte that it failed on.
func (p *Parser) inText(c byte) bool {
	switch {
	case p.matched < len(p.opener) && p.opener[p.matched] == c:
		p.hold(c)
		if p.matched++; p.matched == len(p.opener) {
			p.matched, p.at = 0, p.opened
		}
		return true
	case p.matched > 0:
		p.release()
		return false
	case blank(c):
		p.hold(c)
		return true
	}
	p.release()
	p.emit(Content, c)
	return true
}

func (p *Parser) startObject() bool {
	p.object, p.begun, p.args = object{}, false, p.args[:0]
	return p.to(inObject)
}

func (p *Parser) inObject(c byte) bool {
	got, isArgs := p.object.step(c)
	if got == bad {
		if p.begun && p.closed == inClosing {
			return p.to(inClosing)
		}
		return p.fail()
	}
	if isArgs {
		p.args = append(p.args, c)
	}
	if !p.begun || !isArgs {
		p.hold(c)
	}
	if p.object.name != "" && len(p.args) > 0 {
		if !p.begun {
			p.begin(p.object.name)
			p.begun = true
		}
		p.emit(Arguments, p.args...)
		p.args = p.args[:0]
	}
	switch {
	case got != done:
	case !p.begun: // an object, but no call
		p.release()
		p.at = inText
	default:
		p.held, p.at = p.held[:0], p.closed
	}
	return true
}

func (p *Parser) inClosing(c byte) bool {
	switch {
	case toolCallEnd[p.matched] == c:
		p.hold(c)
		if p.matched++; p.matched == len(toolCallEnd) {
			p.held, p.matched, p.at = p.held[:0], 0, inText
		}
		return true
	case p.matched == 0 && blank(c):
		p.hold(c)
		return true
	}
	return p.again()
}

// inNameForm reads name{...}, name[ARGS]{...} and name[CALL_ID]id[ARGS]{...}.
func (p *Parser) inNameForm(c byte) bool {
	switch {
	case p.at == inArguments:
		got := p.object.value.step(c)
		if got == bad {
			return p.to(inText)
		}
		p.emit(Arguments, c)
		if got == done {
			p.at = inText
		}
		return true
	case p.at == inName && nameByte(c) && len(p.name) < maxName:
		p.name = append(p.name, c)
	case p.at == inName:
		return p.to(afterName)
	case p.at == afterName && c == '{':
		p.begin(string(p.name))
		p.object = object{}
		return p.to(inArguments)
	case p.at == inTag:
		tag := string(p.held[len(p.held)-p.matched:]) + string(c)
		switch {
		case tag == callID:
			p.at = inCallID
		case tag == args:
			p.at = afterName
		case !strings.HasPrefix(callID, tag) && !strings.HasPrefix(args, tag):
			return p.fail()
		}
		p.matched++
	case c == '[' && (p.at == afterName || p.at == inCallID):
		p.at, p.matched = inTag, 1
	case p.at == afterName && blank(c), p.at == inCallID && nameByte(c):
	default:
		return p.fail()
	}
	p.hold(c)
	return true
}

func blank(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.'
}
