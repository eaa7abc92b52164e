package jinja

// expr is an expression. Evaluating it gives one of: *undefined, nil, bool, int, float64, string, markup, *seq, *dict, *view,
// *generator, *namespace, *function, *macro, *loop.
type expr interface {
	eval(st *state, sc *scope) (any, error)
}

type (
	constant struct{ value any }
	name     struct{ name string }
	// list is a list or tuple display.
	list struct {
		items []expr
		tuple bool
	}
	dictDisplay struct{ keys, values []expr }
	// attribute is x.name, which prefers Python's attributes to the keys of a dict.
	attribute struct {
		of   expr
		name string
	}
	// item is x[key], which prefers the keys.
	item  struct{ of, key expr }
	slice struct {
		of                expr
		start, stop, step expr // nil: left out
	}
	call struct {
		fn   expr
		args callArgs
	}
	filter struct {
		of   expr // nil: the text of a set block
		name string
		fn   filterFunc
		args callArgs
	}
	test struct {
		of   expr
		name string
		fn   testFunc
		args callArgs
	}
	conditional struct{ cond, then, otherwise expr } // otherwise may be nil
	logical     struct {
		and         bool
		left, right expr
	}
	negation struct{ of expr }
	unary    struct {
		minus bool
		of    expr
	}
	binary struct {
		op          string
		left, right expr
	}
	concat struct{ parts []expr }
	// compare is a chain: a < b <= c.
	compare struct {
		first expr
		rest  []comparison
	}
	comparison struct {
		op    string
		right expr
	}
)

// callArgs are the arguments of a call, filter or test.
type callArgs struct {
	pos        []expr
	names      []string
	named      []expr
	star, dict expr // *star and **dict; nil: none
}

// stmt is a piece of a template. hidden are the names that a statement's scope hides, see symbols.
type stmt interface {
	run(st *state, sc *scope) (signal, error)
}

// signal says how a statement ended.
type signal uint8

const (
	next signal = iota
	breakLoop
	continueLoop
)

type (
	text   struct{ text string }
	output struct {
		line int
		of   expr
	}
	// target is what a value is assigned to: a name, a namespace's attribute, or a tuple of targets.
	target struct {
		name, attr string
		tuple      []target
	}
	set struct {
		line  int
		to    target
		value expr
	}
	setBlock struct {
		line   int
		to     target
		body   []stmt
		filter expr // nil: none; its innermost filter takes the text
		hidden []string
	}
	// filterBlock prints what its filters make of its text.
	filterBlock struct {
		line   int
		filter expr
		body   []stmt
		hidden []string
	}
	branch struct {
		line int
		cond expr // nil: else
		body []stmt
	}
	ifStmt  struct{ branches []branch }
	forStmt struct {
		line           int
		to             target
		over, cond     expr // cond may be nil
		recursive      bool
		body, elseBody []stmt

		hidden, elseHidden []string
	}
	macroStmt struct {
		name     string
		params   []string
		defaults []expr // of the last parameters
		body     []stmt
		hidden   []string
	}
	// withStmt opens a scope; a generation block is one without variables.
	withStmt struct {
		line   int
		to     []target
		values []expr
		body   []stmt
		hidden []string
	}
	jump struct{ signal signal }
)
