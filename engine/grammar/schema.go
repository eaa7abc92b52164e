package grammar

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// compileSchema makes a grammar of the JSON texts that satisfy a schema, or of a part of them:
//
//   - Members come in the order of properties. Without additionalProperties an object that names properties has no
//     others.
//   - Where a keyword speaks of one type only and no type is said, that type is meant.
//   - Between tokens of JSON is nothing, a blank, or a line's end with up to 20 blanks, so that none goes on for ever.
//
// A keyword that would change which texts satisfy the schema, and that is not supported, is an *Error with its path.
func compileSchema(text string, w *work) (*Grammar, error) {
	v, err := parseValue(text)
	if err != nil {
		return nil, err
	}
	c := newSchemaCompiler(v, w)
	root, err := c.rule(v)
	if err != nil {
		return nil, err
	}
	c.src.rules[0] = call(root)
	if err := c.run(); err != nil {
		return nil, err
	}
	return compile(&c.src, w)
}

// compileAnyObject makes a grammar of all JSON objects.
func compileAnyObject(w *work) (*Grammar, error) {
	c := newSchemaCompiler(&value{kind: 'b', yes: true}, w)
	c.src.rules[0] = c.anyObject()
	if err := c.run(); err != nil {
		return nil, err
	}
	return compile(&c.src, w)
}

// schemaCompiler makes a rule of each schema that is referred to, one after the other.
type schemaCompiler struct {
	src    source
	root   *value
	rules  map[*value]int
	todo   []task
	text   int // rules of strings, of any value, and of what is between tokens
	any    int
	space  int
	escape int
	nodes  int // of the rules so far
	work   *work
}

type task struct {
	rule int
	v    *value
}

func newSchemaCompiler(root *value, w *work) *schemaCompiler {
	c := &schemaCompiler{root: root, rules: map[*value]int{}, work: w}
	for _, name := range []string{"", "string", "value", "blanks", "escape"} {
		_, _ = c.src.add(name, nil) // there is room for these
	}
	c.text, c.any, c.space, c.escape = 1, 2, 3, 4
	c.src.rules[c.text] = seq(lit(`"`), rep(c.char(), 0, forever), lit(`"`))
	c.src.rules[c.any] = alt(call(c.text), number(false), lit("true"), lit("false"), lit("null"), c.anyObject(), c.anyArray())
	blanks := rep(chars('\t', '\t', ' ', ' '), 0, 20)
	c.src.rules[c.space] = alt(seq(), lit(" "), seq(lit("\n"), blanks))
	hex := chars('0', '9', 'A', 'F', 'a', 'f')
	// \u of what is no half of a pair, or of both halves.
	c.src.rules[c.escape] = seq(lit(`\`), alt(
		chars('"', '"', '/', '/', '\\', '\\', 'b', 'b', 'f', 'f', 'n', 'n', 'r', 'r', 't', 't'),
		seq(lit("u"), alt(
			seq(chars('0', '9', 'A', 'C', 'E', 'F', 'a', 'c', 'e', 'f'), hex, hex, hex),
			seq(chars('D', 'D', 'd', 'd'), chars('0', '7'), hex, hex),
			seq(chars('D', 'D', 'd', 'd'), chars('8', '9', 'A', 'B', 'a', 'b'), hex, hex,
				lit(`\u`), chars('D', 'D', 'd', 'd'), chars('C', 'F', 'c', 'f'), hex, hex)))))
	return c
}

// plain is the characters that a JSON string may have as they are.
func plain() []rune { return negate([]rune{0, 0x1F, '"', '"', '\\', '\\'}) }

// char is one character of a string, as it is or escaped.
func (c *schemaCompiler) char() *expr { return alt(chars(plain()...), call(c.escape)) }

// ws is what may be between two tokens of JSON.
func (c *schemaCompiler) ws() *expr { return call(c.space) }

func (c *schemaCompiler) comma() *expr { return seq(c.ws(), lit(","), c.ws()) }

func (c *schemaCompiler) anyObject() *expr {
	return c.braces([]part{{c.member(call(c.text), call(c.any)), true, true}})
}

func (c *schemaCompiler) anyArray() *expr {
	return c.brackets(chain(c.comma(), []part{{call(c.any), true, true}}))
}

func (c *schemaCompiler) member(key, v *expr) *expr { return seq(key, c.ws(), lit(":"), c.ws(), v) }

func (c *schemaCompiler) braces(members []part) *expr {
	return seq(lit("{"), c.ws(), chain(c.comma(), members), c.ws(), lit("}"))
}

func (c *schemaCompiler) brackets(items *expr) *expr {
	return seq(lit("["), c.ws(), items, c.ws(), lit("]"))
}

// rule is the number of a schema's rule.
func (c *schemaCompiler) rule(v *value) (int, error) {
	if id, ok := c.rules[v]; ok {
		return id, nil
	}
	id, err := c.src.add(v.path, nil)
	if err != nil {
		return 0, err
	}
	c.rules[v] = id
	c.todo = append(c.todo, task{id, v})
	return id, nil
}

func (c *schemaCompiler) call(v *value) (*expr, error) {
	id, err := c.rule(v)
	return call(id), err
}

// run makes the expressions of the rules that were asked for, and of those that they ask for.
func (c *schemaCompiler) run() error {
	for len(c.todo) > 0 {
		t := c.todo[0]
		c.todo = c.todo[1:]
		e, err := c.expr(t.v)
		if err != nil {
			return err
		}
		c.src.rules[t.rule] = e
	}
	return nil
}

func (c *schemaCompiler) expr(v *value) (*expr, error) {
	s, err := c.flatten(v, 0)
	if err != nil {
		return nil, err
	}
	return c.flat(s, 0)
}

// flat makes an expression of a schema whose references are resolved.
func (c *schemaCompiler) flat(s schema, depth int) (*expr, error) {
	if s.never {
		return none(), nil
	}
	for _, key := range []string{"anyOf", "oneOf"} {
		if v := s.kw[key]; v != nil {
			return c.branches(s, key, v, depth)
		}
	}
	if err := c.work.spend(s.lists()); err != nil {
		return nil, err
	}
	if s.kw["enum"] != nil || s.kw["const"] != nil {
		return c.made(c.listed(s))
	}
	types, err := s.types()
	if err != nil {
		return nil, err
	}
	if types == nil {
		if len(s.kw) == 0 {
			return call(c.any), nil
		}
		return nil, errAt(s.path, "it needs a type")
	}
	e := none()
	for _, t := range types {
		sub, err := c.made(c.typed(s, t))
		if err != nil {
			return nil, err
		}
		e.subs = append(e.subs, sub)
	}
	return e, nil
}

// made counts an expression that was made. Each reference to a part of a schema makes its expressions again, so that they
// may be many times the source.
func (c *schemaCompiler) made(e *expr, err error) (*expr, error) {
	if err != nil {
		return nil, err
	}
	n := e.nodes()
	if err := c.work.spend(n); err != nil {
		return nil, err
	}
	if c.nodes += n; c.nodes > maxNodes {
		return nil, errLarge
	}
	return e, nil
}

func (c *schemaCompiler) typed(s schema, t string) (*expr, error) {
	switch t {
	case "null":
		return lit("null"), nil
	case "boolean":
		return alt(lit("true"), lit("false")), nil
	case "string":
		return c.str(s)
	case "array":
		return c.array(s)
	case "object":
		return c.object(s)
	}
	return c.numeric(s, t == "integer")
}

// branches joins what a schema says with each branch of anyOf or oneOf. Of oneOf no two may hold at once, which must be
// plain to see.
func (c *schemaCompiler) branches(s schema, key string, v *value, depth int) (*expr, error) {
	if depth > maxDepth {
		return nil, errAt(v.path, "it refers to itself")
	}
	if v.kind != 'a' || len(v.items) == 0 {
		return nil, errAt(v.path, "it must be a list of schemas")
	}
	rest := s.without(key)
	if err := c.work.spend(len(v.items) * (len(v.items) + len(rest.kw))); err != nil {
		return nil, err
	}
	e := none()
	var seen []schema
	for _, item := range v.items {
		b, err := c.flatten(item, 0)
		if err != nil {
			return nil, err
		}
		if key == "oneOf" {
			for i, other := range seen {
				apart := c.disjoint(b, other)
				if err := c.work.spend(0); err != nil {
					return nil, err
				}
				if !apart {
					return nil, errAt(v.path, "branches %d and %d may both hold, which is not supported in oneOf; use anyOf, or give them different types, or a required property with different constants", i, len(seen))
				}
			}
			seen = append(seen, b)
		}
		if len(rest.kw) == 0 && !rest.never {
			sub, err := c.call(item)
			if err != nil {
				return nil, err
			}
			e.subs = append(e.subs, sub)
			continue
		}
		if b, err = c.merge(rest, b); err != nil {
			return nil, err
		}
		sub, err := c.flat(b, depth+1)
		if err != nil {
			return nil, err
		}
		e.subs = append(e.subs, sub)
	}
	return e, nil
}

// listed is the values of enum or const that are of the schema's types.
func (c *schemaCompiler) listed(s schema) (*expr, error) {
	values, err := s.values()
	if err != nil {
		return nil, err
	}
	for key, v := range s.kw {
		if key != "enum" && key != "const" && key != "type" {
			return nil, errAt(v.path, "%s is not supported beside enum or const", key)
		}
	}
	types, err := s.types()
	if err != nil {
		return nil, err
	}
	e := none()
	for _, v := range values {
		of := func(t string) bool { return slices.Contains(v.types(), t) }
		if types == nil || slices.ContainsFunc(types, of) {
			e.subs = append(e.subs, c.constant(v))
		}
	}
	return e, nil
}

// constant is one value: strings and numbers as the schema writes them, members in its order.
func (c *schemaCompiler) constant(v *value) *expr {
	var parts []part
	switch v.kind {
	case 'a':
		for _, item := range v.items {
			parts = append(parts, part{e: c.constant(item)})
		}
		return c.brackets(chain(c.comma(), parts))
	case 'o':
		for _, m := range v.members {
			parts = append(parts, part{e: c.member(lit(quoted(m.key)), c.constant(m.v))})
		}
		return c.braces(parts)
	}
	return lit(v.json())
}

// resolve finds what a reference within the schema points to.
func (c *schemaCompiler) resolve(ref *value) (*value, error) {
	fragment, ok := strings.CutPrefix(ref.text, "#")
	fragment, err := url.PathUnescape(fragment)
	if ref.kind != 's' || !ok || err != nil || fragment != "" && fragment[0] != '/' {
		return nil, errAt(ref.path, "only references within the schema are supported: # or #/...")
	}
	at := c.root
	if fragment == "" {
		return at, nil
	}
	for _, key := range strings.Split(fragment[1:], "/") {
		if err := c.work.spend(10 + len(at.members)/4); err != nil { // parts may be referred to by many others
			return nil, err
		}
		key = strings.ReplaceAll(strings.ReplaceAll(key, "~1", "/"), "~0", "~")
		next := at.get(key)
		if i, err := strconv.Atoi(key); err == nil && at.kind == 'a' && i >= 0 && i < len(at.items) {
			next = at.items[i]
		}
		if at = next; at == nil {
			return nil, errAt(ref.path, "nothing is at %s", ref.text)
		}
	}
	return at, nil
}
