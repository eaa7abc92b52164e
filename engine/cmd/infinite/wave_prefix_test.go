package main

import (
	"slices"
	"sync"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// A prompt that three instances have computed together lies in legs with all of them. Who asks about it again, one after the
// other and at several homes at once, has all of its KV there, and the answers are those of one instance without a cache.
func TestAskedAgainAfterAWave(t *testing.T) {
	const tokens, block = 2000, 16
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", "--prefill-context-parallel-size", "1", poolFlag(t, 300))
	for _, transport := range []string{"shm", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			h := holdSteps(t, 1) // of decoding
			t.Cleanup(h.release)
			p := serve(t, "--dtype", "float32", "--instances", "3", "--transport", transport, "--prefill-context-parallel-size", "16",
				"--min-parallel-prefill", "256",
				"--max-num-batched-tokens", "128", "--max-num-seqs", "16", "--min-shared-prefix", "64", poolFlag(t, 200))
			p.linked(3)
			document := prompt(tokens, 1)
			ask := func(i int) map[string]any { return body(append(slices.Clone(document), prompt(20+i, 10+i)...), 20) }
			first := body(document, 1)
			got := p.complete(first)
			sameAnswer(t, whole.complete(first), got)
			if got.cached != 0 {
				t.Fatalf("%d tokens of the first prompt were there", got.cached)
			}
			p.eventually("each instance has its legs", func(v server.ClusterView) bool {
				least := tokens
				for _, in := range v.Instances {
					least = min(least, in.KVBlocksCached)
				}
				return idle(v) && len(v.Instances) == 3 && least > tokens/block/5
			})
			// The home of the first is sent some more of them than the others, which are idle, before these are sent the rest.
			const crowd = 14
			answers := make([]answer, crowd)
			var wg sync.WaitGroup
			for i := range crowd {
				wg.Go(func() { answers[i] = p.complete(ask(i)) })
			}
			p.eventually("the document is used by several", func(v server.ClusterView) bool {
				homes := 0
				for _, in := range v.Instances {
					if in.SharedHits > 0 {
						homes++
					}
				}
				return homes > 1
			})
			h.release()
			wg.Wait()
			for i, got := range answers {
				sameAnswer(t, whole.complete(ask(i)), got)
				if least := tokens / block * block; got.cached < least {
					t.Errorf("question %d: KV of %d of %d tokens was there", i, got.cached, least)
				}
			}
			p.eventually("all blocks free", idle)
			for i := range 3 {
				got := p.complete(ask(crowd + i))
				sameAnswer(t, whole.complete(ask(crowd+i)), got)
				if least := tokens / block * block; got.cached < least {
					t.Errorf("question %d: KV of %d of %d tokens was there", crowd+i, got.cached, least)
				}
				p.eventually("all blocks free", idle)
			}
		})
	}
}
