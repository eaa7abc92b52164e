package model

import "math"

// RopeScaling is the rope scaling of a model: rope_parameters as transformers 5 writes it, or rope_scaling as
// transformers 4 did.
type RopeScaling struct {
	Type   string  // "default", "linear", "llama3" or "yarn"
	Factor float64 // >= 1; 1 for "default"

	// llama3, and OriginalMaxPositions for yarn too.
	LowFreqFactor, HighFreqFactor float64
	OriginalMaxPositions          int

	// yarn. AttentionFactor, MScale and MScaleAllDim are 0 where absent.
	BetaFast, BetaSlow   float64
	AttentionFactor      float64
	MScale, MScaleAllDim float64
	Truncate             bool // round the bounds of the ramp to whole dimensions
}

// Bounds of rope parameters; a base of 2 or more keeps its logarithm away from 0.
const (
	minTheta, maxTheta = 2.0, 1e15
	maxRopeFactor      = 1e6
)

// rope fills RopeTheta and Rope. A non-empty rope_scaling wins over rope_parameters, and a theta inside either
// wins over one beside it, as in transformers.
func (c *Config) rope(o *object, arch architecture) {
	key := "rope_scaling"
	p := o.object(key)
	if p == nil {
		key = "rope_parameters"
		p = o.object(key)
	}
	c.RopeTheta = o.floatOr("rope_theta", max(arch.theta, 10000), minTheta, maxTheta)
	c.Rope = RopeScaling{Type: "default", Factor: 1}
	if f := o.floatOr("partial_rotary_factor", 1, 0, 1e6); f != 1 {
		o.refuse("partial_rotary_factor", "%g", f)
	}
	if p == nil || o.err != nil {
		return
	}
	c.scaling(o, p, key)
	if o.err == nil {
		o.err = p.err
	}
}

func (c *Config) scaling(o, p *object, key string) {
	for _, nested := range []string{"full_attention", "sliding_attention", "mrope_section"} {
		if p.has(nested) {
			p.refuse(key+"."+nested, "rope parameters by kind of layer or axis")
			return
		}
	}
	c.RopeTheta = p.floatOr("rope_theta", c.RopeTheta, minTheta, maxTheta)
	if f := p.floatOr("partial_rotary_factor", 1, 0, 1e6); f != 1 {
		p.refuse(key+".partial_rotary_factor", "%g", f)
	}
	r := &c.Rope
	typeKey := "rope_type"
	if !p.has(typeKey) {
		typeKey = "type"
	}
	r.Type = p.stringOr(typeKey, "default")
	switch r.Type {
	case "default":
		return
	case "linear":
		r.Factor = requiredFactor(p)
	case "llama3":
		c.llama3(o, p)
	case "yarn":
		c.yarn(o, p)
	default:
		p.refuse(key+"."+typeKey, "%q", short([]byte(r.Type)))
	}
}

func requiredFactor(p *object) float64 {
	if !p.has("factor") {
		p.fail("factor", "is missing")
	}
	return p.floatOr("factor", 1, 1, maxRopeFactor)
}

// originalPositions is the context length of pretraining: the key beside the rope parameters wins.
func (c *Config) originalPositions(o, p *object) int {
	inner := p.intOr("original_max_position_embeddings", int64(c.MaxPositions), 1, maxPositions)
	return o.intOr("original_max_position_embeddings", int64(inner), 1, maxPositions)
}

func (c *Config) llama3(o, p *object) {
	r := &c.Rope
	r.Factor = requiredFactor(p)
	for _, key := range []string{"low_freq_factor", "high_freq_factor"} {
		if !p.has(key) {
			p.fail(key, "is missing")
		}
	}
	r.LowFreqFactor = p.floatOr("low_freq_factor", 1, 1e-6, maxRopeFactor)
	r.HighFreqFactor = p.floatOr("high_freq_factor", 4, 1e-6, maxRopeFactor)
	if p.err == nil && r.HighFreqFactor <= r.LowFreqFactor {
		p.fail("high_freq_factor", "(%g) must be greater than low_freq_factor (%g)",
			r.HighFreqFactor, r.LowFreqFactor)
	}
	r.OriginalMaxPositions = c.originalPositions(o, p)
}

func (c *Config) yarn(o, p *object) {
	r := &c.Rope
	r.OriginalMaxPositions = c.originalPositions(o, p)
	if p.isNull("factor") {
		r.Factor = float64(c.MaxPositions) / float64(r.OriginalMaxPositions)
		if r.Factor < 1 {
			p.fail("factor", "is null and max_position_embeddings is below original_max_position_embeddings")
		}
	} else {
		r.Factor = requiredFactor(p)
	}
	positive := func(key string) float64 { // 0 counts as absent, as in Python's "or"
		return p.floatOr(key, 0, 0, maxRopeFactor)
	}
	r.BetaFast, r.BetaSlow = positive("beta_fast"), positive("beta_slow")
	if r.BetaFast == 0 {
		r.BetaFast = 32
	}
	if r.BetaSlow == 0 {
		r.BetaSlow = 1
	}
	if r.BetaFast < r.BetaSlow {
		p.fail("beta_fast", "(%g) must not be less than beta_slow (%g)", r.BetaFast, r.BetaSlow)
	}
	r.AttentionFactor = p.floatOr("attention_factor", 0, 1e-6, maxRopeFactor)
	r.MScale, r.MScaleAllDim = positive("mscale"), positive("mscale_all_dim")
	r.Truncate = p.boolOr("truncate", true)
}

// LongestLen is how many tokens of prompt and answer the model can be asked for: MaxPositions, or more where scaling
// stretches that. Linear and yarn are taken for vLLM's way of using them, by an entry in config.json beside the
// max_position_embeddings of pretraining; llama3 comes with the stretched number there.
func (c *Config) LongestLen() int {
	stretched := 0.0
	switch c.Rope.Type {
	case "linear":
		stretched = float64(c.MaxPositions) * c.Rope.Factor
	case "yarn":
		stretched = float64(c.Rope.OriginalMaxPositions) * c.Rope.Factor
	}
	return max(c.MaxPositions, int(min(stretched, maxPositions)))
}

// RopeTable returns the inverse frequencies [head_dim / 2] and the factor that multiplies cos and sin.
//
// The values are those of transformers' modeling_rope_utils: it computes them in float32, and at long contexts
// the rounding of a frequency is multiplied by the position. So the steps here round to float32 where it does,
// and every value is a float32. The angle of a position is float32(position) * float32(invFreq[i]).
//
// Sources: RoFormer, arXiv 2104.09864 (default); YaRN, arXiv 2309.00071 (yarn); Llama 3.1's scaling (llama3).
func (c *Config) RopeTable() (invFreq []float64, attnScale float64) {
	half := c.HeadDim / 2
	power := make([]float32, half) // theta^(2i/head_dim)
	inv := make([]float32, half)
	for i := range power {
		exponent := float32(2*i) / float32(c.HeadDim)
		power[i] = float32(math.Pow(float64(float32(c.RopeTheta)), float64(exponent)))
		inv[i] = 1 / power[i]
	}
	attnScale = 1
	switch c.Rope.Type {
	case "linear":
		for i := range inv {
			inv[i] /= float32(c.Rope.Factor)
		}
	case "llama3":
		c.Rope.scaleLlama3(inv)
	case "yarn":
		c.Rope.scaleYarn(inv, power, c.RopeTheta)
		attnScale = c.Rope.yarnAttention()
	}
	invFreq = make([]float64, half)
	for i, f := range inv {
		invFreq[i] = float64(f)
	}
	return invFreq, attnScale
}

// scaleLlama3 divides long wavelengths by the factor, keeps short ones, and blends between the two.
func (r *RopeScaling) scaleLlama3(inv []float32) {
	original, factor := float64(r.OriginalMaxPositions), float32(r.Factor)
	longest := float32(original / r.LowFreqFactor)
	shortest := float32(original / r.HighFreqFactor)
	for i, f := range inv {
		wave := float32(2*math.Pi) / f
		switch {
		case wave > longest:
			inv[i] = f / factor
		case wave < shortest:
		default:
			smooth := (float32(original)/wave - float32(r.LowFreqFactor)) /
				float32(r.HighFreqFactor-r.LowFreqFactor)
			scaled := float32(float32(1-smooth)*f) / factor
			inv[i] = scaled + float32(smooth*f)
		}
	}
}

// scaleYarn interpolates the slow dimensions, keeps the fast ones, and ramps between the two: a dimension
// counts as fast when it turns more than BetaFast times in the original context, as slow below BetaSlow.
func (r *RopeScaling) scaleYarn(inv, power []float32, theta float64) {
	dim := float64(2 * len(inv))
	bound := func(turns float64) float64 {
		return dim * math.Log(float64(r.OriginalMaxPositions)/(turns*2*math.Pi)) / (2 * math.Log(theta))
	}
	low, high := bound(r.BetaFast), bound(r.BetaSlow)
	if r.Truncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, dim-1)
	if low == high {
		high += 0.001
	}
	for i := range inv {
		ramp := (float32(i) - float32(low)) / float32(high-low)
		keep := 1 - min(max(ramp, 0), 1)
		interpolated := 1 / float32(float32(r.Factor)*power[i])
		inv[i] = float32(interpolated*(1-keep)) + float32(inv[i]*keep)
	}
}

func (r *RopeScaling) yarnAttention() float64 {
	scale := func(m float64) float64 {
		if r.Factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(r.Factor) + 1
	}
	switch {
	case r.AttentionFactor != 0:
		return r.AttentionFactor
	case r.MScale != 0 && r.MScaleAllDim != 0:
		return scale(r.MScale) / scale(r.MScaleAllDim)
	}
	return scale(1)
}
