// Package loadgen loads any server of OpenAI's API with completions, and measures their latency and throughput
// as `vllm bench serve` defines them.
//
//	loadgen.go    options
//	workload.go   prompts and arrivals, by seed
//	dataset.go    prompts of a file
//	client.go     one request: the times of its chunks
//	run.go        the load: when requests are sent, and how many at once
//	stats.go      figures of the requests
//	report.go     what was measured; the tables
package loadgen

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What can be asked for.
const (
	Completions = "completions"
	Chat        = "chat"

	Text   = "text"   // prompts of words
	Tokens = "tokens" // prompts of token ids, which not all servers take
)

const (
	// MaxRequests of a point.
	MaxRequests    = 1_000_000
	maxLength      = 1 << 24
	maxConcurrency = 100_000
	// firstID of token prompts: many vocabularies begin with special tokens, one of which would end a prompt.
	firstID = 16
)

// Options is what to ask, how often and of whom.
type Options struct {
	URL         string        `json:"url"`
	Key         string        `json:"-"`
	Model       string        `json:"model"`
	Endpoint    string        `json:"endpoint"`
	Requests    int           `json:"num_prompts"` // of each point
	Warmup      int           `json:"warmup"`      // requests before the first point that do not count
	Shape       Shape         `json:"shape"`       // of prompts without a dataset
	DatasetFile string        `json:"dataset,omitempty"`
	Dataset     []Prompt      `json:"-"` // in place of made ones, from the beginning again when it is over
	Seed        uint64        `json:"seed"`
	IgnoreEOS   bool          `json:"ignore_eos"`
	Timeout     time.Duration `json:"timeout_ns"` // of each request
	Loads       []Load        `json:"-"`          // points have them
	Goodput     []Limit       `json:"goodput"`

	Transport http.RoundTripper `json:"-"` // nil: a new one
}

// Shape is how long made prompts and their answers are.
type Shape struct {
	Format string  `json:"prompt_format"`
	Input  int     `json:"input_len"`  // words or ids, behind the prefix
	Output int     `json:"output_len"` // tokens
	Spread float64 `json:"range_ratio"`
	Prefix int     `json:"prefix_len"` // of the beginning that all prompts share
	Vocab  int     `json:"vocab"`      // ids are below it
}

// Load is one point of a sweep.
type Load struct {
	Concurrency int  `json:"max_concurrency"` // at most so many requests at once; 0: no limit
	Rate        Rate `json:"request_rate"`
}

// Rate is of arrivals, per second; infinite: all at once.
type Rate float64

// ParseRate reads a number or inf.
func ParseRate(text string) (Rate, error) {
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(x) || x <= 0 {
		return 0, fmt.Errorf("%q is neither inf nor a number above 0", text)
	}
	return Rate(x), nil
}

func (r Rate) String() string {
	if math.IsInf(float64(r), 1) {
		return "inf"
	}
	return strconv.FormatFloat(float64(r), 'g', -1, 64)
}

// MarshalJSON makes a string of what JSON has no number for.
func (r Rate) MarshalJSON() ([]byte, error) {
	if math.IsInf(float64(r), 1) {
		return []byte(`"inf"`), nil
	}
	return []byte(r.String()), nil
}

// UnmarshalJSON is its inverse.
func (r *Rate) UnmarshalJSON(text []byte) (err error) {
	*r, err = ParseRate(strings.Trim(string(text), `"`))
	return err
}

// Limit is what a request must keep to for its part in the goodput.
type Limit struct {
	Metric string        `json:"metric"` // ttft, tpot or e2el
	Most   time.Duration `json:"most_ns"`
}

// ParseLimit reads METRIC:DURATION; a number without a unit is of milliseconds, as vLLM has it.
func ParseLimit(text string) (Limit, error) {
	metric, most, _ := strings.Cut(text, ":")
	switch metric {
	case "ttft", "tpot", "e2el":
	default:
		return Limit{}, fmt.Errorf("%q begins with neither ttft: nor tpot: nor e2el: before a duration", text)
	}
	d, err := time.ParseDuration(most)
	if ms, number := strconv.ParseFloat(most, 64); number == nil && ms < 1e12 {
		d, err = time.Duration(ms*float64(time.Millisecond)), nil
	}
	if err != nil || d <= 0 {
		return Limit{}, fmt.Errorf("%q has no duration above 0, such as 500ms", text)
	}
	return Limit{metric, d}, nil
}

// Check says what of the options makes no sense.
func (o *Options) Check() error {
	var errs []error
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf("cannot "+format, args...))
		}
	}
	s := &o.Shape
	refuse(o.Endpoint != Completions && o.Endpoint != Chat, "load the endpoint %q, only %s or %s", o.Endpoint, Completions, Chat)
	refuse(o.Requests < 1 || o.Requests > MaxRequests, "send %d requests, only 1 to %d", o.Requests, MaxRequests)
	refuse(o.Warmup < 0 || o.Warmup > MaxRequests, "warm up by %d requests", o.Warmup)
	refuse(s.Format != Text && s.Format != Tokens, "make prompts of %q, only of %s or %s", s.Format, Text, Tokens)
	refuse(s.Format == Tokens && o.Endpoint == Chat, "send token ids to the endpoint %s, which takes text alone", Chat)
	refuse(s.Input < 1 || s.Input > maxLength, "make prompts of length %d, only 1 to %d", s.Input, maxLength)
	refuse(s.Output < 1 || s.Output > maxLength, "ask for answers of %d tokens, only 1 to %d", s.Output, maxLength)
	refuse(s.Prefix < 0 || s.Prefix > maxLength, "make a prefix of length %d, only 0 to %d", s.Prefix, maxLength)
	refuse(!(s.Spread >= 0 && s.Spread < 1), "vary lengths by a share of %g, only by 0 to less than 1", s.Spread)
	refuse(s.Vocab <= firstID || s.Vocab > math.MaxInt32, "draw token ids below %d, only below %d to %d", s.Vocab, firstID+1, math.MaxInt32)
	refuse(o.Timeout <= 0, "wait %s for a request", o.Timeout)
	refuse(len(o.Loads) == 0, "measure no load")
	for _, l := range o.Loads {
		refuse(l.Concurrency < 0 || l.Concurrency > maxConcurrency, "send %d requests at once, only 1 to %d, or 0 for no limit", l.Concurrency, maxConcurrency)
		refuse(!(l.Rate > 0), "send %g requests per second", float64(l.Rate))
	}
	return errors.Join(errs...)
}
