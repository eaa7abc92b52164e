// Package hostfs reads the kernel's files about this machine, /proc and /sys, as text. Names are paths from the root, in
// errors too.
package hostfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// maxFile bounds what is read of a file: /proc/cpuinfo of a thousand CPUs has some megabytes.
const maxFile = 16 << 20

// Files are those of a root.
type Files struct{ Root fs.FS }

// Read returns a file's text without blanks around it.
func (f Files) Read(name string) (string, error) {
	file, err := f.Root.Open(Within(name))
	if err != nil {
		return "", PathError(name, err)
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile))
	if err != nil {
		return "", PathError(name, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// Number reads a file that holds one whole number.
func (f Files) Number(name string) (int64, error) {
	text, err := f.Read(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %s is not a whole number", name, Quoted(text))
	}
	return n, nil
}

// Exists says whether there is such a file or folder.
func (f Files) Exists(name string) bool {
	_, err := fs.Stat(f.Root, Within(name))
	return err == nil
}

// Within is a path as an fs.FS of the root takes it.
func Within(name string) string { return strings.TrimPrefix(path.Clean(name), "/") }

// PathError names the file by its path from the root, and the reason alone.
func PathError(name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("cannot read %s: %w", name, err)
}

// Quoted shortens what a file holds where something else should be.
func Quoted(text string) string {
	if len(text) > 40 {
		text = text[:40] + "..."
	}
	return strconv.Quote(text)
}
