package jinja

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// number returns a bool, int or float as a float.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// integer returns a bool or int as an int.
func integer(v any) (int, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int:
		return v, true
	}
	return 0, false
}

// equal is Python's ==.
func equal(st *state, a, b any) (bool, error) {
	if err := st.enter(); err != nil {
		return false, err
	}
	defer st.leave()
	a, b = plain(a), plain(b)
	if i, ok := integer(a); ok {
		if j, ok := integer(b); ok {
			return i == j, nil
		}
	}
	if x, ok := number(a); ok {
		y, ok := number(b)
		return ok && x == y, nil
	}
	switch a := a.(type) {
	case nil:
		return b == nil, nil
	case string:
		s, ok := b.(string)
		if ok {
			if err := st.spend(min(len(a), len(s)) / 16); err != nil {
				return false, err
			}
		}
		return ok && a == s, nil
	case *undefined:
		_, ok := b.(*undefined)
		return ok, nil
	case *seq:
		o, ok := b.(*seq)
		if !ok || a.kind != o.kind || len(a.items) != len(o.items) {
			return false, nil
		}
		order, err := compareItems(st, a.items, o.items, func(any, any) (int, error) { return 1, nil })
		return order == 0, err
	case *dict:
		if o, ok := b.(*dict); ok {
			return equalDicts(st, a, o)
		}
		return false, nil
	case *view:
		if a == b {
			return true, nil
		}
		if _, ok := b.(*view); ok {
			return false, fmt.Errorf("%w: comparing views of dicts", ErrUnsupported)
		}
		return false, nil
	case *function:
		o, ok := b.(*function)
		if ok && a != o && a.name == o.name {
			return false, fmt.Errorf("%w: comparing methods", ErrUnsupported)
		}
		return a == o, nil
	}
	return a == b, nil // pointers
}

// less is Python's <.
func less(st *state, a, b any) (bool, error) {
	order, err := compareValues(st, a, b)
	return order < 0, err
}

// compareValues orders two values, or fails where Python's < does. NaN comes out as neither less nor equal.
func compareValues(st *state, a, b any) (int, error) {
	if err := st.enter(); err != nil {
		return 0, err
	}
	defer st.leave()
	a, b = plain(a), plain(b)
	if i, ok := integer(a); ok {
		if j, ok := integer(b); ok {
			return cmp.Compare(i, j), nil
		}
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			switch {
			case x < y:
				return -1, nil
			case x == y:
				return 0, nil
			}
			return 1, nil
		}
	}
	if s, ok := a.(string); ok {
		if t, ok := b.(string); ok {
			return strings.Compare(s, t), st.spend(min(len(s), len(t)) / 16)
		}
	}
	if s, ok := a.(*seq); ok {
		if t, ok := b.(*seq); ok && s.kind == t.kind && s.kind != rangeKind {
			return compareItems(st, s.items, t.items, func(a, b any) (int, error) { return compareValues(st, a, b) })
		}
	}
	if err := defined(a); err != nil {
		return 0, err
	}
	if err := defined(b); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("cannot compare %s with %s", typeName(a), typeName(b))
}

// compareItems orders two lists by the first items that differ.
func compareItems(st *state, a, b []any, differ func(a, b any) (int, error)) (int, error) {
	for i := range min(len(a), len(b)) {
		same, err := equal(st, a[i], b[i])
		if err != nil {
			return 0, err
		}
		if !same {
			return differ(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b)), nil
}

func equalDicts(st *state, a, b *dict) (bool, error) {
	if len(a.keys) != len(b.keys) {
		return false, nil
	}
	for i, k := range a.keys {
		v, ok := b.get(k)
		if !ok {
			return false, nil
		}
		if same, err := equal(st, a.values[i], v); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// contains is Python's "v in of".
func contains(st *state, of, v any) (bool, error) {
	v = plain(v)
	switch of := plain(of).(type) {
	case string:
		if err := defined(v); err != nil {
			return false, errors.New("cannot look for an undefined value in a string")
		}
		s, ok := v.(string)
		if !ok {
			return false, fmt.Errorf("cannot look for %s in a string", typeName(v))
		}
		return strings.Contains(of, s), st.spend(len(of) / 16)
	case *dict:
		if _, err := dictKey(v); err != nil {
			if _, ok := v.(*undefined); ok {
				return false, nil
			}
			return false, err
		}
		_, ok := of.get(v)
		return ok, nil
	case *generator:
		for len(of.items) > 0 {
			it := of.items[0]
			of.items = of.items[1:]
			if same, err := equal(st, it, v); err != nil || same {
				return same, err
			}
		}
		return false, nil
	}
	items, err := iterate(st, of)
	if err != nil {
		return false, err
	}
	for _, it := range items {
		if same, err := equal(st, it, v); err != nil || same {
			return same, err
		}
	}
	return false, nil
}
