package engine

import (
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/sched"
)

// What a request has with instances that are about to leave comes home while it runs, as far as there is room; then they may
// go, and nothing is computed anew. Its answer is what it would be.
func TestBlocksComeHome(t *testing.T) {
	for _, unsure := range []bool{false, true} {
		c := newSim(t, 3, 400, sched.Config{MaxNumSeqs: 4, MaxBatchedTokens: 2048, MaxWaiting: 4, MaxOffload: 16})
		n := c.nodes[0]
		n.eng.cfg.Speculation = Speculation{} // a token a step, so that it lasts
		c.nodes[1].unsure = unsure
		c.anyOrder = true // of its blocks, once those of the first span come behind those of the second
		const answer = 3000
		p := prompt(1, 100*blockSize)
		release := n.hold(false)
		s := submit(t, n, Request{ID: "long", Prompt: p, MaxTokens: answer, Sampling: sampling(1)})
		ev, err := s.Next(t.Context())
		if err != nil || !ev.HasToken {
			t.Fatal(ev, err)
		}
		id := n.eng.Requests()[0].Request
		for i, to := range []string{"n1", "n2"} {
			if err := n.eng.Place(Placing{id, "long", to, 40}); err != nil {
				t.Fatal(err)
			}
			n.until(func() bool { return n.eng.Stats().PlannedBlocks == uint64(40*(i+1)) })
			n.until(func() bool { return n.eng.Requests()[0].Planned == 0 })
		}
		c.nodes[1].leave()
		n.until(func() bool { return len(n.kv.RequestsAt("n1")) == 0 })
		c.nodes[1].die()
		n.eng.PeerLost("n1")
		release()
		got, events := read(t, s)
		if w := want(1, p, answer); !slices.Equal(slices.Insert(got, 0, ev.Token), w) {
			t.Fatalf("another answer of %d tokens", len(got))
		}
		spans := last(events).Spans
		if len(spans) != 3 || spans[0].Instance != "" || spans[1] != (SpanInfo{"n2", 40}) {
			t.Errorf("it ends with %+v", spans)
		}
		if st := n.eng.Stats(); st.ReturnedBlocks != 40 || st.Recoveries != 0 {
			t.Errorf("%+v", st)
		}
		c.settled()
	}
}
