package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/server"
)

// The request of the exactness suite has so many tokens in blocks of 4, prompt and answer together: 94
// blocks. Of 2 pools of 48, 3 of 32 or 8 of 12 blocks, all 96, it needs every one: no n-1 of them hold it.
const (
	exactTokens = 374
	exactBlock  = 4
	exactBlocks = 96
)

// reference is a model of engine/model/testdata and what transformers answered.
type reference struct {
	dir, name string
	Prompt    []int   `json:"prompt"`
	Greedy    []int32 `json:"greedy"`
	Top       []struct {
		Logprobs []float64 `json:"logprobs"`
	} `json:"top"`
}

// families are reference models of what other families have unlike Llama.
var families = []string{"gemma2", "gemma3", "granite", "olmo2", "olmo3", "phi3"}

// references gives every reference model but those of families, and those too that are named, a tokenizer, so that it can be
// served: the prompts are token ids, and the bundled model's tokenizer knows more ids than they have.
func references(t *testing.T, named ...string) []*reference {
	t.Helper()
	files, err := filepath.Glob("../../model/testdata/*/golden.json")
	if err != nil || len(files) < 19 {
		t.Fatalf("%d reference models: %v", len(files), err)
	}
	slices.SortStableFunc(files, func(a, b string) int { // families last
		return strings.Compare(familyOrder(a), familyOrder(b))
	})
	var out []*reference
	for _, file := range files {
		r := &reference{dir: t.TempDir(), name: filepath.Base(filepath.Dir(file))}
		if slices.Contains(families, r.name) && !slices.Contains(named, r.name) {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err = json.Unmarshal(data, r); err != nil {
			t.Fatal(err)
		}
		link := func(pattern string) {
			paths, _ := filepath.Glob(pattern)
			for _, p := range paths {
				abs, err := filepath.Abs(p)
				if err == nil {
					err = os.Symlink(abs, filepath.Join(r.dir, filepath.Base(p)))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		link(filepath.Join(filepath.Dir(file), "*"))
		link("../../model/bundled/tokenizer*.json")
		out = append(out, r)
	}
	return out
}

// familyOrder is a key by which families come last.
func familyOrder(file string) string {
	name := filepath.Base(filepath.Dir(file))
	if slices.Contains(families, name) {
		return "~" + name
	}
	return name
}

// toCreditors are the reference models that ask something of their own of a creditor: numbers of heads, their size, windows,
// layers of two kinds, capped and scaled scores. What is the others' own (rotations, biases, norms, experts) is computed at home alone, so
// that one spread of them says as much as all.
var toCreditors = []string{"gemma2", "gemma3", "llama", "llama-headdim", "llama-mqa", "mistral", "olmo3", "qwen2-window"}

// ways are the numbers of instances, and the transports, that a request of TestExactness is spread over.
func (r *reference) ways() ([]int, []string) {
	switch {
	case slices.Contains(toCreditors, r.name):
		return []int{2, 3, 8}, []string{"shm", "tcp"}
	case len(r.name)%2 == 0:
		return []int{3}, []string{"shm"}
	default:
		return []int{8}, []string{"tcp"}
	}
}

// flags size an instance's pool to so many blocks.
func (r *reference) flags(t *testing.T, blocks int) []string {
	t.Helper()
	m, err := model.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	cfg := config.Default()
	cfg.BlockSize = exactBlock
	bytes, err := node.BlockBytes(cfg, m.Config, "float32")
	if err != nil {
		t.Fatal(err)
	}
	return []string{r.dir, "--dtype", "float32", "--block-size", fmt.Sprint(exactBlock), fmt.Sprintf("--kv-cache-memory=%d", uint64(blocks)*bytes)}
}

// serve starts the model on n instances with pools of so many blocks each.
func (r *reference) serve(t *testing.T, n, blocks int, args ...string) *process {
	t.Helper()
	return serve(t, append(append(r.flags(t, blocks), "--instances", fmt.Sprint(n)), args...)...)
}

// request is greedy in the model's own distribution, whatever its generation_config.json says.
func (r *reference) request(answer int) map[string]any {
	b := body(r.Prompt, answer)
	b["repetition_penalty"] = 1
	return b
}

// checkReference compares the answer's beginning with transformers', whose log probabilities the engine's
// f32 path meets to 1e-4 of their size, on a GPU to 1e-3.
func (r *reference) checkReference(t *testing.T, got answer) {
	t.Helper()
	if got.status != 200 || len(got.tokens) != exactTokens-len(r.Prompt) {
		t.Fatalf("status %d with %d tokens: %s", got.status, len(got.tokens), got.message)
	}
	tok, err := node.OpenTokenizer("")
	if err != nil {
		t.Fatal(err)
	}
	tolerance := 1e-4
	if os.Getenv(deviceEnv) != "" {
		tolerance = 1e-3
	}
	for i, id := range r.Greedy {
		// The API spells tokens that are no whole character in its own way; their log probabilities tell.
		want, lp := string(tok.TokenBytes(id)), r.Top[i].Logprobs[0]
		if utf8.ValidString(want) && got.tokens[i] != want || math.Abs(got.lps[i]-lp) > tolerance*max(1, math.Abs(lp)) {
			t.Fatalf("token %d is %q at %g, transformers says %q at %g", i, got.tokens[i], got.lps[i], want, lp)
		}
	}
}

// inHalves has a prompt that no pool holds, so that steps of many rows ask others for partials.
func (r *reference) inHalves(t *testing.T) {
	t.Setenv("INFINITE_HALF_ROWS", "1")
	var prompt []int
	for len(prompt) < 300 {
		prompt = append(prompt, r.Prompt...)
	}
	req := body(prompt[:300], exactTokens-300)
	want := r.serve(t, 1, exactBlocks).complete(req)
	p := r.serve(t, 3, exactBlocks/3)
	sameAnswer(t, want, p.complete(req))
	p.eventually("steps in halves", func(v server.ClusterView) bool {
		return slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.HalvedSteps > 0 })
	})
}

// For every architecture the answer does not depend on where the KV lies: one instance, or every block of
// 2, 3 or 8 instances, over shared memory and over TCP (ways). Without the remote partials it is another answer.
func TestExactness(t *testing.T) {
	for _, r := range references(t, families...) {
		t.Run(r.name, func(t *testing.T) {
			local := r.serve(t, 1, exactBlocks).complete(r.request(exactTokens - len(r.Prompt)))
			r.checkReference(t, local)
			instances, transports := r.ways()
			for _, n := range instances {
				for _, transport := range transports {
					t.Run(fmt.Sprintf("%d over %s", n, transport), func(t *testing.T) {
						p := r.serve(t, n, exactBlocks/n, "--transport", transport)
						sameAnswer(t, local, p.complete(r.request(len(local.tokens))))
						p.logged("transport=" + transport)
						p.eventually("all blocks free", idle)
					})
				}
			}
			t.Run("in halves", r.inHalves)
			t.Run("negative control", func(t *testing.T) {
				t.Setenv(emptyRemoteEnv, "1")
				// Pools so small that less than the smallest sliding window is left at home.
				const answer = 40
				blocks := (len(r.Prompt)+answer+exactBlock)/(8*exactBlock) + 1
				wrong := r.serve(t, 8, blocks).complete(r.request(answer))
				if wrong.status != 200 || len(wrong.tokens) != answer {
					t.Fatalf("status %d with %d tokens: %s", wrong.status, len(wrong.tokens), wrong.message)
				}
				if slices.Equal(wrong.tokens, local.tokens[:answer]) {
					t.Error("the answer is the same without remote partials")
				}
			})
		})
	}
}
