// Package grammar holds an answer to a form while it is generated: a JSON schema, a regular expression, a list of
// choices or a grammar in llama.cpp's GBNF says which tokens may come next.
//
//	source.go, schema*.go, pattern.go, number.go, regex.go, gbnf.go
//	                                                     what users write -> expressions (expr.go)
//	nfa.go, utf8.go, inline.go, determinize.go, trim.go  expressions -> one automaton over bytes for each rule that is left
//	machine.go                                           the automata of all rules run together, with a stack
//	vocabulary.go, plain.go, mask.go, matcher.go         tokens, which of them may come, and an answer's place
//	cache.go, lanes.go, memory.go                        compiled guides that requests share: who waits, and what is kept
//
// A rule is a finite automaton whose edges read a byte or call another rule. A place in a text is the set of all
// automaton states that it may have led to, each with the calls it is within. Calls of one rule at one place are
// merged, as in Earley's parser, so ambiguity costs at most a power of the text's length and not an exponential; and
// equal sets of calls are one object, so equal places are found to be equal, and their masks are kept. Left recursion
// would make calls without end at one place and is refused.
//
// All sizes that come from outside are limited, and all work is counted (limits.go): a source that needs more is
// refused with an *Error, and a text whose ambiguity grows beyond a limit ends with one.
//
// No Go library was found that makes token masks from grammars; the known ones (XGrammar, llguidance, outlines-core)
// are C++ and Rust.
package grammar
