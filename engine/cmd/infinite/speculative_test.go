package main

import (
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

const speculate = `--speculative-config={"method":"ngram","num_speculative_tokens":7,"prompt_lookup_min":1,"prompt_lookup_max":4}`

// draftsOf are the tokens that were guessed ahead, and those of them that were right, of all instances.
func draftsOf(v server.ClusterView) (drafts, right uint64) {
	for _, in := range v.Instances {
		drafts, right = drafts+in.DraftTokens, right+in.AcceptedTokens
	}
	return drafts, right
}

// With tokens guessed ahead the answers of every architecture are as they are without, by one instance and with every block of
// three, and come in fewer steps.
func TestSpeculativeExactness(t *testing.T) {
	var drafts, right uint64 // some of these models do not repeat themselves
	for _, r := range references(t, "gemma3") {
		t.Run(r.name, func(t *testing.T) {
			for _, n := range []int{1, 3} {
				p := r.serve(t, n, exactBlocks/n, speculate)
				got := p.complete(r.request(exactTokens - len(r.Prompt)))
				r.checkReference(t, got)
				var d, k uint64
				p.eventually("all blocks free", func(v server.ClusterView) bool {
					d, k = draftsOf(v)
					return idle(v)
				})
				t.Logf("%d of %d guesses were right", k, d)
				drafts, right = drafts+d, right+k
			}
		})
	}
	if right < 200 || right == drafts {
		t.Errorf("%d of %d guesses were right", right, drafts)
	}
}

// The same where tokens are drawn, with penalties, in a form, and beside each other.
func TestSpeculativeSampling(t *testing.T) {
	plain := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 200))
	p := serve(t, "--dtype", "float32", "--instances", "2", poolFlag(t, 60), speculate)
	for _, x := range []struct {
		name string
		more map[string]any
	}{
		{"drawn", map[string]any{"temperature": 0.7, "seed": 5}},
		{"cut", map[string]any{"temperature": 1.0, "top_p": 0.8, "top_k": 20, "seed": 6}},
		{"penalties", map[string]any{"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}},
		{"penalties, drawn", map[string]any{"temperature": 0.8, "frequency_penalty": 0.3, "seed": 7}},
		{"a form", map[string]any{"guided_regex": "(?:The (?:blue|red) house. ){20}"}},
		{"a form, drawn", map[string]any{"temperature": 1.0, "seed": 8, "guided_json": map[string]any{"type": "array", "items": map[string]any{
			"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string", "maxLength": 8}, "known": map[string]any{"type": "boolean"}}, "required": []string{"name", "known"}}}}},
	} {
		t.Run(x.name, func(t *testing.T) {
			req := body(prompt(700, 2), 120)
			for k, v := range x.more {
				req[k] = v
			}
			sameAnswer(t, plain.complete(req), p.complete(req))
		})
	}
	p.eventually("some were right", func(v server.ClusterView) bool {
		_, right := draftsOf(v)
		return idle(v) && right > 100
	})
}
