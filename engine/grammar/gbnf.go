package grammar

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// compileGBNF takes llama.cpp's grammars: rules name ::= alternatives, of which root is the whole; "text", [classes],
// ., groups, *, +, ?, {m}, {m,}, {m,n}, | and # comments. A rule that begins with itself is refused, as there.
func compileGBNF(text string, w *work) (*Grammar, error) {
	if !utf8.ValidString(text) {
		return nil, errAt("", "the grammar is not UTF-8")
	}
	p := &gbnf{text: text, ids: map[string]int{}}
	// Rule 0 is the one that is called root.
	if _, err := p.ruleID("root"); err != nil {
		return nil, err
	}
	for p.space(true); p.at < len(p.text); p.space(true) {
		if err := p.rule(); err != nil {
			return nil, err
		}
	}
	for id, e := range p.src.rules {
		if e == nil {
			return nil, errAt("", "the rule %s is not defined", p.src.names[id])
		}
	}
	return compile(&p.src, w)
}

type gbnf struct {
	text string
	at   int
	src  source
	ids  map[string]int
}

func (p *gbnf) fail(format string, args ...any) error {
	line := 1 + strings.Count(p.text[:min(p.at, len(p.text))], "\n")
	return errAt(fmt.Sprintf("line %d", line), format, args...)
}

func (p *gbnf) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

// space passes blanks and comments, with lines also their ends.
func (p *gbnf) space(lines bool) {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || lines && (c == '\n' || c == '\r'):
			p.at++
		case c == '#':
			for p.at < len(p.text) && p.text[p.at] != '\n' {
				p.at++
			}
		default:
			return
		}
	}
}

func (p *gbnf) name() string {
	from := p.at
	for c := p.peek(); c == '-' || c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'; c = p.peek() {
		p.at++
	}
	return p.text[from:p.at]
}

func (p *gbnf) ruleID(name string) (int, error) {
	if id, ok := p.ids[name]; ok {
		return id, nil
	}
	id, err := p.src.add(name, nil)
	if err == nil {
		p.ids[name] = id
	}
	return id, err
}

func (p *gbnf) rule() error {
	name := p.name()
	if name == "" {
		return p.fail("a rule's name is missing")
	}
	id, err := p.ruleID(name)
	if err != nil {
		return err
	}
	if p.src.rules[id] != nil {
		return p.fail("the rule %s is defined twice", name)
	}
	p.space(false)
	if !strings.HasPrefix(p.text[p.at:], "::=") {
		return p.fail("::= is missing after %s", name)
	}
	p.at += 3
	p.space(true)
	e, err := p.alternatives(false, 0)
	if err != nil {
		return err
	}
	if c := p.peek(); c != 0 && c != '\n' && c != '\r' {
		return p.fail("unexpected %q in the rule %s", c, name)
	}
	p.src.rules[id] = e
	return nil
}

func (p *gbnf) alternatives(nested bool, depth int) (*expr, error) {
	if depth > maxDepth {
		return nil, p.fail("groups may be nested %d deep", maxDepth)
	}
	var subs []*expr
	for {
		e, err := p.sequence(nested, depth)
		if err != nil {
			return nil, err
		}
		subs = append(subs, e)
		// An alternative may begin on the next line.
		mark := p.at
		p.space(true)
		if p.peek() != '|' {
			if !nested {
				p.at = mark
			}
			return alt(subs...), nil
		}
		p.at++
		p.space(true)
	}
}

func (p *gbnf) sequence(nested bool, depth int) (*expr, error) {
	e := seq()
	for {
		sub, err := p.symbol(depth)
		if err != nil {
			return nil, err
		}
		if sub == nil {
			return e, nil
		}
		for more := true; more; {
			if sub, more, err = p.repeated(sub); err != nil {
				return nil, err
			}
		}
		e.subs = append(e.subs, sub)
		p.space(nested)
	}
}

// symbol is nil where a sequence ends.
func (p *gbnf) symbol(depth int) (*expr, error) {
	switch c := p.peek(); c {
	case '"':
		p.at++
		e := seq()
		for p.peek() != '"' {
			r, err := p.char()
			if err != nil {
				return nil, err
			}
			e.subs = append(e.subs, chars(r, r))
		}
		p.at++
		return e, nil
	case '[':
		p.at++
		return p.class()
	case '.':
		p.at++
		return chars(negate(nil)...), nil
	case '(':
		p.at++
		p.space(true)
		e, err := p.alternatives(true, depth+1)
		if err != nil {
			return nil, err
		}
		if p.peek() != ')' {
			return nil, p.fail("a group's ) is missing")
		}
		p.at++
		return e, nil
	}
	name := p.name()
	if name == "" {
		return nil, nil
	}
	id, err := p.ruleID(name)
	return call(id), err
}

// char reads one character of a literal or a class.
func (p *gbnf) char() (rune, error) {
	if p.at >= len(p.text) || p.peek() == '\n' {
		return 0, p.fail("a literal or a class does not end")
	}
	r, n := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += n
	if r != '\\' {
		return r, nil
	}
	c := p.peek()
	p.at++
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
	switch {
	case digits > 0:
		if p.at+digits > len(p.text) {
			return 0, p.fail("an escape is cut")
		}
		v, err := strconv.ParseUint(p.text[p.at:p.at+digits], 16, 32)
		p.at += digits
		if err != nil || v > utf8.MaxRune || !utf8.ValidRune(rune(v)) {
			return 0, p.fail("an escape is no character")
		}
		return rune(v), nil
	case c == 'n':
		return '\n', nil
	case c == 'r':
		return '\r', nil
	case c == 't':
		return '\t', nil
	case strings.IndexByte(`\"[]-^`, c) >= 0 && c != 0:
		return rune(c), nil
	}
	return 0, p.fail("unknown escape \\%c", c)
}

func (p *gbnf) class() (*expr, error) {
	not := p.peek() == '^'
	if not {
		p.at++
	}
	var set [][2]rune
	for p.peek() != ']' {
		lo, err := p.char()
		if err != nil {
			return nil, err
		}
		hi := lo
		if p.peek() == '-' && p.at+1 < len(p.text) && p.text[p.at+1] != ']' {
			p.at++
			if hi, err = p.char(); err != nil {
				return nil, err
			}
		}
		if lo > hi {
			return nil, p.fail("a class has a range that ends before it begins")
		}
		set = append(set, [2]rune{lo, hi})
	}
	p.at++
	ranges := union(set)
	if not {
		ranges = negate(ranges)
	}
	return chars(ranges...), nil
}

func (p *gbnf) repeated(e *expr) (_ *expr, more bool, err error) {
	switch p.peek() {
	case '*':
		p.at++
		return rep(e, 0, forever), true, nil
	case '+':
		p.at++
		return rep(e, 1, forever), true, nil
	case '?':
		p.at++
		return opt(e), true, nil
	case '{':
	default:
		return e, false, nil
	}
	end := strings.IndexByte(p.text[p.at:], '}')
	if end < 0 {
		return nil, false, p.fail("a repetition's } is missing")
	}
	low, high, two := strings.Cut(p.text[p.at+1:p.at+end], ",")
	least, err := strconv.Atoi(strings.TrimSpace(low))
	most := least
	if high = strings.TrimSpace(high); two && high == "" {
		most = forever
	} else if two && err == nil {
		most, err = strconv.Atoi(high)
	}
	if err != nil || least < 0 || most != forever && most < least || max(least, most) > maxStates {
		return nil, false, p.fail("cannot repeat {%s} times", p.text[p.at+1:p.at+end])
	}
	p.at += end + 1
	return rep(e, least, most), true, nil
}
