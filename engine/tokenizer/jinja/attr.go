package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Python's attributes that are not implemented, so that asking for one fails instead of giving an undefined value.
var (
	otherStr = strings.Fields(`encode expandtabs format_map isnumeric isprintable istitle maketrans swapcase
		translate`)
	otherDict = strings.Fields("fromkeys")
	otherNum  = strings.Fields(`as_integer_ratio bit_count bit_length conjugate denominator from_bytes fromhex hex imag
		is_integer numerator real to_bytes`)
	otherView  = strings.Fields("isdisjoint mapping")
	otherMacro = strings.Fields("name arguments catch_kwargs catch_varargs caller explicit_caller")
	otherGen   = strings.Fields("close gi_running gi_suspended gi_yieldfrom send throw")
	otherRange = strings.Fields("start stop step index count")

	mutateDict = strings.Fields("clear pop popitem setdefault update")
	mutateList = strings.Fields("append clear extend insert pop remove reverse sort")
)

// pythonAttr is Python's getattr, within the sandbox. ok is false where there is no such attribute.
func pythonAttr(of any, name string) (v any, ok bool, err error) {
	var unimplemented []string
	switch of := of.(type) {
	case string:
		if m, ok := strMethods[name]; ok {
			return bound(name, func(st *state, a *args) (any, error) { return m(st, of, a) }), true, nil
		}
		unimplemented = otherStr
	case markup:
		return markupAttr(of, name)
	case *dict:
		if m, ok := dictMethods[name]; ok {
			return bound(name, func(st *state, a *args) (any, error) { return m(st, of, a) }), true, nil
		}
		if slices.Contains(mutateDict, name) {
			return &undefined{fmt.Sprintf("the attribute %q of a dict changes it", name)}, true, nil
		}
		unimplemented = otherDict
	case *seq:
		return seqAttr(of, name)
	case bool, int, float64:
		unimplemented = otherNum
	case *view:
		unimplemented = otherView
	case *generator:
		unimplemented = otherGen
	case *macro:
		unimplemented = otherMacro
	case *namespace:
		v, ok := of.attrs.get(name)
		return v, ok, nil
	case *loop:
		v, ok := of.attr(name)
		return v, ok, nil
	}
	if slices.Contains(unimplemented, name) {
		return nil, false, fmt.Errorf("%w: the attribute %q of %s", ErrUnsupported, name, typeName(of))
	}
	return nil, false, nil
}

func bound(name string, call func(*state, *args) (any, error)) *function {
	return &function{name: name, call: func(st *state, a *args) (any, error) {
		v, err := call(st, a)
		if err == nil {
			err = a.err
		}
		return v, err
	}}
}

func seqAttr(of *seq, name string) (any, bool, error) {
	if of.kind == rangeKind {
		if slices.Contains(otherRange, name) {
			return nil, false, fmt.Errorf("%w: the attribute %q of a range", ErrUnsupported, name)
		}
		return nil, false, nil
	}
	switch {
	case name == "index":
		return bound(name, func(st *state, a *args) (any, error) { return seqIndex(st, of, a) }), true, nil
	case name == "count":
		return bound(name, func(st *state, a *args) (any, error) { return seqCount(st, of, a) }), true, nil
	case of.kind == listKind && name == "copy":
		return bound(name, func(_ *state, a *args) (any, error) { a.none(); return newList(of.items), nil }), true, nil
	case of.kind == listKind && slices.Contains(mutateList, name):
		return &undefined{fmt.Sprintf("the attribute %q of a list changes it", name)}, true, nil
	}
	return nil, false, nil
}

func seqIndex(st *state, of *seq, a *args) (any, error) {
	want := a.bind(1, "value")[0]
	for i, v := range of.items {
		if same, err := equal(st, v, want); err != nil || same {
			return i, err
		}
	}
	return nil, errors.New("the value is not in the list")
}

func seqCount(st *state, of *seq, a *args) (any, error) {
	want := a.bind(1, "value")[0]
	n := 0
	for _, v := range of.items {
		same, err := equal(st, v, want)
		if err != nil {
			return nil, err
		}
		if same {
			n++
		}
	}
	return n, nil
}

var dictMethods = map[string]func(st *state, d *dict, a *args) (any, error){
	"get": func(_ *state, d *dict, a *args) (any, error) {
		in := a.bind(1, "key", "default")
		if len(a.names) > 0 {
			return nil, errors.New("takes no named arguments")
		}
		if _, err := dictKey(in[0]); err != nil && a.err == nil {
			if _, ok := in[0].(*undefined); !ok {
				return nil, err
			}
		}
		if v, ok := d.get(in[0]); ok {
			return v, nil
		}
		if in[1] == (absent{}) {
			return nil, nil
		}
		return in[1], nil
	},
	"items": func(st *state, d *dict, a *args) (any, error) {
		a.none()
		return &view{"items", d.items()}, st.spendItems(3 * len(d.keys))
	},
	"keys": func(_ *state, d *dict, a *args) (any, error) {
		a.none()
		return &view{"keys", d.keys}, nil
	},
	"values": func(_ *state, d *dict, a *args) (any, error) {
		a.none()
		return &view{"values", d.values}, nil
	},
	"copy": func(_ *state, d *dict, a *args) (any, error) {
		a.none()
		return &dict{d.keys, d.values, d.index}, nil // no template can change it
	},
}

func (l *loop) attr(name string) (any, bool) {
	n := len(l.items)
	switch name {
	case "index":
		return l.index + 1, true
	case "index0":
		return l.index, true
	case "revindex":
		return n - l.index, true
	case "revindex0":
		return n - l.index - 1, true
	case "first":
		return l.index == 0, true
	case "last":
		return l.index == n-1, true
	case "length":
		return n, true
	case "depth":
		return l.depth + 1, true
	case "depth0":
		return l.depth, true
	case "previtem":
		if l.index == 0 {
			return &undefined{"there is no previous item"}, true
		}
		return l.items[l.index-1], true
	case "nextitem":
		if l.index >= n-1 {
			return &undefined{"there is no next item"}, true
		}
		return l.items[l.index+1], true
	case "cycle":
		return bound(name, l.cycle), true
	case "changed":
		return bound(name, l.change), true
	}
	return nil, false
}

func (l *loop) cycle(_ *state, a *args) (any, error) {
	if len(a.names) > 0 || len(a.pos) == 0 {
		return nil, errors.New("takes one argument or more, without names")
	}
	return a.pos[l.index%len(a.pos)], nil
}

func (l *loop) change(st *state, a *args) (any, error) {
	if len(a.names) > 0 {
		return nil, errors.New("takes no named arguments")
	}
	now := newTuple(a.pos...)
	if l.changed != nil {
		if same, err := equal(st, l.changed, now); err != nil || same {
			return false, err
		}
	}
	l.changed = now
	return true, nil
}

// call renders the body of a recursive loop over further items.
func (l *loop) call(_ *state, a *args) (any, error) {
	over := a.bind(1, "iterable")[0]
	if a.err != nil {
		return nil, a.err
	}
	if l.recurse == nil {
		return nil, errors.New("cannot call the variable of a loop that is not recursive")
	}
	return l.recurse(over, l.depth+1)
}
