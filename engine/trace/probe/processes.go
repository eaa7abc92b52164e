package probe

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine/trace"
)

// prefix is how programs that can have marks are called, beside the one that looks for them.
const prefix = "infinite"

// Find lists the processes below proc (/proc) that run this program (its path) or one whose name begins with
// "infinite", but not the process self.
func Find(proc, program string, self int) ([]trace.Process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes: %w", err)
	}
	var own fs.FileInfo
	if program != "" {
		if own, err = os.Stat(program); err != nil {
			return nil, fmt.Errorf("cannot look at this program: %w", err)
		}
	}
	var out []trace.Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		p, err := Look(proc, pid)
		if err != nil {
			continue // it ended, is a kernel thread, or is not ours to look at
		}
		is, err := os.Stat(exe(proc, pid))
		if own != nil && err == nil && os.SameFile(own, is) || strings.HasPrefix(filepath.Base(p.Program), prefix) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b trace.Process) int { return a.PID - b.PID })
	return out, nil
}

// Look describes a process.
func Look(proc string, pid int) (trace.Process, error) {
	program, err := os.Readlink(exe(proc, pid))
	if err != nil {
		return trace.Process{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return trace.Process{PID: pid, Program: program, Instance: instance(proc, pid)}, nil
}

func exe(proc string, pid int) string { return filepath.Join(proc, strconv.Itoa(pid), "exe") }

// instance is the id that a process was given by a flag or a variable, "" where it took the next free one.
func instance(proc string, pid int) string {
	read := func(file string) [][]byte {
		data, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), file))
		return bytes.Split(data, []byte{0})
	}
	args := read("cmdline")
	for i, a := range args {
		if id, ok := bytes.CutPrefix(a, []byte("--instance-id=")); ok {
			return printable(id)
		}
		if string(a) == "--instance-id" && i+1 < len(args) {
			return printable(args[i+1])
		}
	}
	for _, v := range read("environ") {
		if id, ok := bytes.CutPrefix(v, []byte("INFINITE_INSTANCE_ID=")); ok {
			return printable(id)
		}
	}
	return ""
}

// printable is the text, "" if a terminal might take a part of it for more than that.
func printable(text []byte) string {
	if bytes.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return string(text)
}
