package sched

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// wave runs what becomes of a wave: the outcome of a Form, its start, and a request that assists.
func (c *script) wave(t *testing.T, d *datadriven.TestData, id kvcache.RequestID) string {
	parts := scan(t, d, "parts", 0)
	course := kvcache.Cut(scan(t, d, "base", 0), scan(t, d, "tokens", 0), scan(t, d, "chunk", 16), max(parts, 1), scan(t, d, "me", parts-1))
	var spans []kvcache.Span
	for i := range max(parts-1, 0) {
		c.moved++
		spans = append(spans, kvcache.Span{Instance: fmt.Sprint("peer", i), Handle: uint32(c.moved), Generation: 1, Shared: true})
	}
	show := func(err error) string {
		if err != nil {
			return err.Error() + "\n" + c.counts()
		}
		return c.table(id) + c.counts()
	}
	switch d.Cmd {
	case "formed":
		back, ok := c.s.Formed(id, course, spans)
		return fmt.Sprintf("release %d spans, %v\n", len(back), ok) + show(nil)
	case "started":
		return show(c.s.Started(id, spans))
	default:
		course = course.Until(course.Me)
		c.texts[id] = []rune(strings.Repeat("x", course.End()))
		return show(c.s.Assist(Request{ID: id, Arrival: uint64(id), Tokens: course.End()}, course))
	}
}

// table shows where a request's blocks are.
func (c *script) table(id kvcache.RequestID) string {
	t, err := c.kv.Table(id)
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, s := range t.Spans {
		fmt.Fprintf(&b, "%s %d ", s.Instance, s.Blocks)
	}
	fmt.Fprintf(&b, "local %d; in a wave %v\n", len(t.Local), c.s.InWave(id))
	return b.String()
}
