package jinja

import (
	"slices"
	"strings"
)

type parser struct {
	tokens []token
	pos    int
	depth  int
	loops  int  // enclosing loops, of the innermost macro
	macro  bool // within a macro
	// operands of the tag, whose number bounds how deep its expressions go
	operands int
	// soft: under a condition of the innermost scope, where Jinja2 lets unknown filters and tests stand
	soft bool
	// unknown are the errors for those that may turn out to be under a condition yet
	unknown []error
}

func (p *parser) peek() token { return p.tokens[p.pos] }

func (p *parser) next() token {
	t := p.tokens[p.pos]
	if t.kind != tokEOF {
		p.pos++
	}
	return t
}

func (p *parser) isOp(op string) bool { t := p.peek(); return t.kind == tokOp && t.text == op }

func (p *parser) isName(names ...string) bool {
	t := p.peek()
	return t.kind == tokName && slices.Contains(names, t.text)
}

func (p *parser) skipOp(op string) bool {
	if p.isOp(op) {
		p.pos++
		return true
	}
	return false
}

func (p *parser) skipName(name string) bool {
	if p.isName(name) {
		p.pos++
		return true
	}
	return false
}

func (p *parser) expectOp(op string) error {
	if !p.skipOp(op) {
		return p.unexpected("'" + op + "'")
	}
	return nil
}

func (p *parser) expectKind(k kind, what string) (token, error) {
	if p.peek().kind != k {
		return token{}, p.unexpected(what)
	}
	return p.next(), nil
}

func (p *parser) unexpected(wanted string) error {
	t := p.peek()
	return syntax(t.line, "expected %s, got %v", wanted, t)
}

// enter counts a level of nesting, which leave ends.
func (p *parser) enter() error {
	if p.depth++; p.depth > maxNest {
		return unsupported(p.peek().line, "more than %d levels of nesting", maxNest)
	}
	return nil
}

func (p *parser) leave() { p.depth-- }

func (p *parser) template() ([]stmt, error) {
	body, _, err := p.block()
	return body, err
}

// block parses until a tag that begins with one of the ends, which it takes along, but not the rest of that tag. With
// no ends it parses the whole template.
func (p *parser) block(ends ...string) (body []stmt, end string, err error) {
	if err := p.enter(); err != nil {
		return nil, "", err
	}
	defer p.leave()
	for {
		t := p.next()
		p.operands = 0
		switch t.kind {
		case tokEOF:
			if len(ends) > 0 {
				return nil, "", syntax(t.line, "expected {%% %s %%}, got the end of the template", strings.Join(ends, " or "))
			}
			return body, "", nil
		case tokData:
			body = append(body, &text{t.text})
		case tokVarBegin:
			s, err := p.output(t.line)
			if err != nil {
				return nil, "", err
			}
			body = append(body, s)
		case tokBlockBegin:
			if p.isName(ends...) {
				return body, p.next().text, nil
			}
			s, err := p.statement()
			if err != nil {
				return nil, "", err
			}
			if _, err := p.expectKind(tokBlockEnd, "'%}'"); err != nil {
				return nil, "", err
			}
			body = append(body, s)
		}
		if len(p.unknown) > 0 {
			return nil, "", p.unknown[0]
		}
	}
}

// inside parses the end of an opening tag and the block it opens.
func (p *parser) inside(ends ...string) ([]stmt, string, error) {
	p.skipOp(":")
	if _, err := p.expectKind(tokBlockEnd, "'%}'"); err != nil {
		return nil, "", err
	}
	return p.block(ends...)
}

// scope is inside for a block with a scope of its own.
func (p *parser) scope(ends ...string) ([]stmt, string, error) {
	soft := p.soft
	p.soft = false
	defer func() { p.soft = soft }()
	return p.inside(ends...)
}

func (p *parser) output(line int) (stmt, error) {
	e, err := p.tuple(tupleRules{condexpr: true})
	if err != nil {
		return nil, err
	}
	_, err = p.expectKind(tokVarEnd, "'}}'")
	return &output{line, e}, err
}

func (p *parser) statement() (stmt, error) {
	t, err := p.expectKind(tokName, "the name of a tag")
	if err != nil {
		return nil, err
	}
	switch t.text {
	case "set":
		return p.set(t.line)
	case "if":
		return p.ifStmt()
	case "for":
		return p.forStmt(t.line)
	case "macro":
		return p.macroStmt(t.line)
	case "with":
		return p.with(t.line)
	case "generation":
		loops := p.loops
		p.loops = 0 // the block is a function of its own
		body, _, err := p.scope("endgeneration")
		p.loops = loops
		return &withStmt{line: t.line, body: body}, err
	case "break", "continue":
		if p.loops == 0 {
			return nil, syntax(t.line, "%s outside of a loop", t.text)
		}
		if t.text == "break" {
			return &jump{breakLoop}, nil
		}
		return &jump{continueLoop}, nil
	case "filter":
		return p.filterBlock(t.line)
	case "include", "import", "from", "extends", "block", "call", "autoescape", "print":
		return nil, unsupported(t.line, "{%% %s %%}", t.text)
	}
	return nil, syntax(t.line, "unknown tag %q", t.text)
}

func (p *parser) set(line int) (stmt, error) {
	to, err := p.target(true)
	if err != nil {
		return nil, err
	}
	if p.skipOp("=") {
		value, err := p.tuple(tupleRules{condexpr: true})
		return &set{line, to, value}, err
	}
	var chain expr
	if p.isOp("|") {
		if chain, err = p.filters(nil); err != nil {
			return nil, err
		}
	}
	body, _, err := p.scope("endset")
	return &setBlock{line: line, to: to, body: body, filter: chain}, err
}

func (p *parser) filterBlock(line int) (stmt, error) {
	f, err := p.filter(nil)
	for err == nil && p.skipOp("|") {
		f, err = p.filter(f)
	}
	if err != nil {
		return nil, err
	}
	body, _, err := p.scope("endfilter")
	return &filterBlock{line: line, filter: f, body: body}, err
}

func (p *parser) ifStmt() (stmt, error) {
	s := &ifStmt{}
	soft := p.soft
	p.soft = true
	defer func() { p.soft = soft }()
	for end := "elif"; end == "elif"; {
		line := p.peek().line
		cond, err := p.tuple(tupleRules{})
		if err != nil {
			return nil, err
		}
		var body []stmt
		if body, end, err = p.inside("elif", "else", "endif"); err != nil {
			return nil, err
		}
		s.branches = append(s.branches, branch{line, cond, body})
		if end == "else" {
			if body, _, err = p.inside("endif"); err != nil {
				return nil, err
			}
			s.branches = append(s.branches, branch{line, nil, body})
		}
	}
	return s, nil
}

func (p *parser) forStmt(line int) (stmt, error) {
	to, err := p.target(false, "in")
	if err != nil {
		return nil, err
	}
	if !p.skipName("in") {
		return nil, p.unexpected("'in'")
	}
	s := &forStmt{line: line, to: to}
	if s.over, err = p.tuple(tupleRules{end: "recursive"}); err != nil {
		return nil, err
	}
	if p.skipName("if") {
		if s.cond, err = p.expression(); err != nil {
			return nil, err
		}
	}
	s.recursive = p.skipName("recursive")
	p.loops++
	body, end, err := p.scope("endfor", "else")
	p.loops--
	if err != nil {
		return nil, err
	}
	s.body = body
	if end == "else" {
		s.elseBody, _, err = p.scope("endfor")
	}
	return s, err
}

func (p *parser) macroStmt(line int) (stmt, error) {
	t, err := p.expectKind(tokName, "the name of a macro")
	if err != nil {
		return nil, err
	}
	s := &macroStmt{name: t.text}
	if err := p.expectOp("("); err != nil {
		return nil, err
	}
	for !p.isOp(")") {
		if len(s.params) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
		}
		t, err := p.expectKind(tokName, "the name of a parameter")
		if err != nil {
			return nil, err
		}
		if slices.Contains(s.params, t.text) || slices.Contains(macroNames, t.text) {
			return nil, unsupported(t.line, "the parameter %q", t.text)
		}
		s.params = append(s.params, t.text)
		if !p.skipOp("=") {
			if len(s.defaults) > 0 {
				return nil, syntax(t.line, "a parameter without a default follows one with a default")
			}
			continue
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		s.defaults = append(s.defaults, e)
	}
	p.next()
	loops, macro := p.loops, p.macro
	p.loops, p.macro = 0, true
	s.body, _, err = p.scope("endmacro")
	p.loops, p.macro = loops, macro
	return s, err
}

// macroNames are what Jinja2 defines in a macro that mentions them.
var macroNames = []string{"varargs", "kwargs", "caller"}

func (p *parser) with(line int) (stmt, error) {
	s := &withStmt{line: line}
	for p.peek().kind != tokBlockEnd {
		if len(s.to) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
		}
		to, err := p.target(false)
		if err != nil {
			return nil, err
		}
		if err := p.expectOp("="); err != nil {
			return nil, err
		}
		value, err := p.expression()
		if err != nil {
			return nil, err
		}
		s.to, s.values = append(s.to, to), append(s.values, value)
	}
	var err error
	s.body, _, err = p.scope("endwith")
	return s, err
}

// target parses what is assigned to. namespaces: also ns.attr.
func (p *parser) target(namespaces bool, ends ...string) (target, error) {
	e, err := p.tuple(tupleRules{simple: true, namespaces: namespaces, ends: ends})
	if err != nil {
		return target{}, err
	}
	to, ok := asTarget(e)
	if !ok {
		return target{}, syntax(p.peek().line, "cannot assign to this expression")
	}
	if slices.Contains(to.names(), "loop") {
		return target{}, unsupported(p.peek().line, "assigning to loop")
	}
	return to, nil
}

func asTarget(e expr) (target, bool) {
	switch e := e.(type) {
	case *name:
		return target{name: e.name}, true
	case *attribute: // only parsed where a namespace is allowed
		if of, ok := e.of.(*name); ok {
			return target{name: of.name, attr: e.name}, true
		}
	case *list:
		if !e.tuple || len(e.items) == 0 {
			return target{}, false
		}
		to := target{}
		for _, item := range e.items {
			one, ok := asTarget(item)
			if !ok {
				return target{}, false
			}
			to.tuple = append(to.tuple, one)
		}
		return to, true
	}
	return target{}, false
}
