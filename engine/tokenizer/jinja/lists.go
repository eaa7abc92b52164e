package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// getter returns the function that finds an attribute by its path, "a.b.0". A nil attribute is the value itself.
func getter(attribute any) (func(st *state, v any) (any, error), error) {
	var parts []any
	switch a := plain(attribute).(type) {
	case absent, nil:
	case int:
		parts = []any{a}
	case string:
		for _, part := range strings.Split(a, ".") {
			if allOf(part, func(r rune) bool { return r >= '0' && r <= '9' }) && len(part) < 10 {
				n := 0
				for _, c := range part {
					n = 10*n + int(c-'0')
				}
				parts = append(parts, n)
			} else {
				parts = append(parts, part)
			}
		}
	default:
		return nil, fmt.Errorf("an attribute must be a string or an integer, not %s", typeName(a))
	}
	return func(st *state, v any) (any, error) {
		for _, part := range parts {
			var err error
			if v, err = getItem(st, v, part); err != nil {
				return nil, err
			}
		}
		return v, nil
	}, nil
}

func filterList(st *state, v any, a *args) (any, error) {
	a.none()
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	return newList(items), st.spendItems(len(items))
}

func filterItems(st *state, v any, a *args) (any, error) {
	a.none()
	switch v := v.(type) {
	case *undefined:
		return &generator{}, nil
	case *dict:
		return &generator{v.items()}, st.spendItems(3 * len(v.keys))
	}
	return nil, fmt.Errorf("expected a dict, got %s", typeName(v))
}

func filterFirst(st *state, v any, a *args) (any, error) {
	a.none()
	if g, ok := v.(*generator); ok && len(g.items) > 0 {
		first := g.items[0]
		g.items = g.items[1:]
		return first, nil
	}
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return &undefined{"an empty list has no first item"}, nil
	}
	return items[0], nil
}

func filterLast(st *state, v any, a *args) (any, error) {
	a.none()
	if _, ok := v.(*generator); ok {
		return nil, errors.New("an iterator has no last item")
	}
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return &undefined{"an empty list has no last item"}, nil
	}
	return items[len(items)-1], nil
}

func filterReverse(st *state, v any, a *args) (any, error) {
	a.none()
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	if err := st.spendItems(len(items)); err != nil {
		return nil, err
	}
	items = slices.Clone(items)
	slices.Reverse(items)
	switch v.(type) {
	case string, markup:
		made, err := joinStrings(st, items, "")
		return marked(v, made), err
	case *generator:
		return newList(items), nil
	}
	return &generator{items}, nil
}

func filterJoin(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "d", "attribute")
	if in[0] == (absent{}) {
		in[0] = ""
	}
	sep, err := toString(st, in[0])
	if err != nil {
		return nil, err
	}
	get, err := getter(in[1])
	if err != nil {
		return nil, err
	}
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	texts := make([]any, len(items))
	for i, it := range items {
		if it, err = get(st, it); err != nil {
			return nil, err
		}
		if texts[i], err = toString(st, it); err != nil {
			return nil, err
		}
	}
	return joinStrings(st, texts, sep)
}

func filterMap(st *state, v any, a *args) (any, error) {
	if !truth(v) {
		return &generator{}, nil
	}
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	if err := st.spendItems(len(items)); err != nil {
		return nil, err
	}
	apply, err := mapper(a)
	if err != nil {
		return nil, err
	}
	out := make([]any, len(items))
	for i, it := range items {
		if out[i], err = apply(st, it); err != nil {
			return nil, err
		}
	}
	return &generator{out}, nil
}

// mapper is what map does with each item: look up an attribute, or apply a filter.
func mapper(a *args) (func(st *state, v any) (any, error), error) {
	if len(a.pos) == 0 {
		in := a.bind(1, "attribute", "default")
		get, err := getter(in[0])
		if err != nil || a.err != nil {
			return nil, errors.Join(a.err, err)
		}
		return func(st *state, v any) (any, error) {
			v, err := get(st, v)
			if _, missing := v.(*undefined); err == nil && missing && in[1] != (absent{}) && in[1] != nil {
				return in[1], nil
			}
			return v, err
		}, nil
	}
	name, ok := plain(a.pos[0]).(string)
	if !ok || filters[name] == nil {
		return nil, fmt.Errorf("%w: this filter", ErrUnsupported)
	}
	return func(st *state, v any) (any, error) { return filters[name].apply(st, name, v, a.rest(1)) }, nil
}

// filterSelect keeps the items for which a test, or the truth, is want. With attr the test is of an attribute.
func filterSelect(want, attr bool) filterFunc {
	return func(st *state, v any, a *args) (any, error) {
		if !truth(v) {
			return &generator{}, nil
		}
		get, _ := getter(nil)
		if attr {
			if len(a.pos) == 0 {
				return nil, errors.New("the attribute is missing")
			}
			var err error
			if get, err = getter(a.pos[0]); err != nil {
				return nil, err
			}
			a = a.rest(1)
		}
		check, err := tester(a)
		if err != nil {
			return nil, err
		}
		items, err := iterate(st, v)
		if err != nil {
			return nil, err
		}
		var kept []any
		for _, it := range items {
			of, err := get(st, it)
			if err != nil {
				return nil, err
			}
			ok, err := check(st, of)
			if err != nil {
				return nil, err
			}
			if ok == want {
				kept = append(kept, it)
			}
		}
		return &generator{kept}, st.spendItems(len(kept))
	}
}

func tester(a *args) (func(st *state, v any) (bool, error), error) {
	if len(a.pos) == 0 {
		return func(st *state, v any) (bool, error) { return truth(v), st.step() }, nil
	}
	name, ok := plain(a.pos[0]).(string)
	if !ok || tests[name] == nil {
		return nil, fmt.Errorf("%w: this test", ErrUnsupported)
	}
	return func(st *state, v any) (bool, error) { return tests[name].apply(st, name, v, a.rest(1)) }, nil
}

func filterUnique(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "case_sensitive", "attribute")
	keys, items, err := sortKeys(st, v, in[1], a.flag(in[0]))
	if err != nil {
		return nil, err
	}
	seen := newDict(0)
	var kept []any
	for i, k := range keys {
		if _, ok := k.(*undefined); ok {
			return nil, fmt.Errorf("%w: undefined values", ErrUnsupported)
		}
		n := len(seen.keys)
		if err := seen.set(k, nil); err != nil {
			return nil, err
		}
		if len(seen.keys) > n {
			kept = append(kept, items[i])
		}
	}
	return &generator{kept}, st.spendItems(5 * len(kept))
}

func filterBatch(st *state, v any, a *args) (any, error) {
	in := a.bind(1, "linecount", "fill_with")
	n := a.integer(in[0], 0)
	items, err := iterate(st, v)
	if err != nil || a.err != nil {
		return nil, err
	}
	if n < 1 || n > maxRange {
		return nil, fmt.Errorf("%w: batches of %d", ErrUnsupported, n)
	}
	var out []any
	for batch := range slices.Chunk(items, n) {
		batch = slices.Clone(batch)
		for len(batch) < n && in[1] != (absent{}) && in[1] != nil {
			batch = append(batch, in[1])
		}
		if err := st.spendItems(len(batch) + 2); err != nil {
			return nil, err
		}
		out = append(out, newList(batch))
	}
	return &generator{out}, nil
}

func filterSlice(st *state, v any, a *args) (any, error) {
	in := a.bind(1, "slices", "fill_with")
	n := a.integer(in[0], 0)
	items, err := iterate(st, v)
	if err != nil || a.err != nil {
		return nil, err
	}
	if n < 1 || n > maxRange {
		return nil, fmt.Errorf("%w: %d slices", ErrUnsupported, n)
	}
	if err := st.spendItems(len(items) + 4*n); err != nil {
		return nil, err
	}
	size, extra := len(items)/n, len(items)%n
	var out []any
	for i := range n {
		end := size
		if i < extra {
			end++
		}
		part := slices.Clone(items[:end])
		items = items[end:]
		if i >= extra && in[1] != (absent{}) && in[1] != nil {
			part = append(part, in[1])
		}
		out = append(out, newList(part))
	}
	return &generator{out}, nil
}
