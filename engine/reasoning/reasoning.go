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
	blanks      []byte // read in front of held, and neither thought nor answer yet
	held        string // likewise; shorter than a mark
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

// Continue makes a parser for what follows a turn that has begun: in thoughts, where it begins with some that are not closed,
// else in the answer. Blanks at the beginning are the turn's.
func Continue(f Form, turn string) *Parser {
	m := f.Markers()
	p := &Parser{open: m[0], close: m[1]}
	p.Feed(turn)
	p.blanks, p.held = nil, ""
	if p.at != inThoughts {
		p.at = inAnswer
	}
	return p
}

// Thinks says whether what comes next is thoughts.
func (p *Parser) Thinks() bool { return p.at == inThoughts }

// Open says that the text so far does not tell whether it begins with thoughts.
func (p *Parser) Open() bool { return p.at == atStart }

// Feed takes the next piece of the text, and returns what is certain by now.
func (p *Parser) Feed(text string) (thought, answer string) {
	text = p.held + text
	p.held = ""
	if p.at == atStart {
		text = p.start(text)
	}
	if p.at == inThoughts {
		thought, text = p.thoughts(text)
	}
	if p.at == behind {
		if text = strings.TrimLeftFunc(text, unicode.IsSpace); text != "" {
			p.at = inAnswer
		}
	}
	if p.at == inAnswer {
		answer = string(p.blanks) + text
		p.blanks = nil
	}
	return thought, answer
}

// Finish ends the answer. Thoughts that were cut off stay thoughts.
func (p *Parser) Finish() (thought, answer string) {
	switch p.at {
	case inThoughts:
		if p.held != "" {
			thought = string(p.blanks) + p.held
		}
	case atStart:
		answer = string(p.blanks) + p.held
	}
	p.blanks, p.held, p.at = nil, "", inAnswer
	return thought, answer
}

// start looks for the first mark, and returns what follows it, or all that is no blank where there is none.
func (p *Parser) start(text string) string {
	rest := strings.TrimLeftFunc(text, unicode.IsSpace)
	p.blanks = append(p.blanks, text[:len(text)-len(rest)]...)
	switch after, opened := strings.CutPrefix(rest, p.open); {
	case opened:
		p.at, p.blanks, p.reopened = inThoughts, nil, true
		return after
	case strings.HasPrefix(p.open, rest):
		p.held = rest
		return ""
	}
	p.at = inAnswer
	return rest
}

// thoughts returns those up to the second mark, less blanks beside the marks, and what follows it.
func (p *Parser) thoughts(text string) (thought, rest string) {
	if !p.begun {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
		if !p.reopened && text != "" { // some models open once more what the template has opened
			if strings.HasPrefix(p.open, text) && text != p.open {
				p.held = text
				return "", ""
			}
			text, p.reopened = strings.TrimLeftFunc(strings.TrimPrefix(text, p.open), unicode.IsSpace), true
		}
	}
	text, rest, closed := strings.Cut(text, p.close)
	sure := text
	if closed {
		p.at = behind
	} else {
		sure = text[:len(text)-overlap(text, p.close)]
		p.held = text[len(sure):]
	}
	words := strings.TrimRightFunc(sure, unicode.IsSpace)
	if words != "" {
		thought = string(p.blanks) + words
		p.blanks, p.begun = p.blanks[:0], true
	}
	if p.blanks = append(p.blanks, sure[len(words):]...); closed {
		p.blanks = nil
	}
	return thought, rest
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
