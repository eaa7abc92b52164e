package jinja

import (
	"errors"
	"fmt"
	"slices"
)

// args are the evaluated arguments of a call. The functions that take them note the first error in err, which the
// caller looks at when the function has returned.
type args struct {
	pos   []any
	names []string
	named []any
	err   error
}

func (c *callArgs) eval(st *state, sc *scope) (*args, error) {
	pos, err := evalAll(st, sc, c.pos)
	if err != nil {
		return nil, err
	}
	named, err := evalAll(st, sc, c.named)
	if err != nil {
		return nil, err
	}
	a := &args{pos: pos, names: c.names, named: named}
	if c.star != nil {
		v, err := c.star.eval(st, sc)
		if err != nil {
			return nil, err
		}
		more, err := iterate(st, v)
		if err != nil {
			return nil, err
		}
		a.pos = append(a.pos, more...)
	}
	if c.dict != nil {
		v, err := c.dict.eval(st, sc)
		if err != nil {
			return nil, err
		}
		return a, a.addNamed(v)
	}
	return a, nil
}

// addNamed adds the arguments of **v.
func (a *args) addNamed(v any) error {
	d, ok := v.(*dict)
	if !ok {
		return fmt.Errorf("cannot use ** on %s", typeName(v))
	}
	a.names = slices.Clone(a.names)
	for i, k := range d.keys {
		name, ok := k.(string)
		if !ok || indexOf(a.names, name) >= 0 {
			return errors.New("** gives an argument twice, or one whose name is no string")
		}
		a.names, a.named = append(a.names, name), append(a.named, d.values[i])
	}
	return nil
}

// absent stands for an argument that is not given.
type absent struct{}

// bind assigns the arguments to parameters by position and name. It returns absent{} for those not given, and fails
// if one of the first required is not.
func (a *args) bind(required int, params ...string) []any {
	out := make([]any, len(params))
	for i := range out {
		out[i] = absent{}
	}
	if len(a.pos) > len(params) {
		a.fail(fmt.Errorf("takes at most %d arguments, got %d", len(params), len(a.pos)))
		return out
	}
	copy(out, a.pos)
	for i, name := range a.names {
		at := indexOf(params, name)
		switch {
		case at < 0:
			a.fail(fmt.Errorf("has no argument %q", name))
		case at < len(a.pos):
			a.fail(fmt.Errorf("got the argument %q twice", name))
		default:
			out[at] = a.named[i]
		}
	}
	for i := range required {
		if out[i] == (absent{}) {
			a.fail(fmt.Errorf("the argument %q is missing", params[i]))
		}
	}
	return out
}

func indexOf(names []string, name string) int {
	for i, n := range names {
		if n == name {
			return i
		}
	}
	return -1
}

func (a *args) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// none fails if there are any arguments.
func (a *args) none() { a.bind(0) }

func (a *args) integer(v any, otherwise int) int {
	if v == (absent{}) {
		return otherwise
	}
	i, ok := integer(v)
	if !ok {
		a.fail(fmt.Errorf("expected an integer, got %s", typeName(v)))
	}
	return i
}

func (a *args) text(v any, otherwise string) string {
	if v == (absent{}) {
		return otherwise
	}
	s, ok := plain(v).(string)
	if !ok {
		a.fail(fmt.Errorf("expected a string, got %s", typeName(v)))
	}
	return s
}

// flag is the truth of an argument; one not given is false.
func (a *args) flag(v any) bool { return v != (absent{}) && truth(v) }

// rest returns the arguments behind the first n positional ones.
func (a *args) rest(n int) *args {
	return &args{pos: a.pos[min(n, len(a.pos)):], names: a.names, named: a.named}
}

var globals map[string]any

func init() {
	functions := map[string]func(*state, *args) (any, error){
		"range":           makeRange,
		"dict":            makeDict,
		"namespace":       makeNamespace,
		"raise_exception": raise,
		"strftime_now":    strftimeNow,
	}
	globals = make(map[string]any, len(functions))
	for name, call := range functions {
		globals[name] = &function{name: name, call: func(st *state, a *args) (any, error) {
			v, err := call(st, a)
			if err == nil {
				err = a.err
			}
			return v, err
		}}
	}
}

func makeRange(st *state, a *args) (any, error) {
	a.bind(1, "start", "stop", "step")
	if len(a.names) > 0 {
		return nil, errors.New("takes no named arguments")
	}
	if a.err != nil {
		return nil, a.err
	}
	start, stop, step := 0, 0, 1
	switch into := []*int{&start, &stop, &step}; len(a.pos) {
	case 1:
		stop = a.integer(a.pos[0], 0)
	default:
		for i, v := range a.pos {
			*into[i] = a.integer(v, 0)
		}
	}
	if a.err != nil {
		return nil, a.err
	}
	if step == 0 {
		return nil, errors.New("the step must not be 0")
	}
	n := 0
	if start < stop && step > 0 {
		n = int((uint(stop)-uint(start)-1)/uint(step)) + 1
	} else if start > stop && step < 0 {
		n = int((uint(start)-uint(stop)-1)/abs(step)) + 1
	}
	if n < 0 || n > maxRange {
		return nil, fmt.Errorf("more than %d numbers", maxRange)
	}
	if err := st.spendItems(n); err != nil {
		return nil, err
	}
	items := make([]any, n)
	for i := range items {
		items[i] = start + i*step
	}
	return &seq{items: items, kind: rangeKind}, nil
}

// makeDict builds a dict of a mapping or a list of pairs, and of named arguments.
func makeDict(st *state, a *args) (any, error) {
	d := newDict(len(a.names))
	if len(a.pos) > 1 {
		return nil, errors.New("takes at most one argument without a name")
	}
	if err := st.spendItems(4 * len(a.names)); err != nil {
		return nil, err
	}
	for _, from := range a.pos {
		if err := fillDict(st, d, from); err != nil {
			return nil, err
		}
	}
	for i, name := range a.names {
		if err := d.set(name, a.named[i]); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func fillDict(st *state, d *dict, from any) error {
	if of, ok := from.(*dict); ok {
		from = newList(of.items())
	}
	items, err := iterate(st, from)
	if err != nil {
		return err
	}
	if err := st.spendItems(4 * len(items)); err != nil {
		return err
	}
	for _, it := range items {
		pair, err := iterate(st, it)
		if err != nil {
			return err
		}
		if len(pair) != 2 {
			return fmt.Errorf("an item has %d parts, not 2", len(pair))
		}
		if err := d.set(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return nil
}

func makeNamespace(st *state, a *args) (any, error) {
	d, err := makeDict(st, a)
	if err != nil {
		return nil, err
	}
	attrs := d.(*dict)
	for _, k := range attrs.keys {
		name, ok := k.(string)
		if !ok {
			return nil, errors.New("an attribute's name must be a string")
		}
		if err := checkAttr(name); err != nil {
			return nil, err
		}
	}
	return &namespace{attrs}, nil
}

func checkAttr(name string) error {
	if len(name) > 0 && name[0] == '_' {
		return fmt.Errorf("cannot store the attribute %q, which begins with an underscore", name)
	}
	return nil
}

func raise(st *state, a *args) (any, error) {
	message := a.bind(1, "message")[0]
	if a.err != nil {
		return nil, a.err
	}
	s, err := toString(st, message)
	if err != nil {
		return nil, err
	}
	return nil, &Raised{s}
}
