package model

import (
	"encoding/json"
	"math"
)

// RopeScaling is the rope scaling of a model: rope_parameters as transformers 5 writes it, or rope_scaling as
// transformers 4 did.
type RopeScaling struct {
	Type   string  // "default", "linear", "llama3", "yarn" or "longrope"
	Factor float64 // >= 1; 1 for "default"

	// llama3, and OriginalMaxPositions for yarn and longrope too.
	LowFreqFactor, HighFreqFactor float64
	OriginalMaxPositions          int

	// yarn, and AttentionFactor for longrope too. It, MScale and MScaleAllDim are 0 where absent.
	BetaFast, BetaSlow   float64
	AttentionFactor      float64
	MScale, MScaleAllDim float64
	Truncate             bool // round the bounds of the ramp to whole dimensions

	// longrope: what each frequency is divided by, [rotated numbers / 2]. Long says which of the two, for all that is
	// computed: keys that were rotated by one cannot be met by queries of the other. See Model.Limit.
	ShortFactor, LongFactor []float64 `json:",omitempty"`
	Long                    bool      `json:",omitempty"`
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
	if arch.family.localTheta > 0 {
		p, key = c.localRope(o, p, key, arch)
	}
	c.partial(o, o, "", arch)
	if p == nil || o.err != nil {
		return
	}
	c.scaling(o, p, key, arch)
	if o.err == nil {
		o.err = p.err
	}
}

// localRope reads the rotation of layers with a window and returns the object of the others'. Version 5 of transformers
// has an object for each; before, Gemma's local theta stood beside, and there was one theta for OLMo's.
func (c *Config) localRope(o, p *object, key string, arch architecture) (*object, string) {
	local := o.floatOr("rope_local_base_freq", arch.family.localTheta, minTheta, maxTheta)
	if c.Arch == "Olmo3ForCausalLM" {
		local = c.RopeTheta
	}
	if p != nil && (p.has("full_attention") || p.has("sliding_attention")) {
		if s := p.object("sliding_attention"); s != nil {
			local = s.floatOr("rope_theta", local, minTheta, maxTheta)
			if kind := s.stringOr("rope_type", "default"); kind != "default" {
				s.refuse(key+".sliding_attention.rope_type", "%q", short([]byte(kind)))
			}
			c.partial(o, s, key+".sliding_attention.", arch)
			if p.err == nil {
				p.err = s.err
			}
		}
		full := p.object("full_attention")
		if o.err = p.err; o.err != nil {
			return nil, key
		}
		p, key = full, key+".full_attention"
	}
	c.LocalTheta = local
	return p, key
}

// partial reads how much of a head is rotated.
func (c *Config) partial(o, p *object, prefix string, arch architecture) {
	f := p.floatOr("partial_rotary_factor", 1, 1e-6, 1e6)
	if f == 1 {
		return
	}
	dim := int(float64(c.HeadDim) * f)
	if !arch.family.longrope || dim < 2 || dim > c.HeadDim || dim%2 != 0 {
		o.refuse(prefix+"partial_rotary_factor", "%g", f)
		return
	}
	if c.RotaryDim = dim; dim == c.HeadDim {
		c.RotaryDim = 0
	}
}

func (c *Config) scaling(o, p *object, key string, arch architecture) {
	for _, nested := range []string{"full_attention", "sliding_attention", "mrope_section"} {
		if p.has(nested) {
			p.refuse(key+"."+nested, "rope parameters by kind of layer or axis")
			return
		}
	}
	c.RopeTheta = p.floatOr("rope_theta", c.RopeTheta, minTheta, maxTheta)
	c.partial(o, p, key+".", arch)
	r := &c.Rope
	typeKey := "rope_type"
	if !p.has(typeKey) {
		typeKey = "type"
	}
	r.Type = p.stringOr(typeKey, "default")
	if arch.family.longrope { // by its older names too; of the rest there is none
		switch r.Type {
		case "default":
		case "longrope", "su", "yarn":
			c.longrope(o, p)
		default:
			p.refuse(key+"."+typeKey, "%q", short([]byte(r.Type)))
		}
		return
	}
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

// longrope reads the two lists of factors. Which one holds is settled here for the model's longest requests.
func (c *Config) longrope(o, p *object) {
	r := &c.Rope
	r.Type = "longrope"
	if !p.has("original_max_position_embeddings") && !o.has("original_max_position_embeddings") {
		r.OriginalMaxPositions = 4096
	} else {
		r.OriginalMaxPositions = c.originalPositions(o, p)
	}
	if r.OriginalMaxPositions < 2 { // its logarithm divides
		p.fail("original_max_position_embeddings", "must be 2 or more, not %d", r.OriginalMaxPositions)
		return
	}
	r.Factor = float64(c.MaxPositions) / float64(r.OriginalMaxPositions)
	if p.has("factor") {
		r.Factor = p.floatOr("factor", 1, 1e-6, maxRopeFactor)
	}
	r.AttentionFactor = p.floatOr("attention_factor", 0, 1e-6, maxRopeFactor)
	r.ShortFactor = p.factors("short_factor", c.rotated()/2)
	r.LongFactor = p.factors("long_factor", c.rotated()/2)
	r.Long = c.MaxPositions > r.OriginalMaxPositions
}

// factors reads a list of n factors.
func (o *object) factors(key string, n int) []float64 {
	var list []json.RawMessage
	if err := json.Unmarshal(o.m[key], &list); err != nil || len(list) != n {
		o.fail(key, "must be a list of %d factors", n)
		return nil
	}
	out := make([]float64, n)
	for i, raw := range list {
		f, ok := number(raw)
		if !ok || f < 0.5 || f > maxRopeFactor {
			o.fail(key, "must hold factors between %g and %g, not %s", 0.5, maxRopeFactor, short(raw))
			return nil
		}
		out[i] = f
	}
	return out
}

// rotated is how many of a head's numbers are.
func (c *Config) rotated() int {
	if c.RotaryDim > 0 {
		return c.RotaryDim
	}
	return c.HeadDim
}

// LongestLen is how many tokens of prompt and answer the model can be asked for: MaxPositions, or more where scaling
// stretches that. Linear and yarn are taken for vLLM's way of using them, by an entry in config.json beside the
// max_position_embeddings of pretraining; llama3 comes with the stretched number there, and so does Gemma 3's linear.
func (c *Config) LongestLen() int {
	stretched := 0.0
	switch c.Rope.Type {
	case "linear":
		if c.LocalTheta == 0 {
			stretched = float64(c.MaxPositions) * c.Rope.Factor
		}
	case "yarn":
		stretched = float64(c.Rope.OriginalMaxPositions) * c.Rope.Factor
	}
	return max(c.MaxPositions, int(min(stretched, maxPositions)))
}

// RopeTable returns the inverse frequencies [rotated numbers / 2] and the factor that multiplies cos and sin.
//
// The values are those of transformers' modeling_rope_utils: it computes them in float32, and at long contexts
// the rounding of a frequency is multiplied by the position. So the steps here round to float32 where it does,
// and every value is a float32. The angle of a position is float32(position) * float32(invFreq[i]).
//
// Sources: RoFormer, arXiv 2104.09864 (default); YaRN, arXiv 2309.00071 (yarn); Llama 3.1's scaling (llama3).
func (c *Config) RopeTable() (invFreq []float64, attnScale float64) {
	power, inv := c.frequencies(c.RopeTheta)
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
	case "longrope":
		c.Rope.scaleLong(inv, power)
		attnScale = c.Rope.longAttention()
	}
	return widened(inv), attnScale
}

// LocalRopeTable is the same of layers with a window where those have a rotation of their own, else nil. Their factor is 1.
func (c *Config) LocalRopeTable() []float64 {
	if c.LocalTheta == 0 {
		return nil
	}
	_, inv := c.frequencies(c.LocalTheta)
	return widened(inv)
}

// frequencies are theta^(2i/dim) and one by it, [rotated numbers / 2].
func (c *Config) frequencies(theta float64) (power, inv []float32) {
	dim := c.rotated()
	power, inv = make([]float32, dim/2), make([]float32, dim/2)
	for i := range power {
		exponent := float32(2*i) / float32(dim)
		power[i] = float32(math.Pow(float64(float32(theta)), float64(exponent)))
		inv[i] = 1 / power[i]
	}
	return power, inv
}

func widened(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, f := range x {
		out[i] = float64(f)
	}
	return out
}

// scaleLong divides each frequency by its factor (LongRoPE, arXiv 2402.13753).
func (r *RopeScaling) scaleLong(inv, power []float32) {
	factors := r.ShortFactor
	if r.Long {
		factors = r.LongFactor
	}
	for i := range inv {
		inv[i] = 1 / (float32(factors[i]) * power[i])
	}
}

func (r *RopeScaling) longAttention() float64 {
	switch {
	case r.AttentionFactor != 0:
		return r.AttentionFactor
	case r.Factor <= 1:
		return 1
	}
	return math.Sqrt(1 + math.Log(r.Factor)/math.Log(float64(r.OriginalMaxPositions)))
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
