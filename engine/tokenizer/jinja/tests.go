package jinja

import (
	"fmt"
)

type testFunc func(st *state, v any, a *args) (bool, error)

var tests map[string]testFunc

func init() {
	tests = map[string]testFunc{
		"boolean":     typeTest(func(v any) bool { _, ok := v.(bool); return ok }),
		"callable":    typeTest(isCallable),
		"defined":     typeTest(func(v any) bool { _, ok := v.(*undefined); return !ok }),
		"escaped":     typeTest(func(v any) bool { _, ok := v.(markup); return ok }),
		"divisibleby": remainderTest(func(r any) bool { return !truth(r) }, "num"),
		"even":        remainderTest(func(r any) bool { return !truth(r) }),
		"false":       typeTest(func(v any) bool { return v == false }),
		"filter":      knownTest(func(name string) bool { return filters[name] != nil }),
		"float":       typeTest(func(v any) bool { _, ok := v.(float64); return ok }),
		"in":          testIn,
		"integer":     typeTest(func(v any) bool { _, ok := v.(int); return ok }),
		"iterable":    typeTest(isIterable),
		"lower":       textTest(func(s string) bool { return oneCase(s, isLower) }),
		"mapping":     typeTest(func(v any) bool { _, ok := v.(*dict); return ok }),
		"none":        typeTest(func(v any) bool { return v == nil }),
		"number":      typeTest(func(v any) bool { _, ok := number(v); return ok }),
		"odd":         remainderTest(isOne),
		"sameas":      testSame,
		"sequence":    typeTest(isSequence),
		"string":      typeTest(func(v any) bool { _, ok := plain(v).(string); return ok }),
		"test":        knownTest(func(name string) bool { return tests[name] != nil }),
		"true":        typeTest(func(v any) bool { return v == true }),
		"undefined":   typeTest(func(v any) bool { _, ok := v.(*undefined); return ok }),
		"upper":       textTest(func(s string) bool { return oneCase(s, isUpper) }),
	}
	for op, names := range map[string][]string{
		"==": {"eq", "equalto"}, "!=": {"ne"}, ">": {"gt", "greaterthan"}, ">=": {"ge"}, "<": {"lt", "lessthan"}, "<=": {"le"},
	} {
		for _, name := range append(names, op) {
			tests[name] = func(st *state, v any, a *args) (bool, error) {
				other := a.bind(1, "other")[0]
				if a.err != nil {
					return false, a.err
				}
				return compareBy(st, op, v, other)
			}
		}
	}
}

func typeTest(is func(v any) bool) testFunc {
	return func(_ *state, v any, a *args) (bool, error) {
		a.none()
		return is(v), nil
	}
}

func textTest(is func(s string) bool) testFunc {
	return func(st *state, v any, a *args) (bool, error) {
		a.none()
		s, err := toString(st, v)
		if err != nil {
			return false, err
		}
		return is(s), st.spend(len(s) / 8)
	}
}

func knownTest(known func(name string) bool) testFunc {
	return func(_ *state, v any, a *args) (bool, error) {
		a.none()
		name, ok := plain(v).(string)
		return ok && known(name), nil
	}
}

// remainderTest looks at the remainder by a parameter, or by 2.
func remainderTest(is func(r any) bool, params ...string) testFunc {
	return func(st *state, v any, a *args) (bool, error) {
		in := a.bind(len(params), params...)
		if a.err != nil {
			return false, a.err
		}
		by := any(2)
		if len(in) > 0 {
			by = in[0]
		}
		r, err := operate(st, "%", v, by)
		return err == nil && is(r), err
	}
}

func isOne(r any) bool { return r == 1 || r == 1.0 }

func isCallable(v any) bool {
	switch v.(type) {
	case *function, *macro, *loop, *undefined:
		return true
	}
	return false
}

func isSequence(v any) bool {
	switch v.(type) {
	case string, markup, *seq, *dict, *undefined:
		return true
	}
	return false
}

func isIterable(v any) bool {
	switch v.(type) {
	case string, markup, *seq, *dict, *view, *generator, *loop, *undefined:
		return true
	}
	return false
}

func testIn(st *state, v any, a *args) (bool, error) {
	of := a.bind(1, "seq")[0]
	if a.err != nil {
		return false, a.err
	}
	return contains(st, of, v)
}

// testSame is Python's "is". Whether two equal strings or numbers are one object depends on the interpreter.
func testSame(st *state, v any, a *args) (bool, error) {
	other := a.bind(1, "other")[0]
	switch v.(type) {
	case string, markup, int, float64, *undefined, *function:
		if same, err := equal(st, v, other); err != nil || !same {
			return false, err
		}
		if typeName(v) != typeName(other) {
			return false, nil
		}
		return false, fmt.Errorf("%w: telling whether two equal values are the same object", ErrUnsupported)
	}
	return v == other, nil
}
