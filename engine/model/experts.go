package model

import (
	"encoding/json"
	"fmt"
	"slices"
)

// MaxExperts is the most experts of a layer, MaxTopExperts the most of a token that the data plane takes.
const (
	MaxExperts    = 1 << 10
	MaxTopExperts = 1 << 6
)

// Experts is the mixture of experts that takes the place of the MLP in some layers: of each token's Count experts the
// PerToken likeliest are computed.
type Experts struct {
	Count        int
	PerToken     int
	Intermediate int    // of each expert
	Shared       int    // intermediate size of the expert that every token has; 0: there is none
	Normalise    bool   // the weights of a token's experts add up to 1
	Layers       []bool // the layers that have experts
}

func (e *Experts) layers() int {
	n := 0
	for _, has := range e.Layers {
		if has {
			n++
		}
	}
	return n
}

// expertKeys is what differs between architectures with experts.
type expertKeys struct {
	block        string // the name of what a layer has in the MLP's place
	names        [3]string
	intermediate string // the key of an expert's intermediate size
	count        int64  // defaults, as of transformers
	perToken     int64
	inner        int64
	normalise    bool // always, whatever norm_topk_prob says
	someLayers   bool // decoder_sparse_step and mlp_only_layers choose the layers
	shared       bool
	qkvBias      bool // the key qkv_bias says whether there are biases
}

func expertArchitectures(name string) (architecture, bool) {
	qwen := expertKeys{
		block: "mlp", names: [3]string{"gate_proj", "up_proj", "down_proj"}, intermediate: "moe_intermediate_size", someLayers: true,
	}
	switch name {
	case "MixtralForCausalLM":
		return architecture{
			modelType: "mixtral", kvHeads: 8, bos: 1, eos: []int32{2}, slidingWindow: true, theta: 1e6,
			experts: &expertKeys{
				block: "block_sparse_moe", names: [3]string{"w1", "w3", "w2"}, intermediate: "intermediate_size", count: 8,
				perToken: 2, normalise: true,
			},
		}, true
	case "Qwen2MoeForCausalLM":
		qwen.count, qwen.perToken, qwen.inner, qwen.shared, qwen.qkvBias = 60, 4, 1408, true, true
		return architecture{modelType: "qwen2_moe", kvHeads: 16, bos: -1, bias: true, windowFlag: true, experts: &qwen}, true
	case "Qwen3MoeForCausalLM":
		qwen.count, qwen.perToken, qwen.inner = 128, 8, 768
		return architecture{modelType: "qwen3_moe", kvHeads: 4, bos: -1, qkNorm: true, windowFlag: true, experts: &qwen}, true
	}
	return architecture{}, false
}

// experts reads the sizes of experts and which layers have them.
func (c *Config) experts(o *object, arch architecture) {
	k := arch.experts
	if k == nil {
		return
	}
	count := "num_experts" // transformers reads either name, whatever the architecture
	if !o.has(count) {
		count = "num_local_experts"
	}
	e := &Experts{
		Count:     o.intOr(count, k.count, 1, MaxExperts),
		PerToken:  o.intOr("num_experts_per_tok", k.perToken, 1, MaxTopExperts),
		Normalise: k.normalise || o.boolOr("norm_topk_prob", false),
		Layers:    slices.Repeat([]bool{true}, c.NumLayers),
	}
	if o.err == nil && e.PerToken > e.Count {
		o.fail("num_experts_per_tok", "(%d) must be at most the %d experts", e.PerToken, e.Count)
	}
	e.Intermediate = o.intOr(k.intermediate, k.inner, 1, maxIntermediate)
	if k.shared {
		e.Shared = o.intOr("shared_expert_intermediate_size", 5632, 1, maxIntermediate)
	}
	if k.qkvBias {
		c.QKVBias = o.boolOr("qkv_bias", true)
	}
	if k.someLayers {
		e.chooseLayers(o)
	}
	if e.layers() > 0 {
		c.Experts = e
	}
}

// chooseLayers leaves experts to every decoder_sparse_step-th layer, but not to those of mlp_only_layers.
func (e *Experts) chooseLayers(o *object) {
	step := o.intOr("decoder_sparse_step", 1, 1, maxLayers)
	for i := range e.Layers {
		e.Layers[i] = (i+1)%step == 0
	}
	if !o.has("mlp_only_layers") {
		return
	}
	var dense []json.RawMessage
	if err := json.Unmarshal(o.m["mlp_only_layers"], &dense); err != nil {
		o.fail("mlp_only_layers", "must be a list of layers, not %s", short(o.m["mlp_only_layers"]))
	}
	for _, raw := range dense {
		n, ok := integer(raw)
		if !ok || n < 0 || n >= maxLayers {
			o.fail("mlp_only_layers", "must hold numbers of layers, not %s", short(raw))
			return
		}
		if n < int64(len(e.Layers)) {
			e.Layers[n] = false
		}
	}
}

// mlpSlots are the tensors between a layer's second norm and the next layer.
func (c *Config) mlpSlots(layer int, add func(name string, role Role, shape ...int64)) {
	h, inter, e := int64(c.HiddenSize), int64(c.IntermediateSize), c.Experts
	if e == nil || !e.Layers[layer] {
		add("mlp.gate_proj.weight", Gate, inter, h)
		add("mlp.up_proj.weight", Up, inter, h)
		add("mlp.down_proj.weight", Down, h, inter)
		return
	}
	arch, _ := architectures(c.Arch)
	k := arch.experts
	add(k.block+".gate.weight", Router, int64(e.Count), h)
	if shared := int64(e.Shared); shared > 0 {
		add(k.block+".shared_expert.gate_proj.weight", SharedGate, shared, h)
		add(k.block+".shared_expert.up_proj.weight", SharedUp, shared, h)
		add(k.block+".shared_expert.down_proj.weight", SharedDown, h, shared)
		add(k.block+".shared_expert_gate.weight", SharedRouter, 1, h)
	}
}

// expertSlots are the tensors of each expert of a layer, one expert after the other.
func (c *Config) expertSlots(layer int) []slot {
	e := c.Experts
	if e == nil || !e.Layers[layer] {
		return nil
	}
	arch, _ := architectures(c.Arch)
	h, inner := int64(c.HiddenSize), int64(e.Intermediate)
	roles, shapes := [3]Role{ExpertGate, ExpertUp, ExpertDown}, [3][]int64{{inner, h}, {inner, h}, {h, inner}}
	var list []slot
	for expert := range e.Count {
		for i, name := range arch.experts.names {
			list = append(list, slot{
				name:  fmt.Sprintf("model.layers.%d.%s.experts.%d.%s.weight", layer, arch.experts.block, expert, name),
				role:  roles[i],
				layer: layer, expert: expert, shape: shapes[i],
			})
		}
	}
	return list
}
