package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// A conversation goes on where its KV is: each turn computes what is new, and has the tokens and log probabilities that
// it has when every prompt is computed whole.
func TestPrefixCaching(t *testing.T) {
	whole := serve(t, "--dtype", "float32", "--enable-prefix-caching=false", poolFlag(t, 300))
	for _, instances := range []int{1, 3} {
		t.Run(fmt.Sprint(instances), func(t *testing.T) {
			p := serve(t, "--dtype", "float32", "--instances", fmt.Sprint(instances), poolFlag(t, 200))
			p.instances(instances)
			talk := prompt(700, instances)
			sum := 0
			for turn := range 3 {
				want, got := whole.complete(ids(talk, 40)), p.complete(ids(talk, 40))
				sameAnswer(t, want, got)
				// All full blocks of the turn before are there, but for the last token's, which has no KV yet.
				if least := (sum - 1) / 16 * 16; want.cached != 0 || turn == 0 && got.cached != 0 || turn > 0 && got.cached < least {
					t.Errorf("turn %d: %d of %d tokens were in the cache, and %d without one; at least %d were to be", turn, got.cached, len(talk), want.cached, least)
				}
				sum = len(talk) + 40
				talk = slices.Concat(talk, got.ids, prompt(50, 100+turn))
			}
			// Beside each other, streamed, with the same beginning.
			var streams []*stream
			for i := range 4 {
				streams = append(streams, p.stream(body(append(slices.Clone(talk), 20+i), 30)))
			}
			for i, s := range streams {
				got := s.rest()
				sameAnswer(t, whole.complete(body(append(slices.Clone(talk), 20+i), 30)), got)
				if got.cached < 700 {
					t.Errorf("stream %d: %d tokens were in the cache", i, got.cached)
				}
			}
			p.eventually("all blocks free, some of them cached", func(v server.ClusterView) bool {
				cached, hits := 0, uint64(0)
				for _, in := range v.Instances {
					cached, hits = cached+in.KVBlocksCached, hits+in.PrefixHits
				}
				return idle(v) && cached > 700/16 && hits > 5*700
			})
			salted := body(talk, 5)
			salted["cache_salt"] = "mine"
			if got := p.complete(salted); got.status != 200 || got.cached != 0 {
				t.Errorf("another salt finds %d tokens: %s", got.cached, got.message)
			}
		})
	}
}

// ids asks for the answer's token ids as well.
func ids(tokens []int, max int) map[string]any {
	b := body(tokens, max)
	b["return_token_ids"] = true
	return b
}

// Prompts that begin alike and are each larger than a pool: what of them is still at their home is used, what lies with
// others, or was taken by them, is computed again; the answers are those of one instance that knows no cache.
func TestPrefixesOfSpreadRequests(t *testing.T) {
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 300))
	for _, transport := range []string{"shm", "tcp"} {
		p := serve(t, "--dtype", "float32", "--instances", "3", "--transport", transport, poolFlag(t, 60))
		found := 0
		for i, tokens := range []int{500, 500, 1500, 500, 1500, 600, 1700, 600} {
			req := body(append(prompt(tokens, 1), 30+i), 20)
			got := p.complete(req)
			sameAnswer(t, whole.complete(req), got)
			found += got.cached
		}
		if found == 0 {
			t.Errorf("over %s nothing was found", transport)
		}
		p.eventually("all blocks free", idle)
	}
}
