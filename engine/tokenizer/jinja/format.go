package jinja

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

func runeCount(s string) int { return utf8.RuneCountInString(s) }

// toString is Python's str.
func toString(st *state, v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case markup:
		return string(v), nil
	case *undefined:
		return "", nil
	}
	w := &writer{st: st}
	if err := w.repr(v); err != nil {
		return "", err
	}
	return w.b.String(), nil
}

// writer builds a text within the limits of a rendering.
type writer struct {
	st *state
	b  strings.Builder
}

func (w *writer) write(s string) error {
	w.b.WriteString(s)
	return w.st.spend(len(s))
}

// repr writes Python's repr.
func (w *writer) repr(v any) error {
	if err := w.st.enter(); err != nil {
		return err
	}
	defer w.st.leave()
	switch v := v.(type) {
	case nil:
		return w.write("None")
	case bool:
		if v {
			return w.write("True")
		}
		return w.write("False")
	case int:
		return w.write(strconv.Itoa(v))
	case float64:
		return w.write(formatFloat(v))
	case string:
		return w.write(quote(v))
	case markup:
		return w.write("Markup(" + quote(string(v)) + ")")
	case *undefined:
		return w.write("Undefined")
	case *seq:
		return w.reprSeq(v)
	case *dict:
		return w.reprDict(v)
	case *view:
		if err := w.write("dict_" + v.name + "("); err != nil {
			return err
		}
		return w.reprItems("[", v.items, "])")
	case *namespace:
		if err := w.write("<Namespace "); err != nil {
			return err
		}
		if err := w.reprDict(v.attrs); err != nil {
			return err
		}
		return w.write(">")
	}
	return fmt.Errorf("%w: writing %s as text", ErrUnsupported, typeName(v))
}

func (w *writer) reprSeq(s *seq) error {
	switch {
	case s.kind == rangeKind:
		return fmt.Errorf("%w: writing a range as text", ErrUnsupported)
	case s.kind == tupleKind && len(s.items) == 1:
		return w.reprItems("(", s.items, ",)")
	case s.kind == tupleKind:
		return w.reprItems("(", s.items, ")")
	}
	return w.reprItems("[", s.items, "]")
}

func (w *writer) reprItems(begin string, items []any, end string) error {
	if err := w.write(begin); err != nil {
		return err
	}
	for i, it := range items {
		if i > 0 {
			if err := w.write(", "); err != nil {
				return err
			}
		}
		if err := w.repr(it); err != nil {
			return err
		}
	}
	return w.write(end)
}

func (w *writer) reprDict(d *dict) error {
	begin := "{"
	for i, k := range d.keys {
		if err := w.write(begin); err != nil {
			return err
		}
		begin = ", "
		if err := w.repr(k); err != nil {
			return err
		}
		if err := w.write(": "); err != nil {
			return err
		}
		if err := w.repr(d.values[i]); err != nil {
			return err
		}
	}
	if len(d.keys) == 0 {
		return w.write("{}")
	}
	return w.write("}")
}

// formatFloat is Python's repr of a float: the shortest digits, with an exponent outside 1e-4 ... 1e16.
func formatFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 0):
		return strings.ToLower(strings.TrimPrefix(strconv.FormatFloat(f, 'g', -1, 64), "+"))
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// quote is Python's repr of a string.
func quote(s string) string {
	q := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		q = '"'
	}
	var b strings.Builder
	b.WriteByte(q)
	for _, r := range s {
		switch {
		case r == rune(q) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xFF:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xFFFF:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte(q)
	return b.String()
}
