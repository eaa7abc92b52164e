package main

import (
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// An instance whose model is cut over two ranks answers what one does that is not cut: alone, with every block of
// two pools in use, and over a cluster of which one instance is cut and the other is not.
func TestTensorParallel(t *testing.T) {
	for _, r := range references(t, "gemma2") {
		if !slices.Contains([]string{"llama", "mistral", "qwen2", "qwen3", "qwen2-moe", "gemma2"}, r.name) { // the KV heads of others are fewer, or it is the same
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			request := r.request(exactTokens - len(r.Prompt))
			want := r.serve(t, 1, exactBlocks).complete(request)
			r.checkReference(t, want)
			t.Run("alone", func(t *testing.T) {
				p := r.serve(t, 1, exactBlocks, "--tensor-parallel-size", "2")
				sameAnswer(t, want, p.complete(request))
				p.logged("tensor_parallel_size=2")
			})
			t.Run("two instances", func(t *testing.T) {
				p := r.serve(t, 2, exactBlocks/2, "--tensor-parallel-size", "2")
				sameAnswer(t, want, p.complete(request))
				p.eventually("all blocks free", idle)
			})
			t.Run("beside one that is not cut", func(t *testing.T) {
				p := r.serve(t, 1, exactBlocks/2, "--tensor-parallel-size", "2")
				log := &process{t: t}
				joined := command(append([]string{"serve", "--join", p.join, "--threads", "1"}, r.flags(t, exactBlocks/2)...)...)
				joined.Stderr = log
				if err := joined.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_ = joined.Process.Kill()
					_ = joined.Wait()
				})
				p.eventually("two instances", func(v server.ClusterView) bool { return len(v.Instances) == 2 })
				log.logged("tensor_parallel_size=1")
				sameAnswer(t, want, p.complete(request))
				p.eventually("all blocks free", idle)
			})
		})
	}
}
