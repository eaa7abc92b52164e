package jinja

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
)

// The values of a template, besides nil, bool, int, float64 and string.
type (
	// undefined is what a missing variable, key or attribute gives. It prints as nothing; most other uses fail.
	undefined struct{ hint string }
	// seq is a list, a tuple or a range.
	seq struct {
		items []any
		kind  seqKind
	}
	dict struct {
		keys, values []any
		index        map[any]int // by dictKey
	}
	// view is what a dict's items, keys or values method gives.
	view struct {
		name  string
		items []any
	}
	// generator gives its items once.
	generator struct{ items []any }
	namespace struct{ attrs *dict }
	// function is a global function or a method bound to its object.
	function struct {
		name string
		call func(st *state, a *args) (any, error)
	}
	macro struct {
		stmt *macroStmt
		home *scope
	}
	// loop is the variable of that name.
	loop struct {
		items   []any
		index   int // from 0
		depth   int // from 0
		changed *seq
		recurse func(items any, depth int) (any, error) // nil: not recursive
	}
)

type seqKind uint8

const (
	listKind seqKind = iota
	tupleKind
	rangeKind
)

func newList(items []any) *seq   { return &seq{items: items} }
func newTuple(items ...any) *seq { return &seq{items: items, kind: tupleKind} }

func newDict(n int) *dict { return &dict{index: make(map[any]int, n)} }

// dictKey maps keys that Python holds to be equal to one Go value.
func dictKey(v any) (any, error) {
	switch v := plain(v).(type) {
	case nil, string, int:
		return v, nil
	case bool:
		if v {
			return 1, nil
		}
		return 0, nil
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int(v), nil
		}
		return v, nil
	case *dict, *view:
		return nil, fmt.Errorf("cannot use %s as a key", typeName(v))
	}
	return nil, fmt.Errorf("%w: %s as a key", ErrUnsupported, typeName(v))
}

func (d *dict) set(key, value any) error {
	k, err := dictKey(key)
	if err != nil {
		return err
	}
	if i, ok := d.index[k]; ok {
		d.values[i] = value
		return nil
	}
	d.index[k] = len(d.keys)
	d.keys, d.values = append(d.keys, key), append(d.values, value)
	return nil
}

func (d *dict) get(key any) (any, bool) {
	k, err := dictKey(key)
	if err != nil {
		return nil, false
	}
	i, ok := d.index[k]
	if !ok {
		return nil, false
	}
	return d.values[i], true
}

func (d *dict) items() []any {
	items := make([]any, len(d.keys))
	for i, k := range d.keys {
		items[i] = newTuple(k, d.values[i])
	}
	return items
}

// convert makes a template's value of a caller's. size counts its bytes and items.
func convert(v any, size *int, depth int) (any, error) {
	if depth > maxConvert {
		return nil, fmt.Errorf("nested more than %d deep", maxConvert)
	}
	*size += itemBytes
	switch v := v.(type) {
	case nil, bool, int:
		return v, nil
	case string:
		*size += len(v)
		return strings.ToValidUTF8(v, "\uFFFD"), nil
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return int(n), nil
		}
		if strings.Trim(v.String(), "-0123456789") == "" {
			return nil, fmt.Errorf("the integer %s is too large", v)
		}
		return v.Float64()
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int(v), nil
		}
		return v, nil
	case json.RawMessage:
		ordered, err := decodeOrdered(v, depth)
		if err != nil {
			return nil, err
		}
		return convert(ordered, size, depth)
	case Dict:
		return convertDict(v, size, depth)
	case []Dict:
		return convertList(v, size, depth)
	case []any:
		return convertList(v, size, depth)
	case map[string]any:
		d := make(Dict, 0, len(v))
		for key, value := range v {
			d = append(d, Item{key, value})
		}
		slices.SortFunc(d, func(a, b Item) int { return strings.Compare(a.Key, b.Key) })
		return convertDict(d, size, depth)
	}
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return int(r.Int()), nil
	case r.CanUint() && r.Uint() <= math.MaxInt64:
		return int(r.Uint()), nil
	case r.CanFloat():
		return convert(r.Float(), size, depth)
	}
	return nil, fmt.Errorf("cannot use a value of type %T", v)
}

// maxConvert bounds how deep a caller's value may be nested.
const maxConvert = 1000

func convertDict(from Dict, size *int, depth int) (any, error) {
	d := newDict(len(from))
	for _, it := range from {
		*size += len(it.Key)
		v, err := convert(it.Value, size, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", it.Key, err)
		}
		if err := d.set(strings.ToValidUTF8(it.Key, "\uFFFD"), v); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func convertList[T any](from []T, size *int, depth int) (any, error) {
	items := make([]any, len(from))
	for i, it := range from {
		v, err := convert(it, size, depth+1)
		if err != nil {
			return nil, err
		}
		items[i] = v
	}
	return newList(items), nil
}

// truth is Python's bool.
func truth(v any) bool {
	switch v := v.(type) {
	case nil, *undefined:
		return false
	case bool:
		return v
	case int:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case markup:
		return v != ""
	case *seq:
		return len(v.items) > 0
	case *dict:
		return len(v.keys) > 0
	case *view:
		return len(v.items) > 0
	case *loop:
		return len(v.items) > 0
	}
	return true
}

// typeName is what errors call a value.
func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case *undefined:
		return "an undefined value"
	case bool:
		return "a bool"
	case int:
		return "an int"
	case float64:
		return "a float"
	case string, markup:
		return "a string"
	case *seq:
		return [...]string{"a list", "a tuple", "a range"}[v.kind]
	case *dict:
		return "a dict"
	case *namespace:
		return "a namespace"
	case *loop:
		return "loop"
	case *function, *macro:
		return "a function"
	}
	return "an iterator"
}

// defined fails for an undefined value, with the reason why it is none.
func defined(v any) error {
	if u, ok := v.(*undefined); ok {
		return errors.New(u.hint)
	}
	return nil
}

// iterate returns the items of a value. A generator has none left then.
func iterate(st *state, v any) ([]any, error) {
	switch v := plain(v).(type) {
	case *undefined:
		return nil, nil
	case string:
		runes := []rune(v)
		if err := st.spendItems(len(runes)); err != nil {
			return nil, err
		}
		items := make([]any, len(runes))
		for i, r := range runes {
			items[i] = string(r)
		}
		return items, nil
	case *seq:
		return v.items, nil
	case *dict:
		return v.keys, nil
	case *view:
		return v.items, nil
	case *generator:
		items := v.items
		v.items = nil
		return items, nil
	}
	return nil, fmt.Errorf("cannot iterate over %s", typeName(v))
}

// length is Python's len.
func length(v any) (int, error) {
	switch v := plain(v).(type) {
	case *undefined:
		return 0, nil
	case string:
		return runeCount(v), nil
	case *seq:
		return len(v.items), nil
	case *dict:
		return len(v.keys), nil
	case *view:
		return len(v.items), nil
	case *loop:
		return len(v.items), nil
	}
	return 0, fmt.Errorf("%s has no length", typeName(v))
}
