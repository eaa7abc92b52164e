package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// sortKeys returns the keys by which items are compared, and the items.
func sortKeys(st *state, v, attribute any, caseSensitive bool) (keys, items []any, err error) {
	get, err := getter(attribute)
	if err != nil {
		return nil, nil, err
	}
	if items, err = iterate(st, v); err != nil {
		return nil, nil, err
	}
	if err := st.spendItems(2 * len(items)); err != nil {
		return nil, nil, err
	}
	keys = make([]any, len(items))
	for i, it := range items {
		if it, err = get(st, it); err != nil {
			return nil, nil, err
		}
		if keys[i], err = sortKey(st, it, caseSensitive); err != nil {
			return nil, nil, err
		}
	}
	return keys, items, nil
}

func sortKey(st *state, v any, caseSensitive bool) (any, error) {
	s, ok := plain(v).(string)
	if !ok || caseSensitive {
		return v, nil
	}
	return mapped(st, s, lower)
}

// sortBy sorts items by keys, and keeps the order of those that are alike.
func sortBy(st *state, keys, items []any, reverse bool) ([]any, error) {
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	var failed error
	slices.SortStableFunc(order, func(i, j int) int {
		if failed != nil {
			return 0
		}
		c, err := compareValues(st, keys[i], keys[j])
		failed = err
		if reverse {
			return -c
		}
		return c
	})
	if failed != nil {
		return nil, failed
	}
	out := make([]any, len(items))
	for i, from := range order {
		out[i] = items[from]
	}
	return out, st.spendItems(2 * len(items))
}

func filterSort(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "reverse", "case_sensitive", "attribute")
	attributes := []any{in[2]}
	if s, ok := plain(in[2]).(string); ok {
		attributes = attributes[:0]
		for _, part := range strings.Split(s, ",") {
			attributes = append(attributes, part)
		}
	}
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	keys := make([]any, len(items))
	for i := range keys {
		keys[i] = newList(nil)
	}
	for _, attribute := range attributes {
		column, _, err := sortKeys(st, newList(items), attribute, a.flag(in[1]))
		if err != nil {
			return nil, err
		}
		for i, key := range column {
			row := keys[i].(*seq)
			row.items = append(row.items, key)
		}
	}
	sorted, err := sortBy(st, keys, items, a.flag(in[0]))
	return newList(sorted), err
}

func filterDictsort(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "case_sensitive", "by", "reverse")
	d, ok := v.(*dict)
	if !ok {
		return nil, fmt.Errorf("expected a dict, got %s", typeName(v))
	}
	of := 0
	switch a.text(in[1], "key") {
	case "key":
	case "value":
		of = 1
	default:
		return nil, errors.New("can sort by key or value only")
	}
	keys, items, err := sortKeys(st, newList(d.items()), of, a.flag(in[0]))
	if err != nil {
		return nil, err
	}
	sorted, err := sortBy(st, keys, items, a.flag(in[2]))
	return newList(sorted), err
}

func filterGroupby(st *state, v any, a *args) (any, error) {
	in := a.bind(1, "attribute", "default", "case_sensitive")
	if in[1] != (absent{}) && in[1] != nil {
		return nil, fmt.Errorf("%w: a default", ErrUnsupported)
	}
	keys, items, err := sortKeys(st, v, in[0], a.flag(in[2]))
	if err != nil {
		return nil, err
	}
	pairs := make([]any, len(items))
	for i, it := range items {
		pairs[i] = newTuple(keys[i], it)
	}
	if pairs, err = sortBy(st, keys, pairs, false); err != nil {
		return nil, err
	}
	get, err := getter(in[0])
	if err != nil {
		return nil, err
	}
	var groups []any
	var last any
	for _, p := range pairs {
		key, it := p.(*seq).items[0], p.(*seq).items[1]
		if len(groups) > 0 {
			same, err := equal(st, key, last)
			if err != nil {
				return nil, err
			}
			if same {
				group := groups[len(groups)-1].(*seq).items[1].(*seq)
				group.items = append(group.items, it)
				continue
			}
		}
		last = key
		name, err := get(st, it)
		if err != nil {
			return nil, err
		}
		groups = append(groups, newTuple(name, newList([]any{it})))
	}
	return newList(groups), st.spendItems(4 * len(items))
}

// filterExtreme is min for sign 1 and max for sign -1; of those alike, the first.
func filterExtreme(sign int) filterFunc {
	return func(st *state, v any, a *args) (any, error) {
		in := a.bind(0, "case_sensitive", "attribute")
		keys, items, err := sortKeys(st, v, in[1], a.flag(in[0]))
		if err != nil {
			return nil, err
		}
		if len(items) == 0 {
			return &undefined{"an empty list has no smallest or largest item"}, nil
		}
		best := 0
		for i := 1; i < len(items); i++ {
			c, err := compareValues(st, keys[i], keys[best])
			if err != nil {
				return nil, err
			}
			if c*sign < 0 {
				best = i
			}
		}
		return items[best], nil
	}
}

func filterSum(st *state, v any, a *args) (any, error) {
	in := a.bind(0, "attribute", "start")
	total := in[1]
	if total == (absent{}) {
		total = 0
	}
	if _, ok := plain(total).(string); ok {
		return nil, errors.New("cannot sum strings")
	}
	get, err := getter(in[0])
	if err != nil {
		return nil, err
	}
	items, err := iterate(st, v)
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		if it, err = get(st, it); err != nil {
			return nil, err
		}
		if total, err = operate(st, "+", total, it); err != nil {
			return nil, err
		}
	}
	return total, nil
}
