package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

// value is a JSON value; objects keep the order of their members.
type value struct {
	kind    byte // one of n, b, 0, s, a, o
	yes     bool
	text    string // of a string, or as a number is written
	items   []*value
	members []member
	size    int    // of values within, about: what it takes to compare it
	path    string // JSON path, for messages
}

type member struct {
	key string
	v   *value
}

func (v *value) get(key string) *value {
	for _, m := range v.members {
		if m.key == key {
			return m.v
		}
	}
	return nil
}

// parseValue reads one JSON value. Equal keys of one object are an error.
func parseValue(text string) (*value, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	v, err := readValue(d, "$", 0)
	if err != nil {
		var mine *Error
		if errors.As(err, &mine) {
			return nil, mine
		}
		return nil, errAt("", "it is no JSON: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errAt("", "it is no JSON: something follows its end")
	}
	return v, nil
}

func readValue(d *json.Decoder, path string, depth int) (*value, error) {
	if depth > 4*maxDepth {
		return nil, errAt(path, "it is nested more than %d deep", 4*maxDepth)
	}
	t, err := d.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	v := &value{path: path}
	switch t := t.(type) {
	case nil:
		v.kind = 'n'
	case bool:
		v.kind, v.yes = 'b', t
	case json.Number:
		v.kind, v.text = '0', t.String()
	case string:
		v.kind, v.text = 's', t
	case json.Delim:
		v.kind = 'a'
		if t == '{' {
			v.kind = 'o'
		}
		err = v.readInner(d, depth)
	}
	return v, err
}

func (v *value) readInner(d *json.Decoder, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		if v.kind == 'a' {
			item, err := readValue(d, below(v.path, "["+strconv.Itoa(len(v.items))+"]"), depth+1)
			if err != nil {
				return err
			}
			v.items, v.size = append(v.items, item), v.size+1+item.size
			continue
		}
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		if seen[key] {
			return errAt(v.path, "the key %q is there twice", key)
		}
		seen[key] = true
		item, err := readValue(d, PathTo(v.path, key), depth+1)
		if err != nil {
			return err
		}
		v.members, v.size = append(v.members, member{key, item}), v.size+1+item.size
	}
	_, err := d.Token()
	return err
}

// PathTo is the JSON path of a member.
func PathTo(path, key string) string {
	plain := func(r rune) bool {
		return r == '_' || r == '$' || r >= '0' && r <= '9' || r|0x20 >= 'a' && r|0x20 <= 'z'
	}
	if key != "" && strings.IndexFunc(key, func(r rune) bool { return !plain(r) }) < 0 {
		return below(path, "."+key)
	}
	return below(path, "["+strconv.Quote(key)+"]")
}

// maxPath bounds a path: each value has one, so that long ones would take many times the source's memory.
const maxPath = 256

// below is a path and a part more; what is too long ends in dots.
func below(path, part string) string {
	switch {
	case strings.HasSuffix(path, "..."):
		return path
	case len(path)+len(part) > maxPath:
		return path + "..."
	}
	return path + part
}

// quoted is a string as JSON, escaped no more than it must be.
func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // strings have an encoding
	return strings.TrimSuffix(b.String(), "\n")
}

// json is the value without blanks.
func (v *value) json() string {
	var b strings.Builder
	v.write(&b)
	return b.String()
}

func (v *value) write(b *strings.Builder) {
	switch v.kind {
	case 'n':
		b.WriteString("null")
	case 'b':
		b.WriteString(strconv.FormatBool(v.yes))
	case '0':
		b.WriteString(v.text)
	case 's':
		b.WriteString(quoted(v.text))
	case 'a':
		b.WriteByte('[')
		for i, item := range v.items {
			if i > 0 {
				b.WriteByte(',')
			}
			item.write(b)
		}
		b.WriteByte(']')
	case 'o':
		b.WriteByte('{')
		for i, m := range v.members {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(quoted(m.key))
			b.WriteByte(':')
			m.v.write(b)
		}
		b.WriteByte('}')
	}
}

// types are the JSON types that a value is of.
func (v *value) types() []string {
	switch v.kind {
	case 'n':
		return []string{"null"}
	case 'b':
		return []string{"boolean"}
	case '0':
		if d, ok := parseDecimal(v.text); ok && d.whole() {
			return []string{"integer", "number"}
		}
		return []string{"number"}
	case 's':
		return []string{"string"}
	case 'a':
		return []string{"array"}
	}
	return []string{"object"}
}

// same tells whether two values are equal as JSON Schema has it, but for the ways to write a number that parseDecimal
// does not read.
func same(a, b *value) bool {
	if a.kind != b.kind || a.yes != b.yes || len(a.items) != len(b.items) || len(a.members) != len(b.members) {
		return false
	}
	if a.kind == '0' {
		x, okX := parseDecimal(a.text)
		y, okY := parseDecimal(b.text)
		return okX && okY && compareDecimals(x, y) == 0 || a.text == b.text
	}
	for i := range a.items {
		if !same(a.items[i], b.items[i]) {
			return false
		}
	}
	return a.text == b.text && !slices.ContainsFunc(a.members, func(m member) bool {
		other := b.get(m.key)
		return other == nil || !same(m.v, other)
	})
}
