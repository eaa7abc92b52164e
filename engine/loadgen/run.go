package loadgen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/infinite-llm/infinite/engine/openai"
)

type runner struct {
	options *Options
	client  *openai.Client
	path    string
}

// Run measures one point after another. If ctx ends first, the report has what there was, and says so.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	transport := o.Transport
	if transport == nil {
		own := newTransport()
		defer own.CloseIdleConnections()
		transport = own
	}
	r := runner{&o, &openai.Client{URL: o.URL, Key: o.Key, HTTP: &http.Client{Transport: transport}}, "/v1/completions"}
	if o.Endpoint == Chat {
		r.path = "/v1/chat/completions"
	}
	report := &Report{Options: o, Points: []Point{}}
	if o.Model == "" {
		// The same limit as for any request.
		limited, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		name, err := r.client.FirstModel(limited)
		if err != nil {
			return nil, fmt.Errorf("cannot ask for the model's name: %w", err)
		}
		o.Model, report.Model = name, name
	}
	if err := r.warmUp(ctx); err != nil {
		return nil, err
	}
	for i, l := range o.Loads {
		if ctx.Err() != nil {
			break
		}
		m, err := r.point(ctx, i, l, o.Requests)
		if err != nil {
			return nil, err
		}
		p := m.figures(&o)
		slog.Info("a point is measured", "max_concurrency", l.Concurrency, "request_rate", l.Rate, "ok", p.OK, "failed", p.Failed,
			"seconds", p.Seconds)
		report.Points = append(report.Points, p)
	}
	report.Interrupted = ctx.Err() != nil
	return report, nil
}

// warmUp sends prompts that no point has. A server that answers none of them is not worth a measurement.
func (r *runner) warmUp(ctx context.Context) error {
	if r.options.Warmup == 0 {
		return nil
	}
	const point = -1 // a number of its own
	load := Load{Concurrency: r.options.Loads[0].Concurrency, Rate: inf}
	m, err := r.point(ctx, point, load, r.options.Warmup)
	if err != nil {
		return err
	}
	var failed error
	for _, o := range m.outcomes {
		if o.err == nil {
			return nil
		}
		if !o.stopped {
			failed = o.err
		}
	}
	if failed == nil { // interrupted
		return nil
	}
	return fmt.Errorf("cannot warm up: %s", reason(failed))
}

// measured is one point, raw.
type measured struct {
	load     Load
	asked    int
	outcomes []outcome // of what was sent, in order
	took     time.Duration
	peak     int // most requests at once
}

// point sends n requests, each when it is due and a place is free. They are sent in order.
func (r *runner) point(ctx context.Context, number int, l Load, n int) (*measured, error) {
	m := &measured{load: l, asked: n}
	outcomes := make([]outcome, n)
	due := r.options.schedule(l.Rate, n)
	var places chan struct{}
	if l.Concurrency > 0 {
		places = make(chan struct{}, l.Concurrency)
	}
	next, body, err := r.prepare(number, 0)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	var flying, peak atomic.Int64
	start, sent := time.Now(), 0
	for ; sent < n; sent++ {
		if wait(ctx, start.Add(due[sent]), places) != nil {
			break
		}
		p, b, out, late := next, body, &outcomes[sent], max(0, time.Since(start)-due[sent])
		if now := flying.Add(1); now > peak.Load() {
			peak.Store(now) // only here is it raised
		}
		wg.Go(func() {
			*out = r.ask(ctx, p, b)
			out.late = late
			flying.Add(-1)
			if places != nil {
				<-places
			}
		})
		if sent+1 < n { // made before it is due
			if next, body, err = r.prepare(number, sent+1); err != nil {
				sent++
				break
			}
		}
	}
	wg.Wait()
	m.took, m.outcomes, m.peak = time.Since(start), outcomes[:sent], int(peak.Load())
	return m, err
}

func (r *runner) prepare(point, i int) (Prompt, []byte, error) {
	p := r.options.prompt(point, i)
	body, err := r.options.body(p)
	return p, body, err
}

var errStopped = errors.New("stopped")

// wait until it is time and there is a place, if places are limited.
func wait(ctx context.Context, until time.Time, places chan struct{}) error {
	if d := time.Until(until); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return errStopped
		}
	}
	if ctx.Err() != nil {
		return errStopped
	}
	if places == nil {
		return nil
	}
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errStopped
	}
}
