package model

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

type fields = map[string]any

// with is a valid config.json of an architecture with keys changed; the value remove takes a key away.
type removed struct{}

var remove removed

func with(arch string, changes fields) []byte {
	m := fields{
		"architectures": []string{arch}, "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
		"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
	}
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == any(remove) })
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

const (
	llama   = "LlamaForCausalLM"
	mistral = "MistralForCausalLM"
	qwen2   = "Qwen2ForCausalLM"
	qwen3   = "Qwen3ForCausalLM"

	mixtral  = "MixtralForCausalLM"
	qwen2moe = "Qwen2MoeForCausalLM"
	qwen3moe = "Qwen3MoeForCausalLM"

	gemma2  = "Gemma2ForCausalLM"
	gemma3  = "Gemma3ForCausalLM"
	images  = "Gemma3ForConditionalGeneration"
	olmo2   = "Olmo2ForCausalLM"
	olmo3   = "Olmo3ForCausalLM"
	phi3    = "Phi3ForCausalLM"
	granite = "GraniteForCausalLM"
)

// longrope is a valid one for heads of 16 of which all, or a part, is rotated.
func longrope(numbers int, changes fields) fields {
	p := fields{"type": "longrope", "short_factor": slices.Repeat([]float64{1}, numbers/2), "long_factor": slices.Repeat([]float64{2}, numbers/2)}
	maps.Copy(p, changes)
	maps.DeleteFunc(p, func(_ string, v any) bool { return v == any(remove) })
	return fields{"rope_scaling": p, "original_max_position_embeddings": 128}
}

func TestParseConfig(t *testing.T) {
	yarn := RopeScaling{
		Type: "yarn", Factor: 4, OriginalMaxPositions: 128, BetaFast: 32, BetaSlow: 1, Truncate: true,
	}
	for _, tc := range []struct {
		name    string
		arch    string
		changes fields
		check   func(c *Config) any
		want    any
	}{
		{"kv heads absent", llama, fields{"num_key_value_heads": remove}, func(c *Config) any { return c.NumKVHeads }, 4},
		{"kv heads null", qwen2, fields{"num_key_value_heads": nil}, func(c *Config) any { return c.NumKVHeads }, 4},
		{"kv heads of mistral", mistral, fields{"num_key_value_heads": remove, "num_attention_heads": 16},
			func(c *Config) any { return c.NumKVHeads }, 8},
		{"head_dim derived", llama, nil, func(c *Config) any { return c.HeadDim }, 16},
		{"head_dim given", llama, fields{"head_dim": 24}, func(c *Config) any { return c.HeadDim }, 24},
		{"head_dim of qwen3", qwen3, nil, func(c *Config) any { return c.HeadDim }, 128},
		{"hidden not divisible, head_dim given", llama, fields{"head_dim": 16, "hidden_size": 66},
			func(c *Config) any { return c.HiddenSize }, 66},
		{"integral float", llama, fields{"vocab_size": json.Number("1e3")}, func(c *Config) any { return c.VocabSize }, 1000},
		{"eps", llama, fields{"rms_norm_eps": 1e-5}, func(c *Config) any { return c.RMSNormEps }, float32(1e-5)},
		{"eps default", llama, nil, func(c *Config) any { return c.RMSNormEps }, float32(1e-6)},
		{"dtype", llama, fields{"dtype": "float16", "torch_dtype": "float32"}, func(c *Config) any { return c.DType }, "float16"},
		{"torch_dtype", llama, fields{"torch_dtype": "torch.bfloat16"}, func(c *Config) any { return c.DType }, "bfloat16"},
		{"tokens", llama, fields{"eos_token_id": []int{7, 9}, "bos_token_id": 5},
			func(c *Config) any { return append(c.EOS, c.BOS) }, []int32{7, 9, 5}},
		{"tokens default", llama, nil, func(c *Config) any { return append(c.EOS, c.BOS) }, []int32{2, 1}},
		{"tokens default, tiny vocabulary", llama, fields{"vocab_size": 1},
			func(c *Config) any { return append(c.EOS, c.BOS) }, []int32{-1}},
		{"tokens null", llama, fields{"eos_token_id": nil, "bos_token_id": nil},
			func(c *Config) any { return append(c.EOS, c.BOS) }, []int32{-1}},
		{"bias", qwen2, nil, func(c *Config) any { return []bool{c.QKVBias, c.QKNorm, c.TieEmbeddings} }, []bool{true, false, false}},
		{"qk norm", qwen3, fields{"tie_word_embeddings": true},
			func(c *Config) any { return []bool{c.QKVBias, c.QKNorm, c.TieEmbeddings} }, []bool{false, true, true}},
		{"theta", llama, fields{"rope_theta": 500000}, func(c *Config) any { return c.RopeTheta }, 5e5},
		{"theta inside", llama, fields{"rope_theta": 7, "rope_parameters": fields{"rope_theta": 5e5}},
			func(c *Config) any { return c.RopeTheta }, 5e5},
		{"rope_scaling wins", llama, fields{"rope_scaling": fields{"type": "linear", "factor": 3},
			"rope_parameters": fields{"rope_type": "default"}},
			func(c *Config) any { return c.Rope }, RopeScaling{Type: "linear", Factor: 3}},
		{"empty rope_scaling", llama, fields{"rope_scaling": fields{}}, func(c *Config) any { return c.Rope },
			RopeScaling{Type: "default", Factor: 1}},
		{"yarn, original beside", llama, fields{"original_max_position_embeddings": 128, "rope_scaling": fields{
			"rope_type": "yarn", "factor": nil, "original_max_position_embeddings": 64}},
			func(c *Config) any { return c.Rope }, yarn},
		{"windows of mistral", mistral, fields{"sliding_window": 9}, func(c *Config) any { return c.SlidingWindow }, []int{9, 9, 9}},
		{"window default of mistral", mistral, nil, func(c *Config) any { return c.SlidingWindow }, []int{4096, 4096, 4096}},
		{"no window in mistral", mistral, fields{"sliding_window": nil}, func(c *Config) any { return c.SlidingWindow }, []int{0, 0, 0}},
		{"window not used", qwen2, fields{"sliding_window": 9, "max_window_layers": 0},
			func(c *Config) any { return c.SlidingWindow }, []int{0, 0, 0}},
		{"windows from a layer on", qwen2, fields{"sliding_window": 9, "max_window_layers": 2, "use_sliding_window": true},
			func(c *Config) any { return c.SlidingWindow }, []int{0, 0, 9}},
		{"windows by layer_types", qwen3, fields{"sliding_window": 9, "max_window_layers": 2, "use_sliding_window": true,
			"layer_types": []string{"sliding_attention", "full_attention", "sliding_attention"}},
			func(c *Config) any { return c.SlidingWindow }, []int{9, 0, 9}},
		{"experts of mixtral", mixtral, nil, func(c *Config) any { return *c.Experts },
			Experts{Count: 8, PerToken: 2, Intermediate: 96, Normalise: true, Layers: []bool{true, true, true}}},
		{"experts of qwen2", qwen2moe, nil, func(c *Config) any { return *c.Experts },
			Experts{Count: 60, PerToken: 4, Intermediate: 1408, Shared: 5632, Layers: []bool{true, true, true}}},
		{"experts of qwen3", qwen3moe, fields{"norm_topk_prob": true, "num_experts": 9, "num_experts_per_tok": 9,
			"moe_intermediate_size": 7, "shared_expert_intermediate_size": 5}, func(c *Config) any { return *c.Experts },
			Experts{Count: 9, PerToken: 9, Intermediate: 7, Normalise: true, Layers: []bool{true, true, true}}},
		{"the other name", qwen3moe, fields{"num_local_experts": 11}, func(c *Config) any { return c.Experts.Count }, 11},
		{"some layers", qwen3moe, fields{"decoder_sparse_step": 2, "mlp_only_layers": []int{0, 77}},
			func(c *Config) any { return c.Experts.Layers }, []bool{false, true, false}},
		{"but one layer", qwen2moe, fields{"mlp_only_layers": []int{1}},
			func(c *Config) any { return c.Experts.Layers }, []bool{true, false, true}},
		{"no layer", qwen3moe, fields{"mlp_only_layers": []int{0, 1, 2}}, func(c *Config) any { return c.Experts == nil }, true},
		{"theta and window of mixtral", mixtral, nil, func(c *Config) any { return []int{int(c.RopeTheta), c.SlidingWindow[2]} },
			[]int{1000000, 0}},
		{"a window in mixtral", mixtral, fields{"sliding_window": 9}, func(c *Config) any { return c.SlidingWindow }, []int{9, 9, 9}},
		{"no bias", qwen2moe, fields{"qkv_bias": false}, func(c *Config) any { return c.QKVBias }, false},
		{"gemma's windows", gemma2, nil, func(c *Config) any { return c.SlidingWindow }, []int{4096, 0, 4096}},
		{"gemma's windows by layer_types", gemma2, fields{"sliding_window": 9, "layer_types": []string{"full_attention", "full_attention", "sliding_attention"}},
			func(c *Config) any { return c.SlidingWindow }, []int{0, 0, 9}},
		{"a pattern of windows", gemma3, fields{"sliding_window": 9, "sliding_window_pattern": 3}, func(c *Config) any { return c.SlidingWindow }, []int{9, 9, 0}},
		{"no window at all", gemma3, fields{"sliding_window": nil, "sliding_window_pattern": 1}, func(c *Config) any { return c.SlidingWindow }, []int{0, 0, 0}},
		{"caps", gemma2, nil, func(c *Config) any { return []float64{c.AttnScale, c.AttnSoftcap, c.LogitSoftcap} }, []float64{1.0 / 16, 50, 30}},
		{"other caps", gemma2, fields{"query_pre_attn_scalar": 100, "attn_logit_softcapping": nil, "final_logit_softcapping": 5},
			func(c *Config) any { return []float64{c.AttnScale, c.AttnSoftcap, c.LogitSoftcap} }, []float64{0.1, 0, 5}},
		{"no caps", gemma3, nil, func(c *Config) any { return []float64{c.AttnSoftcap, c.LogitSoftcap} }, []float64{0, 0}},
		{"gemma", gemma3, nil, func(c *Config) any {
			return []any{c.PostNorms, c.NoPreNorms, c.NormOffset, c.QKNorm, c.QKNormAll, c.TieEmbeddings, c.Activation, c.HeadDim, c.BOS}
		}, []any{true, false, true, true, false, true, GELUTanh, 256, int32(2)}},
		{"gemma's thetas", gemma3, nil, func(c *Config) any { return []float64{c.RopeTheta, c.LocalTheta} }, []float64{1e6, 1e4}},
		{"gemma's thetas, v4", gemma3, fields{"rope_theta": 5e5, "rope_local_base_freq": 77, "rope_scaling": fields{"rope_type": "linear", "factor": 8}},
			func(c *Config) any { return []any{c.RopeTheta, c.LocalTheta, c.Rope} }, []any{5e5, 77.0, RopeScaling{Type: "linear", Factor: 8}}},
		{"gemma's thetas, v5", gemma3, fields{"rope_parameters": fields{
			"sliding_attention": fields{"rope_type": "default", "rope_theta": 77},
			"full_attention":    fields{"rope_type": "linear", "factor": 8, "rope_theta": 5e5}}},
			func(c *Config) any { return []any{c.RopeTheta, c.LocalTheta, c.Rope} }, []any{5e5, 77.0, RopeScaling{Type: "linear", Factor: 8}}},
		{"one theta of gemma 2", gemma2, nil, func(c *Config) any { return []float64{c.RopeTheta, c.LocalTheta} }, []float64{1e4, 0}},
		{"olmo", olmo2, nil, func(c *Config) any {
			return []any{c.PostNorms, c.NoPreNorms, c.QKNorm, c.QKNormAll, c.Activation, c.RMSNormEps, c.LocalTheta}
		}, []any{true, true, true, true, "", float32(1e-5), 0.0}},
		{"olmo 3", olmo3, fields{"rope_theta": 9e5, "num_hidden_layers": 4}, func(c *Config) any { return []any{c.SlidingWindow, c.RopeTheta, c.LocalTheta} },
			[]any{[]int{4096, 4096, 4096, 0}, 9e5, 9e5}},
		{"phi", phi3, nil, func(c *Config) any { return []any{c.Fused, c.Rope.Type, c.RotaryDim, c.SlidingWindow} }, []any{true, "default", 0, []int{0, 0, 0}}},
		{"phi with a window", phi3, fields{"sliding_window": 9}, func(c *Config) any { return c.SlidingWindow }, []int{9, 9, 9}},
		{"longrope", phi3, longrope(16, nil), func(c *Config) any {
			return []any{c.Rope.Type, c.Rope.Long, c.Rope.OriginalMaxPositions, c.Rope.Factor}
		},
			[]any{"longrope", true, 128, 4.0}},
		{"longrope by an older name, of a part", phi3, longrope(8, fields{"type": "su", "partial_rotary_factor": 0.5}),
			func(c *Config) any { return []any{c.Rope.Type, c.RotaryDim} }, []any{"longrope", 8}},
		{"longrope that is not long", phi3, fields{"max_position_embeddings": 128, "rope_scaling": longrope(16, nil)["rope_scaling"]},
			func(c *Config) any { return []any{c.Rope.Long, c.Rope.OriginalMaxPositions} }, []any{false, 4096}},
		{"granite", granite, fields{"embedding_multiplier": 12, "residual_multiplier": 0.25, "attention_multiplier": 0.125, "logits_scaling": 8, "rms_norm_eps": 1e-5},
			func(c *Config) any { return []any{c.EmbedScale, c.AttnScale, c.LogitScale, c.RMSNormEps} }, []any{48.0, 0.125, 0.125, float32(16e-5)}},
		{"a model with images", images, fields{"text_config": fields{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}, "vision_config": fields{"a": 1},
			"eos_token_id": []int{1, 106}, "torch_dtype": "bfloat16"},
			func(c *Config) any {
				return []any{c.Arch, c.NumHeads, c.NumKVHeads, c.HeadDim, c.VocabSize, c.MaxPositions, c.EOS, c.DType}
			},
			[]any{images, 8, 4, 256, 262208, 131072, []int32{1, 106}, "bfloat16"}},
		{"all layers full", llama, fields{"layer_types": slices.Repeat([]string{"full_attention"}, 3)},
			func(c *Config) any { return c.SlidingWindow }, []int{0, 0, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := ParseConfig(with(tc.arch, tc.changes))
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.check(c); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// compressed is a quantization_config of compressed-tensors with some changes to its weights and to itself.
func compressed(weights, changes fields) fields {
	w := fields{"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32}
	maps.Copy(w, weights)
	c := fields{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": fields{"group_0": fields{"weights": w}}}
	maps.Copy(c, changes)
	return fields{"quantization_config": c}
}

func TestParseQuantized(t *testing.T) {
	for _, tc := range []struct {
		changes fields
		want    Quantized
	}{
		{fields{"quantization_config": fields{"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}}, Quantized{Method: "awq", GroupSize: 64, Zeros: true}},
		{fields{"quantization_config": fields{"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": true}}, Quantized{Method: "gptq", ZeroLess: 1, Zeros: true}},
		{fields{"quantization_config": fields{"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}}, Quantized{Method: "gptq", GroupSize: 128, Zeros: true}},
		{compressed(nil, nil), Quantized{Method: "compressed-tensors", GroupSize: 32}},
		{compressed(fields{"strategy": "channel", "group_size": nil, "symmetric": false}, nil), Quantized{Method: "compressed-tensors", Zeros: true}},
	} {
		c, err := ParseConfig(with(llama, tc.changes))
		if err != nil || *c.Quantized != tc.want {
			t.Errorf("%v: %+v, %v", tc.changes, c, err)
		}
	}
}

// TestRefuseConfig lists what is refused; the error must name the key, and be typed where it is the feature
// that is at fault and not the file.
func TestRefuseConfig(t *testing.T) {
	rope := func(v fields) fields { return fields{"rope_scaling": v} }
	for _, tc := range []struct {
		arch    string
		changes fields
		names   string // parts of the message, by |
		typed   bool
	}{
		{"GPT2LMHeadModel", nil, "architectures|GPT2LMHeadModel", true},
		{llama, fields{"architectures": []string{llama, mistral}}, "architectures", false},
		{llama, fields{"architectures": remove}, "architectures", false},
		{llama, fields{"model_type": "qwen2"}, "model_type|qwen2", true},
		{llama, fields{"quantization_config": fields{"quant_method": "fp8"}}, "quantization_config|fp8", true},
		{llama, fields{"quantization_config": fields{"quant_method": "awq"}}, "quantization_config|w_bit is missing", false},
		{llama, fields{"quantization_config": fields{"quant_method": "awq", "bits": 8}}, "quantization_config: bits|8", true},
		{llama, fields{"quantization_config": fields{"quant_method": "awq", "bits": 4, "version": "GEMV"}}, "quantization_config: version|gemv", true},
		{llama, fields{"quantization_config": fields{"quant_method": "awq", "bits": 4, "zero_point": false}}, "zero_point|false", true},
		{llama, fields{"quantization_config": fields{"quant_method": "gptq", "bits": 3}}, "quantization_config: bits|3", true},
		{llama, fields{"quantization_config": fields{"quant_method": "gptq", "bits": 4, "group_size": 16}}, "group_size|16", true},
		{llama, fields{"quantization_config": fields{"quant_method": "gptq", "bits": 4, "group_size": -2}}, "group_size must be between", false},
		{llama, fields{"quantization_config": fields{"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}, "checkpoint_format|marlin", true},
		{llama, fields{"quantization_config": fields{"quant_method": "gptq", "bits": 4, "dynamic": fields{"-:x": 1}}}, "dynamic", true},
		{llama, compressed(nil, fields{"format": "int-quantized"}), "format|int-quantized", true},
		{llama, compressed(nil, fields{"config_groups": fields{"a": fields{}, "b": fields{}}}), "config_groups", true},
		{llama, compressed(nil, fields{"config_groups": fields{"a": fields{"targets": 1}}}), "config_groups|weights is missing", false},
		{llama, compressed(nil, fields{"kv_cache_scheme": fields{"num_bits": 8}}), "kv_cache_scheme", true},
		{llama, compressed(nil, fields{"transform_config": fields{"config_groups": fields{"R3": 1}}}), "transform_config|rotations", true},
		{llama, compressed(nil, fields{"sparsity_config": fields{"format": "sparse-24-bitmask"}}), "sparsity_config", true},
		{llama, compressed(fields{"num_bits": 8}, nil), "num_bits|8", true},
		{llama, compressed(fields{"type": "float"}, nil), "type|float", true},
		{llama, compressed(fields{"strategy": "tensor"}, nil), "strategy|tensor", true},
		{llama, compressed(fields{"group_size": 40}, nil), "group_size|40", true},
		{llama, fields{"attention_bias": true}, "attention_bias", true},
		{qwen3, fields{"attention_bias": true}, "attention_bias", true},
		{llama, fields{"mlp_bias": true}, "mlp_bias", true},
		{llama, fields{"hidden_act": "gelu"}, "hidden_act|gelu", true},
		{llama, fields{"num_local_experts": 8}, "num_local_experts", true},
		{qwen3, fields{"num_experts": 8}, "num_experts", true},
		{mixtral, fields{"text_config": fields{"a": 1}}, "text_config", true},
		{mixtral, fields{"num_local_experts": 0}, "num_local_experts must be between", false},
		{mixtral, fields{"num_local_experts": 1025}, "num_local_experts must be between", false},
		{mixtral, fields{"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok (5) must be at most the 4", false},
		{qwen3moe, fields{"num_experts_per_tok": 0}, "num_experts_per_tok must be between", false},
		{qwen3moe, fields{"num_experts_per_tok": 65}, "num_experts_per_tok must be between", false},
		{qwen3moe, fields{"moe_intermediate_size": 0}, "moe_intermediate_size must be between", false},
		{qwen3moe, fields{"moe_intermediate_size": 1 << 40}, "moe_intermediate_size must be between", false},
		{qwen2moe, fields{"shared_expert_intermediate_size": -1}, "shared_expert_intermediate_size must be between", false},
		{qwen2moe, fields{"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false", false},
		{qwen2moe, fields{"decoder_sparse_step": 0}, "decoder_sparse_step must be between", false},
		{qwen2moe, fields{"mlp_only_layers": 1}, "mlp_only_layers must be a list", false},
		{qwen2moe, fields{"mlp_only_layers": []any{"1"}}, "mlp_only_layers must hold numbers of layers", false},
		{qwen2moe, fields{"mlp_only_layers": []int{-1}}, "mlp_only_layers must hold numbers of layers", false},
		{qwen2moe, fields{"use_sliding_window": true}, "use_sliding_window", true},
		{llama, fields{"torch_dtype": "float8_e4m3fn"}, "torch_dtype|float8_e4m3fn", true},
		{llama, fields{"sliding_window": 9}, "sliding_window", true},
		{llama, fields{"partial_rotary_factor": 0.5}, "partial_rotary_factor", true},
		{llama, rope(fields{"type": "dynamic", "factor": 2}), "rope_scaling.type|dynamic", true},
		{llama, rope(fields{"rope_type": "longrope"}), "rope_scaling.rope_type|longrope", true},
		{llama, rope(fields{"rope_type": "default", "mrope_section": []int{1}}), "mrope_section", true},
		{llama, fields{"rope_parameters": fields{"full_attention": fields{}}}, "rope_parameters.full_attention", true},
		{llama, rope(fields{"type": "linear"}), "rope_scaling|factor is missing", false},
		{llama, rope(fields{"type": "linear", "factor": 0}), "rope_scaling|factor", false},
		{llama, rope(fields{"type": "linear", "factor": "2"}), "factor must be a number", false},
		{llama, rope(fields{"type": 3}), "type must be a string", false},
		{llama, fields{"rope_scaling": 3}, "rope_scaling must be an object", false},
		{llama, rope(fields{"type": "llama3", "factor": 8}), "low_freq_factor is missing", false},
		{llama, rope(fields{"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}), "high_freq_factor", false},
		{llama, rope(fields{"type": "yarn", "factor": nil, "original_max_position_embeddings": 1024}), "factor", false},
		{llama, rope(fields{"type": "yarn", "factor": 2, "original_max_position_embeddings": 0}), "original_max_position", false},
		{llama, rope(fields{"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}), "beta_fast", false},
		{llama, rope(fields{"type": "yarn", "factor": 2, "truncate": 1}), "truncate", false},
		{llama, fields{"rope_theta": 1}, "rope_theta", false},
		{llama, fields{"hidden_size": remove}, "hidden_size is missing", false},
		{llama, fields{"hidden_size": nil}, "hidden_size is missing", false},
		{llama, fields{"hidden_size": "64"}, "hidden_size must be an integer", false},
		{llama, fields{"hidden_size": 64.5}, "hidden_size must be an integer", false},
		{llama, fields{"hidden_size": 0}, "hidden_size must be between", false},
		{llama, fields{"hidden_size": -64}, "hidden_size must be between", false},
		{llama, fields{"hidden_size": json.Number("9223372036854775808")}, "hidden_size must be", false},
		{llama, fields{"hidden_size": 1 << 40}, "hidden_size must be between", false},
		{llama, fields{"vocab_size": 1 << 40}, "vocab_size must be between", false},
		{llama, fields{"num_hidden_layers": 1 << 40}, "num_hidden_layers must be between", false},
		{llama, fields{"num_attention_heads": 0}, "num_attention_heads must be between", false},
		{llama, fields{"num_attention_heads": 5, "num_key_value_heads": 1}, "num_attention_heads|hidden_size", false},
		{llama, fields{"num_key_value_heads": 0}, "num_key_value_heads must be between", false},
		{llama, fields{"num_key_value_heads": 3}, "num_key_value_heads (3) must divide", false},
		{qwen2, fields{"num_key_value_heads": remove}, "num_key_value_heads (32) must divide", false},
		{llama, fields{"head_dim": 15}, "head_dim must be even", false},
		{llama, fields{"hidden_size": 60}, "head_dim must be even", false},
		{llama, fields{"head_dim": 1 << 20}, "head_dim must be between", false},
		{llama, fields{"max_position_embeddings": 0}, "max_position_embeddings", false},
		{llama, fields{"rms_norm_eps": 0}, "rms_norm_eps", false},
		{llama, fields{"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false", false},
		{llama, fields{"eos_token_id": 256}, "eos_token_id", false},
		{llama, fields{"eos_token_id": []any{1, "a"}}, "eos_token_id", false},
		{llama, fields{"eos_token_id": -1}, "eos_token_id", false},
		{llama, fields{"bos_token_id": []int{1, 2}}, "bos_token_id", false},
		{mistral, fields{"sliding_window": 0}, "sliding_window", false},
		{mistral, fields{"layer_types": slices.Repeat([]string{"full_attention"}, 3)}, "layer_types|full_attention", true},
		{qwen2, fields{"layer_types": []string{"full_attention"}}, "layer_types must have 3", false},
		{qwen2, fields{"layer_types": slices.Repeat([]string{"sliding_attention"}, 3)}, "layer_types|sliding_attention", true},
		{qwen2, fields{"layer_types": slices.Repeat([]string{"linear_attention"}, 3)}, "layer_types|linear_attention", true},
		{qwen2, fields{"layer_types": "full_attention"}, "layer_types must be a list", false},
		{gemma2, fields{"attn_logit_softcapping": 0}, "attn_logit_softcapping must be between", false},
		{gemma2, fields{"attn_logit_softcapping": -50}, "attn_logit_softcapping must be between", false},
		{gemma2, fields{"attn_logit_softcapping": "NaN"}, "attn_logit_softcapping must be a number", false},
		{gemma2, fields{"final_logit_softcapping": 1e300}, "final_logit_softcapping must be between", false},
		{gemma2, fields{"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be between", false},
		{gemma2, fields{"hidden_activation": "gelu"}, "hidden_activation|gelu", true},
		{gemma2, fields{"layer_types": []string{"full_attention"}}, "layer_types must have 3 entries", false},
		{gemma2, fields{"layer_types": []string{"a", "b", "c"}}, "layer_types|layer 0", true},
		{gemma2, fields{"sliding_window": nil}, "sliding_window|null", false},
		{gemma2, fields{"sliding_window": 0}, "sliding_window must be between", false},
		{gemma3, fields{"sliding_window_pattern": 0}, "sliding_window_pattern must be between", false},
		{gemma3, fields{"use_bidirectional_attention": true}, "use_bidirectional_attention", true},
		{gemma3, fields{"rope_local_base_freq": 0}, "rope_local_base_freq must be between", false},
		{gemma3, fields{"rope_parameters": fields{"sliding_attention": fields{"rope_type": "linear", "factor": 2}}}, "rope_parameters.sliding_attention.rope_type|linear", true},
		{gemma3, fields{"rope_parameters": fields{"sliding_attention": fields{"rope_theta": "x"}}}, "rope_theta must be a number", false},
		{gemma3, fields{"rope_parameters": fields{"full_attention": 3}}, "full_attention must be an object", false},
		{gemma3, fields{"rope_parameters": fields{"full_attention": fields{"rope_type": "linear"}}}, "factor is missing", false},
		{gemma3, fields{"partial_rotary_factor": 0.5}, "partial_rotary_factor", true},
		{images, nil, "text_config is missing", false},
		{images, fields{"text_config": 3}, "text_config must be an object", false},
		{gemma3, fields{"vision_config": fields{"a": 1}}, "vision_config", true},
		{olmo2, fields{"attention_bias": true}, "attention_bias", true},
		{olmo2, fields{"sliding_window": 9}, "sliding_window", true},
		{phi3, longrope(16, fields{"short_factor": remove}), "short_factor must be a list of 8", false},
		{phi3, longrope(14, nil), "short_factor must be a list of 8", false},
		{phi3, longrope(16, fields{"long_factor": slices.Repeat([]float64{0}, 8)}), "long_factor must hold factors", false},
		{phi3, longrope(16, fields{"long_factor": slices.Repeat([]any{"1"}, 8)}), "long_factor must hold factors", false},
		{phi3, fields{"original_max_position_embeddings": 1, "rope_scaling": longrope(16, nil)["rope_scaling"]}, "original_max_position_embeddings must be 2", false},
		{phi3, fields{"rope_scaling": fields{"type": "linear", "factor": 2}}, "rope_scaling.type|linear", true},
		{phi3, fields{"partial_rotary_factor": 0.05}, "partial_rotary_factor", true},
		{phi3, fields{"partial_rotary_factor": 2}, "partial_rotary_factor", true},
		{granite, fields{"residual_multiplier": 0}, "residual_multiplier must be between", false},
		{granite, fields{"residual_multiplier": 1e-3, "rms_norm_eps": 1e-3}, "residual_multiplier", false},
		{granite, fields{"logits_scaling": -1}, "logits_scaling must be between", false},
	} {
		t.Run(tc.names, func(t *testing.T) {
			c, err := ParseConfig(with(tc.arch, tc.changes))
			if err == nil {
				t.Fatalf("accepted as %+v", c)
			}
			for part := range strings.SplitSeq(tc.names, "|") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not name %q", err, part)
				}
			}
			var un *UnsupportedError
			if errors.As(err, &un) != tc.typed {
				t.Errorf("error %q typed as unsupported: %v, want %v", err, !tc.typed, tc.typed)
			}
		})
	}
	for _, text := range []string{"", "null", "[]", "{", `{"architectures": 3}`, "\x00"} {
		if _, err := ParseConfig([]byte(text)); err == nil {
			t.Errorf("config %q was accepted", text)
		}
	}
	// Keys count by their exact spelling, as in Python.
	if _, err := ParseConfig(with(llama, fields{"hidden_size": remove, "Hidden_Size": 64})); err == nil {
		t.Error("Hidden_Size was taken for hidden_size")
	}
}

func TestParseGenerationConfig(t *testing.T) {
	g, err := ParseGenerationConfig([]byte(`{"do_sample":true,"temperature":0.7,"top_p":0.8,"top_k":-1,"min_p":null,
		"repetition_penalty":1.05,"max_new_tokens":99,"bos_token_id":1,"eos_token_id":[3,4],"other":[]}`), 8)
	if err != nil {
		t.Fatal(err)
	}
	if !*g.DoSample || *g.Temperature != 0.7 || *g.TopP != 0.8 || *g.TopK != 0 || g.MinP != nil ||
		*g.RepetitionPenalty != 1.05 || *g.MaxNewTokens != 99 || *g.BOS != 1 || !slices.Equal(g.EOS, []int32{3, 4}) {
		t.Errorf("got %+v", g)
	}
	if g, err = ParseGenerationConfig([]byte(`{}`), 8); err != nil || !reflect.DeepEqual(g, &GenerationConfig{}) {
		t.Errorf("an empty file gave %+v, %v", g, err)
	}
	for text, key := range map[string]string{
		`{"temperature":-1}`: "temperature", `{"top_p":0}`: "top_p", `{"top_p":1.1}`: "top_p", `{"top_k":-2}`: "top_k",
		`{"min_p":2}`: "min_p", `{"repetition_penalty":0}`: "repetition_penalty", `{"max_new_tokens":0}`: "max_new_tokens",
		`{"eos_token_id":8}`: "eos_token_id", `{"bos_token_id":"a"}`: "bos_token_id", `{"do_sample":1}`: "do_sample", `[]`: "",
	} {
		if _, err := ParseGenerationConfig([]byte(text), 8); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s gave %v", text, err)
		}
	}
}

// FuzzConfig: no panic, and what is accepted can be used.
func FuzzConfig(f *testing.F) {
	paths, err := filepath.Glob("testdata/*/config.json")
	if err != nil || len(paths) < 10 {
		f.Fatalf("found %d configurations: %v", len(paths), err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(with(qwen2, fields{"use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1}))
	f.Add(with("Gemma3ForConditionalGeneration", fields{"text_config": fields{"hidden_size": 64, "intermediate_size": 9, "num_hidden_layers": 2}}))
	f.Add(with(llama, fields{"rope_scaling": fields{"type": "yarn", "factor": 2, "truncate": false}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if c.NumHeads%c.NumKVHeads != 0 || c.HeadDim%2 != 0 || len(c.SlidingWindow) != c.NumLayers {
			t.Fatalf("inconsistent: %+v", c)
		}
		if c.WeightBytes(4) <= 0 {
			t.Fatalf("weights of %d bytes", c.WeightBytes(4))
		}
		inv, scale := c.RopeTable()
		local := c.LocalRopeTable()
		if len(inv) != c.rotated()/2 || len(inv) > c.HeadDim/2 || !(scale > 0) || math.IsInf(scale, 0) || local != nil && len(local) != len(inv) {
			t.Fatalf("rope tables of %d and %d with scale %v", len(inv), len(local), scale)
		}
		for _, f := range []float64{c.AttnScale, c.AttnSoftcap, c.LogitSoftcap, c.EmbedScale, c.LogitScale} {
			if !(f >= 0 && f <= 1e9) {
				t.Fatalf("a factor of %v in %+v", f, c)
			}
		}
		for _, v := range append(inv, local...) {
			if !(v >= 0 && v <= 2) {
				t.Fatalf("inverse frequency %v in %v of %+v", v, inv, c)
			}
		}
		if _, err := ParseGenerationConfig(data, c.VocabSize); err != nil {
			return
		}
	})
}
