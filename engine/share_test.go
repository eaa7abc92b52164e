package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/sched"
)

var sharing = sched.Config{MaxNumSeqs: 4, MaxBatchedTokens: 64, MaxWaiting: 16, MinShared: 64}

// lend waits until every pool is empty and its loop knows it, so that what is cached may be lent.
func (c *simCluster) lend() {
	c.t.Helper()
	c.settled()
	for _, n := range c.nodes {
		eventually(c.t, n.name()+" lends", func() bool { return n.kv.Hostable() == n.kv.Total() })
	}
}

// wide runs a prompt larger than a pool of 20 blocks on n, so that its KV comes to lie with others as well.
func (n *simNode) wide(t *testing.T, p []int32) {
	t.Helper()
	s := submit(t, n, Request{ID: "wide", Prompt: p, MaxTokens: 20, Sampling: sampling(1)})
	if k := cached(t, s, 1, p, 20); k != 0 {
		t.Fatalf("the first request finds %d tokens", k)
	}
}

// What a prompt larger than a pool leaves behind is used where it lies: by its home, which knows where, and by another
// instance that is told whom to ask.
func TestSharedWhereItLies(t *testing.T) {
	for home := range 3 { // the second has blocks of the beginning itself
		t.Run(fmt.Sprint("home ", home), func(t *testing.T) {
			c := newSim(t, 3, 20, sharing)
			p := prompt(1, 420)
			c.nodes[0].wide(t, p)
			c.lend()
			n := c.nodes[home]
			again := Request{ID: "again", Prompt: slices.Concat(p, want(1, p, 20), prompt(2, 30)), MaxTokens: 9, Sampling: sampling(3)}
			if home != 0 {
				again.Near = "n0"
			}
			got, events := read(t, submit(t, n, again))
			if !slices.Equal(got, want(3, again.Prompt, 9)) {
				t.Fatalf("other tokens: %+v", last(events))
			}
			if k := events[0].Cached; k < 320 {
				t.Errorf("%d of 470 tokens are found", k)
			}
			if spans := last(events).Spans; len(spans) < 2 {
				t.Errorf("all KV is at the home: %v", spans)
			}
			if st := n.eng.Stats(); st.SharedHits < 100 || st.SharedHits > st.PrefixHits || st.SharedQueries < st.SharedHits {
				t.Errorf("%+v", st)
			}
			c.settled()
			for _, n := range c.nodes {
				if k := n.kv.Counts(); k.Shared != 0 {
					t.Errorf("%s: %+v", n.name(), k)
				}
			}
			// A block with another text would give another answer, wherever it is.
			c.mu.Lock()
			for _, p := range c.nodes {
				if p != n {
					for i := range p.mem {
						p.mem[i].token++
					}
				}
			}
			c.mu.Unlock()
			n.wrong = true
			if got, _ := read(t, submit(t, n, again)); slices.Equal(got, want(3, again.Prompt, 9)) {
				t.Error("the answer does not depend on what lies with others")
			}
		})
	}
}

// Requests at several instances use the same blocks at once. Each pool has room for one of them alone.
func TestSharedByMany(t *testing.T) {
	c := newSim(t, 3, 30, sharing)
	p := prompt(1, 400)
	c.nodes[0].wide(t, p)
	c.lend()
	var releases []func()
	var streams []Stream
	for i, n := range c.nodes {
		releases = append(releases, n.hold(true))
		for k := range 2 {
			r := Request{ID: fmt.Sprint(i, k), Prompt: slices.Concat(p, prompt(10*i+k, 20)), MaxTokens: 30, Sampling: sampling(5)}
			if i != 0 {
				r.Near = "n0"
			}
			streams = append(streams, submit(t, n, r))
		}
	}
	for i, n := range c.nodes {
		n.until(func() bool {
			st := n.eng.Stats()
			return st.Running == 2 && st.PrefixHits >= 2*384 && (i == 0) == (st.SharedHits == 0)
		})
	}
	for _, release := range releases {
		release()
	}
	for i, s := range streams {
		full := slices.Concat(p, prompt(10*(i/2)+i%2, 20))
		if got, events := read(t, s); !slices.Equal(got, want(5, full, 30)) {
			t.Errorf("request %d: %d tokens, %+v", i, len(got), last(events))
		}
	}
	for _, n := range c.nodes {
		// One may be preempted, if all the others are short of room themselves at that moment.
		if k := n.eng.Stats(); k.Preemptions > 1 || k.Recoveries != 0 || k.Failed != 0 {
			t.Errorf("%s: %+v", n.name(), k)
		}
	}
	c.settled()
}

// A request that uses blocks of an instance that is lost is computed anew.
func TestSharedWithOneThatIsLost(t *testing.T) {
	c := newSim(t, 2, 40, sharing)
	p := prompt(1, 400)
	c.nodes[0].wide(t, p)
	c.lend()
	n := c.nodes[1]
	release := n.hold(false)
	s := submit(t, n, Request{ID: "b", Prompt: p, MaxTokens: 30, Sampling: sampling(2), Near: "n0"})
	ev, err := s.Next(t.Context())
	if err != nil || ev.Cached < 300 {
		t.Fatal(ev, err)
	}
	n.eng.PeerLost("n0")
	release()
	if got, events := read(t, s); !slices.Equal(append([]int32{ev.Token}, got...), want(2, p, 30)) {
		t.Fatalf("%d tokens, %+v", len(got), last(events))
	}
	if st := n.eng.Stats(); st.Recoveries != 1 {
		t.Errorf("%+v", st)
	}
	c.settled()
}

// Little is not worth asking for, and nobody is asked where it is turned off.
func TestNotShared(t *testing.T) {
	for _, tc := range []struct {
		name           string
		min, n, common int
		near           string
	}{{"off", 0, 200, 200, "n0"}, {"too little", 128, 120, 120, "n0"}, {"it has less", 128, 200, 100, "n0"}, {"nobody is near", 64, 200, 200, ""}} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := sharing
			cfg.MinShared = tc.min
			c := newSim(t, 2, 40, cfg)
			p := prompt(1, tc.n)
			q := slices.Concat(p[:tc.common], prompt(2, tc.n-tc.common))
			_ = cached(t, submit(t, c.nodes[0], Request{ID: "a", Prompt: p, MaxTokens: 5, Sampling: sampling(1)}), 1, p, 5)
			if k := cached(t, submit(t, c.nodes[1], Request{ID: "b", Prompt: q, MaxTokens: 5, Sampling: sampling(1), Near: tc.near}), 1, q, 5); k != 0 {
				t.Errorf("%d tokens are found", k)
			}
			c.settled()
			if k := c.nodes[0].kv.Counts(); k.Shared != 0 {
				t.Errorf("%+v", k)
			}
		})
	}
}
