package model

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// golden is testdata/<name>/golden.json; testdata/README.md describes it.
type golden struct {
	Prompt    []int              `json:"prompt"`
	Positions []int              `json:"positions"`
	Logits    string             `json:"logits"`
	Greedy    []int              `json:"greedy"`
	MinGap    float64            `json:"min_gap"`
	Controls  map[string]float64 `json:"controls"`
	Top       []struct {
		IDs      []int     `json:"ids"`
		Logprobs []float64 `json:"logprobs"`
	} `json:"top"`
}

func goldenModels(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*/golden.json")
	if err != nil || len(paths) < 10 {
		t.Fatalf("found %d reference models: %v", len(paths), err)
	}
	for i, p := range paths {
		paths[i] = filepath.Base(filepath.Dir(p))
	}
	return paths
}

func openGolden(t *testing.T, name string) (*Model, golden) {
	t.Helper()
	m, err := Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	data, err := os.ReadFile(filepath.Join("testdata", name, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	return m, g
}

// TestReference runs every reference model through the plain forward pass and compares logits, greedy tokens
// and log probabilities with transformers'. The whole answer is given at once: each token must follow from
// those before.
func TestReference(t *testing.T) {
	for _, name := range goldenModels(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, g := openGolden(t, name)
			r, err := newReference(m)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := base64.StdEncoding.DecodeString(g.Logits)
			vocab := m.Config.VocabSize
			if err != nil || len(raw) != 4*vocab*len(g.Positions) || len(g.Greedy) != 64 || len(g.Top) != 64 {
				t.Fatalf("golden.json does not have the shapes it should: %v", err)
			}
			all := r.logits(append(slices.Clone(g.Prompt), g.Greedy[:63]...))
			worst := 0.0
			for i, p := range g.Positions {
				for id := range vocab {
					want := float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*(i*vocab+id):])))
					worst = max(worst, math.Abs(all[p][id]-want))
				}
			}
			if !(worst < 3e-4) {
				t.Errorf("logits differ by %g", worst)
			}
			for i, want := range g.Greedy {
				checkStep(t, i, all[len(g.Prompt)-1+i], want, g.Top[i].IDs, g.Top[i].Logprobs)
			}
			for fault, change := range g.Controls {
				if change < 1 {
					t.Errorf("control %s moves a logit by %g only", fault, change)
				}
			}
		})
	}
}

func checkStep(t *testing.T, i int, row []float64, want int, ids []int, logprobs []float64) {
	t.Helper()
	best, sum := 0, 0.0
	for id, v := range row {
		if v > row[best] {
			best = id
		}
	}
	for _, v := range row {
		sum += math.Exp(v - row[best])
	}
	if best != want {
		t.Errorf("greedy token %d is %d, want %d", i, best, want)
	}
	for j, id := range ids {
		if got := row[id] - row[best] - math.Log(sum); math.Abs(got-logprobs[j]) > 3e-4 {
			t.Errorf("step %d: log probability of %d is %g, want %g", i, id, got, logprobs[j])
		}
	}
}

func TestTensors(t *testing.T) {
	m, _ := openGolden(t, "qwen2")
	tensors, err := m.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	var roles []Role
	for _, tensor := range tensors {
		roles = append(roles, tensor.Role)
		if want := tensor.Rows * tensor.Cols * tensor.DType.Size(); len(tensor.Data) != want {
			t.Errorf("role %d has %d bytes, want %d", tensor.Role, len(tensor.Data), want)
		}
	}
	layer := []Role{AttnNorm, Q, K, V, QBias, KBias, VBias, O, MLPNorm, Gate, Up, Down}
	want := slices.Concat([]Role{Embed}, layer, layer, []Role{FinalNorm, LMHead})
	if !slices.Equal(roles, want) {
		t.Errorf("roles %v, want %v", roles, want)
	}
	first, last := tensors[0], tensors[len(tensors)-1]
	if &first.Data[0] != &last.Data[0] || first.Layer != -1 || last.Layer != -1 || tensors[13].Layer != 1 {
		t.Error("tied head or layer numbers are wrong")
	}
	if k := tensors[3]; k.Rows != 32 || k.Cols != 64 || k.DType != BF16 {
		t.Errorf("K is [%d, %d] of %v", k.Rows, k.Cols, k.DType)
	}
	if b := tensors[5]; b.Rows != 1 || b.Cols != 64 {
		t.Errorf("the bias of Q is [%d, %d]", b.Rows, b.Cols)
	}
	if !slices.Equal(m.Config.EOS, []int32{2, 3}) || *m.Generation.TopK != 20 || m.Config.DType != "bfloat16" {
		t.Errorf("EOS %v, top_k %d, dtype %s", m.Config.EOS, *m.Generation.TopK, m.Config.DType)
	}
}

// TestClose: the tensors are gone after Close, and a second Close is harmless.
func TestClose(t *testing.T) {
	m, err := Open("testdata/mistral")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Tensors(); err == nil {
		t.Error("a closed model listed its tensors")
	}
}

// folderFS reads a reference model into memory, for a test to change.
func folderFS(t *testing.T, name string) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	files, err := os.ReadDir(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join("testdata", name, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = &fstest.MapFile{Data: data}
	}
	return out
}

// repack writes entries as one safetensors file, after change had its way with them.
func repack(t *testing.T, fsys fstest.MapFS, change func(map[string]*entry)) {
	t.Helper()
	entries, err := loadEntries(fsFiles{fsys})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*entry{}
	for _, e := range entries {
		e.data = slices.Clone(e.data)
		byName[e.name] = &e
	}
	change(byName)
	header, body := map[string]any{}, []byte{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		e := byName[name]
		header[name] = map[string]any{
			"dtype": e.dtype, "shape": e.shape, "data_offsets": []int{len(body), len(body) + len(e.data)},
		}
		body = append(body, e.data...)
	}
	text, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	fsys["model.safetensors"] = &fstest.MapFile{Data: append(pack(string(text), 0), body...)}
}

// edit changes keys of a config.json or another JSON file; nil takes a key away.
func edit(t *testing.T, fsys fstest.MapFS, file string, changes fields) {
	t.Helper()
	var m fields
	if err := json.Unmarshal(fsys[file].Data, &m); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	fsys[file] = &fstest.MapFile{Data: data}
}

// TestFingerprint: it stays when only the cutting into files or the end-of-answer tokens change, and changes
// with the architecture and with the weights.
func TestFingerprint(t *testing.T) {
	print := func(fsys fs.FS) string {
		m, err := OpenFS(fsys)
		if err != nil {
			t.Fatal(err)
		}
		return m.Fingerprint
	}
	m, _ := openGolden(t, "mistral")
	want := m.Fingerprint
	if len(want) != 64 || print(folderFS(t, "mistral")) != want {
		t.Errorf("Open gave %s, OpenFS %s", want, print(folderFS(t, "mistral")))
	}
	fsys := folderFS(t, "mistral")
	repack(t, fsys, func(map[string]*entry) {})
	edit(t, fsys, "generation_config.json", fields{"eos_token_id": 9})
	edit(t, fsys, "config.json", fields{"eos_token_id": 9, "initializer_range": nil})
	if print(fsys) != want {
		t.Error("one file or other end tokens changed it")
	}
	edit(t, fsys, "config.json", fields{"sliding_window": 25})
	if print(fsys) == want {
		t.Error("another window did not change it")
	}
	for _, name := range []string{"model.norm.weight", "model.layers.1.mlp.up_proj.weight"} {
		for _, last := range []bool{false, true} {
			fsys := folderFS(t, "mistral")
			repack(t, fsys, func(m map[string]*entry) {
				at := 0
				if last {
					at = len(m[name].data) - 1
				}
				m[name].data[at] ^= 1
			})
			if print(fsys) == want {
				t.Errorf("another %s (last byte: %v) did not change it", name, last)
			}
		}
	}
}

func TestRefuseModel(t *testing.T) {
	set := func(name, dtype string, data []byte, shape ...int64) func(map[string]*entry) {
		return func(m map[string]*entry) { m[name] = &entry{name, dtype, shape, data} }
	}
	for _, tc := range []struct {
		name, model string
		change      func(t *testing.T, fsys fstest.MapFS)
		names       string
	}{
		{"no config", "llama", func(_ *testing.T, f fstest.MapFS) { delete(f, "config.json") }, "config.json"},
		{"no weights", "llama", func(_ *testing.T, f fstest.MapFS) { delete(f, "model.safetensors") }, "model.safetensors.index.json"},
		{"weights cut short", "llama", func(_ *testing.T, f fstest.MapFS) {
			d := f["model.safetensors"].Data
			f["model.safetensors"] = &fstest.MapFile{Data: d[:len(d)-1]}
		}, "outside"},
		{"config too long", "llama", func(_ *testing.T, f fstest.MapFS) {
			f["config.json"] = &fstest.MapFile{Data: make([]byte, maxConfigFile+1)}
		}, "longer"},
		{"bad generation config", "llama", func(t *testing.T, f fstest.MapFS) {
			edit(t, f, "generation_config.json", fields{"top_p": 7})
		}, "top_p"},
		{"missing tensor", "qwen3", func(t *testing.T, f fstest.MapFS) {
			repack(t, f, func(m map[string]*entry) { delete(m, "model.layers.1.self_attn.k_norm.weight") })
		}, "model.layers.1.self_attn.k_norm.weight"},
		{"missing head", "llama", func(t *testing.T, f fstest.MapFS) {
			edit(t, f, "config.json", fields{"tie_word_embeddings": false})
		}, "lm_head.weight|tie_word_embeddings"},
		{"unknown tensor", "llama", func(t *testing.T, f fstest.MapFS) {
			repack(t, f, set("model.layers.0.self_attn.q_proj.bias", "F32", make([]byte, 256), 64))
		}, "model.layers.0.self_attn.q_proj.bias"},
		{"layer beyond the config", "llama", func(t *testing.T, f fstest.MapFS) {
			edit(t, f, "config.json", fields{"num_hidden_layers": 1})
		}, "model.layers.1."},
		{"wrong shape", "llama", func(t *testing.T, f fstest.MapFS) {
			repack(t, f, set("model.norm.weight", "F32", make([]byte, 4*32), 32))
		}, "model.norm.weight|[32]|[64]"},
		{"transposed", "llama", func(t *testing.T, f fstest.MapFS) {
			repack(t, f, func(m map[string]*entry) { slices.Reverse(m["model.layers.0.mlp.up_proj.weight"].shape) })
		}, "model.layers.0.mlp.up_proj.weight"},
		{"wrong dtype", "llama", func(t *testing.T, f fstest.MapFS) {
			repack(t, f, set("model.norm.weight", "F8_E4M3", make([]byte, 64), 64))
		}, "model.norm.weight|F8_E4M3"},
		{"shard missing", "mistral", func(_ *testing.T, f fstest.MapFS) { delete(f, "model-00002-of-00002.safetensors") }, "model-00002"},
		{"shard outside", "mistral", func(t *testing.T, f fstest.MapFS) {
			edit(t, f, indexFile, fields{"weight_map": fields{"lm_head.weight": "../other.safetensors"}})
		}, "../other.safetensors"},
		{"tensor in another shard", "mistral", func(t *testing.T, f fstest.MapFS) {
			edit(t, f, indexFile, fields{"weight_map": fields{
				"lm_head.weight": "model-00001-of-00002.safetensors", "model.norm.weight": "model-00002-of-00002.safetensors"}})
		}, "lm_head.weight"},
		{"tensor in two shards", "mistral", func(t *testing.T, f fstest.MapFS) {
			f["copy.safetensors"] = f["model-00001-of-00002.safetensors"]
			edit(t, f, indexFile, fields{"weight_map": fields{
				"a": "model-00001-of-00002.safetensors", "b": "copy.safetensors"}})
		}, "copy.safetensors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fsys := folderFS(t, tc.model)
			tc.change(t, fsys)
			m, err := OpenFS(fsys)
			if err == nil {
				t.Fatalf("accepted as %+v", m.Config)
			}
			for part := range strings.SplitSeq(tc.names, "|") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not name %q", err, part)
				}
			}
		})
	}
}

// TestIgnoredTensors: saved frequencies and a copy of tied embeddings are no reason to refuse.
func TestIgnoredTensors(t *testing.T) {
	fsys := folderFS(t, "llama")
	repack(t, fsys, func(m map[string]*entry) {
		m["model.layers.0.self_attn.rotary_emb.inv_freq"] = &entry{"", "F32", []int64{8}, make([]byte, 32)}
		m["model.rotary_emb.inv_freq"] = &entry{"", "F32", []int64{8}, make([]byte, 32)}
		m["lm_head.weight"] = m["model.embed_tokens.weight"]
	})
	if _, err := OpenFS(fsys); err != nil {
		t.Error(err)
	}
}

func TestOpenOddFolders(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder gave %v", err)
	}
	dir := t.TempDir()
	for name, file := range folderFS(t, "llama") {
		if err := os.WriteFile(filepath.Join(dir, name), file.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	weights := filepath.Join(dir, "model.safetensors")
	if err := os.Truncate(weights, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "length") {
		t.Errorf("an empty weights file gave %v", err)
	}
	if err := errors.Join(os.Remove(weights), os.Mkdir(weights, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a folder for a weights file gave %v", err)
	}
}

// TestBundled: the model in the binary opens, and has the tokenizer beside it.
func TestBundled(t *testing.T) {
	m, err := OpenFS(Bundled())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if m.Config.Arch != llama || len(m.Config.EOS) == 0 {
		t.Errorf("got %+v", m.Config)
	}
	if _, err := fs.Stat(Bundled(), "tokenizer.json"); err != nil {
		t.Error(err)
	}
}
