package loadgen

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/infinite-llm/infinite/engine/openai"
)

// Report is what was measured, and with what settings.
type Report struct {
	Options     `json:"settings"`
	Interrupted bool    `json:"interrupted"`
	Points      []Point `json:"points"`
}

// Point is what was measured under one load. Every request asked for is OK, failed, stopped or unsent.
type Point struct {
	Load
	Asked     int       `json:"requests"`
	OK        int       `json:"ok"`
	Failed    int       `json:"failed"`
	Stopped   int       `json:"stopped"` // that were under way when the run was interrupted
	Unsent    int       `json:"unsent"`
	Errors    []Failure `json:"errors"`
	Peak      int       `json:"peak_concurrency"`
	Seconds   float64   `json:"seconds"` // from the first request to the last answer
	Input     int       `json:"input_tokens"`
	Output    int       `json:"output_tokens"`
	Uncounted int       `json:"uncounted"` // answers without usage: their input is in words or ids, their output in chunks

	RequestRate float64  `json:"requests_per_second"`
	InputRate   float64  `json:"input_tokens_per_second"`
	OutputRate  float64  `json:"output_tokens_per_second"`
	Good        *Goodput `json:"goodput,omitempty"`

	TTFT Times `json:"ttft_ms"` // from sending to the first chunk
	TPOT Times `json:"tpot_ms"` // (e2el - ttft) / (output tokens - 1), of answers with two or more
	ITL  Times `json:"itl_ms"`  // between two chunks
	E2EL Times `json:"e2el_ms"` // from sending to the last chunk
	Late Times `json:"late_ms"` // sent after it was due, for want of a place or because this end was too slow
}

// Failure is an error that requests had.
type Failure struct {
	Message string `json:"message"`
	Count   int    `json:"count"`
}

// Goodput is of requests that kept to all limits.
type Goodput struct {
	Requests  int     `json:"requests"`
	PerSecond float64 `json:"requests_per_second"`
}

// Verdict says what of a report is no success: an interruption, a point at which no request was answered, or,
// if strict, a request that was not.
func (r *Report) Verdict(strict bool) error {
	if r.Interrupted {
		return fmt.Errorf("cannot go on: it was interrupted, with %d of %d points begun", len(r.Points), len(r.Loads))
	}
	for _, p := range r.Points {
		if p.OK == 0 || strict && p.Failed > 0 {
			return fmt.Errorf("cannot measure %s: %d of %d requests failed", p.Load, p.Failed, p.Asked)
		}
	}
	return nil
}

func (l Load) String() string {
	return "max-concurrency " + l.concurrency() + ", request-rate " + l.Rate.String()
}

func (l Load) concurrency() string {
	if l.Concurrency == 0 {
		return "none"
	}
	return strconv.Itoa(l.Concurrency)
}

// Tables prints the report for people: a table of throughput and one of latency, each with a row for a point.
func (r *Report) Tables(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %s\n\n", r.URL, openai.Printable(r.Model, 200), r.Endpoint)
	r.throughput(&b)
	b.WriteString("\n")
	r.latency(&b)
	r.notes(&b)
	text := strings.TrimRight(b.String(), "\n") + "\n"
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("cannot print the report: %w", err)
	}
	return nil
}

// throughput and latency write to memory, which cannot fail.
func (r *Report) throughput(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	good := ""
	if len(r.Goodput) > 0 {
		good = "good req/s\t"
	}
	fmt.Fprintln(w, "concurrency\trate\tok\tfailed\tseconds\treq/s\tinput tok/s\toutput tok/s\t"+good)
	for i := range r.Points {
		p := &r.Points[i]
		if p.Good != nil {
			good = fmt.Sprintf("%.2f\t", p.Good.PerSecond)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%.2f\t%.2f\t%.1f\t%.1f\t%s\n", p.concurrency(), p.Rate, p.OK, p.Failed, p.Seconds,
			p.RequestRate, p.InputRate, p.OutputRate, good)
	}
	_ = w.Flush()
}

func (r *Report) latency(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "ms\tconcurrency\trate\tmean\tp50\tp90\tp99\tmax\t")
	for _, metric := range []struct {
		name string
		of   func(*Point) Times
	}{
		{"TTFT", func(p *Point) Times { return p.TTFT }}, {"TPOT", func(p *Point) Times { return p.TPOT }},
		{"ITL", func(p *Point) Times { return p.ITL }}, {"E2EL", func(p *Point) Times { return p.E2EL }},
	} {
		for i := range r.Points {
			p := &r.Points[i]
			t := metric.of(p)
			cells := "-\t-\t-\t-\t-"
			if t.Count > 0 {
				cells = fmt.Sprintf("%.2f\t%.2f\t%.2f\t%.2f\t%.2f", t.Mean, t.P50, t.P90, t.P99, t.Max)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", metric.name, p.concurrency(), p.Rate, cells)
		}
	}
	_ = w.Flush()
}

// notes are what the figures lack, and why.
func (r *Report) notes(b *strings.Builder) {
	b.WriteString("\n")
	for i := range r.Points {
		p := &r.Points[i]
		for _, e := range p.Errors {
			fmt.Fprintf(b, "error, %d times at %s: %s\n", e.Count, p.Load, e.Message)
		}
		if p.Uncounted > 0 {
			fmt.Fprintf(b, "note: at %s %d answers came without usage: words or ids stand for input tokens, chunks for output tokens\n", p.Load, p.Uncounted)
		}
	}
	if r.Interrupted {
		fmt.Fprintln(b, "note: interrupted; the last point has what was answered until then")
	}
}
