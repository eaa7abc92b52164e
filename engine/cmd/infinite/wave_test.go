package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/server"
)

// inWaves lets several instances compute prompts of 256 tokens and more, in legs of 64.
var inWaves = []string{"--prefill-context-parallel-size", "16", "--min-parallel-prefill", "256", "--max-num-batched-tokens", "64", "--max-num-seqs", "16"}

// waves counts the prompts that several instances computed, and the parts that others than their homes had in them.
func waves(v server.ClusterView) (prompts, parts uint64) {
	for _, in := range v.Instances {
		prompts += in.Waves
		parts += in.Assists
	}
	return prompts, parts
}

// windowed says whether layers of the model see a part of the text alone. Its prompts are computed by one instance each.
func (r *reference) windowed(t *testing.T) bool {
	m, err := model.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	return slices.ContainsFunc(m.Config.SlidingWindow, func(n int) bool { return n > 0 })
}

// For every architecture a prompt that three instances compute has the answer of one that computes it alone, whether steps
// are in halves or not. Without the remote partials it is another answer.
func TestWaveExactness(t *testing.T) {
	legs := []string{"--prefill-context-parallel-size", "16", "--min-parallel-prefill", "64", "--max-num-batched-tokens", "16", "--max-num-seqs", "4"}
	// Of scaled rotations one; of those with experts the one that has a shared expert; none with biases or norms of q and k alone.
	like := []string{"llama-linear", "llama-llama3", "mixtral", "qwen2", "qwen3", "qwen3-moe"}
	for _, r := range references(t, "phi3") {
		if slices.Contains(like, r.name) {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			var tokens []int
			for len(tokens) < 301 {
				tokens = append(tokens, r.Prompt...)
			}
			req := body(tokens[:301], 40)
			want := r.serve(t, 1, exactBlocks).complete(req)
			for i, transport := range []string{"shm", "tcp", "shm"} {
				halves, left := i == 1, i == 2
				t.Run(fmt.Sprintf("%s, halves %v, partials left out %v", transport, halves, left), func(t *testing.T) {
					if halves {
						t.Setenv("INFINITE_HALF_ROWS", "4")
					}
					if left {
						t.Setenv(emptyRemoteEnv, "1")
					}
					p := r.serve(t, 3, exactBlocks, append(slices.Clone(legs), "--transport", transport)...)
					p.linked(3)
					got := p.complete(req)
					if same := slices.Equal(got.tokens, want.tokens); left && same && !r.windowed(t) {
						t.Error("the answer is the same without remote partials")
					}
					if !left {
						sameAnswer(t, want, got)
					}
					p.eventually("three instances computed it, or one", func(v server.ClusterView) bool {
						prompts, parts := waves(v)
						return idle(v) && (prompts == 1 && parts == 2 || r.windowed(t) && prompts+parts == 0)
					})
				})
			}
		})
	}
}

// A prompt that no two pools have room for: each instance has the blocks that it computes, none moves.
func TestWaveFillsTheCluster(t *testing.T) {
	whole := serve(t, "--dtype", "float32", poolFlag(t, 200))
	p := serve(t, append([]string{"--dtype", "float32", "--instances", "3", poolFlag(t, 50)}, inWaves...)...)
	p.linked(3)
	req := body(prompt(2000, 1), 40)
	sameAnswer(t, whole.complete(req), p.complete(req))
	p.eventually("three instances computed it", func(v server.ClusterView) bool {
		prompts, parts := waves(v)
		for _, in := range v.Instances {
			if in.KVBlocksMoved > 0 {
				t.Errorf("%s moved %d blocks", in.ID, in.KVBlocksMoved)
			}
		}
		return idle(v) && prompts == 1 && parts == 2
	})
}

// held is a prompt that three instances compute together, which has come to a halt in its first legs.
type held struct {
	*process
	*hold
	req    map[string]any
	home   string
	leave  context.CancelFunc // the client's
	answer chan answer
}

func heldWave(t *testing.T) *held {
	t.Helper()
	// Of 30 legs of 48 tokens the home has every third, so that the others' first ones are in its table before its own.
	w := &held{hold: holdSteps(t, 0), req: body(prompt(1440, 1), 40), answer: make(chan answer, 1)}
	t.Cleanup(w.release)
	w.process = serve(t, append([]string{"--dtype", "float32", "--instances", "3", poolFlag(t, 200)}, inWaves...)...)
	w.linked(3)
	var ctx context.Context
	ctx, w.leave = context.WithCancel(context.Background())
	t.Cleanup(w.leave)
	go func() {
		a, err := w.post(ctx, "/v1/completions", w.req)
		if err != nil {
			a.message = err.Error()
		}
		w.answer <- a
	}()
	w.eventually("a wave is under way", func(v server.ClusterView) bool {
		if len(v.Requests) != 1 || len(v.Requests[0].Spans) < 3 {
			return false
		}
		w.home = v.Requests[0].Home
		return true
	})
	return w
}

// One of those that assist dies in the middle of a wave: the prompt is computed anew. So it is when the home dies.
func TestWaveLosesAnInstance(t *testing.T) {
	whole := serve(t, "--dtype", "float32", poolFlag(t, 200))
	for _, dies := range []string{"home", "helper"} {
		t.Run(dies, func(t *testing.T) {
			w := heldWave(t)
			victim := w.home
			for i := 0; dies == "helper" && victim == w.home; i++ {
				victim = fmt.Sprintf("i%d", i)
			}
			if err := syscall.Kill(w.pid(victim), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.release()
			sameAnswer(t, whole.complete(w.req), <-w.answer)
			w.eventually("all blocks free", idle)
			sameAnswer(t, whole.complete(w.req), w.complete(w.req))
		})
	}
}

// A client leaves in the middle of a wave: nothing is left of it anywhere, and the next one is computed together again.
func TestWaveIsLeft(t *testing.T) {
	whole := serve(t, "--dtype", "float32", poolFlag(t, 200))
	w := heldWave(t)
	w.leave()
	<-w.answer
	w.release()
	w.eventually("all blocks free", idle)
	req := body(prompt(1400, 2), 20)
	sameAnswer(t, whole.complete(req), w.complete(req))
	w.eventually("three instances computed it", func(v server.ClusterView) bool {
		prompts, parts := waves(v)
		return idle(v) && prompts == 1 && parts >= 2
	})
}

// Prompts at all instances at once, of which each can have a part in one wave at a time.
func TestWavesBesideEachOther(t *testing.T) {
	whole := serve(t, "--dtype", "float32", poolFlag(t, 400))
	p := serve(t, append([]string{"--dtype", "float32", "--instances", "3", poolFlag(t, 400)}, inWaves...)...)
	p.linked(3)
	var wg sync.WaitGroup
	answers := make([]answer, 9)
	for i := range answers {
		wg.Go(func() {
			a, err := p.post(context.Background(), "/v1/completions", waveBody(i))
			if err != nil {
				t.Error(err)
			}
			answers[i] = a
		})
	}
	wg.Wait()
	for i, got := range answers {
		sameAnswer(t, whole.complete(waveBody(i)), got)
	}
	p.eventually("all blocks free", idle)
}

func waveBody(i int) map[string]any { return body(prompt(200+150*i, 10+i), 30) }
