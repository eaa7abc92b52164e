package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/server"
)

// fp8Tolerance is of log probabilities. Where KV lies changes sums in their last bits; rounding to 8 bits makes
// one step in 2^4 of such a difference now and then, which moves log probabilities by about 1e-3.
const fp8Tolerance = 0.02

// serveFP8 starts the model with KV in fp8 on n instances with pools of so many blocks each, which have a quarter
// of the bytes.
func (r *reference) serveFP8(t *testing.T, n, blocks int, args ...string) *process {
	t.Helper()
	m, err := model.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	cfg := config.Default()
	cfg.BlockSize, cfg.KVCacheDType = exactBlock, "fp8"
	bytes, err := node.BlockBytes(cfg, m.Config, "float32")
	if err != nil {
		t.Fatal(err)
	}
	return r.serve(t, n, blocks, append(args, "--kv-cache-dtype", "fp8", fmt.Sprintf("--kv-cache-memory=%d", uint64(blocks)*bytes))...)
}

// sameFP8 compares greedy answers. Late in them a token may be another one that was as likely, and what follows too.
func sameFP8(t *testing.T, want, got answer) {
	t.Helper()
	if got.status != 200 || len(got.tokens) != len(want.tokens) {
		t.Fatalf("status %d with %d tokens: %s", got.status, len(got.tokens), got.message)
	}
	for i := range want.tokens {
		same := got.tokens[i] == want.tokens[i]
		if math.Abs(got.lps[i]-want.lps[i]) > fp8Tolerance || !same && i < len(want.tokens)/4 {
			t.Fatalf("token %d is %q at %g, alone %q at %g", i, got.tokens[i], got.lps[i], want.tokens[i], want.lps[i])
		}
		if !same {
			t.Logf("%d of %d tokens are the same; then %q and %q, both at %g", i, len(want.tokens), got.tokens[i], want.tokens[i], got.lps[i])
			return
		}
	}
}

// With KV in fp8 too an answer does not depend on where the KV lies: one instance, or every block of 2, 3 or 8. It is
// another one than with KV as computed, and than without the remote partials.
func TestExactnessOfFP8KV(t *testing.T) {
	for _, r := range references(t, "gemma2") {
		if !slices.Contains([]string{"llama", "mistral", "qwen3", "gemma2"}, r.name) {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			req := r.request(exactTokens - len(r.Prompt))
			local := r.serveFP8(t, 1, exactBlocks).complete(req)
			if local.status != 200 || len(local.tokens) != exactTokens-len(r.Prompt) {
				t.Fatalf("status %d with %d tokens: %s", local.status, len(local.tokens), local.message)
			}
			if wide := r.serve(t, 1, exactBlocks).complete(req); slices.Equal(wide.tokens, local.tokens) {
				t.Error("the answer is that of KV in float32")
			}
			for _, n := range []int{2, 3, 8} {
				for _, transport := range []string{"shm", "tcp"} {
					t.Run(fmt.Sprintf("%d over %s", n, transport), func(t *testing.T) {
						p := r.serveFP8(t, n, exactBlocks/n, "--transport", transport)
						sameFP8(t, local, p.complete(req))
						p.logged("kv_dtype=fp8_e4m3")
						p.eventually("all blocks free", idle)
					})
				}
			}
			if r.name == "mistral" {
				return // its window is as small as what is left at home
			}
			t.Run("negative control", func(t *testing.T) {
				t.Setenv(emptyRemoteEnv, "1")
				wrong := r.serveFP8(t, 8, exactBlocks/8).complete(req)
				if wrong.status != 200 || slices.Equal(wrong.tokens, local.tokens) {
					t.Errorf("status %d, or the answer is the same without remote partials", wrong.status)
				}
			})
		})
	}
}

// An instance with another KV cache is refused with both names.
func TestJoinWithOtherKV(t *testing.T) {
	for _, tc := range []struct{ cluster, joins []string }{
		{[]string{"--dtype", "bfloat16"}, []string{"--dtype", "bfloat16", "--kv-cache-dtype", "fp8"}},
		{[]string{"--dtype", "bfloat16", "--kv-cache-dtype", "fp8_e4m3"}, []string{"--dtype", "bfloat16"}},
	} {
		p := serve(t, tc.cluster...)
		cmd := command(append([]string{"serve", "--join", p.join, "--threads", "1"}, tc.joins...)...)
		kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }) // it was taken in
		out, err := cmd.CombinedOutput()
		kill.Stop()
		names := []string{"bfloat16", "fp8_e4m3"}
		if slices.Contains(tc.cluster, "fp8_e4m3") {
			slices.Reverse(names)
		}
		message := fmt.Sprintf("cannot join the cluster at "+p.join+": the cluster keeps its KV cache in %s, this instance in %s; see --kv-cache-dtype", names[0], names[1])
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), message) {
			t.Errorf("%v: %v: %s", tc.joins, err, out)
		}
		p.eventually("one instance", func(v server.ClusterView) bool { return len(v.Instances) == 1 })
	}
}
