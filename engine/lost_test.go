package engine

import (
	"errors"
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/sched"
)

// long is a request with more KV than a pool of 20 blocks, in the middle of its answer when steps of decoding are held.
func (n *simNode) long(t *testing.T) (s Stream, first int32, release func()) {
	release = n.hold(false)
	s = submit(t, n, Request{ID: "long", Prompt: prompt(1, 400), MaxTokens: 200, Sampling: sampling(1), PromptLogprobs: 1})
	ev, err := s.Next(t.Context())
	if err != nil || !ev.HasToken || len(ev.Prompt) != 399 {
		t.Fatal(ev, err)
	}
	return s, ev.Token, release
}

// A request whose KV is lost with a peer is computed anew: its reader sees a pause, and the answer it would have got.
func TestPeerLost(t *testing.T) {
	for _, how := range []string{"told", "seen by a step"} {
		t.Run(how, func(t *testing.T) {
			c := newSim(t, 3, 20, small)
			n := c.nodes[0]
			s, first, release := n.long(t)
			spans := n.eng.Requests()[0].Spans
			if len(spans) != 1 {
				t.Fatalf("spans %v", spans)
			}
			holder := c.nodes[slices.IndexFunc(c.nodes, func(p *simNode) bool { return p.name() == spans[0].Instance })]
			if how == "told" {
				n.eng.PeerLost(holder.name())
			} else {
				holder.die()
			}
			release()
			got, events := read(t, s)
			if !slices.Equal(slices.Insert(got, 0, first), want(1, prompt(1, 400), 200)) || last(events).Finish != "length" {
				t.Fatalf("%d tokens, %+v", len(got), last(events))
			}
			for _, ev := range events {
				if ev.Prompt != nil {
					t.Error("the prompt's log probabilities came twice")
				}
			}
			if st := n.eng.Stats(); st.Recoveries != 1 || st.Failed != 0 || st.FirstTokens != 1 {
				t.Errorf("%+v", st)
			}
			c.mu.Lock()
			told := slices.Contains(n.lost, holder.index)
			c.mu.Unlock()
			if told != (how != "told") {
				t.Errorf("the lender was told of %v", n.lost)
			}
			if how == "told" {
				c.settled()
			}
		})
	}
}

// While it computes the prompt there is nothing to go on from; its log probabilities come whole and once.
func TestPeerLostInThePrompt(t *testing.T) {
	c := newSim(t, 2, 20, small)
	n := c.nodes[0]
	release := n.hold(true)
	s := submit(t, n, Request{ID: "long", Prompt: prompt(1, 400), MaxTokens: 20, Sampling: sampling(1), PromptLogprobs: 1})
	n.until(func() bool { return len(n.kv.RequestsAt("n1")) > 0 })
	n.eng.PeerLost("n1")
	release()
	got, events := read(t, s)
	if !slices.Equal(got, want(1, prompt(1, 400), 20)) || len(events[0].Prompt) != 399 {
		t.Fatalf("%d tokens, %d of the prompt, %+v", len(got), len(events[0].Prompt), last(events))
	}
	for i, lp := range events[0].Prompt {
		if lp.Token != prompt(1, 400)[i+1] || lp.Logprob != -float32(i+1) {
			t.Fatalf("prompt token %d: %+v", i+1, lp)
		}
	}
	if n.eng.Stats().Recoveries != 1 {
		t.Errorf("%+v", n.eng.Stats())
	}
	c.settled()
}

// until lets held steps go on one by one until cond holds.
func (n *simNode) until(cond func() bool) {
	eventually(n.c.t, "what steps lead to", func() bool {
		if cond() {
			return true
		}
		select {
		case n.gate <- struct{}{}:
		default:
		}
		return false
	})
}

// A request is not recomputed for ever; but as long as tokens come between it goes on.
func TestPeerLostAgainAndAgain(t *testing.T) {
	t.Run("without a token", func(t *testing.T) {
		c := newSim(t, 2, 20, small)
		n := c.nodes[0]
		release := n.hold(true)
		s := submit(t, n, Request{ID: "long", Prompt: prompt(1, 400), MaxTokens: 20, Sampling: sampling(1)})
		for i := range uint64(maxLosses + 1) {
			n.until(func() bool { return n.eng.Stats().Recoveries == i && len(n.kv.RequestsAt("n1")) > 0 })
			n.eng.PeerLost("n1")
		}
		release()
		_, events := read(t, s)
		var lost *PeerLostError
		if len(events) != 1 || !errors.As(events[0].Err, &lost) || lost.Instance != "n1" || lost.Request != "long" || lost.Kind() != "peer_lost" {
			t.Fatalf("%+v", events)
		}
		if n.eng.Stats().Recoveries != maxLosses {
			t.Errorf("%+v", n.eng.Stats())
		}
		c.settled()
	})
	t.Run("with tokens", func(t *testing.T) {
		c := newSim(t, 2, 20, small)
		n := c.nodes[0]
		s, first, release := n.long(t)
		for i := range uint64(2 * maxLosses) {
			n.eng.PeerLost("n1")
			n.until(func() bool { // it has blocks for all tokens again, so that the step under way gives one
				r := n.eng.Requests()[0]
				blocks := r.Local
				for _, s := range r.Spans {
					blocks += s.Blocks
				}
				return n.eng.Stats().Recoveries == i+1 && blocks*blockSize >= r.Tokens
			})
		}
		release()
		rest, events := read(t, s)
		if !slices.Equal(slices.Insert(rest, 0, first), want(1, prompt(1, 400), 200)) {
			t.Fatalf("%d tokens, %+v", len(rest), last(events))
		}
		if n.eng.Stats().Recoveries != 2*maxLosses {
			t.Errorf("%+v", n.eng.Stats())
		}
		c.settled()
	})
}

// Without the lost instance's room there may be none for the request; then it ends, and says so.
func TestPeerLostAndNoRoom(t *testing.T) {
	c := newSim(t, 2, 20, small)
	n := c.nodes[0]
	s, _, release := n.long(t)
	c.nodes[1].die()
	release()
	_, events := read(t, s)
	var full *sched.NoRoomError
	if !errors.As(last(events).Err, &full) || last(events).Finish != "error" {
		t.Fatalf("%+v", last(events))
	}
	short := submit(t, n, Request{ID: "short", Prompt: prompt(2, 30), MaxTokens: 20, Sampling: sampling(2)})
	checkAnswer(t, short, 2, prompt(2, 30), 20)
}

// A request that is too large for what is left of the cluster holds up nobody while it waits for the lost instance, and
// ends while others run, here and elsewhere.
func TestTooLargeForWhatIsLeft(t *testing.T) {
	c := newSim(t, 3, 20, small)
	n, other := c.nodes[0], c.nodes[1]
	goOn := other.hold(false) // its request decodes until the end of the test
	busy := submit(t, other, Request{ID: "busy", Prompt: prompt(2, 20), MaxTokens: 200, Sampling: sampling(2)})
	if ev, err := busy.Next(t.Context()); err != nil || !ev.HasToken {
		t.Fatal(ev, err)
	}
	release := n.hold(true)
	giant := submit(t, n, Request{ID: "giant", Prompt: prompt(1, 45*blockSize), MaxTokens: 200, Sampling: sampling(1)})
	n.until(func() bool { return n.eng.Requests()[0].Tokens > 45*blockSize && len(n.kv.RequestsAt("n2")) > 0 })
	c.nodes[2].die()
	n.eng.PeerLost("n2")
	release()
	for i := range 3 {
		checkAnswer(t, submit(t, n, Request{ID: "small", Prompt: prompt(i, 30), MaxTokens: 5, Sampling: sampling(3)}), 3, prompt(i, 30), 5)
	}
	_, events := read(t, giant)
	var full *sched.NoRoomError
	if !errors.As(last(events).Err, &full) || full.Room != 40*blockSize {
		t.Fatalf("%+v", last(events))
	}
	goOn()
	_, events = read(t, busy)
	if last(events).Finish != "length" {
		t.Fatalf("%+v", last(events))
	}
}

// What another home had taken is taken also when the queue is full.
func TestHandedOnToAFullQueue(t *testing.T) {
	c := newSim(t, 1, 20, sched.Config{MaxNumSeqs: 1, MaxBatchedTokens: 32, MaxWaiting: 1})
	n := c.nodes[0]
	release := n.hold(true)
	var streams []Stream
	for i := range 2 {
		streams = append(streams, submit(t, n, Request{Prompt: prompt(i, 20), MaxTokens: 5, Sampling: sampling(1)}))
		if i == 0 {
			n.gate <- struct{}{} // it runs
		}
	}
	full := want(1, prompt(2, 20), 5)
	r := Request{Prompt: prompt(2, 20), Answer: full[:2], MaxTokens: 5, Sampling: sampling(1), Logprobs: -1, PromptLogprobs: -1}
	if _, err := n.eng.Submit(t.Context(), &r); err == nil {
		t.Fatal("the queue is not full")
	}
	r.Handed = true
	handed := submit(t, n, r)
	release()
	for i, s := range streams {
		checkAnswer(t, s, 1, prompt(i, 20), 5)
	}
	if got, _ := read(t, handed); !slices.Equal(got, full[2:]) {
		t.Errorf("got %v of %v", got, full)
	}
	c.settled()
}

// A request that comes with a part of its answer gets the rest, as if it had been here all the time.
func TestAnswerGoesOn(t *testing.T) {
	p := prompt(1, 100)
	full := want(1, p, 50)
	for _, have := range []int{1, 20, 49} {
		c := newSim(t, 1, 20, small)
		got, events := read(t, submit(t, c.nodes[0], Request{ID: "a", Prompt: p, Answer: full[:have], MaxTokens: 50, Sampling: sampling(1), PromptLogprobs: 1}))
		if !slices.Equal(got, full[have:]) || last(events).Finish != "length" || events[0].Prompt != nil {
			t.Fatalf("%d of %d tokens, %+v", len(got), 50-have, last(events))
		}
		eventually(t, "the tokens are counted", func() bool { return c.nodes[0].eng.Stats().GeneratedTokens == uint64(50-have) })
		if c.nodes[0].eng.Stats().FirstTokens != 0 {
			t.Error("a later token counts as the first")
		}
		at := slices.Index(full, full[49])
		got, events = read(t, submit(t, c.nodes[0], Request{ID: "b", Prompt: p, Answer: full[:min(have, at)], MaxTokens: 60, MinTokens: at, Sampling: sampling(1), StopTokens: full[49:]}))
		if !slices.Equal(got, full[min(have, at):at+1]) || last(events).Finish != "stop" {
			t.Fatalf("%d tokens, %+v", len(got), last(events))
		}
		c.settled()
	}
	for _, r := range []Request{{Prompt: p, Answer: full, MaxTokens: 50}, {Prompt: p, Answer: full[:1]}, {Prompt: p, Answer: full[:5], MaxTokens: 9}} {
		if err := r.check(105); err == nil {
			t.Errorf("%d tokens of %d were taken", len(r.Answer), r.MaxTokens)
		}
	}
}

// What the device could not compute is said in words, as far as there are any.
func TestSpoiltShares(t *testing.T) {
	for status, want := range map[int32]string{
		batch.StatusNotFinite: "cannot compute the request: the logits are not finite (damaged weights, or a dtype that is too narrow)",
		-99:                   "cannot compute the request: the device reports status -99",
	} {
		c := newSim(t, 1, 10, small)
		c.mu.Lock()
		c.nodes[0].status = status
		c.mu.Unlock()
		_, events := read(t, submit(t, c.nodes[0], Request{ID: "a", Prompt: prompt(1, 30), MaxTokens: 10}))
		if end := last(events); end.Finish != "error" || end.Err == nil || end.Err.Error() != want {
			t.Errorf("%+v", end)
		}
		c.settled()
	}
}
