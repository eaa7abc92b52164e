package top

import (
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

// Counters of an instance that rates are made of.
const (
	steps = iota
	stepSeconds
	remoteWait
	moved
	queries
	hits
	hitsElsewhere
	preemptions // no rate is made of it, but it tells an instance that started anew, as all do
	recoveries
	counters
)

const (
	// rateSpan is what rates are over, at least: in less there would be a heartbeat too many or too few.
	rateSpan = 900 * time.Millisecond
	// keptSpan is how long points are kept, and what hit shares are over: requests begin seldom, seen from a step.
	keptSpan = time.Minute
	// pointEvery is how far apart points are that are kept.
	pointEvery = time.Second
	// mostGap is how long a server may have been away, or an instance missing, for the next rate to be over that time.
	mostGap = 10 * time.Second
)

// point is counters at one time.
type point struct {
	at     time.Time
	values [counters]float64
}

// series are the points of one source of counters since it started, as far as they are kept, in order of time.
type series struct{ points []point }

// add notes counters. If one of them is less than it was, all began at zero after the point before.
func (s *series) add(p point, gap time.Duration) {
	if n := len(s.points); n > 0 {
		last := s.points[n-1]
		switch {
		case !p.at.After(last.at):
			return
		case p.at.Sub(last.at) > gap:
			s.points = s.points[:0]
		case restarted(last, p):
			s.points = append(s.points[:0], point{at: last.at})
		}
	}
	s.points = append(s.points, p)
	if n := len(s.points); n >= 3 && p.at.Sub(s.points[n-3].at) < pointEvery {
		s.points = append(s.points[:n-2], p)
	}
	for len(s.points) > 2 && p.at.Sub(s.points[1].at) >= keptSpan {
		s.points = s.points[1:]
	}
}

func restarted(before, now point) bool {
	for i, x := range now.values {
		if x < before.values[i] {
			return true
		}
	}
	return false
}

// since is what the counters grew by over at least span, or as long as they are known, and how many seconds that is; 0
// while there is one point.
func (s *series) since(span time.Duration) (grown [counters]float64, seconds float64) {
	last := s.points[len(s.points)-1]
	base := s.points[0]
	for _, p := range s.points {
		if last.at.Sub(p.at) >= span {
			base = p
		}
	}
	for i := range grown {
		grown[i] = last.values[i] - base.values[i]
	}
	return grown, last.at.Sub(base.at).Seconds()
}

// History makes figures of samples that come one after the other. A sample that is missing is none that was added.
type History struct {
	// Interval is how often samples come, about: what is missed for three of them, and for ten seconds, is no base of a rate.
	Interval  time.Duration
	instances map[string]*series
	api       series
}

func (h *History) gap() time.Duration { return max(mostGap, 3*h.Interval) }

func instancePoint(at time.Time, in *server.InstanceView) point {
	p := point{at: at}
	p.values = [counters]float64{
		steps: float64(in.Steps), stepSeconds: in.StepSeconds, remoteWait: in.RemoteWaitSeconds, moved: float64(in.KVBlocksMoved),
		queries: float64(in.PrefixQueries), hits: float64(in.PrefixHits), hitsElsewhere: float64(in.SharedHits),
		preemptions: float64(in.Preemptions), recoveries: float64(in.Recoveries),
	}
	for i, x := range p.values {
		p.values[i] = number(x)
	}
	return p
}

// rates fills what is made of the instance's counters.
func (h *History) rates(into *Instance, p point) {
	s := h.instances[into.ID]
	if s == nil {
		s = &series{}
		h.instances[into.ID] = s
	}
	s.add(p, h.gap())
	d, seconds := s.since(rateSpan)
	into.Steps = per(d[steps], seconds)
	into.StepTime = per(d[stepSeconds], d[steps])
	into.RemoteWait = per(min(d[remoteWait], d[stepSeconds]), d[stepSeconds])
	into.Moved = per(d[moved], seconds)
	if d, _ = s.since(keptSpan); d[queries] == 0 {
		d = p.values // none began: those since the instance did
	}
	into.Hits = per(min(d[hits], d[queries]), d[queries])
	into.HitsElsewhere = per(min(d[hitsElsewhere], d[queries]), d[queries])
}

// tokens are the API process's rates; unknown where it does not tell them.
func (h *History) tokens(s *Sample) (in, out Rate) {
	if s.Tokens == nil {
		return in, out
	}
	p := point{at: s.At}
	p.values[0], p.values[1] = s.Tokens.Prompt, s.Tokens.Generated
	h.api.add(p, h.gap())
	d, seconds := h.api.since(rateSpan)
	return per(d[0], seconds), per(d[1], seconds)
}
