// Package probe puts probes on running instances and reads what they see.
//
//	processes.go       which processes to look at
//	symbols.go         where a program has the marks
//	programs.go        the BPF programs, assembled here: no compiler is needed to build or to run
//	functions.go       kernel functions on the way of verbs messages
//	session_linux.go   loading, attaching, reading
//	reasons.go         why the kernel does not allow something, and what would make it
//	session_other.go   systems that are not Linux
//
// A mark's probe is a uprobe: a breakpoint in the process's memory, there while the session is open. The program
// behind it copies the mark's arguments into a ring that all of them share. Kernel functions get a kprobe at
// their beginning and one at their end, and are counted in the kernel, since they run too often to tell of each.
package probe

import "github.com/infinite-llm/infinite/engine/trace"

// Config of a session.
type Config struct {
	Processes []trace.Process
	Functions bool   // kprobes too
	RingBytes uint32 // for events that were not read yet; a power of two
}

// DefaultRing holds 200,000 events.
const DefaultRing = 16 << 20
