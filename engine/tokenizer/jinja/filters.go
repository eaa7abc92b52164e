package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

type filterFunc func(st *state, v any, a *args) (any, error)

var filters map[string]filterFunc

func init() {
	filters = map[string]filterFunc{
		"abs":         filterAbs,
		"attr":        filterAttr,
		"batch":       filterBatch,
		"capitalize":  filterText(capitalize, true),
		"center":      filterCenter,
		"count":       filterLength,
		"d":           filterDefault,
		"default":     filterDefault,
		"dictsort":    filterDictsort,
		"e":           filterEscape,
		"escape":      filterEscape,
		"first":       filterFirst,
		"float":       filterFloat,
		"forceescape": filterForce,
		"groupby":     filterGroupby,
		"indent":      filterIndent,
		"int":         filterInt,
		"items":       filterItems,
		"join":        filterJoin,
		"last":        filterLast,
		"length":      filterLength,
		"list":        filterList,
		"lower":       filterText(lower, true),
		"map":         filterMap,
		"max":         filterExtreme(-1),
		"min":         filterExtreme(1),
		"reject":      filterSelect(false, false),
		"rejectattr":  filterSelect(false, true),
		"replace":     filterReplace,
		"reverse":     filterReverse,
		"round":       filterRound,
		"safe":        filterSafe,
		"select":      filterSelect(true, false),
		"selectattr":  filterSelect(true, true),
		"slice":       filterSlice,
		"sort":        filterSort,
		"string":      filterText(func(s string) string { return s }, true),
		"sum":         filterSum,
		"title":       filterText(filterTitle, false),
		"tojson":      filterJSON,
		"trim":        filterTrim,
		"unique":      filterUnique,
		"upper":       filterText(upper, true),
	}
}

// filterText is a filter that first takes the text of any value. keeps: a marked text stays marked.
func filterText(f func(string) string, keeps bool) filterFunc {
	return func(st *state, v any, a *args) (any, error) {
		a.none()
		s, err := toString(st, v)
		if err != nil {
			return nil, err
		}
		made, err := mapped(st, s, f)
		if keeps {
			made = marked(v, made)
		}
		return made, err
	}
}

// filterTitle starts words behind blanks, hyphens and opening brackets.
func filterTitle(s string) string {
	isBreak := func(r rune) bool { return isSpace(r) || strings.ContainsRune("-({[<", r) }
	var b strings.Builder
	for s != "" {
		word := strings.TrimLeftFunc(s, isBreak)
		b.WriteString(s[:len(s)-len(word)])
		end := strings.IndexFunc(word, isBreak)
		if end < 0 {
			end = len(word)
		}
		word, s = word[:end], word[end:]
		for i, r := range word {
			if i > 0 {
				b.WriteString(lower(word[i:]))
				break
			}
			b.WriteString(upper(string(r)))
		}
	}
	return b.String()
}

func filterTrim(st *state, v any, a *args) (any, error) {
	chars := a.bind(0, "chars")[0]
	s, err := toString(st, v)
	if err != nil {
		return nil, err
	}
	if err := st.spend(len(s) / 8); err != nil {
		return nil, err
	}
	made, err := strip(s, chars, true, true)
	return marked(v, made), err
}

func filterCenter(st *state, v any, a *args) (any, error) {
	width := a.integer(a.bind(0, "width")[0], 80)
	s, err := toString(st, v)
	if err != nil || a.err != nil {
		return nil, err
	}
	made, err := pad(st, s, width, " ", func(n int) int { return centerLeft(n, runeCount(s)) })
	return marked(v, made), err
}

func filterReplace(st *state, v any, a *args) (any, error) {
	in := a.bind(2, "old", "new", "count")
	if a.err != nil {
		return nil, a.err
	}
	if in[2] == nil {
		in[2] = absent{}
	}
	var texts [3]string
	for i, v := range []any{v, in[0], in[1]} {
		var err error
		if texts[i], err = toString(st, v); err != nil {
			return nil, err
		}
	}
	return replace(st, texts[0], texts[1], texts[2], a.integer(in[2], -1))
}

func filterIndent(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "width", "first", "blank")
	by, ok := plain(in[0]).(string)
	if !ok {
		n := max(a.integer(in[0], 4), 0)
		if n > 1000 {
			return nil, fmt.Errorf("%w: a width of %d", ErrTooMuch, n)
		}
		by = strings.Repeat(" ", n)
	}
	s, ok := plain(v).(string)
	if !ok {
		if err := defined(v); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("expected a string, got %s", typeName(v))
	}
	lines := splitLines(s+"\n", false)
	if err := st.spend(len(s) + len(by)*len(lines)); err != nil {
		return nil, err
	}
	blank := a.flag(in[2])
	for i, line := range lines {
		if i == 0 && !a.flag(in[1]) || i > 0 && line == "" && !blank {
			continue
		}
		lines[i] = by + line
	}
	return marked(v, strings.Join(lines, "\n")), nil
}

func filterDefault(_ *state, v any, a *args) (any, error) {
	in := a.bind(0, "default_value", "boolean")
	if _, missing := v.(*undefined); !missing && (truth(v) || !a.flag(in[1])) {
		return v, nil
	}
	if in[0] == (absent{}) {
		return "", nil
	}
	return in[0], nil
}

func filterLength(_ *state, v any, a *args) (any, error) {
	a.none()
	return length(v)
}

func filterAttr(st *state, v any, a *args) (any, error) {
	name := a.text(a.bind(1, "name")[0], "")
	if a.err != nil {
		return nil, a.err
	}
	found, ok, err := pythonAttr(v, name)
	if ok || err != nil {
		return found, err
	}
	return missing(v, name)
}

func filterAbs(_ *state, v any, a *args) (any, error) {
	a.none()
	if i, ok := integer(v); ok {
		if i == math.MinInt {
			return nil, errOverflow
		}
		return int(abs(i)), nil
	}
	if f, ok := v.(float64); ok {
		return math.Abs(f), nil
	}
	return nil, fmt.Errorf("expected a number, got %s", typeName(v))
}

func filterInt(_ *state, v any, a *args) (any, error) {
	in := a.bind(0, "default", "base")
	if in[0] == (absent{}) {
		in[0] = 0
	}
	base := a.integer(in[1], 10)
	if base != 10 && a.err == nil {
		return nil, fmt.Errorf("%w: base %d", ErrUnsupported, base)
	}
	switch v := plain(v).(type) {
	case *undefined:
		return nil, defined(v)
	case bool, int:
		i, _ := integer(v)
		return i, nil
	case string:
		s := strings.TrimFunc(v, isSpace)
		if i, err := strconv.Atoi(withoutUnderscores(s)); err == nil {
			return i, nil
		} else if errors.Is(err, strconv.ErrRange) {
			return nil, errOverflow
		}
		if f, ok := parseFloat(v); ok && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return truncate(f)
		}
	case float64:
		if math.IsInf(v, 0) {
			return nil, errors.New("cannot convert infinity to an integer")
		}
		if !math.IsNaN(v) {
			return truncate(v)
		}
	}
	return in[0], nil
}

func truncate(f float64) (any, error) {
	if math.Abs(f) >= 1<<63 {
		return nil, errOverflow
	}
	return int(f), nil
}

// withoutUnderscores takes out those that stand between two digits, as Python's numbers may have them.
func withoutUnderscores(s string) string {
	if !strings.Contains(s, "_") {
		return s
	}
	digit := func(i int) bool { return i >= 0 && i < len(s) && s[i] >= '0' && s[i] <= '9' }
	var b strings.Builder
	for i := range len(s) {
		if s[i] != '_' || !digit(i-1) || !digit(i+1) {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// parseFloat is Python's float of a string.
func parseFloat(s string) (float64, bool) {
	s = withoutUnderscores(strings.TrimFunc(s, isSpace))
	if strings.ContainsAny(s, "xXpP_") { // Go's own forms
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}

func filterFloat(_ *state, v any, a *args) (any, error) {
	otherwise := a.bind(0, "default")[0]
	if otherwise == (absent{}) {
		otherwise = 0.0
	}
	if err := defined(v); err != nil {
		return nil, err
	}
	if f, ok := number(v); ok {
		return f, nil
	}
	if s, ok := plain(v).(string); ok {
		if f, ok := parseFloat(s); ok {
			return f, nil
		}
	}
	return otherwise, nil
}

func filterRound(_ *state, v any, a *args) (any, error) {
	in := a.bind(0, "precision", "method")
	precision, method := a.integer(in[0], 0), a.text(in[1], "common")
	if a.err != nil {
		return nil, a.err
	}
	if precision < 0 || precision > 20 {
		return nil, fmt.Errorf("%w: a precision of %d", ErrUnsupported, precision)
	}
	if !slices.Contains([]string{"common", "ceil", "floor"}, method) {
		return nil, errors.New("the method must be common, ceil or floor")
	}
	f, ok := number(v)
	if !ok {
		if err := defined(v); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("expected a number, got %s", typeName(v))
	}
	if method == "common" {
		if i, ok := integer(v); ok {
			return i, nil
		}
		f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'f', precision, 64), 64)
		return f, nil
	}
	scale := math.Pow10(precision)
	if method == "ceil" {
		return math.Ceil(f*scale) / scale, nil
	}
	return math.Floor(f*scale) / scale, nil
}
