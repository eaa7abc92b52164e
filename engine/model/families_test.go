package model

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
)

// The factor of Gemma's embeddings is what transformers multiplies by: the root of hidden_size in the weights' dtype.
func TestRootOfHidden(t *testing.T) {
	for _, tc := range []struct {
		hidden int
		dtype  string
		want   float64
	}{
		{2304, "bfloat16", 48}, {3072, "bfloat16", 55.5}, {1152, "bfloat16", 34}, {3072, "float16", 55.4375},
		{3072, "float32", float64(float32(math.Sqrt(3072)))}, {5376, "bfloat16", 73.5}, {64, "float16", 8},
	} {
		if got := (&Config{HiddenSize: tc.hidden, DType: tc.dtype}).rootOfHidden(); got != tc.want {
			t.Errorf("%d in %s: %v, want %v", tc.hidden, tc.dtype, got, tc.want)
		}
	}
}

// Norms get what is folded into them, exactly as it would be computed in float32; nothing else changes.
func TestFoldedNorms(t *testing.T) {
	for name, want := range map[string]struct{ offset, last float64 }{"gemma3": {1, 1}, "granite": {0, 1 / 1.3}, "olmo2": {0, 1}} {
		m, _ := openGolden(t, name)
		tensors, err := m.Tensors()
		if err != nil {
			t.Fatal(err)
		}
		byName := map[string]entry{}
		for _, e := range m.entries {
			byName[e.name] = e
		}
		norms := 0
		for _, tensor := range tensors {
			if tensor.Role == FinalNorm || tensor.Role == AttnPostNorm && tensor.Layer == 0 {
				file := map[Role]string{FinalNorm: "model.norm.weight", AttnPostNorm: "model.layers.0.post_attention_layernorm.weight"}[tensor.Role]
				e := byName[file]
				dtype, err := e.weightType()
				if err != nil {
					t.Fatal(err)
				}
				raw := Tensor{DType: dtype, Cols: tensor.Cols, Data: e.data}
				factor := 1.0
				if tensor.Role == FinalNorm {
					factor = want.last
				}
				for i := range tensor.Cols {
					exact := (float64(raw.at(i)) + want.offset) * factor
					if got := float64(tensor.at(i)); math.Abs(got-exact) > 1e-7*math.Abs(exact) {
						t.Fatalf("%s: %s[%d] is %v, want %v", name, file, i, got, exact)
					}
				}
				norms++
			}
		}
		if norms == 0 {
			t.Errorf("%s: no norms", name)
		}
	}
}

// The pieces of fused tensors are their rows in order.
func TestFusedTensors(t *testing.T) {
	m, _ := openGolden(t, "phi3")
	tensors, err := m.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	var qkv, gateUp []byte
	for _, tensor := range tensors {
		switch {
		case tensor.Layer == 1 && slices.Contains([]Role{Q, K, V}, tensor.Role):
			qkv = append(qkv, tensor.Data...)
		case tensor.Layer == 1 && slices.Contains([]Role{Gate, Up}, tensor.Role):
			gateUp = append(gateUp, tensor.Data...)
		}
	}
	for _, e := range m.entries {
		if e.name == "model.layers.1.self_attn.qkv_proj.weight" && !slices.Equal(e.data, qkv) ||
			e.name == "model.layers.1.mlp.gate_up_proj.weight" && !slices.Equal(e.data, gateUp) {
			t.Errorf("the pieces of %s are other rows", e.name)
		}
	}
	if len(qkv) != 128*64*2 || len(gateUp) != 192*64*2 {
		t.Errorf("pieces of %d and %d bytes", len(qkv), len(gateUp))
	}
	fsys := folderFS(t, "phi3")
	repack(t, fsys, func(entries map[string]*entry) {
		e := entries["model.layers.0.mlp.gate_up_proj.weight"]
		e.shape[0]--
		e.data = e.data[:len(e.data)-64*2]
	})
	if _, err := OpenFS(fsys); err == nil || !strings.Contains(err.Error(), "gate_up_proj.weight: its shape is [191 64]") {
		t.Errorf("a short tensor: %v", err)
	}
}

// A model that has images too is its text: the same tensors by either of two namings, those of images left out.
func TestTextOfImages(t *testing.T) {
	text, _ := openGolden(t, "gemma3")
	want, err := text.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range [][3]string{
		{"language_model.model.", "vision_tower.x", "language_model.lm_head.weight"},
		{"model.language_model.", "model.multi_modal_projector.y", "lm_head.weight"},
	} {
		fsys := folderFS(t, "gemma3")
		repack(t, fsys, func(entries map[string]*entry) {
			for name, e := range maps.Clone(entries) {
				delete(entries, name)
				e.name = names[0] + strings.TrimPrefix(name, "model.")
				entries[e.name] = e
			}
			entries[names[1]] = &entry{name: names[1], dtype: "BF16", shape: []int64{2}, data: []byte{1, 2, 3, 4}}
			head := *entries[names[0]+"embed_tokens.weight"]
			head.name = names[2]
			entries[names[2]] = &head
		})
		data := fsys["config.json"].Data
		config, err := parseObject("config.json", data)
		if err != nil {
			t.Fatal(err)
		}
		inner := fields{}
		for key, raw := range config.m {
			inner[key] = raw
		}
		delete(inner, "architectures")
		edit(t, fsys, "config.json", fields{"architectures": []string{images}, "text_config": inner, "model_type": "gemma3", "vision_config": fields{"a": 1}})
		m, err := OpenFS(fsys)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Tensors()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d tensors, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i].Role != want[i].Role || got[i].Layer != want[i].Layer || !slices.Equal(got[i].Data, want[i].Data) {
				t.Errorf("tensor %d differs", i)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a partial is made of is part of the fingerprint, by which a cluster refuses other models; and so is which of
// longrope's factors holds.
func TestFamilyFingerprints(t *testing.T) {
	of := func(name string, changes fields) string {
		t.Helper()
		fsys := folderFS(t, name)
		edit(t, fsys, "config.json", changes)
		m, err := OpenFS(fsys)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		return m.Fingerprint
	}
	same := of("gemma2", nil)
	other := fields{"attn_logit_softcapping": 4.5, "query_pre_attn_scalar": 25, "final_logit_softcapping": nil, "sliding_window": 25}
	for key, value := range other {
		if of("gemma2", fields{key: value}) == same {
			t.Errorf("another %s has the same fingerprint", key)
		}
	}
	m, _ := openGolden(t, "phi3")
	long := m.Fingerprint
	first, _ := m.Config.RopeTable()
	if err := m.Limit(64); err != nil || m.Config.Rope.Long || m.Fingerprint == long {
		t.Errorf("limited to 64: long %v, %v", m.Config.Rope.Long, err)
	}
	if short, _ := m.Config.RopeTable(); slices.Equal(short, first) {
		t.Error("short requests have the frequencies of long ones")
	}
	for _, limit := range []int{65, 0} {
		if err := m.Limit(limit); err != nil || !m.Config.Rope.Long || m.Fingerprint != long {
			t.Errorf("limited to %d: long %v, %v", limit, m.Config.Rope.Long, err)
		}
	}
	llama, _ := openGolden(t, "llama")
	before := llama.Fingerprint
	if err := llama.Limit(1); err != nil || llama.Fingerprint != before {
		t.Errorf("a limit changed a model without longrope: %v", err)
	}
}

// Half precision, every number.
func TestFromF16(t *testing.T) {
	for h := range 1 << 16 {
		data := binary.LittleEndian.AppendUint16(nil, uint16(h))
		want := widen(Tensor{DType: F16, Rows: 1, Cols: 1, Data: data})[0]
		if got := float64((&Tensor{DType: F16, Cols: 1, Data: data}).at(0)); h>>10&31 != 31 && got != want {
			t.Fatalf("%#x is %v, want %v", h, got, want)
		}
	}
	if !math.IsInf(float64(fromF16(0xfc00)), -1) || !math.IsNaN(float64(fromF16(0x7c01))) {
		t.Error("infinities or NaN")
	}
}

// The positions of Gemma 3 have its linear scaling in them already: it is served to no more of them.
func TestGemma3IsNotStretched(t *testing.T) {
	m, _ := openGolden(t, "gemma3")
	c := m.Config
	if c.Rope.Type != "linear" || c.Rope.Factor <= 1 {
		t.Fatalf("the reference model's rope is %+v", c.Rope)
	}
	if got := c.LongestLen(); got != c.MaxPositions {
		t.Errorf("%d tokens, and %d positions", got, c.MaxPositions)
	}
}
