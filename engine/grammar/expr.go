package grammar

import (
	"cmp"
	"slices"
	"unicode/utf8"
)

type op uint8

const (
	opSeq    op = iota // subs one after the other; the empty text without any
	opAlt              // one of subs; no text at all without any
	opChars            // one character of ranges
	opRepeat           // subs[0], min to max times
	opCall             // what rule is
	opChain            // parts, with sep between those that are there
)

// forever is a repetition without an upper limit.
const forever = -1

// expr is a set of texts. Expressions may be shared and do not change.
type expr struct {
	op       op
	subs     []*expr
	ranges   []rune // pairs lo, hi, ascending and apart
	min, max int
	rule     int
	parts    []part
	sep      *expr
}

// part is one of a chain: it may be left out where it is optional, and repeats where it is the last and repeated.
type part struct {
	e                  *expr
	optional, repeated bool
}

func seq(subs ...*expr) *expr { return &expr{op: opSeq, subs: subs} }

func alt(subs ...*expr) *expr {
	if len(subs) == 1 {
		return subs[0]
	}
	return &expr{op: opAlt, subs: subs}
}

func rep(e *expr, least, most int) *expr {
	return &expr{op: opRepeat, subs: []*expr{e}, min: least, max: most}
}

func opt(e *expr) *expr               { return rep(e, 0, 1) }
func call(rule int) *expr             { return &expr{op: opCall, rule: rule} }
func chars(ranges ...rune) *expr      { return &expr{op: opChars, ranges: ranges} }
func none() *expr                     { return alt() }
func chain(sep *expr, p []part) *expr { return &expr{op: opChain, sep: sep, parts: p} }

// nodes is what an expression takes of memory, in expressions without ranges, about. Calls are not followed.
func (e *expr) nodes() int {
	n := 1 + len(e.ranges)/8
	for _, s := range e.subs {
		n += s.nodes()
	}
	for _, p := range e.parts {
		n += p.e.nodes()
	}
	if e.sep != nil {
		n += e.sep.nodes()
	}
	return n
}

// lit is the text s, which is UTF-8.
func lit(s string) *expr {
	e := &expr{op: opSeq}
	for _, r := range s {
		e.subs = append(e.subs, chars(r, r))
	}
	return e
}

// negate is every character that is not in ranges, which are ascending and apart. Surrogates are no characters.
func negate(ranges []rune) []rune {
	var out []rune
	at := rune(0)
	for i := 0; i < len(ranges); i += 2 {
		if ranges[i] > at {
			out = append(out, at, ranges[i]-1)
		}
		at = max(at, ranges[i+1]+1)
	}
	if at <= utf8.MaxRune {
		out = append(out, at, utf8.MaxRune)
	}
	return out
}

// within is what two lists of ranges have in common.
func within(a, b []rune) []rune {
	var out []rune
	for i, j := 0, 0; i < len(a) && j < len(b); {
		if lo, hi := max(a[i], b[j]), min(a[i+1], b[j+1]); lo <= hi {
			out = append(out, lo, hi)
		}
		if a[i+1] < b[j+1] {
			i += 2
		} else {
			j += 2
		}
	}
	return out
}

// source is a grammar as expressions: its rules, of which the first is the whole.
type source struct {
	rules []*expr
	names []string // for messages; "" where a rule has none
}

func (s *source) add(name string, e *expr) (int, error) {
	if len(s.rules) == maxRules {
		return 0, errLarge
	}
	s.rules, s.names = append(s.rules, e), append(s.names, name)
	return len(s.rules) - 1, nil
}

// union sorts ranges and joins those that touch.
func union(set [][2]rune) []rune {
	slices.SortFunc(set, func(a, b [2]rune) int { return cmp.Compare(a[0], b[0]) })
	var out []rune
	for _, r := range set {
		if n := len(out); n > 0 && r[0] <= out[n-1]+1 {
			out[n-1] = max(out[n-1], r[1])
		} else {
			out = append(out, r[0], r[1])
		}
	}
	return out
}
