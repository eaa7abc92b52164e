package jinja

import (
	"fmt"
	"slices"
	"strings"
)

// markup is a string that the filters safe and escape have marked. It is a string for all that only looks at it; what
// is made of it stays marked; and a string added to it is escaped for HTML, though nothing else of a chat is.
type markup string

// plain takes the mark off a value.
func plain(v any) any {
	if m, ok := v.(markup); ok {
		return string(m)
	}
	return v
}

var htmlEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", `"`, "&#34;")

// escaped marks a value's text, and escapes it unless it is marked already.
func escaped(st *state, v any) (markup, error) {
	if m, ok := v.(markup); ok {
		return m, nil
	}
	s, err := toString(st, v)
	if err != nil {
		return "", err
	}
	if err := st.spend(5 * len(s)); err != nil {
		return "", err
	}
	return markup(htmlEscapes.Replace(s)), nil
}

// marked marks the strings a function made, if it made them of a marked one.
func marked(of, made any) any {
	if _, ok := of.(markup); !ok {
		return made
	}
	switch made := made.(type) {
	case string:
		return markup(made)
	case *seq:
		items := slices.Clone(made.items)
		for i, it := range items {
			items[i] = marked(of, it)
		}
		return &seq{items: items, kind: made.kind}
	}
	return made
}

// escaping are the methods of a marked string that escape their arguments.
var escaping = strings.Fields("center format join ljust replace rjust")

func markupAttr(of markup, name string) (any, bool, error) {
	m, ok := strMethods[name]
	if !ok || slices.Contains(escaping, name) {
		if ok || slices.Contains(otherStr, name) || slices.Contains([]string{"escape", "striptags", "unescape"}, name) {
			return nil, false, fmt.Errorf("%w: the attribute %q of markup", ErrUnsupported, name)
		}
		return nil, false, nil
	}
	return bound(name, func(st *state, a *args) (any, error) {
		v, err := m(st, string(of), a)
		if err != nil {
			return nil, err
		}
		return marked(of, v), nil
	}), true, nil
}

func filterSafe(st *state, v any, a *args) (any, error) {
	a.none()
	s, err := toString(st, v)
	return markup(s), err
}

func filterEscape(st *state, v any, a *args) (any, error) {
	a.none()
	return escaped(st, v)
}

// filterForce escapes also what is marked.
func filterForce(st *state, v any, a *args) (any, error) {
	a.none()
	return escaped(st, plain(v))
}

// addMarkup is a + b where one of the two is marked.
func addMarkup(st *state, a, b any) (any, error) {
	for _, v := range []any{a, b} {
		if _, ok := plain(v).(string); !ok {
			return nil, fmt.Errorf("cannot add %s and %s", typeName(a), typeName(b))
		}
	}
	x, err := escaped(st, a)
	if err != nil {
		return nil, err
	}
	y, err := escaped(st, b)
	if err != nil {
		return nil, err
	}
	return x + y, st.spend(len(x) + len(y))
}
