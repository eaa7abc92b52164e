// Package jinja renders chat templates: the part of Jinja2 that they use, as transformers sets it up (trim_blocks,
// lstrip_blocks, the immutable sandbox, loop controls, a "generation" block that only groups, and its own tojson,
// raise_exception and strftime_now). What it renders, it renders as Jinja2 does; what it cannot render so is refused.
//
// Refused when a template is parsed, by name: the tags include, import, from, extends, block, call, autoescape and
// print; varargs, kwargs and caller in macros; the filters filesizeformat, format, pprint, random, striptags, truncate,
// urlencode, urlize, wordcount, wordwrap and xmlattr; the functions lipsum, cycler and joiner; integers beyond 64 bits.
//
// An error when a template is rendered, never a wrong text: formatting with %, str.format with more than names in its
// fields and the other Python methods that are not implemented, integers that overflow 64 bits, tuples as keys, asking
// whether two strings or numbers are the same object.
//
// Differences that remain: the lazy filters (map, select and their like) work at once, a float without a fraction that
// comes from the caller is an integer, and the keys of the caller's maps come in order of the alphabet, but for both in JSON
// that is given as it was written.
//
// A template reads nothing but its variables, and its work and memory are bounded.
//
// It is our own because the one well-kept library in Go renders 9 of the 14 templates of the tests otherwise than Jinja2.
package jinja

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrUnsupported is wrapped by the error of Parse for a template that uses what this package does not do.
var ErrUnsupported = errors.New("unsupported")

// ErrTooMuch is wrapped by the error of Render when a template does more work than a chat can need.
var ErrTooMuch = errors.New("the template does too much work")

// Raised is what the template itself says with raise_exception.
type Raised struct{ Message string }

func (r *Raised) Error() string { return r.Message }

// Dict is a mapping whose keys keep their order.
type Dict []Item

// Item is an entry of a Dict.
type Item struct {
	Key   string
	Value any
}

// MaxSource is how many bytes a template may have.
const MaxSource = 1 << 20

const (
	maxNest     = 100     // nested expressions and blocks
	maxOperands = 2000    // operands in a tag
	maxCalls    = 100     // nested calls of macros and recursive loops
	maxDepth    = 2000    // nested lists and dicts
	maxRange    = 100_000 // of the sandbox

	// Limits of one rendering. The caller's text counts a number of times, so that long chats are never cut off.
	maxSteps   = 5_000_000
	maxBytes   = 32 << 20
	inputSteps = 4
	inputBytes = 64
)

// Template is a parsed template. It does not change and may be rendered by any number of goroutines.
type Template struct {
	body   []stmt
	hidden []string
	now    func() time.Time
}

// Parse parses a template.
func Parse(source string) (*Template, error) {
	if len(source) > MaxSource {
		return nil, fmt.Errorf("the template has %d bytes, more than %d", len(source), MaxSource)
	}
	if !utf8.ValidString(source) {
		return nil, errors.New("the template is not UTF-8")
	}
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	body, err := p.template()
	if err != nil {
		return nil, err
	}
	return &Template{body: body, hidden: analyze(body, nil), now: time.Now}, nil
}

// Render renders the template. The variables are nil, bool, string, any integer or float, json.Number, Dict,
// map[string]any, []any and []Dict, all of them as deep as one likes, and json.RawMessage, whose objects keep the order
// of their keys, and whose numbers are what Python reads them as.
func (t *Template) Render(vars map[string]any) (text string, err error) {
	defer func() {
		if r := recover(); r != nil {
			text, err = "", fmt.Errorf("cannot go on: %v", r)
		}
	}()
	return t.render(vars)
}

func (t *Template) render(vars map[string]any) (string, error) {
	root := &scope{vars: make(map[string]any, len(vars))}
	var size int
	for name, value := range vars {
		v, err := convert(value, &size, 0)
		if err != nil {
			return "", fmt.Errorf("variable %q: %w", name, err)
		}
		root.vars[name] = v
	}
	root.hide(t.hidden)
	out := &strings.Builder{}
	st := &state{
		now: t.now, out: out,
		steps: maxSteps + inputSteps*size, bytes: maxBytes + inputBytes*size,
	}
	if _, err := st.run(t.body, root); err != nil {
		return "", err
	}
	return out.String(), nil
}

// state is one rendering.
type state struct {
	now   func() time.Time
	out   *strings.Builder
	steps int // left
	bytes int // left, of the strings and lists that may be made
	calls int // of macros and recursive loops, now nested
	depth int // of a walk through a value
}

// step counts one evaluation.
func (s *state) step() error {
	if s.steps--; s.steps < 0 {
		return ErrTooMuch
	}
	return nil
}

// enter counts a level of a walk through a value, which leave ends. A template can nest lists without bound.
func (s *state) enter() error {
	if s.depth >= maxDepth {
		return fmt.Errorf("%w: a value is nested more than %d deep", ErrTooMuch, maxDepth)
	}
	s.depth++
	return s.step()
}

func (s *state) leave() { s.depth-- }

// spend counts n bytes about to be made, or looked at one by one.
func (s *state) spend(n int) error {
	if n < 0 || n > s.bytes {
		return ErrTooMuch
	}
	s.bytes -= n
	return nil
}

// spendItems counts n items of a list.
func (s *state) spendItems(n int) error {
	if n < 0 || n > s.bytes/itemBytes {
		return ErrTooMuch
	}
	return s.spend(n * itemBytes)
}

const itemBytes = 16

// scope holds the variables of a template, a loop's iteration, a macro call or a with block.
type scope struct {
	vars   map[string]any
	parent *scope
}

func (sc *scope) child() *scope { return &scope{parent: sc} }

func (sc *scope) set(name string, v any) {
	if sc.vars == nil {
		sc.vars = map[string]any{}
	}
	sc.vars[name] = v
}

func (sc *scope) get(name string) any {
	for s := sc; s != nil; s = s.parent {
		if v, ok := s.vars[name]; ok {
			return v
		}
	}
	if f, ok := globals[name]; ok {
		return f
	}
	return undefinedName(name)
}

func undefinedName(name string) *undefined { return &undefined{fmt.Sprintf("%q is undefined", name)} }
