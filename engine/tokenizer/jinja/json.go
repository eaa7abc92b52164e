package jinja

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf16"
)

// encoder writes JSON as Python's json.dumps does.
type encoder struct {
	writer
	ascii        bool
	indent       string
	lines        bool // one line for each item
	comma, colon string
	sortKeys     bool
}

// filterJSON is the tojson of transformers, which unlike Jinja2's own escapes nothing for HTML.
func filterJSON(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "ensure_ascii", "indent", "separators", "sort_keys")
	e := &encoder{writer: writer{st: st}, comma: ", ", colon: ": "}
	e.ascii, e.sortKeys = a.flag(in[0]), a.flag(in[3])
	switch indent := plain(in[1]).(type) {
	case absent, nil:
	case string:
		e.indent, e.lines = indent, true
	default:
		n := a.integer(indent, 0)
		if n > 1000 {
			return nil, fmt.Errorf("%w: an indentation of %d", ErrTooMuch, n)
		}
		e.indent, e.lines = strings.Repeat(" ", max(n, 0)), true
	}
	if e.lines {
		e.comma = ","
	}
	if in[2] != (absent{}) && in[2] != nil {
		pair, err := iterate(st, in[2])
		if err != nil {
			return nil, err
		}
		if len(pair) != 2 {
			return nil, errors.New("there must be two separators")
		}
		e.comma, e.colon = a.text(pair[0], ""), a.text(pair[1], "")
	}
	if err := e.value(v, 0); err != nil {
		return nil, err
	}
	return e.b.String(), nil
}

func (e *encoder) value(v any, level int) error {
	if err := e.st.enter(); err != nil {
		return err
	}
	defer e.st.leave()
	switch v := plain(v).(type) {
	case nil:
		return e.write("null")
	case bool:
		if v {
			return e.write("true")
		}
		return e.write("false")
	case int:
		return e.repr(v)
	case float64:
		return e.write(jsonFloat(v))
	case string:
		return e.string(v)
	case *seq:
		if v.kind != rangeKind {
			return e.block("[", "]", len(v.items), level, func(i int) error { return e.value(v.items[i], level+1) })
		}
	case *dict:
		return e.dict(v, level)
	}
	return fmt.Errorf("cannot write %s as JSON", typeName(v))
}

func jsonFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return formatFloat(f)
}

// block writes n items between brackets.
func (e *encoder) block(begin, end string, n, level int, item func(i int) error) error {
	if n == 0 {
		return e.write(begin + end)
	}
	if err := e.write(begin); err != nil {
		return err
	}
	for i := range n {
		if i > 0 {
			if err := e.write(e.comma); err != nil {
				return err
			}
		}
		if err := e.newline(level + 1); err != nil {
			return err
		}
		if err := item(i); err != nil {
			return err
		}
	}
	if err := e.newline(level); err != nil {
		return err
	}
	return e.write(end)
}

func (e *encoder) newline(level int) error {
	if !e.lines {
		return nil
	}
	if len(e.indent)*level > e.st.bytes {
		return ErrTooMuch
	}
	return e.write("\n" + strings.Repeat(e.indent, level))
}

func (e *encoder) dict(d *dict, level int) error {
	if e.sortKeys {
		items, err := sortBy(e.st, d.keys, d.items(), false)
		if err != nil {
			return err
		}
		sorted := newDict(len(items))
		for _, it := range items {
			if err := sorted.set(it.(*seq).items[0], it.(*seq).items[1]); err != nil {
				return err
			}
		}
		d = sorted
	}
	return e.block("{", "}", len(d.keys), level, func(i int) error {
		if err := e.key(d.keys[i]); err != nil {
			return err
		}
		if err := e.write(e.colon); err != nil {
			return err
		}
		return e.value(d.values[i], level+1)
	})
}

func (e *encoder) key(k any) error {
	if s, ok := plain(k).(string); ok {
		return e.string(s)
	}
	if err := e.write(`"`); err != nil {
		return err
	}
	if err := e.value(k, 0); err != nil {
		return err
	}
	return e.write(`"`)
}

func (e *encoder) string(s string) error {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r < 0x20 || e.ascii && r > 0x7e && r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		case r > 0xffff && e.ascii:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return e.write(b.String())
}
