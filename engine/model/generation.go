package model

import "math"

// GenerationConfig holds the sampling defaults of generation_config.json, for the server to use where a
// request is silent. Nil means that the file does not say.
//
// DoSample is reported and not applied: like vLLM's `--generation-config auto`, the server takes the numbers
// and leaves it to temperature whether to sample.
type GenerationConfig struct {
	DoSample          *bool
	Temperature       *float64 // >= 0; 0 is greedy
	TopP              *float64 // (0, 1]
	TopK              *int     // 0 is all
	MinP              *float64 // [0, 1]
	RepetitionPenalty *float64 // > 0; 1 is none
	MaxNewTokens      *int     // >= 1
	BOS               *int32
	EOS               []int32 // nil where the file does not say; overrides config.json's
}

// ParseGenerationConfig reads a generation_config.json. Token ids must be below vocab.
func ParseGenerationConfig(data []byte, vocab int) (*GenerationConfig, error) {
	o, err := parseObject("generation_config.json", data)
	if err != nil {
		return nil, err
	}
	g := &GenerationConfig{}
	if o.has("do_sample") {
		v := o.boolOr("do_sample", false)
		g.DoSample = &v
	}
	float := func(key string, lo, hi float64) *float64 {
		if !o.has(key) {
			return nil
		}
		v := o.floatOr(key, lo, lo, hi)
		return &v
	}
	const tiny = math.SmallestNonzeroFloat32
	g.Temperature = float("temperature", 0, 100)
	g.TopP = float("top_p", tiny, 1)
	g.MinP = float("min_p", 0, 1)
	g.RepetitionPenalty = float("repetition_penalty", tiny, 100)
	if o.has("top_k") {
		v := max(0, o.intOr("top_k", 0, -1, maxInt32)) // -1 is all, too
		g.TopK = &v
	}
	if o.has("max_new_tokens") {
		v := o.intOr("max_new_tokens", 1, 1, maxInt32)
		g.MaxNewTokens = &v
	}
	if o.has("bos_token_id") {
		v := bosToken(o, -1, vocab)
		g.BOS = &v
	}
	g.EOS = o.tokens("eos_token_id", nil, vocab)
	if o.err != nil {
		return nil, o.err
	}
	return g, nil
}
