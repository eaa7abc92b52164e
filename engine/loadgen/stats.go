package loadgen

import (
	"math"
	"slices"
	"time"
)

var inf = Rate(math.Inf(1))

// Times are figures of a set of times, in ms; all 0 of an empty one.
type Times struct {
	Count int     `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// timesOf sorts list.
func timesOf(list []time.Duration) Times {
	if len(list) == 0 {
		return Times{}
	}
	slices.Sort(list)
	sum := 0.0
	for _, d := range list {
		sum += milliseconds(d)
	}
	return Times{
		Count: len(list), Mean: sum / float64(len(list)), P50: percentile(list, 50), P90: percentile(list, 90),
		P99: percentile(list, 99), Max: milliseconds(list[len(list)-1]),
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// percentile of a sorted list that is not empty, in ms: as numpy has it, the value at place p/100 (n-1) counted
// from 0, where between two values the line between them counts.
func percentile(sorted []time.Duration, p float64) float64 {
	at := p / 100 * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	a, b := milliseconds(sorted[low]), milliseconds(sorted[high])
	return a + (b-a)*(at-float64(low))
}

// tpot is the time per token after the first, ok unless there was none.
func (o *outcome) tpot() (t time.Duration, ok bool) {
	if o.output < 2 {
		return 0, false
	}
	return (o.latency - o.ttft) / time.Duration(o.output-1), true
}

// good tells whether a request kept to all limits. Without a second token it has no tpot that could be too long.
func (o *outcome) good(limits []Limit) bool {
	tpot, _ := o.tpot()
	for _, l := range limits {
		if map[string]time.Duration{"ttft": o.ttft, "tpot": tpot, "e2el": o.latency}[l.Metric] > l.Most {
			return false
		}
	}
	return true
}

// figures makes a point of what was measured. Only requests that were answered to their end have a part in
// tokens and times.
func (m *measured) figures(o *Options) Point {
	p := Point{Load: m.load, Asked: m.asked, Unsent: m.asked - len(m.outcomes), Seconds: m.took.Seconds(), Peak: m.peak, Errors: []Failure{}}
	var ttft, tpot, itl, e2el, late []time.Duration
	good := 0
	for i := range m.outcomes {
		x := &m.outcomes[i]
		late = append(late, x.late)
		switch {
		case x.stopped:
			p.Stopped++
			continue
		case x.err != nil:
			p.fail(reason(x.err))
			continue
		}
		p.OK++
		p.Input += x.prompt
		p.Output += x.output
		if !x.counted {
			p.Uncounted++
		}
		ttft, e2el, itl = append(ttft, x.ttft), append(e2el, x.latency), append(itl, x.gaps...)
		if t, ok := x.tpot(); ok {
			tpot = append(tpot, t)
		}
		if x.good(o.Goodput) {
			good++
		}
	}
	p.TTFT, p.TPOT, p.ITL, p.E2EL, p.Late = timesOf(ttft), timesOf(tpot), timesOf(itl), timesOf(e2el), timesOf(late)
	if p.Seconds > 0 {
		p.RequestRate, p.InputRate, p.OutputRate = float64(p.OK)/p.Seconds, float64(p.Input)/p.Seconds, float64(p.Output)/p.Seconds
	}
	if len(o.Goodput) > 0 {
		p.Good = &Goodput{Requests: good}
		if p.Seconds > 0 {
			p.Good.PerSecond = float64(good) / p.Seconds
		}
	}
	return p
}

// maxErrors is how many different errors a point has; others are counted together.
const maxErrors = 5

const otherErrors = "other errors"

func (p *Point) fail(message string) {
	p.Failed++
	find := func(s string) int { return slices.IndexFunc(p.Errors, func(f Failure) bool { return f.Message == s }) }
	i := find(message)
	if i < 0 && len(p.Errors) >= maxErrors {
		message = otherErrors
		i = find(message)
	}
	if i < 0 {
		i = len(p.Errors)
		p.Errors = append(p.Errors, Failure{Message: message})
	}
	p.Errors[i].Count++
}
