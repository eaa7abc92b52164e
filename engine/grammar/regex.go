package grammar

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// compileRegex takes RE2's syntax (package regexp/syntax) without \b and (?m). The whole text is held against it.
func compileRegex(pattern string, w *work) (*Grammar, error) {
	re, err := parseRegex(pattern, w)
	if err != nil {
		return nil, err
	}
	c := regexCompiler{chars: func(r []rune) *expr { return chars(r...) }}
	e, err := c.expr(re, true, true, 0)
	if err != nil {
		return nil, err
	}
	return compile(&source{rules: []*expr{e}, names: []string{""}}, w)
}

func parseRegex(pattern string, w *work) (*syntax.Regexp, error) {
	if !utf8.ValidString(pattern) {
		return nil, errAt("", "the regular expression is not UTF-8")
	}
	if err := w.spend(parsing(pattern)); err != nil {
		return nil, err
	}
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, errAt("", "%v", err)
	}
	return re, nil
}

// regexCompiler makes expressions of parsed regular expressions; chars makes one of a set of characters.
type regexCompiler struct {
	chars func(ranges []rune) *expr
}

// foldsCase finds that a part of a regular expression takes letters of both cases.
var foldsCase = regexp.MustCompile(`\(\?[a-zA-Z]*i`)

// parsing is the steps that syntax.Parse takes, about. Of classes it makes all ranges, and where case does not matter it
// looks at each character of a range. From each [: it looks for a :], fast, and goes on behind that.
func parsing(pattern string) int {
	const class, foldedRange, lookedThrough = 1000, 50_000, 64
	n := 8*len(pattern) + class*(strings.Count(pattern, `\p`)+strings.Count(pattern, `\P`))
	open := pattern[strings.LastIndex(pattern, ":]")+1:]
	n += strings.Count(open, "[:") * len(open) / lookedThrough
	if !foldsCase.MatchString(pattern) {
		return n
	}
	for i := 1; i < len(pattern); i++ {
		if pattern[i-1] == '-' && (pattern[i] == '\\' || pattern[i] >= utf8.RuneSelf) {
			n += foldedRange
		}
	}
	return n
}

// expr says by first and last whether re is at the beginning and the end of the text, where anchors may stand.
func (c *regexCompiler) expr(re *syntax.Regexp, first, last bool, depth int) (*expr, error) {
	if depth > maxDepth {
		return nil, errLarge
	}
	switch re.Op {
	case syntax.OpNoMatch:
		return none(), nil
	case syntax.OpEmptyMatch:
		return seq(), nil
	case syntax.OpLiteral:
		return c.literal(re), nil
	case syntax.OpCharClass:
		return c.chars(within(re.Rune, negate(nil))), nil
	case syntax.OpAnyCharNotNL:
		return c.chars(negate([]rune{'\n', '\n'})), nil
	case syntax.OpAnyChar:
		return c.chars(negate(nil)), nil
	case syntax.OpBeginText:
		if first {
			return seq(), nil
		}
	case syntax.OpEndText:
		if last {
			return seq(), nil
		}
	case syntax.OpCapture:
		return c.expr(re.Sub[0], first, last, depth+1)
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		sub, err := c.expr(re.Sub[0], false, false, depth+1)
		if err != nil {
			return nil, err
		}
		least, most := re.Min, re.Max
		switch re.Op {
		case syntax.OpStar:
			least, most = 0, forever
		case syntax.OpPlus:
			least, most = 1, forever
		case syntax.OpQuest:
			least, most = 0, 1
		}
		return rep(sub, least, most), nil
	case syntax.OpConcat, syntax.OpAlternate:
		return c.subs(re, first, last, depth)
	}
	return nil, errAt("", "%s is not supported in a regular expression, but for ^ at its beginning and $ at its end", re)
}

func (c *regexCompiler) subs(re *syntax.Regexp, first, last bool, depth int) (*expr, error) {
	e := &expr{op: opSeq}
	concat := re.Op == syntax.OpConcat
	if !concat {
		e.op = opAlt
	}
	for i, sub := range re.Sub {
		s, err := c.expr(sub, first && (!concat || i == 0), last && (!concat || i == len(re.Sub)-1), depth+1)
		if err != nil {
			return nil, err
		}
		e.subs = append(e.subs, s)
	}
	return e, nil
}

func (c *regexCompiler) literal(re *syntax.Regexp) *expr {
	e := &expr{op: opSeq}
	for _, r := range re.Rune {
		set := []rune{r}
		if re.Flags&syntax.FoldCase != 0 {
			for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
				set = append(set, f)
			}
		}
		slices.Sort(set)
		var ranges []rune
		for _, s := range set {
			ranges = append(ranges, s, s)
		}
		e.subs = append(e.subs, c.chars(ranges))
	}
	return e
}

// search is an expression of the texts in which re matches somewhere, as JSON Schema's pattern has it: without an
// anchor anything may come before, or after.
func (c *regexCompiler) search(re *syntax.Regexp, depth int) (*expr, error) {
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	if re.Op == syntax.OpAlternate && depth < maxDepth {
		e := &expr{op: opAlt}
		for _, sub := range re.Sub {
			s, err := c.search(sub, depth+1)
			if err != nil {
				return nil, err
			}
			e.subs = append(e.subs, s)
		}
		return e, nil
	}
	any := rep(c.chars(negate(nil)), 0, forever)
	e, err := c.expr(re, true, true, depth)
	if err != nil {
		return nil, err
	}
	e = seq(e)
	if !anchored(re, syntax.OpBeginText, false) {
		e.subs = append([]*expr{any}, e.subs...)
	}
	if !anchored(re, syntax.OpEndText, true) {
		e.subs = append(e.subs, any)
	}
	if holds(re, e.subs[0] == any, e.subs[len(e.subs)-1] == any) {
		return nil, errAt("", "%s is not supported in a pattern, but for ^ at its beginning and $ at its end", re)
	}
	return e, nil
}

// anchored tells whether an expression begins, or ends, with an anchor.
func anchored(re *syntax.Regexp, anchor syntax.Op, end bool) bool {
	if re.Op == syntax.OpConcat {
		at := 0
		if end {
			at = len(re.Sub) - 1
		}
		return re.Sub[at].Op == anchor
	}
	return re.Op == anchor
}

// holds tells whether an anchor is somewhere in re where it would be taken for one at an end that has been opened.
func holds(re *syntax.Regexp, begin, end bool) bool {
	if begin && re.Op == syntax.OpBeginText || end && re.Op == syntax.OpEndText {
		return true
	}
	return slices.ContainsFunc(re.Sub, func(s *syntax.Regexp) bool { return holds(s, begin, end) })
}
