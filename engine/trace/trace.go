// Package trace makes sense of what probes on the marks of csrc/dist saw: messages from their stages at both
// ends, steps and requests from messages, and the figures of them.
//
//	marks.go      the marks, the same list as csrc/dist/marks.h
//	event.go      one hit of a mark, as a BPF program writes it
//	join.go       hits -> messages and steps
//	histogram.go  powers of two and quantiles
//	report.go     what is told of a trace; its JSON form
//	stages.go     the times between a message's stages, by lane
//	requests.go   a request's steps, and the timeline of one
//	text.go       the report as text
//
// It is arithmetic on recorded events: package probe gets them from the kernel.
package trace
