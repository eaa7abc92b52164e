package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

type strMethod func(st *state, s string, a *args) (any, error)

var strMethods map[string]strMethod

func init() {
	strMethods = map[string]strMethod{
		"strip":      stripMethod(true, true),
		"lstrip":     stripMethod(true, false),
		"rstrip":     stripMethod(false, true),
		"split":      splitMethod(false),
		"rsplit":     splitMethod(true),
		"startswith": affixMethod(strings.HasPrefix),
		"endswith":   affixMethod(strings.HasSuffix),
		"find":       findMethod(strings.Index, false),
		"rfind":      findMethod(strings.LastIndex, false),
		"index":      findMethod(strings.Index, true),
		"rindex":     findMethod(strings.LastIndex, true),
		"lower":      mapMethod(lower),
		"upper":      mapMethod(upper),
		"title":      mapMethod(title),
		"capitalize": mapMethod(capitalize),
		"isspace":    isMethod(func(s string) bool { return allOf(s, isSpace) }),
		"isalpha":    isMethod(func(s string) bool { return allOf(s, unicode.IsLetter) }),
		"isdigit":    isMethod(func(s string) bool { return allOf(s, isDigit) }),
		"isdecimal":  isMethod(func(s string) bool { return allOf(s, unicode.IsDigit) }),
		"isalnum":    isMethod(func(s string) bool { return allOf(s, isAlnum) }),
		"islower":    isMethod(func(s string) bool { return oneCase(s, isLower) }),
		"isupper":    isMethod(func(s string) bool { return oneCase(s, isUpper) }),
		"isascii": isMethod(func(s string) bool {
			return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
		}),
		"isidentifier": isMethod(func(s string) bool { return s != "" && identifier(s) == len(s) }),
		"ljust":        padMethod(func(pad int) int { return 0 }),
		"rjust":        padMethod(func(pad int) int { return pad }),
		"replace":      replaceMethod,
		"join":         joinMethod,
		"splitlines":   splitLinesMethod,
		"removeprefix": cutMethod(strings.TrimPrefix),
		"removesuffix": cutMethod(strings.TrimSuffix),
		"partition":    partitionMethod,
		"rpartition":   partitionRightMethod,
		"count":        countMethod,
		"zfill":        zfillMethod,
		"center":       centerMethod,
		"casefold":     casefoldMethod,
		"format":       formatMethod,
	}
}

func stripMethod(left, right bool) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		chars := a.bind(0, "chars")[0]
		if err := st.spend(len(s) / 8); err != nil {
			return nil, err
		}
		return strip(s, chars, left, right)
	}
}

// strip cuts white space, or any of some characters, from the ends of a text.
func strip(s string, chars any, left, right bool) (string, error) {
	in := isSpace
	if chars != (absent{}) && chars != nil {
		set, ok := plain(chars).(string)
		if !ok {
			return "", fmt.Errorf("expected a string, got %s", typeName(chars))
		}
		in = func(r rune) bool { return strings.ContainsRune(set, r) }
	}
	if left {
		s = strings.TrimLeftFunc(s, in)
	}
	if right {
		s = strings.TrimRightFunc(s, in)
	}
	return s, nil
}

func splitMethod(fromRight bool) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		in := a.bind(0, "sep", "maxsplit")
		limit := a.integer(in[1], -1)
		var parts []string
		switch {
		case in[0] == (absent{}) || in[0] == nil:
			if fromRight {
				parts = splitSpaceRight(s, limit)
				slices.Reverse(parts)
			} else {
				parts = splitSpace(s, limit)
			}
		default:
			sep := a.text(in[0], "")
			if a.err != nil {
				return nil, a.err
			}
			if sep == "" {
				return nil, errors.New("the separator is empty")
			}
			parts = splitAt(s, sep, limit, fromRight)
		}
		return stringList(st, s, parts)
	}
}

func splitAt(s, sep string, limit int, fromRight bool) []string {
	if limit < 0 {
		limit = len(s)
	}
	if !fromRight {
		return strings.SplitN(s, sep, limit+1)
	}
	var parts []string
	for ; limit > 0; limit-- {
		i := strings.LastIndex(s, sep)
		if i < 0 {
			break
		}
		parts = append(parts, s[i+len(sep):])
		s = s[:i]
	}
	parts = append(parts, s)
	slices.Reverse(parts)
	return parts
}

// stringList makes a list of parts of a text.
func stringList(st *state, of string, parts []string) (any, error) {
	if err := st.spend(len(of) / 8); err != nil {
		return nil, err
	}
	items := make([]any, len(parts))
	for i, p := range parts {
		items[i] = p
	}
	return newList(items), st.spendItems(len(items))
}

func affixMethod(has func(s, affix string) bool) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		affix := a.bind(1, "prefix")[0]
		if a.err != nil {
			return nil, a.err
		}
		options := []any{affix}
		if t, ok := affix.(*seq); ok && t.kind == tupleKind {
			options = t.items
		}
		found := false
		for _, o := range options {
			found = has(s, a.text(o, "")) || found
		}
		return found, nil
	}
}

func findMethod(find func(s, sub string) int, must bool) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		sub := a.text(a.bind(1, "sub")[0], "")
		if err := st.spend(len(s) / 8); err != nil {
			return nil, err
		}
		i := find(s, sub)
		if i < 0 {
			if must {
				return nil, errors.New("the substring is not found")
			}
			return -1, nil
		}
		return runeCount(s[:i]), nil
	}
}

func mapMethod(f func(string) string) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		a.none()
		return mapped(st, s, f)
	}
}

// mapped applies a function that changes the length little, and takes more time than copying.
func mapped(st *state, s string, f func(string) string) (any, error) {
	if err := st.spend(4 * len(s)); err != nil {
		return nil, err
	}
	return f(s), nil
}

func isMethod(f func(string) bool) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		a.none()
		return f(s), st.spend(len(s) / 8)
	}
}

func cutMethod(cut func(s, affix string) string) strMethod {
	return func(_ *state, s string, a *args) (any, error) {
		return cut(s, a.text(a.bind(1, "affix")[0], "")), nil
	}
}

func replaceMethod(st *state, s string, a *args) (any, error) {
	in := a.bind(2, "old", "new", "count")
	old, by, count := a.text(in[0], ""), a.text(in[1], ""), a.integer(in[2], -1)
	if a.err != nil {
		return nil, a.err
	}
	return replace(st, s, old, by, count)
}

func replace(st *state, s, old, by string, count int) (any, error) {
	n := strings.Count(s, old)
	if count >= 0 {
		n = min(n, count)
	}
	if len(by) > 0 && n > st.bytes/len(by) {
		return nil, ErrTooMuch
	}
	if err := st.spend(len(s) + n*len(by)); err != nil {
		return nil, err
	}
	return strings.Replace(s, old, by, n), nil
}

func joinMethod(st *state, s string, a *args) (any, error) {
	items, err := iterate(st, a.bind(1, "iterable")[0])
	if err != nil {
		return nil, err
	}
	texts := make([]any, len(items))
	for i, it := range items {
		texts[i] = a.text(it, "")
	}
	if a.err != nil {
		return nil, a.err
	}
	return joinStrings(st, texts, s)
}

// joinStrings joins items that are all strings.
func joinStrings(st *state, items []any, sep string) (any, error) {
	size := 0
	for _, it := range items {
		size += len(it.(string)) + len(sep)
		if size > st.bytes {
			return nil, ErrTooMuch
		}
	}
	if err := st.spend(size); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.Grow(size)
	for i, it := range items {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(it.(string))
	}
	return b.String(), nil
}

func splitLinesMethod(st *state, s string, a *args) (any, error) {
	keep := a.flag(a.bind(0, "keepends")[0])
	return stringList(st, s, splitLines(s, keep))
}

func partitionMethod(st *state, s string, a *args) (any, error) {
	sep := a.text(a.bind(1, "sep")[0], "")
	if sep == "" {
		return nil, errors.New("the separator is empty")
	}
	before, after, found := strings.Cut(s, sep)
	if !found {
		sep = ""
	}
	return newTuple(before, sep, after), st.spend(len(s) / 8)
}

func partitionRightMethod(st *state, s string, a *args) (any, error) {
	sep := a.text(a.bind(1, "sep")[0], "")
	if sep == "" {
		return nil, errors.New("the separator is empty")
	}
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return newTuple("", "", s), nil
	}
	return newTuple(s[:i], sep, s[i+len(sep):]), st.spend(len(s) / 8)
}

func countMethod(st *state, s string, a *args) (any, error) {
	sub := a.text(a.bind(1, "sub")[0], "")
	return strings.Count(s, sub), st.spend(len(s) / 8)
}

func padMethod(before func(pad int) int) strMethod {
	return func(st *state, s string, a *args) (any, error) {
		in := a.bind(1, "width", "fillchar")
		width, fill := a.integer(in[0], 0), a.text(in[1], " ")
		if runeCount(fill) != 1 {
			a.fail(errors.New("the fill character must be one character"))
		}
		if a.err != nil {
			return nil, a.err
		}
		return pad(st, s, width, fill, before)
	}
}

func pad(st *state, s string, width int, fill string, before func(pad int) int) (any, error) {
	n := width - runeCount(s)
	if n <= 0 {
		return s, nil
	}
	if n > st.bytes/len(fill) {
		return nil, ErrTooMuch
	}
	if err := st.spend(len(s) + n*len(fill)); err != nil {
		return nil, err
	}
	left := before(n)
	return strings.Repeat(fill, left) + s + strings.Repeat(fill, n-left), nil
}

func centerMethod(st *state, s string, a *args) (any, error) {
	return padMethod(func(n int) int { return centerLeft(n, runeCount(s)) })(st, s, a)
}

// centerLeft is how much of a padding CPython puts to the left of a text of some length.
func centerLeft(pad, length int) int { return pad/2 + pad&(pad+length)&1 }

func zfillMethod(st *state, s string, a *args) (any, error) {
	width := a.integer(a.bind(1, "width")[0], 0)
	if a.err != nil {
		return nil, a.err
	}
	sign := ""
	if strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
		sign, s = s[:1], s[1:]
	}
	padded, err := pad(st, s, width-len(sign), "0", func(n int) int { return n })
	if err != nil {
		return nil, err
	}
	return sign + padded.(string), nil
}

func casefoldMethod(st *state, s string, a *args) (any, error) {
	a.none()
	return mapped(st, s, casefold)
}
