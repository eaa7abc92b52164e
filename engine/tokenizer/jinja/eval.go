package jinja

import (
	"errors"
	"fmt"
	"strings"
)

func (e *constant) eval(*state, *scope) (any, error) { return e.value, nil }

func (e *name) eval(st *state, sc *scope) (any, error) { return sc.get(e.name), st.step() }

func (e *list) eval(st *state, sc *scope) (any, error) {
	items, err := evalAll(st, sc, e.items)
	if err != nil {
		return nil, err
	}
	if e.tuple {
		return newTuple(items...), nil
	}
	return newList(items), nil
}

func evalAll(st *state, sc *scope, exprs []expr) ([]any, error) {
	if err := st.spendItems(len(exprs)); err != nil {
		return nil, err
	}
	items := make([]any, len(exprs))
	for i, e := range exprs {
		v, err := e.eval(st, sc)
		if err != nil {
			return nil, err
		}
		items[i] = v
	}
	return items, nil
}

func (e *dictDisplay) eval(st *state, sc *scope) (any, error) {
	if err := st.spendItems(4 * len(e.keys)); err != nil {
		return nil, err
	}
	d := newDict(len(e.keys))
	for i := range e.keys {
		k, err := e.keys[i].eval(st, sc)
		if err != nil {
			return nil, err
		}
		v, err := e.values[i].eval(st, sc)
		if err != nil {
			return nil, err
		}
		if err := d.set(k, v); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (e *attribute) eval(st *state, sc *scope) (any, error) {
	of, err := e.of.eval(st, sc)
	if err != nil {
		return nil, err
	}
	return getAttr(st, of, e.name)
}

func (e *item) eval(st *state, sc *scope) (any, error) {
	of, err := e.of.eval(st, sc)
	if err != nil {
		return nil, err
	}
	key, err := e.key.eval(st, sc)
	if err != nil {
		return nil, err
	}
	return getItem(st, of, key)
}

// getAttr is x.name: Python's attribute, or else the key.
func getAttr(st *state, of any, name string) (any, error) {
	if err := st.step(); err != nil {
		return nil, err
	}
	if v, ok, err := pythonAttr(of, name); ok || err != nil {
		return v, err
	}
	if d, ok := of.(*dict); ok {
		if v, ok := d.get(name); ok {
			return v, nil
		}
	}
	return missing(of, name)
}

// getItem is x[key]: the item, or else Python's attribute.
func getItem(st *state, of, key any) (any, error) {
	if err := st.step(); err != nil {
		return nil, err
	}
	switch of := of.(type) {
	case *dict:
		if v, ok := of.get(key); ok {
			return v, nil
		}
	case *seq:
		if i, ok := integer(key); ok {
			if i, ok = fromEnd(i, len(of.items)); ok {
				return of.items[i], nil
			}
		}
	case string:
		if i, ok := integer(key); ok {
			return runeAt(st, of, i)
		}
	case markup:
		if i, ok := integer(key); ok {
			v, err := runeAt(st, string(of), i)
			return marked(of, v), err
		}
	}
	if name, ok := plain(key).(string); ok {
		if v, ok, err := pythonAttr(of, name); ok || err != nil {
			return v, err
		}
	}
	return missing(of, key)
}

func missing(of, key any) (any, error) {
	if err := defined(of); err != nil {
		return nil, err
	}
	switch key.(type) {
	case string, int:
		return &undefined{fmt.Sprintf("%s has no element %v", typeName(of), key)}, nil
	}
	return &undefined{fmt.Sprintf("%s has no such element", typeName(of))}, nil
}

// fromEnd resolves an index that may count from the end.
func fromEnd(i, n int) (int, bool) {
	if i < 0 {
		i += n
	}
	return i, i >= 0 && i < n
}

func runeAt(st *state, s string, i int) (any, error) {
	if err := st.spend(len(s) / 8); err != nil {
		return nil, err
	}
	if at, ok := fromEnd(i, runeCount(s)); ok {
		for _, r := range s {
			if at == 0 {
				return string(r), nil
			}
			at--
		}
	}
	return missing(s, i)
}

func (e *conditional) eval(st *state, sc *scope) (any, error) {
	c, err := e.cond.eval(st, sc)
	switch {
	case err != nil:
		return nil, err
	case truth(c):
		return e.then.eval(st, sc)
	case e.otherwise != nil:
		return e.otherwise.eval(st, sc)
	}
	return &undefined{"the condition of an if without else is false"}, nil
}

func (e *logical) eval(st *state, sc *scope) (any, error) {
	left, err := e.left.eval(st, sc)
	if err != nil || truth(left) != e.and {
		return left, err
	}
	return e.right.eval(st, sc)
}

func (e *negation) eval(st *state, sc *scope) (any, error) {
	v, err := e.of.eval(st, sc)
	return !truth(v), err
}

func (e *concat) eval(st *state, sc *scope) (any, error) {
	parts := make([]string, len(e.parts))
	size := 0
	for i, part := range e.parts {
		v, err := part.eval(st, sc)
		if err != nil {
			return nil, err
		}
		if parts[i], err = toString(st, v); err != nil {
			return nil, err
		}
		size += len(parts[i])
	}
	return strings.Join(parts, ""), st.spend(size)
}

func (e *compare) eval(st *state, sc *scope) (any, error) {
	left, err := e.first.eval(st, sc)
	if err != nil {
		return nil, err
	}
	for _, c := range e.rest {
		right, err := c.right.eval(st, sc)
		if err != nil {
			return nil, err
		}
		if ok, err := compareBy(st, c.op, left, right); err != nil || !ok {
			return false, err
		}
		left = right
	}
	return true, nil
}

func compareBy(st *state, op string, a, b any) (bool, error) {
	switch op {
	case "==":
		return equal(st, a, b)
	case "!=":
		same, err := equal(st, a, b)
		return !same, err
	case "in":
		return contains(st, b, a)
	case "not in":
		found, err := contains(st, b, a)
		return !found, err
	case "<":
		return less(st, a, b)
	case ">":
		return less(st, b, a)
	case "<=":
		order, err := compareValues(st, a, b)
		return order <= 0, err
	}
	order, err := compareValues(st, b, a)
	return order <= 0, err
}

func (e *call) eval(st *state, sc *scope) (any, error) {
	fn, err := e.fn.eval(st, sc)
	if err != nil {
		return nil, err
	}
	a, err := e.args.eval(st, sc)
	if err != nil {
		return nil, err
	}
	switch fn := fn.(type) {
	case *function:
		v, err := fn.call(st, a)
		if err != nil {
			var raised *Raised
			if errors.As(err, &raised) {
				return nil, err
			}
			return nil, fmt.Errorf("%s: %w", fn.name, err)
		}
		return v, nil
	case *macro:
		return fn.call(st, a)
	case *loop:
		return fn.call(st, a)
	}
	if err := defined(fn); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("cannot call %s", typeName(fn))
}

func (e *filter) eval(st *state, sc *scope) (any, error) {
	v := sc.get(blockText)
	if e.of != nil {
		var err error
		if v, err = e.of.eval(st, sc); err != nil {
			return nil, err
		}
	}
	if e.fn == nil { // Jinja2 too finds out only now, if the filter stands under a condition
		return nil, fmt.Errorf("there is no filter %s", e.name)
	}
	a, err := e.args.eval(st, sc)
	if err != nil {
		return nil, err
	}
	return e.fn.apply(st, e.name, v, a)
}

// apply calls a filter.
func (f filterFunc) apply(st *state, name string, v any, a *args) (any, error) {
	if err := st.step(); err != nil {
		return nil, err
	}
	v, err := f(st, v, a)
	if err == nil {
		err = a.err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

func (e *test) eval(st *state, sc *scope) (any, error) {
	v, err := e.of.eval(st, sc)
	if err != nil {
		return nil, err
	}
	if e.fn == nil {
		return nil, fmt.Errorf("there is no test %s", e.name)
	}
	a, err := e.args.eval(st, sc)
	if err != nil {
		return nil, err
	}
	return e.fn.apply(st, e.name, v, a)
}

// apply makes a test.
func (f testFunc) apply(st *state, name string, v any, a *args) (bool, error) {
	if err := st.step(); err != nil {
		return false, err
	}
	ok, err := f(st, v, a)
	if err == nil {
		err = a.err
	}
	if err != nil {
		return false, fmt.Errorf("is %s: %w", name, err)
	}
	return ok, nil
}
