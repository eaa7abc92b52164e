package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// schemaRace is what etcd calls an error when it looks at its new store before that is written. It looks again.
const schemaRace = "failed to update storage version"

// etcdLogger takes the log of an embedded etcd. What it calls an error goes to slog, unless it is ending: it calls that
// one, too. What it would end the whole process for, by a panic or by exiting without a word, goes to fatal instead, and
// ends the goroutine that said it.
func etcdLogger(ending *atomic.Bool, fatal func(error)) *zap.Logger {
	hook := fatalHook{fatal}
	return zap.New(etcdLog{LevelEnabler: zapcore.ErrorLevel, ending: ending}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

type etcdLog struct {
	zapcore.LevelEnabler
	ending *atomic.Bool
	fields []zapcore.Field
}

func (l etcdLog) With(fields []zapcore.Field) zapcore.Core {
	l.fields = append(l.fields[:len(l.fields):len(l.fields)], fields...)
	return l
}

func (l etcdLog) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level != zapcore.ErrorLevel || e.Message == schemaRace || l.ending.Load() { // what is worse is said by who hears of it
		return to
	}
	return to.AddCore(e, l)
}

func (l etcdLog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	all := zapcore.NewMapObjectEncoder()
	for _, f := range append(l.fields[:len(l.fields):len(l.fields)], fields...) {
		f.AddTo(all)
	}
	slog.Warn("the embedded etcd has an error", "what", e.Message, "details", all.Fields)
	return nil
}

func (etcdLog) Sync() error { return nil }

type fatalHook struct{ fatal func(error) }

func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(e.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = fmt.Errorf("%s: %w", e.Message, cause)
		}
	}
	h.fatal(err)
	runtime.Goexit()
}
