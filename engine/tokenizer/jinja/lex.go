package jinja

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

type kind uint8

const (
	tokEOF kind = iota
	tokData
	tokVarBegin
	tokVarEnd
	tokBlockBegin
	tokBlockEnd
	tokName
	tokString
	tokInt
	tokFloat
	tokOp
)

type token struct {
	kind kind
	text string // string literals: the value
	num  any    // int or float64
	line int
}

func (t token) String() string {
	switch t.kind {
	case tokEOF:
		return "the end of the template"
	case tokData:
		return "text"
	case tokVarBegin:
		return "'{{'"
	case tokVarEnd:
		return "'}}'"
	case tokBlockBegin:
		return "'{%'"
	case tokBlockEnd:
		return "'%}'"
	}
	return fmt.Sprintf("%q", t.text)
}

// SyntaxError is a template that Jinja2 would not take either, or that uses what is unsupported.
type SyntaxError struct {
	Line int
	Err  error
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the cause.
func (e *SyntaxError) Unwrap() error { return e.Err }

func syntax(line int, format string, args ...any) error {
	return &SyntaxError{line, fmt.Errorf(format, args...)}
}

func unsupported(line int, format string, args ...any) error {
	return &SyntaxError{line, fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)}
}

type lexer struct {
	src       string
	pos, line int
	counted   int    // how far line is counted
	lineStart bool   // the last match ended a line
	open      []byte // brackets to be closed
	tokens    []token
}

// lex cuts a template into tokens, with the white space around tags treated as trim_blocks and lstrip_blocks say.
func lex(source string) ([]token, error) {
	source = strings.ReplaceAll(strings.ReplaceAll(source, "\r\n", "\n"), "\r", "\n")
	source = strings.TrimSuffix(source, "\n")
	l := &lexer{src: source, line: 1, lineStart: true}
	for l.pos < len(l.src) {
		if err := l.root(); err != nil {
			return nil, err
		}
	}
	l.emit(tokEOF, "")
	return l.tokens, nil
}

func (l *lexer) lineAt(pos int) int {
	l.line += strings.Count(l.src[l.counted:pos], "\n")
	l.counted = pos
	return l.line
}

func (l *lexer) emit(k kind, text string) {
	l.tokens = append(l.tokens, token{kind: k, text: text, line: l.lineAt(l.pos)})
}

// advance moves behind a match and notes whether that ended a line.
func (l *lexer) advance(to int) {
	l.lineStart = to > l.pos && l.src[to-1] == '\n'
	l.pos = to
}

// root takes the text up to the next tag, and that tag.
func (l *lexer) root() error {
	at := l.pos
	for ; ; at++ {
		i := strings.IndexByte(l.src[at:], '{')
		if i < 0 || at+i+1 >= len(l.src) {
			l.emit(tokData, l.src[l.pos:])
			l.pos = len(l.src)
			return nil
		}
		at += i
		if c := l.src[at+1]; c == '%' || c == '{' || c == '#' {
			break
		}
	}
	tag := l.src[at+1]
	inner := at + 2
	sign := l.sign(inner)
	if sign != 0 {
		inner++
	}
	raw := -1
	if tag == '%' {
		raw = l.rawBegin(inner)
	}
	text := l.stripped(l.src[l.pos:at], sign, tag == '{')
	if text != "" {
		l.emit(tokData, text)
	}
	l.advance(inner)
	switch {
	case raw >= 0:
		l.advance(raw)
		return l.raw()
	case tag == '#':
		return l.comment()
	case tag == '{':
		l.emit(tokVarBegin, "{{")
		return l.expression(tokVarEnd)
	}
	l.emit(tokBlockBegin, "{%")
	return l.expression(tokBlockEnd)
}

func (l *lexer) sign(at int) byte {
	if at < len(l.src) && (l.src[at] == '-' || l.src[at] == '+') {
		return l.src[at]
	}
	return 0
}

// stripped is the text before a tag, less what the tag's sign or lstrip_blocks takes away.
func (l *lexer) stripped(text string, sign byte, variable bool) string {
	switch {
	case sign == '-':
		return strings.TrimRightFunc(text, isSpace)
	case sign == '+' || variable:
		return text
	}
	line := strings.LastIndexByte(text, '\n') + 1
	if (line > 0 || l.lineStart) && strings.TrimLeftFunc(text[line:], isSpace) == "" {
		return text[:line]
	}
	return text
}

func (l *lexer) skipSpace(at int) int {
	return len(l.src) - len(strings.TrimLeftFunc(l.src[at:], isSpace))
}

// tagEnd returns where a closing mark (%}, }} or #}) at a position ends, with the white space it takes along, or -1.
func (l *lexer) tagEnd(at int, mark string, trim bool) int {
	rest := l.src[at:]
	switch {
	case strings.HasPrefix(rest, "-"+mark):
		return l.skipSpace(at + 1 + len(mark))
	case trim && strings.HasPrefix(rest, "+"+mark):
		return at + 1 + len(mark)
	case !strings.HasPrefix(rest, mark):
		return -1
	}
	at += len(mark)
	if trim && at < len(l.src) && l.src[at] == '\n' {
		at++
	}
	return at
}

// rawBegin returns where a raw tag, whose inside starts at a position, ends, or -1 if it is another tag.
func (l *lexer) rawBegin(at int) int {
	at = l.skipSpace(at)
	if !strings.HasPrefix(l.src[at:], "raw") {
		return -1
	}
	at = l.skipSpace(at + len("raw"))
	switch rest := l.src[at:]; {
	case strings.HasPrefix(rest, "-%}"):
		return l.skipSpace(at + 3)
	case strings.HasPrefix(rest, "%}"):
		return at + 2
	}
	return -1
}

func (l *lexer) raw() error {
	for at := l.pos; ; at++ {
		i := strings.Index(l.src[at:], "{%")
		if i < 0 {
			return unclosed(l, "a raw block")
		}
		at += i
		inner := at + 2
		sign := l.sign(inner)
		if sign != 0 {
			inner++
		}
		inner = l.skipSpace(inner)
		if !strings.HasPrefix(l.src[inner:], "endraw") {
			continue
		}
		end := l.tagEnd(l.skipSpace(inner+len("endraw")), "%}", true)
		if end < 0 {
			continue
		}
		if text := l.stripped(l.src[l.pos:at], sign, false); text != "" {
			l.emit(tokData, text)
		}
		l.advance(end)
		return nil
	}
}

// unclosed is a tag without its end. Jinja2 overlooks one that opens with the last character of a template.
func unclosed(l *lexer, what string) error {
	return unsupported(l.lineAt(l.pos), "%s that is not closed", what)
}

func (l *lexer) comment() error {
	i := strings.Index(l.src[l.pos:], "#}")
	if i < 0 {
		return unclosed(l, "a comment")
	}
	at := l.pos + i
	if at > l.pos && (l.src[at-1] == '-' || l.src[at-1] == '+') {
		at--
	}
	l.advance(l.tagEnd(at, "#}", true))
	return nil
}

// expression takes the tokens of a tag and its end.
func (l *lexer) expression(end kind) error {
	mark, trim := "}}", false
	if end == tokBlockEnd {
		mark, trim = "%}", true
	}
	for l.pos < len(l.src) {
		if len(l.open) == 0 {
			if to := l.tagEnd(l.pos, mark, trim); to >= 0 {
				l.emit(end, mark)
				l.advance(to)
				return nil
			}
		}
		if to := l.skipSpace(l.pos); to > l.pos {
			l.advance(to)
			continue
		}
		if err := l.token(); err != nil {
			return err
		}
	}
	return syntax(l.lineAt(l.pos), "a tag is not closed by %s", mark)
}

// operators, the longer ones first.
var operators = []string{
	"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
	":", "|", ",", ";",
}

func (l *lexer) token() error {
	rest := l.src[l.pos:]
	c := rest[0]
	if c >= '0' && c <= '9' {
		return l.number()
	}
	if c == '\'' || c == '"' {
		return l.string(c)
	}
	if n := identifier(rest); n > 0 {
		l.emit(tokName, rest[:n])
		l.advance(l.pos + n)
		return nil
	}
	for _, op := range operators {
		if strings.HasPrefix(rest, op) {
			if err := l.balance(op[0]); err != nil {
				return err
			}
			l.emit(tokOp, op)
			l.advance(l.pos + len(op))
			return nil
		}
	}
	r, _ := utf8.DecodeRuneInString(rest)
	return syntax(l.lineAt(l.pos), "unexpected character %q", r)
}

func (l *lexer) balance(c byte) error {
	switch c {
	case '(':
		l.open = append(l.open, ')')
	case '[':
		l.open = append(l.open, ']')
	case '{':
		l.open = append(l.open, '}')
	case ')', ']', '}':
		n := len(l.open) - 1
		if n < 0 || l.open[n] != c {
			return syntax(l.lineAt(l.pos), "unexpected %q", c)
		}
		l.open = l.open[:n]
	}
	return nil
}

// identifier returns the length of the name s begins with.
func identifier(s string) int {
	for i, r := range s {
		if r == '_' || unicode.IsLetter(r) || i > 0 && unicode.In(r, unicode.Nd, unicode.Mn, unicode.Mc, unicode.Pc) {
			continue
		}
		return i
	}
	return len(s)
}

// string takes a string literal, whose escapes are Python's.
func (l *lexer) string(quote byte) error {
	for i := l.pos + 1; i < len(l.src); i++ {
		switch l.src[i] {
		case '\\':
			i++
		case quote:
			value, err := unescape(l.src[l.pos+1 : i])
			if err != nil {
				return &SyntaxError{l.lineAt(l.pos), err}
			}
			l.emit(tokString, value)
			l.advance(i + 1)
			return nil
		}
	}
	return syntax(l.lineAt(l.pos), "a string is not closed")
}

var errEscape = errors.New("a string has a broken escape")
