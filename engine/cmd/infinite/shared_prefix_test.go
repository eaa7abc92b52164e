package main

import (
	"math"
	"slices"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// sharedHits is how many tokens' KV was used where it lies, of all instances.
func sharedHits(v server.ClusterView) (n uint64) {
	for _, in := range v.Instances {
		n += in.SharedHits
	}
	return n
}

// A document that no pool has room for is asked about again and again: it is computed once, and used where its KV came
// to lie. The answers are those of one instance that knows no cache.
func TestQuestionsAboutOneDocument(t *testing.T) {
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 200))
	for _, transport := range []string{"shm", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			p := serve(t, "--dtype", "float32", "--instances", "3", "--transport", transport, "--min-shared-prefix", "64", poolFlag(t, 60))
			document := prompt(1500, 1)
			for question := range 4 {
				req := body(append(slices.Clone(document), 30+question, 40), 20)
				got := p.complete(req)
				sameAnswer(t, whole.complete(req), got)
				if question == 0 && got.cached != 0 || question > 0 && got.cached < 1000 {
					t.Errorf("question %d: KV of %d of 1,500 tokens was there", question, got.cached)
				}
				// Then what instances report of their room is fresh, and nothing is in the way of the next.
				p.eventually("all blocks free", idle)
			}
			p.eventually("a third of each was used where it lies", func(v server.ClusterView) bool { return sharedHits(v) >= 3*500 })
		})
	}
}

// threeHomes starts three instances, of which one has the KV of a document, and asks each of them about it. Steps of
// decoding are held; two of the requests use blocks of holder.
func threeHomes(t *testing.T) (p *process, streams []*stream, holder string, release func()) {
	h := holdSteps(t, 1)
	t.Cleanup(h.release)
	p = serve(t, "--dtype", "float32", "--instances", "3", "--min-shared-prefix", "64", poolFlag(t, 60))
	p.linked(3)
	if first := p.complete(body(prompt(600, 1), 1)); first.status != 200 {
		t.Fatal(first.message)
	}
	p.eventually("all blocks free", idle)
	// A pool has room for one of them alone.
	for i := range 3 {
		s := p.stream(about(i))
		s.next()
		streams = append(streams, s)
	}
	p.eventually("the document is used by others", func(v server.ClusterView) bool {
		for _, in := range v.Instances {
			if in.KVBlocksShared > 0 {
				holder = in.ID
			}
		}
		return holder != "" && sharedHits(v) >= 2*500
	})
	return p, streams, holder, h.release
}

func about(i int) map[string]any { return body(slices.Concat(prompt(600, 1), prompt(250, 10+i)), 60) }

// All instances use the same blocks at once, until the one that has them dies: the requests of the others are computed
// anew, and its own by one of them.
func TestSharedBlocksAreLost(t *testing.T) {
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 200))
	p, streams, holder, release := threeHomes(t)
	pid := p.pid(holder)
	release()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i, s := range streams {
		sameAnswer(t, whole.complete(about(i)), s.rest())
	}
	p.eventually("all blocks free", idle)
}

// The answers depend on the blocks that are used where they lie: without the partials of their holder they are others.
func TestSharedBlocksAreRead(t *testing.T) {
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 200))
	for _, left := range []bool{false, true} {
		if left {
			t.Setenv(emptyRemoteEnv, "1")
		}
		_, streams, _, release := threeHomes(t)
		release()
		same := 0
		for i, s := range streams {
			want, got := whole.complete(about(i)), s.rest()
			if slices.Equal(want.tokens, got.tokens) && math.Abs(want.lps[0]-got.lps[0]) < 1e-4 && math.Abs(want.lps[9]-got.lps[9]) < 1e-4 {
				same++
			}
		}
		if !left && same != 3 || left && same != 1 {
			t.Errorf("partials left out %v: %d of 3 answers are the right ones", left, same)
		}
	}
}

// For every architecture an answer goes on from its own beginning, which lies with all instances since it was made, as
// it would have without a stop.
func TestSharedPrefixExactness(t *testing.T) {
	for _, r := range references(t, "gemma2") {
		t.Run(r.name, func(t *testing.T) {
			goesOn(t, r, r.serve(t, 3, exactBlocks/3, "--min-shared-prefix", "16"))
		})
	}
}

// The same over verbs.
func TestVerbsSharedPrefix(t *testing.T) {
	r := references(t)[0]
	goesOn(t, r, startVerbs(t, append(r.flags(t, exactBlocks/3), "--min-shared-prefix", "16")...).process)
}

func goesOn(t *testing.T, r *reference, p *process) {
	t.Helper()
	req := r.request(exactTokens - len(r.Prompt))
	req["return_token_ids"] = true
	whole := p.complete(req)
	r.checkReference(t, whole)
	p.eventually("all blocks free", idle)
	const rest = 20
	said := len(whole.ids) - rest
	again := body(slices.Concat(r.Prompt, whole.ids[:said]), rest)
	again["repetition_penalty"] = 1
	got := p.complete(again)
	sameAnswer(t, answer{tokens: whole.tokens[said:], lps: whole.lps[said:]}, got)
	p.eventually("most of it was used where it lies", func(v server.ClusterView) bool { return idle(v) && sharedHits(v) >= 200 })
	if got.cached < 300 {
		t.Errorf("KV of %d of %d tokens was there", got.cached, exactTokens-rest)
	}
}
