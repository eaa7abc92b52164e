package grammar

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Limits of a source and of what is made of it.
const (
	// MaxSource is the most bytes of a source.
	MaxSource = 256 << 10
	maxDepth  = 64      // of nested schemas, groups and merges
	maxRules  = 10_000  // of one grammar
	maxNodes  = 1 << 20 // of a schema's expressions, which are all in memory before automata are made of them; 150 bytes each
	maxStates = 150_000 // of all its automata, before and after they are made deterministic
	maxEdges  = 1 << 20
	maxWords  = 512 // bytes of what an error says
)

// Elementary steps of a compilation; one takes 5 to 130 ns.
const (
	// FullWork is the most that any may take: a second or two.
	FullWork = 20_000_000
	// QuickWork is what a hundred properties need many times over.
	QuickWork = 500_000
	lookEvery = 50_000 // between looks whether anybody still waits
)

// Limits of an automaton that runs.
const (
	maxItems    = 1024     // states that a place in the text may be in at once
	maxMaskWork = 1e6      // elementary steps of one mask
	remakeWork  = 10e6     // more of them, for what masks share while it is not there: at the beginning, and when it was forgotten
	partsWork   = 40e6     // the same when all parts of masks were forgotten
	maxMemory   = 16 << 20 // bytes of remembered places and masks, about, before they are forgotten
	warmWork    = 2e6      // elementary steps before the first request, for masks that will be asked for
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
	msg := fmt.Sprintf(format, args...)
	if len(msg) > maxWords { // a part of the source is in it
		msg = strings.ToValidUTF8(msg[:maxWords], "") + "..."
	}
	return &Error{path, msg}
}

var errLarge = &Error{"", "it is too large or too complex"}

// ErrAmbiguous says that a text can be read in more ways than are followed.
var ErrAmbiguous = errors.New("the text can be read in too many ways by its grammar")

// ErrUnfinished says that a source needs more steps than it was given, and fewer than FullWork would be.
var ErrUnfinished = errors.New("the grammar needs more work")

// work counts steps against a limit, and ends with a context. Its first error is that of all that follows.
type work struct {
	ctx  context.Context
	left int
	look int   // steps until ctx is looked at
	over error // once left is negative
	err  error
}

func newWork(ctx context.Context, steps int) *work {
	w := &work{ctx: ctx, left: min(steps, FullWork), look: lookEvery, over: ErrUnfinished}
	if steps >= FullWork {
		w.over = errLarge
	}
	return w
}

func (w *work) spend(n int) error {
	if w.err != nil {
		return w.err
	}
	w.left -= n
	if w.look -= n; w.look < 0 {
		w.look = lookEvery
		if w.ctx.Err() != nil {
			w.err = context.Cause(w.ctx)
			return w.err
		}
	}
	if w.left < 0 {
		w.err = w.over
	}
	return w.err
}
