package grammar

import (
	"slices"
	"strings"
)

// schema is a schema whose references and allOf are resolved: its keywords that decide what satisfies it.
type schema struct {
	path  string
	never bool // nothing satisfies it
	kw    map[string]*value
}

// What is made of each keyword; those that are not here are annotations, or unknown, which is the same.
var supported = []string{
	"$ref", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "items",
	"maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum", "multipleOf", "oneOf", "pattern", "prefixItems",
	"properties", "required", "type",
}

var refused = []string{
	"$dynamicRef", "$recursiveRef", "additionalItems", "contains", "contentSchema", "dependencies", "dependentRequired",
	"dependentSchemas", "else", "if", "maxContains", "maxProperties", "minContains", "minProperties", "not", "nullable",
	"patternProperties", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
}

func (s schema) without(key string) schema {
	out := schema{s.path, s.never, map[string]*value{}}
	for k, v := range s.kw {
		if k != key {
			out.kw[k] = v
		}
	}
	return out
}

// flatten resolves a schema's reference and allOf.
func (c *schemaCompiler) flatten(v *value, depth int) (schema, error) {
	s := schema{path: v.path, kw: map[string]*value{}}
	if depth > maxDepth {
		return s, errAt(v.path, "it refers to itself")
	}
	if err := c.work.spend(100 + len(v.members)); err != nil { // parts may be referred to by many others
		return s, err
	}
	if v.kind == 'b' {
		s.never = !v.yes
		return s, nil
	}
	if v.kind != 'o' {
		return s, errAt(v.path, "a schema is an object, true or false")
	}
	var inner []*value
	for _, m := range v.members {
		switch {
		case m.key == "$ref":
			to, err := c.resolve(m.v)
			if err != nil {
				return s, err
			}
			inner = append(inner, to)
		case m.key == "allOf":
			if m.v.kind != 'a' || len(m.v.items) == 0 {
				return s, errAt(m.v.path, "it must be a list of schemas")
			}
			inner = append(inner, m.v.items...)
		case slices.Contains(refused, m.key) && !asksNothing(m.key, m.v):
			return s, errAt(m.v.path, "%s is not supported", m.key)
		case slices.Contains(supported, m.key):
			s.kw[m.key] = m.v
		}
	}
	for _, in := range inner {
		f, err := c.flatten(in, depth+1)
		if err == nil {
			s, err = c.merge(s, f)
		}
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// asksNothing tells whether a keyword that is not supported has a value that excludes nothing that could be made here.
func asksNothing(key string, v *value) bool {
	switch key {
	case "uniqueItems", "nullable":
		return v.kind == 'b' && !v.yes
	case "unevaluatedProperties", "unevaluatedItems":
		return v.kind == 'b' && v.yes
	case "minProperties":
		return v.kind == '0' && v.text == "0"
	}
	return false
}

// merge is a schema that holds where both do.
func (c *schemaCompiler) merge(a, b schema) (schema, error) {
	out := schema{a.path, a.never || b.never, map[string]*value{}}
	if err := closes(a, b); err != nil {
		return out, err
	}
	if err := closes(b, a); err != nil {
		return out, err
	}
	for k, v := range a.kw {
		out.kw[k] = v
	}
	for k, v := range b.kw {
		if out.kw[k] == nil {
			out.kw[k] = v
			continue
		}
		both, err := c.both(k, out.kw[k], v)
		if err != nil {
			return out, err
		}
		out.kw[k] = both
	}
	return out, nil
}

// closes refuses additionalProperties that speaks of properties which another part of the schema names: it would not
// mean those if the parts were one.
func closes(a, b schema) error {
	if items := b.kw["items"]; a.kw["prefixItems"] != nil && items != nil && b.kw["prefixItems"] == nil && !(items.kind == 'b' && items.yes) {
		return errAt(items.path, "it speaks of items that another part of the schema lists in prefixItems; that is not supported")
	}
	more := a.kw["additionalProperties"]
	if more == nil || more.kind == 'b' && more.yes || b.kw["properties"] == nil {
		return nil
	}
	for _, m := range b.kw["properties"].members {
		if p := a.kw["properties"]; p == nil || p.get(m.key) == nil {
			return errAt(more.path, "it excludes %q, which another part of the schema names; that is not supported", m.key)
		}
	}
	return nil
}

// both is a keyword's value where two are to hold.
func (c *schemaCompiler) both(key string, a, b *value) (*value, error) {
	if err := c.work.spend((len(a.items)+len(a.members)+1)*(len(b.items)+len(b.members)+1) + 8*min(a.size, b.size) + 100); err != nil {
		return nil, err
	}
	if same(a, b) {
		return a, nil
	}
	x, okX := parseDecimal(a.text)
	y, okY := parseDecimal(b.text)
	numbers := a.kind == '0' && b.kind == '0' && okX && okY
	switch key {
	case "minimum", "exclusiveMinimum", "minLength", "minItems":
		if numbers && compareDecimals(x, y) >= 0 {
			return a, nil
		} else if numbers {
			return b, nil
		}
	case "maximum", "exclusiveMaximum", "maxLength", "maxItems":
		if numbers && compareDecimals(x, y) <= 0 {
			return a, nil
		} else if numbers {
			return b, nil
		}
	case "required":
		out := &value{kind: 'a', path: a.path, items: slices.Clone(a.items)}
		out.items = append(out.items, b.items...)
		return out, nil
	case "properties":
		return c.bothProperties(a, b)
	case "items", "additionalProperties":
		return c.allOf(a, b), nil
	case "type":
		return bothTypes(a, b), nil
	case "enum":
		out := &value{kind: 'a', path: a.path}
		for _, v := range a.items {
			if slices.ContainsFunc(b.items, func(w *value) bool { return same(v, w) }) {
				out.items = append(out.items, v)
			}
		}
		return out, nil
	}
	return nil, errAt(b.path, "it stands beside another %s at %s, which is not supported", key, a.path)
}

func (c *schemaCompiler) bothProperties(a, b *value) (*value, error) {
	out := &value{kind: 'o', path: a.path, members: slices.Clone(a.members)}
	for _, m := range b.members {
		at := slices.IndexFunc(out.members, func(o member) bool { return o.key == m.key })
		if at < 0 {
			out.members = append(out.members, m)
		} else if !same(out.members[at].v, m.v) {
			out.members[at].v = c.allOf(out.members[at].v, m.v)
		}
	}
	return out, nil
}

// allOf is a schema of two.
func (c *schemaCompiler) allOf(a, b *value) *value {
	return &value{kind: 'o', path: a.path, size: 4 + a.size + b.size, members: []member{{"allOf", &value{kind: 'a', path: a.path, size: 2 + a.size + b.size, items: []*value{a, b}}}}}
}

// bothTypes is the types that both have; a number that must be an integer is one.
func bothTypes(a, b *value) *value {
	list := func(v *value) (out []string) {
		if v.kind == 's' {
			return []string{v.text}
		}
		for _, t := range v.items {
			out = append(out, t.text)
		}
		return out
	}
	out := &value{kind: 'a', path: a.path}
	add := func(t string) { out.items = append(out.items, &value{kind: 's', text: t, path: a.path}) }
	x, y := list(a), list(b)
	for _, t := range x {
		switch {
		case slices.Contains(y, t):
			add(t)
		case t == "integer" && slices.Contains(y, "number"):
			add(t)
		case t == "number" && slices.Contains(y, "integer"):
			add("integer")
		}
	}
	return out
}

var allTypes = []string{"null", "boolean", "object", "array", "number", "integer", "string"}

// types is the schema's types, those that its keywords speak of if none is said; nil: any.
func (s schema) types() ([]string, error) {
	v := s.kw["type"]
	if v == nil {
		return s.spokenOf(), nil
	}
	items := v.items
	if v.kind == 's' {
		items = []*value{v}
	}
	if v.kind != 's' && v.kind != 'a' {
		return nil, errAt(v.path, "type must be a name or a list of names")
	}
	out := []string{}
	for _, t := range items {
		if t.kind != 's' || !slices.Contains(allTypes, t.text) {
			return nil, errAt(v.path, "%s is none of the types %s", t.json(), strings.Join(allTypes, ", "))
		}
		if !slices.Contains(out, t.text) { // else one could be there thousands of times
			out = append(out, t.text)
		}
	}
	return out, nil
}

func (s schema) spokenOf() (out []string) {
	if s.kw["enum"] != nil || s.kw["const"] != nil {
		return nil
	}
	for _, t := range []struct {
		name string
		by   []string
	}{
		{"object", []string{"properties", "required", "additionalProperties"}},
		{"array", []string{"items", "prefixItems", "minItems", "maxItems"}},
		{"string", []string{"minLength", "maxLength", "pattern", "format"}},
		{"number", []string{"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}},
	} {
		if slices.ContainsFunc(t.by, func(k string) bool { return s.kw[k] != nil }) {
			out = append(out, t.name)
		}
	}
	return out
}

// values is what enum and const list.
func (s schema) values() ([]*value, error) {
	enum, one := s.kw["enum"], s.kw["const"]
	if enum != nil && enum.kind != 'a' {
		return nil, errAt(enum.path, "enum must be a list")
	}
	switch {
	case one == nil:
		return enum.items, nil
	case enum == nil || slices.ContainsFunc(enum.items, func(v *value) bool { return same(v, one) }):
		return []*value{one}, nil
	}
	return nil, nil
}

// disjoint tells whether it is plain that no value satisfies both: by type, by listed values, or by a property that
// both require and that lists other values.
func (c *schemaCompiler) disjoint(a, b schema) bool {
	apartLists := func(x, y []*value) bool {
		for _, v := range x {
			for _, w := range y {
				if c.work.spend(8*(1+min(v.size, w.size))) != nil || same(v, w) {
					return false
				}
			}
		}
		return true
	}
	if a.never || b.never {
		return true
	}
	x, _ := a.values2()
	y, _ := b.values2()
	if x != nil && y != nil {
		return apartLists(x, y)
	}
	if c.work.spend(8*(len(x)+len(y))) != nil {
		return false
	}
	if apart(a.kinds(x), b.kinds(y)) {
		return true
	}
	p, q := a.kw["properties"], b.kw["properties"]
	if p == nil || q == nil || c.work.spend(len(p.members)*(1+(len(q.members)+a.names()+b.names())/4)) != nil {
		return false
	}
	for _, m := range p.members {
		other := q.get(m.key)
		if other == nil || !a.requires(m.key) || !b.requires(m.key) {
			continue
		}
		x, y := listOf(m.v), listOf(other)
		if x != nil && y != nil && apartLists(x, y) {
			return true
		}
	}
	return false
}

// values2 is values, or nil where nothing is listed.
func (s schema) values2() ([]*value, error) {
	if s.kw["enum"] == nil && s.kw["const"] == nil {
		return nil, nil
	}
	return s.values()
}

// listOf is what a schema, as it is written, lists.
func listOf(v *value) []*value {
	if one := v.get("const"); one != nil {
		return []*value{one}
	}
	if enum := v.get("enum"); enum != nil && enum.kind == 'a' {
		return enum.items
	}
	return nil
}

// kinds is the types of the values listed, or else of the schema; nil: any.
func (s schema) kinds(listed []*value) (out []string) {
	for _, v := range listed {
		out = append(out, v.types()...)
	}
	if listed == nil && s.kw["type"] != nil {
		out, _ = s.types()
	}
	return out
}

// apart tells whether two lists of types have none in common; nil is any.
func apart(a, b []string) bool {
	if a == nil || b == nil {
		return false
	}
	return !slices.ContainsFunc(a, func(t string) bool {
		return slices.Contains(b, t) || t == "integer" && slices.Contains(b, "number") || t == "number" && slices.Contains(b, "integer")
	})
}

// names is how many are required.
func (s schema) names() int {
	if r := s.kw["required"]; r != nil {
		return len(r.items)
	}
	return 0
}

func (s schema) requires(key string) bool {
	r := s.kw["required"]
	return r != nil && slices.ContainsFunc(r.items, func(v *value) bool { return v.kind == 's' && v.text == key })
}
