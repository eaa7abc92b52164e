package grammar

import (
	"errors"
	"fmt"
)

// Limits of a source and of what is made of it.
const (
	// MaxSource is the most bytes of a source.
	MaxSource = 256 << 10
	maxDepth  = 64      // of nested schemas, groups and merges
	maxRules  = 10_000  // of one grammar
	maxStates = 150_000 // of all its automata, before and after they are made deterministic
	maxEdges  = 1 << 20
	maxWork   = 20e6 // elementary steps of a compilation: a second or two
)

// Limits of an automaton that runs.
const (
	maxItems    = 1024     // states that a place in the text may be in at once
	maxMaskWork = 1e6      // elementary steps of one mask
	remakeWork  = 10e6     // more of them, for what masks share while it is not there: at the beginning, and when it was forgotten
	partsWork   = 40e6     // the same when all parts of masks were forgotten
	maxMemory   = 16 << 20 // bytes of remembered places and masks, about, before they are forgotten
	warmWork    = 20e6     // elementary steps before the first request, for masks that will be asked for
)

// Error says why a source cannot be used. Path is where, "" if that is the source as a whole: in a schema a JSON path
// from $, in a grammar a line.
type Error struct {
	Path string
	Msg  string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

func errAt(path, format string, args ...any) error {
	return &Error{path, fmt.Sprintf(format, args...)}
}

var errLarge = &Error{"", "it is too large or too complex"}

// ErrAmbiguous says that a text can be read in more ways than are followed.
var ErrAmbiguous = errors.New("the text can be read in too many ways by its grammar")

// work counts steps against a limit.
type work struct{ left int }

func (w *work) spend(n int) error {
	if w.left -= n; w.left < 0 {
		return errLarge
	}
	return nil
}
