package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
)

// Role says what a tensor is for, with the numbers of the data plane's header.
type Role int32

// The roles. h is hidden_size, q is heads * head_dim, kv is kv_heads * head_dim.
const (
	Embed     Role = 1  // [vocab, h]
	FinalNorm Role = 2  // [h]
	LMHead    Role = 3  // [vocab, h]
	AttnNorm  Role = 10 // [h]
	Q         Role = 11 // [q, h]
	K         Role = 12 // [kv, h]
	V         Role = 13 // [kv, h]
	QBias     Role = 14 // [q]
	KBias     Role = 15 // [kv]
	VBias     Role = 16 // [kv]
	QNorm     Role = 17 // [head_dim], with QKNormAll [q]
	KNorm     Role = 18 // [head_dim], with QKNormAll [kv]
	O         Role = 19 // [h, q]
	MLPNorm   Role = 20 // [h]
	Gate      Role = 21 // [intermediate, h]
	Up        Role = 22 // [intermediate, h]
	Down      Role = 23 // [h, intermediate]

	Router       Role = 24 // [experts, h]
	ExpertGate   Role = 25 // of each expert: [intermediate of experts, h]
	ExpertUp     Role = 26 // likewise
	ExpertDown   Role = 27 // of each expert: [h, intermediate of experts]
	SharedGate   Role = 28 // [intermediate of the shared expert, h]
	SharedUp     Role = 29 // likewise
	SharedDown   Role = 30 // [h, intermediate of the shared expert]
	SharedRouter Role = 31 // [1, h]

	AttnPostNorm Role = 32 // [h]
	MLPPostNorm  Role = 33 // [h]
)

// Tensor is one tensor of a model, row-major.
type Tensor struct {
	Role   Role
	Layer  int // from 0; -1 for Embed, FinalNorm and LMHead
	Expert int // of ExpertGate, ExpertUp and ExpertDown, from 0; else -1
	Rows   int // 1 for vectors
	Cols   int
	DType  DType
	Data   []byte // Rows * Cols * DType.Size() bytes, little endian; not aligned; valid until Model.Close; nil in 4 bits

	packed *packed // of a matrix in 4 bits
}

// Bytes returns the tensor as the data plane takes it: Data, or the rows of a matrix in 4 bits, which are put into buf if
// they fit.
func (t *Tensor) Bytes(buf []byte) ([]byte, error) {
	if t.packed == nil {
		return t.Data, nil
	}
	n := t.Rows * t.packed.rowBytes()
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	return buf[:n], t.packed.rows(buf[:n])
}

// slot is a tensor that an architecture needs.
type slot struct {
	name   string
	role   Role
	layer  int
	expert int // -1: of none
	shape  []int64
	at, of int64 // it is rows at.. of a tensor of so many; of 0: it is the whole
}

// slots is the architecture table: every tensor of the model in the order the data plane takes them.
func (c *Config) slots() []slot {
	h, vocab := int64(c.HiddenSize), int64(c.VocabSize)
	list := []slot{{name: "model.embed_tokens.weight", role: Embed, layer: -1, expert: -1, shape: []int64{vocab, h}}}
	for layer := range c.NumLayers {
		list = append(list, c.layerSlots(layer)...)
	}
	list = append(list, slot{name: "model.norm.weight", role: FinalNorm, layer: -1, expert: -1, shape: []int64{h}})
	head := "lm_head.weight"
	if c.TieEmbeddings {
		head = "model.embed_tokens.weight"
	}
	return append(list, slot{name: head, role: LMHead, layer: -1, expert: -1, shape: []int64{vocab, h}})
}

func (c *Config) layerSlots(layer int) []slot {
	h, d := int64(c.HiddenSize), int64(c.HeadDim)
	q, kv := int64(c.NumHeads)*d, int64(c.NumKVHeads)*d
	var list []slot
	add := func(name string, role Role, shape ...int64) {
		list = append(list, slot{name: fmt.Sprintf("model.layers.%d.%s", layer, name), role: role, layer: layer, expert: -1, shape: shape})
	}
	part := func(name string, role Role, at, of, rows int64) {
		add(name, role, rows, h)
		list[len(list)-1].at, list[len(list)-1].of = at, of
	}
	if !c.NoPreNorms {
		add("input_layernorm.weight", AttnNorm, h)
	}
	if c.Fused {
		part("self_attn.qkv_proj.weight", Q, 0, q+2*kv, q)
		part("self_attn.qkv_proj.weight", K, q, q+2*kv, kv)
		part("self_attn.qkv_proj.weight", V, q+kv, q+2*kv, kv)
	} else {
		add("self_attn.q_proj.weight", Q, q, h)
		add("self_attn.k_proj.weight", K, kv, h)
		add("self_attn.v_proj.weight", V, kv, h)
	}
	if c.QKVBias {
		add("self_attn.q_proj.bias", QBias, q)
		add("self_attn.k_proj.bias", KBias, kv)
		add("self_attn.v_proj.bias", VBias, kv)
	}
	if c.QKNormAll {
		add("self_attn.q_norm.weight", QNorm, q)
		add("self_attn.k_norm.weight", KNorm, kv)
	} else if c.QKNorm {
		add("self_attn.q_norm.weight", QNorm, d)
		add("self_attn.k_norm.weight", KNorm, d)
	}
	add("self_attn.o_proj.weight", O, h, q)
	switch {
	case c.PostNorms && !c.NoPreNorms:
		add("pre_feedforward_layernorm.weight", MLPNorm, h)
	case !c.NoPreNorms:
		add("post_attention_layernorm.weight", MLPNorm, h)
	}
	if inter := int64(c.IntermediateSize); c.Fused {
		part("mlp.gate_up_proj.weight", Gate, 0, 2*inter, inter)
		part("mlp.gate_up_proj.weight", Up, inter, 2*inter, inter)
		add("mlp.down_proj.weight", Down, h, inter)
	} else {
		c.mlpSlots(layer, add)
	}
	c.postNormSlots(add)
	return append(list, c.expertSlots(layer)...)
}

// ignorable are tensors that may be present and are not weights: the frequencies that old versions of
// transformers saved, which RopeTable computes.
var ignorable = regexp.MustCompile(`^model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq$`)

// arrange matches the tensors of the files with the architecture's: none missing, none unknown, every shape right.
func arrange(c *Config, entries []entry) ([]Tensor, error) {
	byName := make(map[string]*entry, len(entries))
	for i := range entries {
		byName[entries[i].name] = &entries[i]
	}
	arch, _ := architectures(c.Arch)
	prefix := arch.prefix(byName)
	slots := c.slots()
	tensors := make([]Tensor, 0, len(slots))
	used := make(map[string]bool, len(slots))
	for _, s := range slots {
		s.name = inFiles(prefix, s.name)
		e := byName[s.name]
		if e == nil {
			p, err := findPacked(c.Quantized, s, byName, used)
			if err != nil {
				return nil, err
			}
			if p == nil {
				return nil, missing(s, byName)
			}
			tensors = append(tensors, Tensor{Role: s.role, Layer: s.layer, Expert: s.expert, Rows: p.n, Cols: p.k, DType: p.dtype, packed: p})
			continue
		}
		shape := slices.Clone(s.shape)
		if s.of > 0 {
			shape[0] = s.of
		}
		if !slices.Equal(e.shape, shape) {
			return nil, fmt.Errorf("cannot use tensor %s: its shape is %v where config.json asks for %v",
				s.name, e.shape, shape)
		}
		dtype, err := e.weightType()
		if err != nil {
			return nil, err
		}
		rows, cols := int64(1), s.shape[len(s.shape)-1]
		if len(s.shape) == 2 {
			rows = s.shape[0]
		}
		data := e.data
		if s.of > 0 {
			row := cols * int64(dtype.Size())
			data = data[s.at*row : (s.at+rows)*row]
		}
		t := Tensor{Role: s.role, Layer: s.layer, Expert: s.expert, Rows: int(rows), Cols: int(cols), DType: dtype, Data: data}
		tensors = append(tensors, c.folded(t))
		used[s.name] = true
	}
	for i := range entries {
		name := entries[i].name
		// With tied embeddings a saved head is a copy of them, which transformers ignores too.
		copied := c.TieEmbeddings && strings.HasSuffix(name, "lm_head.weight")
		if !used[name] && !copied && !ignorable.MatchString(name) && !arch.isOther(name) && !c.Quantized.emptyBias(&entries[i]) {
			return nil, unsupported(short([]byte(name)), "a tensor that %s does not have", c.Arch)
		}
	}
	return tensors, together(tensors)
}

// inFiles is a tensor's name in files whose text model has a prefix: of two spellings, one keeps "model." behind it.
func inFiles(prefix, name string) string {
	if prefix == "model.language_model." {
		return prefix + strings.TrimPrefix(name, "model.")
	}
	return prefix + name
}

// folded is a norm with what is folded into it, in float32; other tensors as they are.
func (c *Config) folded(t Tensor) Tensor {
	offset, factor := float32(0), float32(1)
	switch t.Role {
	case FinalNorm:
		if c.LogitScale != 0 {
			factor = float32(c.LogitScale)
		}
		fallthrough
	case AttnNorm, MLPNorm, AttnPostNorm, MLPPostNorm, QNorm, KNorm:
		if c.NormOffset {
			offset = 1
		}
	}
	if offset == 0 && factor == 1 {
		return t
	}
	data := make([]byte, 4*t.Cols)
	for i := range t.Cols {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits((t.at(i)+offset)*factor))
	}
	t.DType, t.Data = F32, data
	return t
}

// at is number i of the tensor.
func (t *Tensor) at(i int) float32 {
	switch t.DType {
	case BF16:
		return math.Float32frombits(uint32(binary.LittleEndian.Uint16(t.Data[2*i:])) << 16)
	case F16:
		return fromF16(binary.LittleEndian.Uint16(t.Data[2*i:]))
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
}

// fromF16 is a binary16 number.
func fromF16(h uint16) float32 {
	exponent, fraction := int(h>>10&31), float64(h&1023)
	var v float64
	switch exponent {
	case 0:
		v = math.Ldexp(fraction, -24)
	case 31:
		v = math.Inf(1)
		if fraction != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(1024+fraction, exponent-25)
	}
	if h>>15 == 1 {
		v = -v
	}
	return float32(v)
}

func missing(s slot, byName map[string]*entry) error {
	hint := ""
	switch {
	case s.role == LMHead:
		hint = "; tie_word_embeddings is false"
	case strings.HasSuffix(s.name, "_proj.weight") && byName[strings.TrimSuffix(s.name, "weight")+"qweight"] != nil:
		hint = "; the weights are quantized, and config.json has no quantization_config"
	}
	return fmt.Errorf("cannot find tensor %s%s", s.name, hint)
}
