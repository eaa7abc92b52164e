package loadgen

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func ms(list ...float64) (out []time.Duration) {
	for _, x := range list {
		out = append(out, time.Duration(x*float64(time.Millisecond)))
	}
	return out
}

// The answers are numpy's, by its percentile with the default method.
func TestTimes(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[len(hundred)-1-i] = float64(i + 1)
	}
	for _, c := range []struct {
		in   []float64
		want Times
	}{
		{nil, Times{}},
		{[]float64{7}, Times{1, 7, 7, 7, 7, 7}},
		{[]float64{3, 1}, Times{2, 2, 2, 2.8, 2.98, 3}},
		{[]float64{1, 4, 2, 3}, Times{4, 2.5, 2.5, 3.7, 3.97, 4}},
		{[]float64{10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, Times{11, 20.0 / 11, 1, 1, 9.1, 10}},
		{hundred, Times{100, 50.5, 50.5, 90.1, 99.01, 100}},
	} {
		got := timesOf(ms(c.in...))
		if got.Count != c.want.Count {
			t.Errorf("%v: %+v", c.in, got)
		}
		near(t, "mean", got.Mean, c.want.Mean)
		near(t, "p50", got.P50, c.want.P50)
		near(t, "p90", got.P90, c.want.P90)
		near(t, "p99", got.P99, c.want.P99)
		near(t, "max", got.Max, c.want.Max)
	}
}

func TestFigures(t *testing.T) {
	sample := func(ttft, latency float64, output int, gaps ...float64) outcome {
		return outcome{ttft: ms(ttft)[0], latency: ms(latency)[0], gaps: ms(gaps...), prompt: 10, output: output, counted: true}
	}
	m := measured{load: Load{3, 2}, asked: 8, took: 2 * time.Second, peak: 3, outcomes: []outcome{
		sample(10, 40, 4, 10, 20),
		sample(30, 30, 1),
		sample(20, 120, 11, 100),
		{err: errors.New("lost"), ttft: time.Hour, output: 99, prompt: 99},
		{err: errors.New("cancelled"), stopped: true, ttft: time.Hour},
	}}
	p := m.figures(&Options{Goodput: []Limit{{"tpot", ms(10)[0]}, {"ttft", ms(20)[0]}}})
	if p.OK != 3 || p.Failed != 1 || p.Stopped != 1 || p.Unsent != 3 || p.Input != 30 || p.Output != 16 || p.Good.Requests != 2 {
		t.Errorf("point is %+v", p)
	}
	near(t, "ttft", p.TTFT.Mean, 20)
	near(t, "tpot", p.TPOT.Mean, 10) // 30/3 and 100/10; an answer of one token has none
	near(t, "itl", p.ITL.Mean, 130.0/3)
	near(t, "e2el", p.E2EL.Mean, 190.0/3)
	near(t, "requests/s", p.RequestRate, 1.5)
	near(t, "output tokens/s", p.OutputRate, 8)
	if p.TPOT.Count != 2 || p.ITL.Count != 3 || p.Late.Count != 5 {
		t.Errorf("point is %+v", p)
	}
	// An answer of one token has no tpot that could be too long; a limit is kept by what is just as long.
	for limit, want := range map[string]int{"tpot:1ns": 1, "ttft:10ms": 1, "ttft:9ms": 0, "e2el:40ms": 2, "e2el:1h": 3} {
		l, err := ParseLimit(limit)
		if got := m.figures(&Options{Goodput: []Limit{l}}).Good.Requests; got != want || err != nil {
			t.Errorf("%s: %d are good, %v", limit, got, err)
		}
	}
}

func TestReport(t *testing.T) {
	o := options(nil, Load{0, inf}, Load{2, 0.5})
	o.Key, o.Model, o.Goodput = "secret-key", "m\x1b[31m", []Limit{{"ttft", time.Second}}
	m := measured{load: o.Loads[0], asked: 1, took: time.Second, outcomes: []outcome{{ttft: time.Millisecond, latency: 3 * time.Millisecond, prompt: 5, output: 3, gaps: ms(1, 1)}}}
	none := measured{load: o.Loads[1], asked: 1, outcomes: []outcome{{err: errors.New("lost")}}}
	r := &Report{Options: o, Points: []Point{m.figures(&o), none.figures(&o)}}
	var b strings.Builder
	if err := r.Tables(&b); err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, line := range strings.Split(b.String(), "\n") {
		rows[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, want := range []string{
		"http://fake, m?[31m, completions",
		"concurrency rate ok failed seconds req/s input tok/s output tok/s good req/s",
		"none inf 1 0 1.00 1.00 5.0 3.0 1.00",
		"2 0.5 0 1 0.00 0.00 0.0 0.0 0.00",
		"TPOT none inf 1.00 1.00 1.00 1.00 1.00",
		"E2EL 2 0.5 - - - - -",
		"error, 1 times at max-concurrency 2, request-rate 0.5: lost",
		"note: at max-concurrency none, request-rate inf 1 answers came without usage: words or ids stand for input tokens, chunks for output tokens",
	} {
		if !rows[want] {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	data, err := json.Marshal(r)
	var back struct {
		Settings struct {
			Model string
			Seed  *uint64
		}
		Points []struct {
			Rate Rate  `json:"request_rate"`
			TTFT Times `json:"ttft_ms"`
		}
	}
	if err != nil || json.Unmarshal(data, &back) != nil || strings.Contains(string(data), "secret-key") || back.Settings.Seed == nil ||
		back.Points[0].Rate != inf || back.Points[1].Rate != 0.5 || back.Points[0].TTFT.P99 != 1 {
		t.Errorf("%v: %s", err, data)
	}
	if err := r.Verdict(false); err == nil || !strings.Contains(err.Error(), "request-rate 0.5: 1 of 1 requests failed") {
		t.Error(err)
	}
	if r.Points = r.Points[:1]; r.Verdict(true) != nil {
		t.Error(r.Verdict(true))
	}
}
