// Package reasoning tells a model's thoughts from its answer, while the text comes.
//
// Thoughts stand between two marks at the beginning of the text; the chat template may have written the first of them
// already. Blanks inside the marks and behind them belong to neither. What stands anywhere else is the answer, also if it
// looks like a mark. What is found does not depend on how the text came in pieces; text is held back only while it may be
// a mark, or blanks beside one.
//
// It is our own because the parsers in Go are parts of servers, tied to their templates.
package reasoning

import (
	"strings"
	"unicode"
)

// Form is how a model marks its thoughts. The names are vLLM's.
type Form string

const (
	// Qwen3 is <think>...</think>, opened by the model or the template.
	Qwen3 Form = "qwen3"
	// DeepSeekR1 is the same, but what comes is thoughts also where nobody has opened them.
	DeepSeekR1 Form = "deepseek_r1"
	// Mistral is [THINK]...[/THINK].
	Mistral Form = "mistral"
)

// Forms are all forms.
func Forms() []Form { return []Form{Qwen3, DeepSeekR1, Mistral} }

// Markers are the texts before and behind thoughts. In some vocabularies they are special tokens, which answers leave out.
func (f Form) Markers() []string {
	if f == Mistral {
		return []string{"[THINK]", "[/THINK]"}
	}
	return []string{"<think>", "</think>"}
}

// Detect tells in which form a chat template expects thoughts: it takes them out of earlier turns, shows them there, or
// opens them.
func Detect(template string) (Form, bool) {
	for _, f := range []Form{Qwen3, Mistral} {
		for _, mark := range f.Markers() {
			if strings.Contains(template, mark) {
				return f, true
			}
		}
	}
	return "", false
}

// Parser reads one answer.
type Parser struct {
	at          state
	open, close string
	held        string // read, but neither thought nor answer yet
	reopened    bool   // the first mark was seen behind what had opened thoughts before
	begun       bool   // so was a thought
}

type state uint8

const (
	atStart    state = iota // blanks, then the first mark, or there are no thoughts
	inThoughts              // until the second mark
	behind                  // blanks that are neither
	inAnswer
)

// New makes a parser for what follows a prompt, whose end may have opened thoughts, or closed them.
func New(f Form, prompt string) *Parser {
	m := f.Markers()
	p := &Parser{open: m[0], close: m[1]}
	prompt = strings.TrimRightFunc(prompt, unicode.IsSpace)
	switch {
	case strings.HasSuffix(prompt, p.close):
		p.at = inAnswer
	case strings.HasSuffix(prompt, p.open), f == DeepSeekR1:
		p.at = inThoughts
	}
	return p
}

// Continue makes a parser for what follows a turn that has begun: in thoughts, where it has opened some and not closed them,
// else in the answer. Blanks at the beginning are the turn's.
func Continue(f Form, turn string) *Parser {
	m := f.Markers()
	p := &Parser{open: m[0], close: m[1], at: inAnswer}
	if begun := strings.LastIndex(turn, p.open); begun > strings.LastIndex(turn, p.close) {
		p.at, p.reopened = inThoughts, true
		p.begun = strings.TrimSpace(turn[begun+len(p.open):]) != ""
	}
	return p
}

// Thinks says whether what comes next is thoughts.
func (p *Parser) Thinks() bool { return p.at == inThoughts }

// Open says that the text so far does not tell whether it begins with thoughts.
func (p *Parser) Open() bool { return p.at == atStart }

// Feed takes the next piece of the text, and returns what is certain by now.
func (p *Parser) Feed(text string) (thought, answer string) {
	p.held += text
	if p.at == atStart {
		p.start()
	}
	if p.at == inThoughts {
		thought = p.thoughts()
	}
	if p.at == behind {
		if p.held = strings.TrimLeftFunc(p.held, unicode.IsSpace); p.held != "" {
			p.at = inAnswer
		}
	}
	if p.at == inAnswer {
		answer, p.held = p.held, ""
	}
	return thought, answer
}

// Finish ends the answer. Thoughts that were cut off stay thoughts.
func (p *Parser) Finish() (thought, answer string) {
	switch p.at {
	case inThoughts:
		thought = strings.TrimRightFunc(p.held, unicode.IsSpace)
	case atStart:
		answer = p.held
	}
	p.held, p.at = "", inAnswer
	return thought, answer
}

// start looks for the first mark.
func (p *Parser) start() {
	rest := strings.TrimLeftFunc(p.held, unicode.IsSpace)
	switch {
	case strings.HasPrefix(rest, p.open):
		p.at, p.held, p.reopened = inThoughts, rest[len(p.open):], true
	case !strings.HasPrefix(p.open, rest):
		p.at = inAnswer
	}
}

// thoughts returns those up to the second mark, less blanks beside the marks.
func (p *Parser) thoughts() string {
	if !p.begun {
		p.held = strings.TrimLeftFunc(p.held, unicode.IsSpace)
		if !p.reopened { // some models open once more what the template has opened
			if strings.HasPrefix(p.open, p.held) && p.held != p.open {
				return ""
			}
			p.held, p.reopened = strings.TrimLeftFunc(strings.TrimPrefix(p.held, p.open), unicode.IsSpace), true
		}
	}
	text, rest, closed := strings.Cut(p.held, p.close)
	if closed {
		p.at, p.held = behind, rest
		return strings.TrimRightFunc(text, unicode.IsSpace)
	}
	sure := len(strings.TrimRightFunc(text[:len(text)-overlap(text, p.close)], unicode.IsSpace))
	text, p.held = p.held[:sure], p.held[sure:]
	p.begun = p.begun || text != ""
	return text
}

// overlap is how many bytes at the end of text are the beginning of mark.
func overlap(text, mark string) int {
	for n := min(len(text), len(mark)-1); n > 0; n-- {
		if strings.HasSuffix(text, mark[:n]) {
			return n
		}
	}
	return 0
}
