package jinja

import (
	"slices"
	"strings"
)

// The grammar of expressions, from the loosest to the tightest binding, follows Jinja2's parser rule by rule.

// tupleRules say where and of what a list of expressions without brackets is parsed.
type tupleRules struct {
	condexpr   bool     // conditional expressions are allowed
	simple     bool     // names and literals only
	namespaces bool     // with simple: also ns.attr
	parens     bool     // within parentheses, where it may be empty
	end        string   // a name that ends it
	ends       []string // the same, several
}

func (p *parser) tuple(rules tupleRules) (expr, error) {
	var items []expr
	for isTuple := false; ; {
		t := p.peek()
		if t.kind == tokVarEnd || t.kind == tokBlockEnd || p.isOp(")") || p.isName(rules.ends...) ||
			rules.end != "" && p.isName(rules.end) {
			if !isTuple && !rules.parens {
				return nil, p.unexpected("an expression")
			}
			return &list{items, true}, nil
		}
		var e expr
		var err error
		switch {
		case rules.simple:
			e, err = p.primary(rules.namespaces)
		case rules.condexpr || rules.parens:
			e, err = p.expression()
		default:
			e, err = p.or()
		}
		if err != nil {
			return nil, err
		}
		items = append(items, e)
		if !p.skipOp(",") {
			if isTuple {
				return &list{items, true}, nil
			}
			return e, nil
		}
		isTuple = true
	}
}

func (p *parser) expression() (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	unknown := len(p.unknown)
	e, err := p.or()
	if err != nil {
		return nil, err
	}
	for p.skipName("if") {
		defer func(soft bool) { p.soft = soft }(p.soft)
		p.soft, p.unknown = true, p.unknown[:unknown]
		c := &conditional{then: e}
		if c.cond, err = p.or(); err != nil {
			return nil, err
		}
		if p.skipName("else") {
			if c.otherwise, err = p.expression(); err != nil {
				return nil, err
			}
		}
		e = c
	}
	return e, nil
}

func (p *parser) or() (expr, error) {
	left, err := p.and()
	for err == nil && p.skipName("or") {
		var right expr
		right, err = p.and()
		left = &logical{false, left, right}
	}
	return left, err
}

func (p *parser) and() (expr, error) {
	left, err := p.not()
	for err == nil && p.skipName("and") {
		var right expr
		right, err = p.not()
		left = &logical{true, left, right}
	}
	return left, err
}

func (p *parser) not() (expr, error) {
	if !p.skipName("not") {
		return p.compare()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	of, err := p.not()
	return &negation{of}, err
}

func (p *parser) compare() (expr, error) {
	first, err := p.sum()
	if err != nil {
		return nil, err
	}
	var rest []comparison
	for {
		op := ""
		switch t := p.peek(); {
		case t.kind == tokOp && slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, t.text):
			op = t.text
			p.next()
		case p.skipName("in"):
			op = "in"
		case p.isName("not") && p.tokens[p.pos+1].kind == tokName && p.tokens[p.pos+1].text == "in":
			op = "not in"
			p.pos += 2
		case rest == nil:
			return first, nil
		default:
			return &compare{first, rest}, nil
		}
		right, err := p.sum()
		if err != nil {
			return nil, err
		}
		rest = append(rest, comparison{op, right})
	}
}

// operatorsOf parses operands joined by any of some operators, which associate to the left.
func (p *parser) operatorsOf(operand func() (expr, error), ops ...string) (expr, error) {
	left, err := operand()
	for err == nil && p.peek().kind == tokOp && slices.Contains(ops, p.peek().text) {
		op := p.next().text
		var right expr
		right, err = operand()
		left = &binary{op, left, right}
	}
	return left, err
}

func (p *parser) sum() (expr, error) { return p.operatorsOf(p.concat, "+", "-") }

func (p *parser) concat() (expr, error) {
	first, err := p.product()
	if err != nil || !p.isOp("~") {
		return first, err
	}
	parts := []expr{first}
	for p.skipOp("~") {
		e, err := p.product()
		if err != nil {
			return nil, err
		}
		parts = append(parts, e)
	}
	return &concat{parts}, nil
}

func (p *parser) product() (expr, error) { return p.operatorsOf(p.power, "*", "/", "//", "%") }

func (p *parser) power() (expr, error) {
	return p.operatorsOf(func() (expr, error) { return p.unary(true) }, "**")
}

func (p *parser) unary(filters bool) (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	if p.operands++; p.operands > maxOperands {
		return nil, unsupported(p.peek().line, "more than %d operands in a tag", maxOperands)
	}
	var e expr
	var err error
	if p.isOp("-") || p.isOp("+") {
		u := &unary{minus: p.next().text == "-"}
		u.of, err = p.unary(false)
		e = u
	} else {
		e, err = p.primary(false)
	}
	if err == nil {
		e, err = p.postfix(e)
	}
	if err == nil && filters {
		e, err = p.filters(e)
	}
	return e, err
}

func (p *parser) primary(namespaces bool) (expr, error) {
	t := p.next()
	switch t.kind {
	case tokName:
		return p.name(t, namespaces)
	case tokString:
		var b strings.Builder
		b.WriteString(t.text)
		for p.peek().kind == tokString {
			b.WriteString(p.next().text)
		}
		return &constant{b.String()}, nil
	case tokInt, tokFloat:
		return &constant{t.num}, nil
	}
	if t.kind == tokOp {
		switch t.text {
		case "(":
			e, err := p.tuple(tupleRules{condexpr: true, parens: true})
			if err != nil {
				return nil, err
			}
			return e, p.expectOp(")")
		case "[":
			items, err := p.items("]")
			return &list{items: items}, err
		case "{":
			return p.dict()
		}
	}
	return nil, syntax(t.line, "unexpected %v", t)
}

func (p *parser) name(t token, namespaces bool) (expr, error) {
	switch t.text {
	case "true", "True", "false", "False":
		return &constant{t.text[0]|0x20 == 't'}, nil
	case "none", "None":
		return &constant{nil}, nil
	case "self", "super", "lipsum", "cycler", "joiner":
		return nil, unsupported(t.line, "the variable %s", t.text)
	}
	if p.macro && slices.Contains(macroNames, t.text) {
		return nil, unsupported(t.line, "%s in a macro", t.text)
	}
	e := &name{t.text}
	if namespaces && p.skipOp(".") {
		attr, err := p.expectKind(tokName, "the name of an attribute")
		return &attribute{e, attr.text}, err
	}
	return e, nil
}

// items parses expressions up to a closing bracket.
func (p *parser) items(end string) ([]expr, error) {
	var items []expr
	for !p.skipOp(end) {
		if len(items) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
			if p.skipOp(end) {
				break
			}
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		items = append(items, e)
	}
	return items, nil
}

func (p *parser) dict() (expr, error) {
	d := &dictDisplay{}
	for !p.skipOp("}") {
		if len(d.keys) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
			if p.skipOp("}") {
				break
			}
		}
		key, err := p.expression()
		if err != nil {
			return nil, err
		}
		if err := p.expectOp(":"); err != nil {
			return nil, err
		}
		value, err := p.expression()
		if err != nil {
			return nil, err
		}
		d.keys, d.values = append(d.keys, key), append(d.values, value)
	}
	return d, nil
}
