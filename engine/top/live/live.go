// Package live asks a server for its cluster again and again and shows it: on a terminal's screen, or as text or JSON on
// what is none.
//
//	live.go    asking and showing, until it ends
//	ask.go     one sample of a server
//	screen.go  a terminal, and how it was before
package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/top"
)

// Asker has samples.
type Asker interface {
	Ask(ctx context.Context) (top.Sample, error)
}

// Options of Run.
type Options struct {
	Source   string        // what is asked, for the title
	Interval time.Duration // between two samples
	Once     bool          // two samples, then the end
	JSON     bool          // an object a line, in place of text
	Out      io.Writer     // where no Screen is
	Width    int           // columns of text on Out
	Screen   *Screen       // nil: none
}

// maxError is how much of an error is shown, in bytes.
const maxError = 200

// Run shows what asker says until ctx ends, which is no error, or Out fails. While the server is away it says so and goes
// on, unless it refuses the key: that does not change by asking again.
func Run(ctx context.Context, asker Asker, o Options) error {
	l := &looker{Options: o, asker: asker, history: top.History{Interval: o.Interval}}
	if o.Once {
		return l.once(ctx)
	}
	l.results = make(chan result)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ticks := time.NewTicker(o.Interval)
	defer ticks.Stop()
	go l.ask(ctx, ticks.C)
	if o.Screen != nil {
		defer o.Screen.watch(stop)()
	}
	err := l.loop(ctx)
	stop()
	for r := range l.results { // ask ends before its screen does
		r.check()
	}
	return err
}

type looker struct {
	Options
	asker   Asker
	history top.History
	results chan result
	last    *top.Figures // nil while there are none
	err     error        // of the last sample
	since   time.Time    // when err began
}

type result struct {
	sample top.Sample
	err    error
	at     time.Time
	panic  any
}

func (r *result) check() {
	if r.panic != nil {
		panic(r.panic)
	}
}

// ask sends a sample now and at every tick, until ctx ends, and then closes results. Who has a terminal to restore is told
// of a panic.
func (l *looker) ask(ctx context.Context, ticks <-chan time.Time) {
	defer close(l.results)
	defer func() {
		if v := recover(); v != nil {
			l.results <- result{panic: v}
		}
	}()
	for {
		s, err := l.asker.Ask(ctx)
		select {
		case l.results <- result{sample: s, err: err, at: time.Now()}:
		case <-ctx.Done():
			return
		}
		select {
		case <-ticks:
		case <-ctx.Done():
			return
		}
	}
}

func (l *looker) loop(ctx context.Context) error {
	var resized <-chan struct{}
	if l.Screen != nil {
		resized = l.Screen.resized
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
		case r, ok := <-l.results:
			if !ok {
				continue // ctx is done
			}
			r.check()
			if err := l.take(ctx, r); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil // the sample was cut off, and there is nothing new to show
			}
		}
		if err := l.show(); err != nil {
			return fmt.Errorf("cannot show the cluster: %w", err)
		}
	}
}

// take makes figures of a sample; an error is one that ends it all.
func (l *looker) take(ctx context.Context, r result) error {
	var refused *openai.ServerError
	switch {
	case r.err == nil:
		l.last, l.err = l.history.Add(r.sample), nil
	case ctx.Err() != nil: // that is why
	case errors.As(r.err, &refused) && (refused.Status == http.StatusUnauthorized || refused.Status == http.StatusForbidden):
		return r.err
	default:
		if l.err == nil {
			l.since = r.at
		}
		l.err = r.err
	}
	return nil
}

// once takes two samples: rates are between them.
func (l *looker) once(ctx context.Context) error {
	for i := range 2 {
		if i > 0 {
			select {
			case <-time.After(l.Interval):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s, err := l.asker.Ask(ctx)
		if err != nil {
			return err
		}
		l.last = l.history.Add(s)
	}
	if err := l.show(); err != nil {
		return fmt.Errorf("cannot show the cluster: %w", err)
	}
	return nil
}

// away is what is said of a server that is; "" if it is there.
func (l *looker) away() string {
	if l.err == nil {
		return ""
	}
	text := fmt.Sprintf("%s; since %s", openai.Printable(l.err.Error(), maxError), l.since.Format("15:04:05"))
	if l.last != nil {
		text += ", below is what it last said"
	}
	return text
}

func (l *looker) show() error {
	if l.JSON {
		return l.json()
	}
	v := top.View{Source: l.Source, Width: l.Width, Away: l.away()}
	if l.Screen != nil {
		return l.Screen.draw(v, l.last)
	}
	last := l.last
	if l.err != nil { // what was said before stands above
		last, v.Away = nil, openai.Printable(l.err.Error(), maxError)
	}
	text := v.Text(last)
	if !l.Once {
		text += "\n"
	}
	_, err := io.WriteString(l.Out, text)
	return err
}

// json writes the figures, or {"time", "error"}.
func (l *looker) json() error {
	e := json.NewEncoder(l.Out)
	e.SetEscapeHTML(false)
	if l.err == nil {
		return e.Encode(l.last)
	}
	return e.Encode(struct {
		At    time.Time `json:"time"`
		Error string    `json:"error"`
	}{time.Now(), openai.Printable(l.err.Error(), maxError)})
}
