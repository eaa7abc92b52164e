package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/plan"
	"github.com/infinite-llm/infinite/engine/sched"
)

// What a step computed, by its own lists.
func TestWorkOfAStep(t *testing.T) {
	type seq struct {
		pos0, n int
		spans   []batch.Span
	}
	span := func(peer, tokens int) batch.Span { return batch.Span{Peer: uint32(peer), NTokens: uint32(tokens)} }
	for name, c := range map[string]struct {
		seqs []seq
		want plan.Step
	}{
		"a decode":         {[]seq{{99, 1, nil}}, plan.Step{Tokens: 1, KV: 100}},
		"a batch":          {[]seq{{99, 1, nil}, {9, 1, nil}}, plan.Step{Tokens: 2, KV: 110}},
		"a prompt":         {[]seq{{0, 4, nil}}, plan.Step{Tokens: 4, Scores: 10}},
		"its next part":    {[]seq{{10, 2, nil}}, plan.Step{Tokens: 2, Scores: 11 + 12}},
		"both":             {[]seq{{10, 2, nil}, {4, 1, nil}}, plan.Step{Tokens: 3, Scores: 23, KV: 5}},
		"one elsewhere":    {[]seq{{99, 1, []batch.Span{span(3, 64)}}}, plan.Step{Tokens: 1, KV: 36, Asked: 64}},
		"at two creditors": {[]seq{{99, 1, []batch.Span{span(3, 32), span(1, 16)}}, {99, 1, []batch.Span{span(1, 32)}}}, plan.Step{Tokens: 2, KV: 52 + 68, Asked: 48}},
		"a part elsewhere": {[]seq{{64, 2, []batch.Span{span(0, 64)}}}, plan.Step{Tokens: 2, Scores: 3, Asked: 64}},
	} {
		t.Run(name, func(t *testing.T) {
			kv, err := kvcache.New(4, blockSize)
			if err != nil {
				t.Fatal(err)
			}
			e := &Engine{kv: kv, share: make([]share, len(c.seqs))}
			for range 2 { // what one step asked says nothing of the next
				st := batch.NewStep(batch.Limits{MaxTokens: 64, MaxSeqs: 4, MaxRows: 4, MaxBlocks: 64, MaxSpans: 8})
				st.Reset(1, 0, 0)
				for i, q := range c.seqs {
					there := 0
					for _, s := range q.spans {
						there += int(s.NTokens)
					}
					if _, err := st.AddSeq(uint32(i), q.pos0, there, make([]int32, q.n), nil, q.spans); err != nil {
						t.Fatal(err)
					}
				}
				c.want.Took = time.Second
				if diff := cmp.Diff(c.want, e.work(st, time.Second)); diff != "" {
					t.Fatal(diff)
				}
			}
		})
	}
}

// Blocks that a plan wants elsewhere go there without pressure, and the answer is what it would be.
func TestPlace(t *testing.T) {
	c := newSim(t, 3, 400, sched.Config{MaxNumSeqs: 4, MaxBatchedTokens: 2048, MaxWaiting: 4, MaxOffload: 16})
	n := c.nodes[0]
	n.eng.cfg.Speculation = Speculation{} // a token a step, so that it lasts
	const answer = 3000                   // long beside the moves
	p := prompt(1, 100*blockSize)
	release := n.hold(false)
	s := submit(t, n, Request{ID: "long", Prompt: p, MaxTokens: answer, Sampling: sampling(1)})
	ev, err := s.Next(t.Context())
	if err != nil || !ev.HasToken {
		t.Fatal(ev, err)
	}
	id := n.eng.Requests()[0].Request
	for name, x := range map[string]struct {
		Placing
		err error
	}{
		"an unknown request": {Placing{id + 1, "long", "n2", 10}, kvcache.ErrUnknown},
		"another one":        {Placing{id, "short", "n2", 10}, kvcache.ErrUnknown},
		"no block":           {Placing{id, "long", "n2", 0}, kvcache.ErrState},
		"fewer":              {Placing{id, "long", "n2", -1}, kvcache.ErrState},
		"more than it has":   {Placing{id, "long", "n2", 101}, kvcache.ErrState},
		"nowhere":            {Placing{id, "long", "", 10}, kvcache.ErrState},
	} {
		if err := n.eng.Place(x.Placing); !errors.Is(err, x.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := n.eng.Place(Placing{id, "long", "n2", 40}); err != nil {
		t.Fatal(err)
	}
	if err := n.eng.Place(Placing{id, "long", "n1", 10}); !errors.Is(err, kvcache.ErrState) {
		t.Errorf("a second plan: %v", err)
	}
	if r := n.eng.Requests()[0]; r.Planned != 40 || r.PlannedTo != "n2" || r.Movable != 99 && r.Movable != 100 {
		t.Errorf("%+v", r)
	}
	release()
	eventually(t, "the blocks are placed, or all is over", func() bool {
		return n.eng.Stats().PlannedBlocks == 40 || len(n.eng.Requests()) == 0
	})
	got, events := read(t, s)
	if w := want(1, p, answer); !cmp.Equal(append([]int32{ev.Token}, got...), w) {
		t.Fatalf("another answer of %d tokens", len(got))
	}
	if spans := last(events).Spans; len(spans) != 2 || spans[0] != (SpanInfo{"n2", 40}) {
		t.Errorf("it ends with %+v", spans)
	}
	c.settled()
	if st := n.eng.Stats(); st.PlannedMoves != 1 || st.PlannedBlocks != 40 || st.Offloads != 3 || st.Recoveries != 0 {
		t.Errorf("%+v", st)
	}
	if err := n.eng.Place(Placing{id, "long", "n2", 10}); !errors.Is(err, kvcache.ErrUnknown) {
		t.Errorf("of one that has ended: %v", err)
	}
}

// The steps of an instance make its model.
func TestModelIsMeasured(t *testing.T) {
	c := newSim(t, 1, 100, small)
	if m, ok := c.nodes[0].eng.Model(); ok {
		t.Fatalf("before the first step there is %+v", m)
	}
	s := submit(t, c.nodes[0], Request{ID: "a", Prompt: prompt(1, 40), MaxTokens: 10, Sampling: sampling(1)})
	read(t, s)
	if m, ok := c.nodes[0].eng.Model(); ok {
		t.Fatalf("after a few steps there is %+v", m)
	}
}
