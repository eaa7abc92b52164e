package grammar

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// size reads a keyword that counts; absent: def.
func (s schema) size(key string, def int) (int, error) {
	v := s.kw[key]
	if v == nil {
		return def, nil
	}
	d, ok := parseDecimal(v.text)
	n, err := strconv.Atoi(d.units)
	if v.kind != '0' || !ok || !d.whole() || d.negative || err != nil {
		return 0, errAt(v.path, "%s must be a whole number of at least 0", key)
	}
	return n, nil
}

func (s schema) bounds(least, most string) (lo, hi int, err error) {
	if lo, err = s.size(least, 0); err != nil {
		return 0, 0, err
	}
	if hi, err = s.size(most, forever); err != nil {
		return 0, 0, err
	}
	if max(lo, hi) > maxStates {
		at := s.kw[most]
		if lo > maxStates {
			at = s.kw[least]
		}
		return 0, 0, errAt(at.path, "it is too large")
	}
	return lo, hi, nil
}

// lists is what it takes to read the lists of types and values, of which nothing may be left.
func (s schema) lists() int {
	n := 0
	for _, key := range []string{"type", "enum", "const"} {
		if v := s.kw[key]; v != nil {
			n += 8*v.size + len(v.text)
			for _, item := range v.items {
				n += len(item.text)
			}
		}
	}
	return n
}

// ---- strings ----

func (c *schemaCompiler) str(s schema) (*expr, error) {
	lo, hi, err := s.bounds("minLength", "maxLength")
	if err != nil {
		return nil, err
	}
	sized := s.kw["minLength"] != nil || s.kw["maxLength"] != nil
	pattern, format := s.kw["pattern"], s.kw["format"]
	switch {
	case pattern != nil && (format != nil || sized):
		return nil, errAt(pattern.path, "pattern is not supported beside format, minLength or maxLength")
	case format != nil && sized:
		return nil, errAt(format.path, "format is not supported beside minLength or maxLength")
	case pattern != nil:
		return c.pattern(pattern)
	case format != nil:
		return c.format(format)
	case !sized:
		return call(c.text), nil
	case hi != forever && hi < lo:
		return none(), nil
	}
	return seq(lit(`"`), rep(c.char(), lo, hi), lit(`"`)), nil
}

// escaped is one of a set of characters within a JSON string, each written in one way: as it is if that may be.
func escaped(ranges []rune) *expr {
	e := alt(chars(within(ranges, plain())...), none())
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	special := within(ranges, []rune{0, 0x1F, '"', '"', '\\', '\\'})
	for i := 0; i < len(special); i += 2 {
		for r := special[i]; r <= special[i+1]; r++ {
			text, ok := short[r]
			if !ok {
				text = `\u00` + strconv.FormatInt(0x100+int64(r), 16)[1:]
			}
			e.subs = append(e.subs, lit(text))
		}
	}
	return e
}

// Formats of strings, as regular expressions. Dates have at most 28 days in February and leap seconds do not exist, so
// that what is made is valid however it is checked.
const (
	dateFormat = `\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))`
	timeFormat = `(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)`
	byteFormat = `(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`
	nameFormat = `[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,2}`
)

var formats = map[string]string{
	"date":      dateFormat,
	"time":      timeFormat,
	"date-time": dateFormat + "T" + timeFormat,
	"uuid":      `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`,
	"email":     `[A-Za-z0-9_+-]{1,31}(?:\.[A-Za-z0-9_+-]{1,31})?@` + nameFormat,
	"hostname":  nameFormat,
	"ipv4":      byteFormat + `(?:\.` + byteFormat + `){3}`,
	"duration":  `P(?:\d{1,4}W|\d{1,4}D(?:T\d{1,4}H)?|T(?:\d{1,4}H(?:\d{1,4}M(?:\d{1,4}S)?)?|\d{1,4}M(?:\d{1,4}S)?|\d{1,4}S))`,
	"uri":       `https?://` + nameFormat + `(?::\d{1,4})?(?:/[A-Za-z0-9._~-]*)*(?:\?[A-Za-z0-9._~=&-]*)?`,
}

func (c *schemaCompiler) format(v *value) (*expr, error) {
	pattern, ok := formats[v.text]
	if v.kind != 's' || !ok {
		names := make([]string, 0, len(formats))
		for name := range formats {
			names = append(names, name)
		}
		slices.Sort(names)
		return nil, errAt(v.path, "the format %s is not supported; these are: %s", v.json(), strings.Join(names, ", "))
	}
	re, err := parseRegex(pattern, c.work)
	if err != nil {
		return nil, err
	}
	e, err := (&regexCompiler{escaped}).expr(re, true, true, 0)
	return seq(lit(`"`), e, lit(`"`)), err
}

// ---- numbers ----

func (c *schemaCompiler) numeric(s schema, integer bool) (*expr, error) {
	if v := s.kw["multipleOf"]; v != nil {
		if d, ok := parseDecimal(v.text); v.kind != '0' || !ok || d.units != "1" || !d.whole() {
			return nil, errAt(v.path, "multipleOf other than 1 is not supported")
		}
		integer = true
	}
	var lo, hi *limit
	for _, k := range []struct {
		key  string
		open bool
		to   **limit
		sign int // which of two limits counts
	}{{"minimum", false, &lo, 1}, {"exclusiveMinimum", true, &lo, 1}, {"maximum", false, &hi, -1}, {"exclusiveMaximum", true, &hi, -1}} {
		v := s.kw[k.key]
		if v == nil {
			continue
		}
		d, ok := parseDecimal(v.text)
		if v.kind != '0' || !ok {
			return nil, errAt(v.path, "%s must be a number of at most %d digits", k.key, maxDigits)
		}
		if *k.to == nil {
			*k.to = &limit{d, k.open}
		} else if order := k.sign * compareDecimals(d, (*k.to).decimal); order > 0 || order == 0 && k.open {
			*k.to = &limit{d, k.open}
		}
	}
	return numberWithin(lo, hi, integer), nil
}

// ---- arrays ----

func (c *schemaCompiler) array(s schema) (*expr, error) {
	lo, hi, err := s.bounds("minItems", "maxItems")
	if err != nil {
		return nil, err
	}
	if hi != forever && hi < lo {
		return none(), nil
	}
	more := call(c.any)
	if v := s.kw["items"]; v != nil {
		if v.kind == 'a' {
			return nil, errAt(v.path, "a list of items is not supported; use prefixItems")
		}
		if more, err = c.call(v); err != nil {
			return nil, err
		}
	}
	first := []*value{}
	if v := s.kw["prefixItems"]; v != nil {
		if v.kind != 'a' || len(v.items) > 4*maxDepth {
			return nil, errAt(v.path, "prefixItems must be a list of at most %d schemas", 4*maxDepth)
		}
		first = v.items
	}
	// From the end: each item is followed by what may follow it.
	rest := func(n int) *expr { // more items behind n others
		sep := seq(c.comma(), more)
		if hi == forever {
			return rep(sep, max(0, lo-n), forever)
		}
		return rep(sep, max(0, lo-n), max(0, hi-n))
	}
	if len(first) == 0 {
		e := seq(more, rest(1))
		if hi == 0 {
			e = seq()
		} else if lo == 0 {
			e = opt(e)
		}
		return c.brackets(e), nil
	}
	e := rest(len(first))
	for i, v := range slices.Backward(first) {
		item, err := c.call(v)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			item = seq(c.comma(), item)
		}
		if hi != forever && i >= hi {
			e = seq()
			continue
		}
		if e = seq(item, e); i >= lo {
			e = opt(e)
		}
	}
	return c.brackets(e), nil
}

// ---- objects ----

func (c *schemaCompiler) object(s schema) (*expr, error) {
	props, more, required := s.kw["properties"], s.kw["additionalProperties"], s.kw["required"]
	if props != nil && props.kind != 'o' {
		return nil, errAt(props.path, "properties must be an object")
	}
	var members []member
	if props != nil {
		members = slices.Clone(props.members)
	}
	if required != nil {
		if err := c.work.spend(len(required.items) * (len(required.items) + len(members))); err != nil {
			return nil, err
		}
	}
	if more == nil {
		open := &value{kind: 'b', yes: props == nil, path: s.path}
		more = open
	}
	if required != nil {
		for _, v := range required.items {
			if v.kind != 's' {
				return nil, errAt(required.path, "required must be a list of names")
			}
			if !slices.ContainsFunc(members, func(m member) bool { return m.key == v.text }) {
				if more.kind == 'b' && !more.yes && s.kw["additionalProperties"] == nil {
					more = &value{kind: 'b', yes: true, path: more.path}
				}
				members = append(members, member{v.text, more})
			}
		}
		if required.kind != 'a' {
			return nil, errAt(required.path, "required must be a list of names")
		}
	}
	var parts []part
	for _, m := range members {
		v, err := c.call(m.v)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{e: c.member(lit(quoted(m.key)), v), optional: !s.requires(m.key)})
	}
	if more.kind == 'b' && !more.yes || s.kw["additionalProperties"] == nil && props != nil {
		return c.braces(parts), nil
	}
	bytes := 0
	for _, m := range members {
		if len(m.key) > maxKey {
			return nil, errAt(more.path, "beside a property whose name is longer than %d bytes it is not supported", maxKey)
		}
		bytes += len(m.key)
	}
	if err := c.work.spend(8 * bytes); err != nil { // before an expression of as many nodes is made
		return nil, err
	}
	v, err := c.call(more)
	if err != nil {
		return nil, err
	}
	return c.braces(append(parts, part{c.member(otherKey(members), v), true, true})), nil
}

// maxKey bounds the names of properties where there may be others.
const maxKey = 256

// otherKey is a key that is none of the members'. It has characters as they are alone, for an escaped one could be one
// of theirs in other words.
func otherKey(members []member) *expr {
	var names []string
	for _, m := range members {
		names = append(names, m.key)
	}
	slices.Sort(names)
	return seq(lit(`"`), other(names, 0, rep(chars(plain()...), 0, forever)), lit(`"`))
}

// other is the texts of plain characters that are none of names, which are sorted, from their byte at on; what is
// before is the same in all. free is any of them.
func other(names []string, at int, free *expr) *expr {
	if len(names) == 0 {
		return free
	}
	e := none()
	if len(names[0]) > at { // none of them ends here
		e.subs = append(e.subs, seq())
	} else {
		names = names[1:]
	}
	var used [][2]rune
	for len(names) > 0 {
		r, n := utf8.DecodeRuneInString(names[0][at:])
		same := 0
		for same < len(names) && strings.HasPrefix(names[same][at:], string(r)) {
			same++
		}
		if set := within([]rune{r, r}, plain()); len(set) > 0 {
			e.subs = append(e.subs, seq(chars(set...), other(names[:same], at+n, free)))
		}
		used = append(used, [2]rune{r, r})
		names = names[same:]
	}
	e.subs = append(e.subs, seq(chars(within(negate(union(used)), plain())...), free))
	return e
}
