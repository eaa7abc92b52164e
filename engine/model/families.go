package model

import (
	"math"
	"strings"
)

// familyKeys is what an architecture has unlike Llama; the zero value is Llama's.
type familyKeys struct {
	sizes       familySizes // of config.json files that leave them out
	postNorms   bool        // what attention and MLP give is normed before it is added
	noPreNorms  bool        // they read what was not normed
	qkNormAll   bool        // q's and k's norm is over all heads
	normOffset  bool        // norms multiply by 1 + their weight
	gelu        bool        // hidden_activation, gelu_pytorch_tanh where absent
	embedRoot   bool        // embeddings are multiplied by the root of hidden_size
	queryScalar bool        // query_pre_attn_scalar, attn_logit_softcapping and final_logit_softcapping are read
	softcaps    [2]float64  // defaults of the latter two; 0: none
	pattern     int         // of so many layers all but the last have the window, unless layer_types says otherwise
	localTheta  float64     // layers with a window have rotations of their own: default of their theta
	fused       bool        // Q, K and V are one tensor, gate and up another
	longrope    bool        // rope may be longrope, and partly
	multipliers bool        // Granite's
	tied        bool        // default of tie_word_embeddings
	prefixes    []string    // of tensors' names, instead of ""; the first that a file has
	others      []string    // prefixes of tensors that are of no use for text
}

// familySizes are defaults, 0 where the key is required.
type familySizes struct{ heads, vocab, positions int64 }

func families(name string) (architecture, bool) {
	gemma := familyKeys{postNorms: true, normOffset: true, gelu: true, embedRoot: true, queryScalar: true, tied: true}
	switch name {
	case "Gemma2ForCausalLM":
		gemma.softcaps, gemma.pattern = [2]float64{50, 30}, 2
		return architecture{modelType: "gemma2", kvHeads: 4, headDim: 256, bos: 2, eos: []int32{1}, defaultWindow: 4096, family: gemma}, true
	case "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration":
		gemma.pattern, gemma.localTheta = 6, 1e4
		gemma.sizes = familySizes{heads: 8, vocab: 262208, positions: 131072}
		if name != "Gemma3ForCausalLM" {
			gemma.prefixes = []string{"language_model.", "model.language_model."}
			gemma.others = []string{"vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."}
		}
		return architecture{
			modelType: "gemma3_text", kvHeads: 4, headDim: 256, bos: 2, eos: []int32{1}, qkNorm: true, defaultWindow: 4096, theta: 1e6,
			family: gemma,
		}, true
	case "Olmo2ForCausalLM":
		return architecture{
			modelType: "olmo2", bos: -1, eos: []int32{50279}, qkNorm: true, eps: 1e-5,
			family: familyKeys{postNorms: true, noPreNorms: true, qkNormAll: true},
		}, true
	case "Olmo3ForCausalLM":
		return architecture{
			modelType: "olmo3", bos: -1, eos: []int32{50279}, qkNorm: true, eps: 1e-5, defaultWindow: 4096, theta: 5e5,
			family: familyKeys{postNorms: true, noPreNorms: true, qkNormAll: true, pattern: 4, localTheta: 5e5},
		}, true
	case "Phi3ForCausalLM":
		return architecture{
			modelType: "phi3", bos: 1, eos: []int32{32000}, slidingWindow: true, eps: 1e-5, family: familyKeys{fused: true, longrope: true},
		}, true
	case "GraniteForCausalLM":
		return architecture{modelType: "granite", bos: 1, eos: []int32{2}, family: familyKeys{multipliers: true}}, true
	}
	return architecture{}, false
}

// textConfig is the object that describes the text model: that of text_config, with what is written beside it alone, where
// the architecture has more than text.
func textConfig(o *object) *object {
	names := o.strings("architectures")
	if len(names) != 1 || names[0] != "Gemma3ForConditionalGeneration" || o.err != nil {
		return o
	}
	text := o.object("text_config")
	if text == nil {
		o.fail("text_config", "is missing")
		return o
	}
	for _, key := range []string{"architectures", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config", "tie_word_embeddings"} {
		if raw, ok := o.m[key]; ok && (key == "architectures" || !text.has(key)) {
			text.m[key] = raw
		}
	}
	return text
}

// family reads what the architecture has unlike Llama, once the sizes are known.
func (c *Config) family(o *object, arch architecture) {
	f := &arch.family
	c.PostNorms, c.NoPreNorms, c.QKNormAll, c.NormOffset = f.postNorms, f.noPreNorms, f.qkNormAll, f.normOffset
	if f.gelu {
		c.Activation = o.stringOr("hidden_activation", GELUTanh)
		if c.Activation != GELUTanh {
			o.refuse("hidden_activation", "%q", short([]byte(c.Activation)))
		}
	}
	if f.queryScalar {
		c.AttnScale = 1 / math.Sqrt(o.floatOr("query_pre_attn_scalar", 256, 1e-3, 1e6))
		c.AttnSoftcap = softcap(o, "attn_logit_softcapping", f.softcaps[0])
		c.LogitSoftcap = softcap(o, "final_logit_softcapping", f.softcaps[1])
		if o.boolOr("use_bidirectional_attention", false) {
			o.refuse("use_bidirectional_attention", "true")
		}
	}
	if f.multipliers {
		c.multipliers(o)
	}
	c.Fused = f.fused
}

// softcap reads a bound of scores or logits; null is none.
func softcap(o *object, key string, def float64) float64 {
	if o.isNull(key) {
		return 0
	}
	if !o.has(key) {
		return def
	}
	return o.floatOr(key, def, 1e-3, 1e6)
}

// multipliers folds Granite's into what other models have. What layers add is multiplied by r: x += r f(norm(x)). With x
// = r y that is y += f(norm(r y)), and norm(r y) is the norm of y with eps / r^2. So the embedding is divided by r instead,
// which the last norm does not see either. What logits are divided by, the last norm's weight is.
func (c *Config) multipliers(o *object) {
	const low, high = 1e-4, 1e4
	residual := o.floatOr("residual_multiplier", 1, low, high)
	c.EmbedScale = o.floatOr("embedding_multiplier", 1, low, high) / residual
	c.AttnScale = o.floatOr("attention_multiplier", 1, low, high)
	c.LogitScale = 1 / o.floatOr("logits_scaling", 1, low, high)
	eps := float64(c.RMSNormEps) / (residual * residual)
	if eps >= 1 {
		o.fail("residual_multiplier", "(%g) is too small beside rms_norm_eps", residual)
		return
	}
	c.RMSNormEps = float32(eps)
}

// rootOfHidden is the factor of the embeddings where it is the root of hidden_size: rounded to the dtype of the weights,
// as it was in training (transformers rounds it so).
func (c *Config) rootOfHidden() float64 {
	root := float32(math.Sqrt(float64(c.HiddenSize)))
	switch c.DType {
	case "bfloat16":
		bits := math.Float32bits(root)
		return float64(math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff))
	case "float16": // normal there: between 1 and 256
		bits := math.Float32bits(root)
		return float64(math.Float32frombits((bits + 0xfff + bits>>13&1) &^ 0x1fff))
	}
	return float64(root)
}

// patternWindows gives all layers but each pattern-th the window.
func (c *Config) patternWindows(o *object, arch architecture) {
	pattern := o.intOr("sliding_window_pattern", int64(arch.family.pattern), 1, maxLayers)
	window := o.intOr("sliding_window", int64(arch.defaultWindow), 1, maxInt32)
	types := o.strings("layer_types")
	if types != nil && len(types) != c.NumLayers {
		o.fail("layer_types", "must have %d entries, one for each layer, not %d", c.NumLayers, len(types))
		return
	}
	for i := range c.SlidingWindow {
		sliding := (i+1)%pattern != 0
		if types != nil {
			sliding = types[i] == "sliding_attention"
			if !sliding && types[i] != "full_attention" {
				o.refuse("layer_types", "%q in layer %d of this %s", short([]byte(types[i])), i, c.Arch)
				return
			}
		}
		if sliding {
			c.SlidingWindow[i] = window
		}
	}
	if o.isNull("sliding_window") && c.hasWindows() {
		o.fail("sliding_window", "is null where layers have one")
	}
}

func (c *Config) hasWindows() bool {
	for _, w := range c.SlidingWindow {
		if w > 0 {
			return true
		}
	}
	return false
}

// postNormSlots are the norms behind attention and MLP of a layer.
func (c *Config) postNormSlots(add func(name string, role Role, shape ...int64)) {
	if c.PostNorms {
		add("post_attention_layernorm.weight", AttnPostNorm, int64(c.HiddenSize))
		add("post_feedforward_layernorm.weight", MLPPostNorm, int64(c.HiddenSize))
	}
}

// prefix is what the names of the text model's tensors begin with in these files.
func (a *architecture) prefix(byName map[string]*entry) string {
	for _, p := range a.family.prefixes {
		for name := range byName {
			if strings.HasPrefix(name, p) {
				return p
			}
		}
	}
	return ""
}

// isOther tells tensors that the text model has no use for.
func (a *architecture) isOther(name string) bool {
	for _, p := range a.family.others {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
