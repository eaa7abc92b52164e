package jinja

import "slices"

// symbols follows Jinja2's analysis of which variable a name means. A scope of the source (the template, a loop's body,
// a macro and so on) has one variable for each name it mentions. If the first mention is an assignment, which is not
// under a condition, and no scope around it mentions the name, then the caller's variable of that name is hidden in the
// whole scope: loops and macros before the assignment see an undefined value.
type symbols struct {
	parent *symbols
	names  map[string]bool
	hidden []string
	inner  []func() // analyses of the scopes within, which come when this one is known
	ifs    int      // conditions around the statement
}

// analyze finds the hidden names of a scope and of the scopes in it.
func analyze(body []stmt, parent *symbols, params ...string) []string {
	s := &symbols{parent: parent, names: map[string]bool{}}
	for _, p := range params {
		s.names[p] = true
	}
	s.block(body)
	for _, f := range s.inner {
		f()
	}
	return s.hidden
}

func (s *symbols) mentions(name string) bool {
	for ; s != nil; s = s.parent {
		if s.names[name] {
			return true
		}
	}
	return false
}

func (s *symbols) load(e expr) {
	if e == nil {
		return
	}
	if n, ok := e.(*name); ok && !s.mentions(n.name) {
		s.names[n.name] = true
	}
	for _, child := range children(e) {
		s.load(child)
	}
}

func (s *symbols) store(t target) {
	switch {
	case t.tuple != nil:
		for _, one := range t.tuple {
			s.store(one)
		}
	case t.attr != "":
		s.load(&name{t.name})
	case !s.names[t.name]:
		if s.ifs == 0 && !s.parent.mentions(t.name) {
			s.hidden = append(s.hidden, t.name)
		}
		s.names[t.name] = true
	}
}

func (s *symbols) block(body []stmt) {
	for _, st := range body {
		s.statement(st)
	}
}

func (s *symbols) statement(st stmt) {
	switch st := st.(type) {
	case *output:
		s.load(st.of)
	case *set:
		s.load(st.value)
		s.store(st.to)
	case *setBlock:
		s.store(st.to)
		s.inner = append(s.inner, func() { st.hidden = analyze(st.body, s) })
	case *filterBlock:
		s.load(st.filter)
		s.inner = append(s.inner, func() { st.hidden = analyze(append(st.body, &output{of: st.filter}), s) })
	case *ifStmt:
		s.ifs++
		for _, b := range st.branches {
			s.load(b.cond)
			s.block(b.body)
		}
		s.ifs--
	case *forStmt:
		s.load(st.over)
		s.inner = append(s.inner, func() {
			st.hidden = analyze(st.body, s, append(st.to.names(), "loop")...)
			st.elseHidden = analyze(st.elseBody, s)
		})
	case *macroStmt:
		s.store(target{name: st.name})
		s.inner = append(s.inner, func() {
			inner := make([]stmt, 0, len(st.defaults)+len(st.body))
			for _, e := range st.defaults {
				inner = append(inner, &output{of: e})
			}
			st.hidden = analyze(append(inner, st.body...), s, st.params...)
		})
	case *withStmt:
		for _, e := range st.values {
			s.load(e)
		}
		s.inner = append(s.inner, func() {
			var params []string
			for _, t := range st.to {
				params = append(params, t.names()...)
			}
			st.hidden = analyze(st.body, s, params...)
		})
	}
}

// names are those a target assigns to.
func (t target) names() []string {
	if t.tuple == nil {
		return []string{t.name}
	}
	var names []string
	for _, one := range t.tuple {
		names = append(names, one.names()...)
	}
	return names
}

// children are the expressions within one.
func children(e expr) []expr {
	switch e := e.(type) {
	case *list:
		return e.items
	case *dictDisplay:
		return slices.Concat(e.keys, e.values)
	case *attribute:
		return []expr{e.of}
	case *item:
		return []expr{e.of, e.key}
	case *slice:
		return []expr{e.of, e.start, e.stop, e.step}
	case *call:
		return append(e.args.children(), e.fn)
	case *filter:
		return append(e.args.children(), e.of)
	case *test:
		return append(e.args.children(), e.of)
	case *conditional:
		return []expr{e.cond, e.then, e.otherwise}
	case *logical:
		return []expr{e.left, e.right}
	case *negation:
		return []expr{e.of}
	case *unary:
		return []expr{e.of}
	case *binary:
		return []expr{e.left, e.right}
	case *concat:
		return e.parts
	case *compare:
		all := []expr{e.first}
		for _, c := range e.rest {
			all = append(all, c.right)
		}
		return all
	}
	return nil
}

func (c *callArgs) children() []expr {
	return slices.Concat(c.pos, c.named, []expr{c.star, c.dict})
}

// hide makes the hidden names of a scope undefined in it.
func (sc *scope) hide(names []string) *scope {
	for _, n := range names {
		sc.set(n, undefinedName(n))
	}
	return sc
}
