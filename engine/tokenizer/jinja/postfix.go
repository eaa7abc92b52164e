package jinja

import (
	"slices"
	"strings"
)

// otherFilters are those of Jinja2 that are not implemented.
var otherFilters = strings.Fields(`filesizeformat format pprint random striptags truncate urlencode urlize wordcount
	wordwrap xmlattr`)

// postfix parses what follows a primary: attributes, subscripts and calls.
func (p *parser) postfix(e expr) (expr, error) {
	var err error
	for levels := 0; err == nil; levels++ {
		if levels > maxNest {
			return nil, unsupported(p.peek().line, "more than %d attributes or calls in a row", maxNest)
		}
		switch {
		case p.skipOp("."):
			e, err = p.dot(e)
		case p.skipOp("["):
			e, err = p.subscript(e)
		case p.isOp("("):
			e, err = p.call(e)
		default:
			return e, nil
		}
	}
	return nil, err
}

func (p *parser) dot(of expr) (expr, error) {
	switch t := p.next(); t.kind {
	case tokName:
		return &attribute{of, t.text}, nil
	case tokInt:
		return &item{of, &constant{t.num}}, nil
	default:
		return nil, syntax(t.line, "expected a name or a number behind '.', got %v", t)
	}
}

func (p *parser) subscript(of expr) (expr, error) {
	var start expr
	var err error
	if !p.isOp(":") {
		if start, err = p.expression(); err != nil {
			return nil, err
		}
		if !p.isOp(":") {
			return &item{of, start}, p.closeSubscript()
		}
	}
	s := &slice{of: of, start: start}
	for _, part := range []*expr{&s.stop, &s.step} {
		if !p.skipOp(":") {
			break
		}
		if !p.isOp(":") && !p.isOp("]") && !p.isOp(",") {
			if *part, err = p.expression(); err != nil {
				return nil, err
			}
		}
	}
	return s, p.closeSubscript()
}

func (p *parser) closeSubscript() error {
	if p.isOp(",") {
		return unsupported(p.peek().line, "a subscript of several parts")
	}
	return p.expectOp("]")
}

func (p *parser) call(fn expr) (expr, error) {
	args, err := p.callArgs()
	return &call{fn, args}, err
}

func (p *parser) callArgs() (callArgs, error) {
	var a callArgs
	if err := p.expectOp("("); err != nil {
		return a, err
	}
	for count := 0; !p.skipOp(")"); count++ {
		if count > 0 {
			if err := p.expectOp(","); err != nil {
				return a, err
			}
			if p.skipOp(")") {
				break
			}
		}
		if p.isOp("*") || p.isOp("**") {
			if err := p.starArg(&a); err != nil {
				return a, err
			}
			continue
		}
		if a.dict != nil {
			return a, syntax(p.peek().line, "an argument follows **")
		}
		key := ""
		if p.peek().kind == tokName && p.tokens[p.pos+1].kind == tokOp && p.tokens[p.pos+1].text == "=" {
			key = p.next().text
			p.next()
		} else if len(a.names) > 0 || a.star != nil {
			return a, syntax(p.peek().line, "an argument without a name follows one with a name or *")
		}
		e, err := p.expression()
		if err != nil {
			return a, err
		}
		if key == "" {
			a.pos = append(a.pos, e)
			continue
		}
		for _, name := range a.names {
			if name == key {
				return a, syntax(p.peek().line, "the argument %q is given twice", key)
			}
		}
		a.names, a.named = append(a.names, key), append(a.named, e)
	}
	return a, nil
}

// starArg parses *expression or **expression.
func (p *parser) starArg(a *callArgs) (err error) {
	t := p.next()
	into := &a.star
	if t.text == "**" {
		into = &a.dict
	}
	if *into != nil || a.dict != nil {
		return syntax(t.line, "misplaced %s in a call", t.text)
	}
	*into, err = p.expression()
	return err
}

// filters parses the filters, tests and calls behind an expression. e is nil in a set block.
func (p *parser) filters(e expr) (expr, error) {
	var err error
	for levels := 0; err == nil; levels++ {
		if levels > maxNest {
			return nil, unsupported(p.peek().line, "more than %d filters in a row", maxNest)
		}
		switch {
		case p.skipOp("|"):
			e, err = p.filter(e)
		case e != nil && p.isName("is"):
			e, err = p.test(e)
		case e != nil && p.isOp("("):
			e, err = p.call(e)
		default:
			return e, nil
		}
	}
	return nil, err
}

// dotted parses a name that may have dots.
func (p *parser) dotted(what string) (token, error) {
	t, err := p.expectKind(tokName, what)
	for err == nil && p.skipOp(".") {
		var more token
		more, err = p.expectKind(tokName, what)
		t.text += "." + more.text
	}
	return t, err
}

func (p *parser) filter(of expr) (expr, error) {
	t, err := p.dotted("the name of a filter")
	if err != nil {
		return nil, err
	}
	f := &filter{of: of, name: t.text, fn: filters[t.text]}
	if f.fn == nil {
		if slices.Contains(otherFilters, t.text) {
			return nil, unsupported(t.line, "the filter %s", t.text)
		}
		if !p.soft {
			p.unknown = append(p.unknown, syntax(t.line, "there is no filter %s", t.text))
		}
	}
	if p.isOp("(") {
		f.args, err = p.callArgs()
	}
	return f, err
}

func (p *parser) test(of expr) (expr, error) {
	p.next() // is
	not := p.skipName("not")
	n, err := p.dotted("the name of a test")
	if err != nil {
		return nil, err
	}
	t := &test{of: of, name: n.text, fn: tests[n.text]}
	if t.fn == nil && !p.soft {
		p.unknown = append(p.unknown, syntax(n.line, "there is no test %s", n.text))
	}
	switch after := p.peek(); {
	case p.isOp("("):
		t.args, err = p.callArgs()
	case p.isName("else", "or", "and"):
	case p.isName("is"):
		return nil, syntax(after.line, "a test follows a test")
	case after.kind == tokName || after.kind == tokString || after.kind == tokInt || after.kind == tokFloat ||
		p.isOp("[") || p.isOp("{"):
		var arg expr
		if arg, err = p.primary(false); err == nil {
			arg, err = p.postfix(arg)
		}
		t.args.pos = []expr{arg}
	}
	if err != nil {
		return nil, err
	}
	if not {
		return &negation{t}, nil
	}
	return t, nil
}
