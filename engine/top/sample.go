package top

import (
	"bufio"
	"cmp"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

// Bounds of what is kept of a server's answer.
const (
	maxInstances = 1024
	maxRequests  = 100
	maxSpans     = 64
	maxName      = 64 // bytes of an id or a device's name
	maxLinks     = 8  // transports
	maxNumber    = 1 << 52
	maxLine      = 64 << 10 // bytes of a line of /metrics
)

// Sample is what a server said at one time.
type Sample struct {
	At     time.Time
	View   server.ClusterView
	Tokens *Tokens // nil where /metrics did not tell
}

// Tokens are the API process's counters.
type Tokens struct{ Prompt, Generated float64 }

// ReadTokens finds the counters in the text of /metrics; nil if one is missing.
func ReadTokens(metrics io.Reader) (*Tokens, error) {
	var t Tokens
	missing := map[string]*float64{"infinite_prompt_tokens_total": &t.Prompt, "infinite_generation_tokens_total": &t.Generated}
	lines := bufio.NewScanner(metrics)
	lines.Buffer(nil, maxLine)
	for len(missing) > 0 && lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		into := missing[name]
		if into == nil {
			continue
		}
		x, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err == nil {
			*into = number(x)
			delete(missing, name)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, nil
	}
	return &t, nil
}

// number is x where a counter or a gauge can be that.
func number(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return min(max(x, 0), maxNumber)
}

func count[T int | uint32 | uint64](n T) int {
	if n <= 0 {
		return 0
	}
	return int(min(uint64(n), maxNumber))
}

// name is text that a server sent as it can be drawn: one column a character, and none that a terminal obeys.
func name(text string) string {
	text = text[:min(len(text), 4*maxName)] // before the work
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return clean[:min(len(clean), maxName)]
}

// instances are the sample's, each id once, by the order of ids in which numbers count: i2 before i10.
func (s *Sample) instances() []server.InstanceView {
	all := s.View.Instances[:min(len(s.View.Instances), maxInstances)]
	out := make([]server.InstanceView, 0, len(all))
	seen := map[string]bool{}
	for _, in := range all {
		if in.ID = name(in.ID); !seen[in.ID] {
			seen[in.ID] = true
			out = append(out, in)
		}
	}
	slices.SortStableFunc(out, func(a, b server.InstanceView) int { return compareNames(a.ID, b.ID) })
	return out
}

// compareNames puts the shorter first where both begin alike up to a number.
func compareNames(a, b string) int {
	letters := func(s string) string { return strings.TrimRight(s, "0123456789") }
	if letters(a) == letters(b) {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	}
	return cmp.Compare(a, b)
}

func poolOf(in *server.InstanceView) Pool {
	p := Pool{Total: count(in.KVBlocksTotal), Lent: count(in.KVBlocksLent), Shared: count(in.KVBlocksShared)}
	p.Free = min(count(in.KVBlocksFree), p.Total)
	p.Cached = min(count(in.KVBlocksCached), p.Free)
	p.Hosted = min(count(in.KVBlocksHosted), p.Total-p.Free)
	p.Own = p.Total - p.Free - p.Hosted
	return p
}

func (p *Pool) add(q Pool) {
	for _, x := range []struct{ sum, more *int }{{&p.Total, &q.Total}, {&p.Own, &q.Own}, {&p.Hosted, &q.Hosted}, {&p.Free, &q.Free},
		{&p.Cached, &q.Cached}, {&p.Lent, &q.Lent}, {&p.Shared, &q.Shared}} {
		*x.sum += *x.more
	}
}

// requests are the largest, by tokens, and of the same size by id.
func (s *Sample) requests() []Request {
	order := make([]*server.RequestPlacement, len(s.View.Requests))
	for i := range order {
		order[i] = &s.View.Requests[i]
	}
	slices.SortStableFunc(order, func(a, b *server.RequestPlacement) int {
		return cmp.Or(cmp.Compare(b.Tokens, a.Tokens), cmp.Compare(a.ID, b.ID))
	})
	out := []Request{}
	for _, r := range order[:min(len(order), maxRequests)] {
		q := Request{ID: name(r.ID), Home: name(r.Home), Tokens: count(r.Tokens), Spans: []Span{}}
		for _, sp := range r.Spans {
			q.add(Span{name(sp.Instance), count(sp.Blocks)})
		}
		out = append(out, q)
	}
	return out
}

// add puts a span behind the others.
func (q *Request) add(s Span) {
	if s.Blocks = min(s.Blocks, maxNumber-q.Blocks); s.Blocks == 0 {
		return
	}
	q.Blocks += s.Blocks
	last := len(q.Spans) - 1
	switch {
	case last >= 0 && q.Spans[last].Instance == s.Instance:
		q.Spans[last].Blocks += s.Blocks
	case last+1 < maxSpans:
		q.Spans = append(q.Spans, s)
	default:
		q.Spans[last] = Span{"", q.Spans[last].Blocks + s.Blocks}
	}
}
