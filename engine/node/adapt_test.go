package node

import (
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
)

// A line at once, then one for all that came in ten seconds.
func TestRefusals(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	for i, c := range []struct {
		total uint64
		after time.Duration
		want  uint64
	}{{0, 0, 0}, {3, 0, 3}, {100000, time.Second, 0}, {200003, 8 * time.Second, 0}, {200003, 11 * time.Second, 200000}, {200003, 30 * time.Second, 0}, {200004, 31 * time.Second, 1}} {
		if got := r.look(c.total, now.Add(c.after)); got != c.want {
			t.Errorf("look %d: %d, want %d", i, got, c.want)
		}
	}
}

// What running requests will take is no more than what they lack, nor than what the pool has for them.
func TestDue(t *testing.T) {
	at := func(blocks ...int) (spans []engine.SpanInfo) {
		for _, n := range blocks {
			spans = append(spans, engine.SpanInfo{Instance: "i1", Blocks: n})
		}
		return spans
	}
	for _, c := range []struct {
		name     string
		requests []engine.RequestInfo
		want     int
	}{
		{"none", nil, 0},
		{"whole blocks", []engine.RequestInfo{{Tokens: 160, Local: 4, Begun: true}}, 6},
		{"one more token", []engine.RequestInfo{{Tokens: 161, Local: 4, Begun: true}}, 7},
		{"it never began", []engine.RequestInfo{{Tokens: 160}}, 0},
		{"it was preempted", []engine.RequestInfo{{Tokens: 160, Begun: true}}, 10},
		{"a part is elsewhere", []engine.RequestInfo{{Tokens: 160, Local: 4, Spans: at(1, 2), Begun: true}}, 3},
		{"it has all", []engine.RequestInfo{{Tokens: 160, Local: 4, Spans: at(7), Begun: true}}, 0},
		{"more than the pool", []engine.RequestInfo{{Tokens: 10000, Local: 4, Begun: true}}, 56},
		{"two", []engine.RequestInfo{{Tokens: 160, Local: 4, Begun: true}, {Tokens: 320, Local: 1, Begun: true}}, 25},
		{"two with more than the pool", []engine.RequestInfo{{Tokens: 10000, Local: 4, Begun: true}, {Tokens: 320, Local: 1, Begun: true}}, 60},
	} {
		if got := due(c.requests, 16, 60); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
