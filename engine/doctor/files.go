package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"unicode"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

func (m *Machine) files() hostfs.Files { return hostfs.Files{Root: m.FS} }

// read returns a file's text without blanks around it.
func (m *Machine) read(name string) (string, error) { return m.files().Read(name) }

// number reads a file that holds one whole number.
func (m *Machine) number(name string) (int64, error) { return m.files().Number(name) }

func (m *Machine) exists(name string) bool { return m.files().Exists(name) }

// word reads a file that holds a few words to be shown; "" if it holds something else.
func (m *Machine) word(name string) (string, error) {
	text, err := m.read(name)
	if err != nil || len(text) > 80 || clean(text) != text {
		return "", err
	}
	return text, nil
}

// clean makes one line of what others wrote, without control characters.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text)
}

// names lists a folder in order; a missing one is empty.
func (m *Machine) names(folder string) ([]string, error) {
	entries, err := fs.ReadDir(m.FS, hostfs.Within(folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, hostfs.PathError(folder, err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// link returns where a symbolic link leads, as it is written.
func (m *Machine) link(name string) (string, error) {
	target, err := fs.ReadLink(m.FS, hostfs.Within(name))
	if err != nil {
		return "", hostfs.PathError(name, err)
	}
	return target, nil
}

// field finds `name: value` in a file of such lines.
func field(text, name string) (string, bool) {
	for line := range strings.Lines(text) {
		key, value, found := strings.Cut(line, ":")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// statusField is a field of /proc/self/status.
func (m *Machine) statusField(name string) (string, error) {
	text, err := m.read("/proc/self/status")
	if err != nil {
		return "", err
	}
	value, found := field(text, name)
	if !found {
		return "", fmt.Errorf("cannot find %s in /proc/self/status", name)
	}
	return value, nil
}

// Bits of /proc/self/status's CapEff.
const (
	capIPCLock  = 14
	capSysAdmin = 21
	capPerfmon  = 38
	capBPF      = 39
)

// capable tells whether this process has a capability.
func (m *Machine) capable(bit int) (bool, error) {
	text, err := m.statusField("CapEff")
	if err != nil {
		return false, err
	}
	set, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return false, fmt.Errorf("cannot read CapEff in /proc/self/status: %s is not a hexadecimal number", hostfs.Quoted(text))
	}
	return set>>bit&1 != 0, nil
}

// countList counts the members of a list of ranges such as 0-3,8.
func countList(text string) (int, error) {
	total := 0
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 20)
		b, errB := strconv.ParseUint(last, 10, 20)
		if errA != nil || errB != nil || b < a {
			return 0, fmt.Errorf("cannot read %s as a list of numbers", hostfs.Quoted(text))
		}
		total += int(b-a) + 1
	}
	return total, nil
}
