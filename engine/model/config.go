package model

import (
	"slices"
	"strings"
)

// Bounds of the sizes in config.json. Their products fit an int64 with room: the largest tensor is
// maxVocab * maxHidden = 2^38 elements.
const (
	maxHidden       = 1 << 16
	maxIntermediate = 1 << 20
	maxLayers       = 1 << 10
	maxHeads        = 1 << 10
	maxHeadDim      = 1 << 10
	maxVocab        = 1 << 22
	maxPositions    = 1 << 27
	maxInt32        = 1<<31 - 1
)

// Config is what the data plane and the server need to know of a model's config.json.
type Config struct {
	Arch             string // such as "LlamaForCausalLM"
	HiddenSize       int
	IntermediateSize int // of layers without experts
	NumLayers        int
	NumHeads         int
	NumKVHeads       int // divides NumHeads
	HeadDim          int // even
	VocabSize        int
	MaxPositions     int // tokens of prompt and answer together
	RMSNormEps       float32
	RopeTheta        float64
	Rope             RopeScaling
	SlidingWindow    []int // per layer: tokens a query sees, itself included; 0 is all
	QKVBias          bool
	QKNorm           bool
	TieEmbeddings    bool
	DType            string   // "float32", "float16" or "bfloat16"; "" where config.json is silent
	BOS              int32    // -1 where the model has none
	EOS              []int32  // any of these ends an answer; may be empty
	Experts          *Experts `json:",omitempty"` // nil where no layer has any

	// What families of models have unlike Llama; each zero value is Llama's.
	Activation   string  `json:",omitempty"` // of the MLP's gate: "" is silu, or GELUTanh
	PostNorms    bool    `json:",omitempty"` // what attention and MLP give is normed before it is added
	NoPreNorms   bool    `json:",omitempty"` // they read what was not normed; with PostNorms
	QKNormAll    bool    `json:",omitempty"` // with QKNorm: over all heads of q, and over those of k
	NormOffset   bool    `json:",omitempty"` // the files' norms are their weights less 1, which Tensors adds
	AttnScale    float64 `json:",omitempty"` // of q.k; 0: 1 / sqrt(HeadDim)
	AttnSoftcap  float64 `json:",omitempty"` // a score s becomes AttnSoftcap tanh(s / AttnSoftcap); 0: stays
	LogitSoftcap float64 `json:",omitempty"` // likewise of logits
	EmbedScale   float64 `json:",omitempty"` // multiplies embeddings where they enter the layers; 0: 1
	LogitScale   float64 `json:",omitempty"` // of logits; 0: 1. Tensors multiplies the last norm's weight by it
	RotaryDim    int     `json:",omitempty"` // of a head's numbers the first so many are rotated; 0: all
	LocalTheta   float64 `json:",omitempty"` // of layers with a window, whose rotation is not scaled; 0: as the others
	Fused        bool    `json:",omitempty"` // in the files Q, K and V are one tensor, gate and up another

	Quantized *Quantized `json:",omitempty"` // nil where no matrix is in 4 bits
}

// GELUTanh is gelu in its form with tanh, by transformers' name.
const GELUTanh = "gelu_pytorch_tanh"

// architecture holds what differs between the classes of transformers, their defaults for absent keys among it.
type architecture struct {
	modelType     string
	kvHeads       int // default of num_key_value_heads; 0 is num_attention_heads
	headDim       int // default of head_dim; 0 is hidden_size / num_attention_heads
	bos           int32
	eos           []int32
	bias, qkNorm  bool
	windowFlag    bool // use_sliding_window, max_window_layers and layer_types choose the windows
	slidingWindow bool // sliding_window alone gives every layer's window, defaultWindow where absent
	defaultWindow int  // 0: none
	theta         float64
	eps           float64     // default of rms_norm_eps; 0: 1e-6
	experts       *expertKeys // nil: it has none
	family        familyKeys
}

func architectures(name string) (architecture, bool) {
	switch name {
	case "LlamaForCausalLM":
		return architecture{modelType: "llama", bos: 1, eos: []int32{2}}, true
	case "MistralForCausalLM":
		return architecture{modelType: "mistral", kvHeads: 8, bos: 1, eos: []int32{2}, slidingWindow: true, defaultWindow: 4096}, true
	case "Qwen2ForCausalLM":
		return architecture{modelType: "qwen2", kvHeads: 32, bos: -1, bias: true, windowFlag: true}, true
	case "Qwen3ForCausalLM":
		return architecture{
			modelType: "qwen3", kvHeads: 32, headDim: 128, bos: -1, qkNorm: true, windowFlag: true,
		}, true
	}
	if arch, ok := families(name); ok {
		return arch, true
	}
	return expertArchitectures(name)
}

// ParseConfig reads a config.json. Errors name the key at fault; those about features that cannot be served
// are *UnsupportedError.
func ParseConfig(data []byte) (*Config, error) {
	o, err := parseObject("config.json", data)
	if err != nil {
		return nil, err
	}
	c := &Config{}
	o = textConfig(o)
	arch, ok := c.architecture(o)
	if !ok {
		return nil, o.err
	}
	c.refuseFeatures(o, arch)
	c.sizes(o, arch)
	if o.err != nil {
		return nil, o.err // the rest divides by the sizes
	}
	c.RMSNormEps = float32(o.floatOr("rms_norm_eps", max(arch.eps, 1e-6), 1e-12, 1))
	c.TieEmbeddings = o.boolOr("tie_word_embeddings", arch.family.tied)
	c.QKVBias, c.QKNorm = arch.bias, arch.qkNorm
	c.experts(o, arch)
	c.DType = parseDType(o)
	c.family(o, arch)
	c.windows(o, arch)
	c.rope(o, arch)
	c.BOS = bosToken(o, arch.bos, c.VocabSize)
	c.EOS = o.tokens("eos_token_id", arch.eos, c.VocabSize)
	if o.err != nil {
		return nil, o.err
	}
	return c, nil
}

func (c *Config) architecture(o *object) (architecture, bool) {
	names := o.strings("architectures")
	if o.err == nil && len(names) != 1 {
		o.fail("architectures", "must name one architecture, not %d", len(names))
	}
	if o.err != nil {
		return architecture{}, false
	}
	arch, ok := architectures(names[0])
	if !ok {
		o.refuse("architectures", "%s", short([]byte(names[0])))
		return architecture{}, false
	}
	if t := o.stringOr("model_type", arch.modelType); t != arch.modelType {
		o.refuse("model_type", "%q with %s", short([]byte(t)), names[0])
	}
	c.Arch = names[0]
	return arch, o.err == nil
}

// refuseFeatures names the features that change the arithmetic and are not served.
func (c *Config) refuseFeatures(o *object, arch architecture) {
	c.Quantized = parseQuantized(o)
	for _, key := range []string{"attention_bias", "mlp_bias", "use_mrope"} {
		if o.boolOr(key, false) {
			o.refuse(key, "true")
		}
	}
	for _, key := range []string{"num_experts", "num_local_experts", "text_config", "vision_config"} {
		if o.has(key) && (arch.experts == nil || !strings.HasSuffix(key, "experts")) {
			o.refuse(key, "a model with it")
		}
	}
	if act := o.stringOr("hidden_act", "silu"); !arch.family.gelu && act != "silu" && act != "swish" {
		o.refuse("hidden_act", "%q", act)
	}
}

func (c *Config) sizes(o *object, arch architecture) {
	c.HiddenSize = o.intIn("hidden_size", 1, maxHidden)
	c.IntermediateSize = o.intIn("intermediate_size", 1, maxIntermediate)
	c.NumLayers = o.intIn("num_hidden_layers", 1, maxLayers)
	def := arch.family.sizes
	c.NumHeads = o.intOrIn("num_attention_heads", def.heads, 1, maxHeads)
	c.VocabSize = o.intOrIn("vocab_size", def.vocab, 1, maxVocab)
	c.MaxPositions = o.intOrIn("max_position_embeddings", def.positions, 1, maxPositions)
	if o.err != nil {
		return
	}
	kvHeads := arch.kvHeads
	if kvHeads == 0 || o.isNull("num_key_value_heads") {
		kvHeads = c.NumHeads
	}
	c.NumKVHeads = o.intOr("num_key_value_heads", int64(kvHeads), 1, maxHeads)
	if o.err == nil && c.NumHeads%c.NumKVHeads != 0 {
		o.fail("num_key_value_heads", "(%d) must divide num_attention_heads (%d)", c.NumKVHeads, c.NumHeads)
	}
	c.HeadDim = arch.headDim
	if !o.has("head_dim") && c.HeadDim == 0 {
		if c.HiddenSize%c.NumHeads != 0 {
			o.fail("num_attention_heads", "(%d) must divide hidden_size (%d) where head_dim is not given",
				c.NumHeads, c.HiddenSize)
		}
		c.HeadDim = c.HiddenSize / c.NumHeads
	}
	c.HeadDim = o.intOr("head_dim", int64(c.HeadDim), 1, maxHeadDim)
	if c.HeadDim%2 != 0 || c.HeadDim > maxHeadDim {
		o.fail("head_dim", "must be even and at most %d, not %d", maxHeadDim, c.HeadDim)
	}
}

// parseDType reads the type of the weights as config.json states it; the tensors themselves decide.
func parseDType(o *object) string {
	key := "dtype"
	if !o.has(key) {
		key = "torch_dtype"
	}
	s := strings.TrimPrefix(o.stringOr(key, ""), "torch.")
	switch s {
	case "", "auto":
		return ""
	case "float32", "float16", "bfloat16":
		return s
	}
	o.refuse(key, "%q", short([]byte(s)))
	return ""
}

func bosToken(o *object, def int32, vocab int) int32 {
	ids := o.tokens("bos_token_id", []int32{def}, vocab)
	switch len(ids) {
	case 0:
		return -1
	case 1:
		return ids[0]
	}
	o.fail("bos_token_id", "must be one token id, not %d", len(ids))
	return -1
}

// windows fills SlidingWindow. Gemma and OLMo 3 have a pattern of layers. Mistral has one window for all layers. Qwen has one for the layers that
// layer_types marks, or for those from max_window_layers on, and only where use_sliding_window is true.
func (c *Config) windows(o *object, arch architecture) {
	c.SlidingWindow = make([]int, c.NumLayers)
	if arch.family.pattern > 0 {
		c.patternWindows(o, arch)
		return
	}
	window, first := 0, c.NumLayers
	switch {
	case arch.slidingWindow:
		if !o.isNull("sliding_window") {
			window, first = o.intOr("sliding_window", int64(arch.defaultWindow), 1, maxInt32), 0
		}
	case arch.windowFlag && o.boolOr("use_sliding_window", false):
		if arch.experts != nil { // versions of transformers differ in which layers have it
			o.refuse("use_sliding_window", "true with %s", c.Arch)
		}
		if !o.isNull("sliding_window") {
			window = o.intOr("sliding_window", 4096, 1, maxInt32)
			first = o.intOr("max_window_layers", 28, 0, maxInt32)
		}
	case !arch.windowFlag && o.has("sliding_window"):
		o.refuse("sliding_window", "a window with %s", c.Arch)
	}
	types := o.strings("layer_types")
	if types == nil {
		for i := min(first, c.NumLayers); i < c.NumLayers; i++ {
			c.SlidingWindow[i] = window
		}
		return
	}
	if len(types) != c.NumLayers {
		o.fail("layer_types", "must have %d entries, one for each layer, not %d", c.NumLayers, len(types))
		return
	}
	for i, t := range types {
		switch {
		case t == "full_attention" && (window == 0 || arch.windowFlag):
		case t == "sliding_attention" && window > 0:
			c.SlidingWindow[i] = window
		default:
			o.refuse("layer_types", "%q in layer %d of this %s", short([]byte(t)), i, c.Arch)
			return
		}
	}
}

// WeightBytes estimates the bytes of all weights when held with elementBytes bytes per element.
func (c *Config) WeightBytes(elementBytes int) int64 {
	h, d := int64(c.HiddenSize), int64(c.HeadDim)
	attention := h * d * int64(2*c.NumHeads+2*c.NumKVHeads)
	layer := attention + 3*h*int64(c.IntermediateSize) + 2*h
	if c.PostNorms && !c.NoPreNorms {
		layer += 2 * h
	}
	total := layer*int64(c.NumLayers) + h*int64(c.VocabSize) + h
	if e := c.Experts; e != nil {
		more := 3*h*(int64(e.Count)*int64(e.Intermediate)+int64(e.Shared)-int64(c.IntermediateSize)) + h*int64(e.Count)
		total += more * int64(e.layers())
	}
	if !c.TieEmbeddings {
		total += h * int64(c.VocabSize)
	}
	return total * int64(elementBytes)
}

// Clone returns a copy that shares nothing with c.
func (c *Config) Clone() *Config {
	d := *c
	d.SlidingWindow = slices.Clone(c.SlidingWindow)
	d.EOS = slices.Clone(c.EOS)
	d.Rope.ShortFactor, d.Rope.LongFactor = slices.Clone(c.Rope.ShortFactor), slices.Clone(c.Rope.LongFactor)
	if c.Quantized != nil {
		q := *c.Quantized
		d.Quantized = &q
	}
	if c.Experts != nil {
		e := *c.Experts
		e.Layers = slices.Clone(e.Layers)
		d.Experts = &e
	}
	return &d
}
