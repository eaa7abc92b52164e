//go:build !linux

package probe

import (
	"context"
	"fmt"
	"runtime"

	"github.com/infinite-llm/infinite/engine/trace"
)

// Session is never open here.
type Session struct{}

// Open says that there is no such thing.
func Open(Config) (*Session, error) {
	return nil, fmt.Errorf("cannot trace on %s: uprobes and BPF ring buffers are Linux's (5.8 or newer)", runtime.GOOS)
}

func (*Session) Processes() []trace.Process                    { return nil }
func (*Session) Refused() []trace.Refusal                      { return nil }
func (*Session) Read(context.Context, func(trace.Event)) error { return nil }
func (*Session) Lost() (uint64, error)                         { return 0, nil }
func (*Session) Unknown() int                                  { return 0 }
func (*Session) Functions() ([]trace.Function, error)          { return nil, nil }
func (*Session) Close() error                                  { return nil }
