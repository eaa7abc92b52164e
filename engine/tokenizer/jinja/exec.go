package jinja

import (
	"errors"
	"fmt"
	"strings"
)

func (st *state) run(body []stmt, sc *scope) (signal, error) {
	for _, s := range body {
		if sig, err := s.run(st, sc); err != nil || sig != next {
			return sig, err
		}
	}
	return next, nil
}

// at adds the line to an error, unless it has one or is the template's own.
func at(line int, err error) error {
	var raised *Raised
	var placed *RenderError
	if err == nil || errors.As(err, &raised) || errors.As(err, &placed) {
		return err
	}
	return &RenderError{line, err}
}

// RenderError is a failure of a template on its variables.
type RenderError struct {
	Line int
	Err  error
}

func (e *RenderError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the cause.
func (e *RenderError) Unwrap() error { return e.Err }

func (s *text) run(st *state, _ *scope) (signal, error) {
	st.out.WriteString(s.text)
	return next, st.spend(len(s.text))
}

func (s *output) run(st *state, sc *scope) (signal, error) {
	v, err := s.of.eval(st, sc)
	if err != nil {
		return next, at(s.line, err)
	}
	str, err := toString(st, v)
	if err != nil {
		return next, at(s.line, err)
	}
	st.out.WriteString(str)
	return next, at(s.line, st.spend(len(str)))
}

// captured runs a body with its output kept apart.
func (st *state) captured(body []stmt, sc *scope) (string, signal, error) {
	out := st.out
	st.out = &strings.Builder{}
	sig, err := st.run(body, sc)
	s := st.out.String()
	st.out = out
	return s, sig, err
}

func (t *target) assign(st *state, sc *scope, v any) error {
	if err := st.step(); err != nil {
		return err
	}
	if t.tuple == nil {
		if t.attr == "" {
			sc.set(t.name, v)
			return nil
		}
		ns, ok := sc.get(t.name).(*namespace)
		if !ok {
			return fmt.Errorf("cannot assign to %s.%s, which is not a namespace's", t.name, t.attr)
		}
		if err := checkAttr(t.attr); err != nil {
			return err
		}
		return ns.attrs.set(t.attr, v)
	}
	items, err := iterate(st, v)
	if err != nil {
		return err
	}
	if len(items) != len(t.tuple) {
		return fmt.Errorf("cannot unpack %d values into %d variables", len(items), len(t.tuple))
	}
	for i := range t.tuple {
		if err := t.tuple[i].assign(st, sc, items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *set) run(st *state, sc *scope) (signal, error) {
	v, err := s.value.eval(st, sc)
	if err == nil {
		err = s.to.assign(st, sc, v)
	}
	return next, at(s.line, err)
}

// blockText is the variable that holds the text of a block for its filters. No template can name it.
const blockText = " text"

func (s *setBlock) run(st *state, sc *scope) (signal, error) {
	inner := sc.child().hide(s.hidden)
	str, sig, err := st.captured(s.body, inner)
	if err != nil || sig != next {
		return sig, err
	}
	v := any(str)
	if s.filter != nil {
		inner.set(blockText, str)
		if v, err = s.filter.eval(st, inner); err != nil {
			return next, at(s.line, err)
		}
	}
	return next, at(s.line, s.to.assign(st, sc, v))
}

func (s *filterBlock) run(st *state, sc *scope) (signal, error) {
	inner := sc.child().hide(s.hidden)
	str, sig, err := st.captured(s.body, inner)
	if err != nil || sig != next {
		return sig, err
	}
	inner.set(blockText, str)
	return (&output{s.line, s.filter}).run(st, inner)
}

func (s *ifStmt) run(st *state, sc *scope) (signal, error) {
	for i := range s.branches {
		b := &s.branches[i]
		if b.cond != nil {
			v, err := b.cond.eval(st, sc)
			if err != nil {
				return next, at(b.line, err)
			}
			if !truth(v) {
				continue
			}
		}
		return st.run(b.body, sc)
	}
	return next, nil
}

func (s *withStmt) run(st *state, sc *scope) (signal, error) {
	inner := sc.child().hide(s.hidden)
	for i := range s.to {
		v, err := s.values[i].eval(st, sc)
		if err == nil {
			err = s.to[i].assign(st, inner, v)
		}
		if err != nil {
			return next, at(s.line, err)
		}
	}
	return st.run(s.body, inner)
}

func (s *jump) run(*state, *scope) (signal, error) { return s.signal, nil }

func (s *macroStmt) run(_ *state, sc *scope) (signal, error) {
	sc.set(s.name, &macro{s, sc})
	return next, nil
}

// call runs a macro and returns its text.
func (m *macro) call(st *state, a *args) (any, error) {
	values := a.bind(0, m.stmt.params...)
	if a.err != nil {
		return nil, fmt.Errorf("the macro %s %w", m.stmt.name, a.err)
	}
	sc := m.home.child().hide(m.stmt.hidden)
	first := len(m.stmt.params) - len(m.stmt.defaults)
	for i, v := range values {
		if v == (absent{}) {
			v = &undefined{fmt.Sprintf("parameter %q was not provided", m.stmt.params[i])}
			if i >= first {
				var err error
				if v, err = m.stmt.defaults[i-first].eval(st, sc); err != nil {
					return nil, err
				}
			}
		}
		sc.set(m.stmt.params[i], v)
	}
	return st.nested(func() (any, error) {
		s, _, err := st.captured(m.stmt.body, sc)
		return s, err
	})
}

// nested makes a call that may call itself.
func (st *state) nested(call func() (any, error)) (any, error) {
	if st.calls >= maxCalls {
		return nil, fmt.Errorf("%w: more than %d nested calls", ErrTooMuch, maxCalls)
	}
	st.calls++
	defer func() { st.calls-- }()
	return call()
}

func (s *forStmt) run(st *state, sc *scope) (signal, error) {
	over, err := s.over.eval(st, sc)
	if err != nil {
		return next, at(s.line, err)
	}
	if !s.recursive {
		return s.iterate(st, sc, over, &loop{})
	}
	l := &loop{}
	l.recurse = func(items any, depth int) (any, error) {
		return st.nested(func() (any, error) {
			out := st.out
			st.out = &strings.Builder{}
			_, err := s.iterate(st, sc, items, &loop{recurse: l.recurse, depth: depth})
			str := st.out.String()
			st.out = out
			return str, err
		})
	}
	return s.iterate(st, sc, over, l)
}

// iterate runs the loop over one list of items.
func (s *forStmt) iterate(st *state, sc *scope, over any, l *loop) (signal, error) {
	items, err := iterate(st, over)
	if err != nil {
		return next, at(s.line, err)
	}
	if s.cond != nil {
		if items, err = s.kept(st, sc, items); err != nil {
			return next, at(s.line, err)
		}
	}
	l.items = items
	completed := false // as in Jinja2, break and continue do not count against the else block
	for i, it := range items {
		inner := sc.child().hide(s.hidden)
		if err := s.to.assign(st, inner, it); err != nil {
			return next, at(s.line, err)
		}
		l.index = i
		inner.set("loop", l)
		sig, err := st.run(s.body, inner)
		if err != nil {
			return next, err
		}
		if sig == breakLoop {
			break
		}
		completed = completed || sig == next
	}
	if completed || s.elseBody == nil {
		return next, nil
	}
	return st.run(s.elseBody, sc.child().hide(s.elseHidden))
}

// kept are the items that fulfil the loop's condition.
func (s *forStmt) kept(st *state, sc *scope, items []any) ([]any, error) {
	var kept []any
	for _, it := range items {
		inner := sc.child()
		if err := s.to.assign(st, inner, it); err != nil {
			return nil, err
		}
		v, err := s.cond.eval(st, inner)
		if err != nil {
			return nil, err
		}
		if truth(v) {
			kept = append(kept, it)
		}
	}
	return kept, st.spendItems(len(kept))
}
