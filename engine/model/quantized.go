package model

import (
	"cmp"
	"slices"
	"strings"
)

// Quantized says how a checkpoint's matrices are held in 4 bits, after quantization_config in its config.json.
type Quantized struct {
	Method    string // "awq", "gptq" or "compressed-tensors"
	GroupSize int    // inputs that share a scale; 0: all of an output
	ZeroLess  int    // how much less than the zero the number is that the file has for it
	Zeros     bool   // the file has zeros; else the zero is 8
}

// parseQuantized reads quantization_config; nil where there is none. What it leaves open is decided by the tensors: those
// that are not in 4 bits, such as the LM head, are there under their own names.
func parseQuantized(o *object) *Quantized {
	q := o.object("quantization_config")
	if q == nil {
		return nil
	}
	method := q.stringOr("quant_method", "unknown")
	c := &Quantized{Method: method, Zeros: true}
	switch method {
	case "awq":
		c.awq(q)
	case "gptq":
		c.gptq(q)
	case "compressed-tensors":
		c.compressed(q)
	default:
		o.refuse("quantization_config", "quantization by %q (awq, gptq and compressed-tensors in 4 bits are served)", short([]byte(method)))
	}
	if o.err == nil {
		o.err = q.err
	}
	return c
}

// fourBits refuses other numbers of bits.
func fourBits(q *object, key string) {
	if bits := q.intIn(key, 1, 64); q.err == nil && bits != 4 {
		q.refuse("quantization_config: "+key, "%d", bits)
	}
}

// groupSize reads how many inputs share a scale; -1 is all of them.
func (c *Quantized) groupSize(q *object, key string, def int64) {
	n := q.intOr(key, def, -1, maxIntermediate)
	switch {
	case n == -1:
		c.GroupSize = 0
	case n <= 0 || n%32 != 0:
		q.refuse("quantization_config: "+key, "%d, which is no multiple of 32", n)
	default:
		c.GroupSize = n
	}
}

func (c *Quantized) awq(q *object) {
	bits := "bits"
	if !q.has(bits) {
		bits = "w_bit"
	}
	fourBits(q, bits)
	size := "group_size"
	if !q.has(size) {
		size = "q_group_size"
	}
	c.groupSize(q, size, 128)
	if v := strings.ToLower(q.stringOr("version", "gemm")); v != "gemm" {
		q.refuse("quantization_config: version", "%q", short([]byte(v)))
	}
	if !q.boolOr("zero_point", true) {
		q.refuse("quantization_config: zero_point", "false")
	}
}

func (c *Quantized) gptq(q *object) {
	fourBits(q, "bits")
	c.groupSize(q, "group_size", 128)
	c.ZeroLess = 1
	switch v := q.stringOr("checkpoint_format", "gptq"); v {
	case "gptq":
	case "gptq_v2":
		c.ZeroLess = 0
	default:
		q.refuse("quantization_config: checkpoint_format", "%q", short([]byte(v)))
	}
	if q.object("dynamic") != nil {
		q.refuse("quantization_config: dynamic", "settings for single modules")
	}
}

func (c *Quantized) compressed(q *object) {
	if v := q.stringOr("format", ""); v != "pack-quantized" {
		q.refuse("quantization_config: format", "%q (pack-quantized is served)", short([]byte(v)))
	}
	groups := q.object("config_groups")
	if groups == nil || len(groups.m) != 1 {
		q.refuse("quantization_config: config_groups", "anything but one group")
		return
	}
	if q.has("kv_cache_scheme") {
		q.refuse("quantization_config: kv_cache_scheme", "quantized KV")
	}
	if x := q.object("transform_config"); x != nil {
		q.refuse("quantization_config: transform_config", "rotations")
	}
	if x := q.object("sparsity_config"); x != nil && x.stringOr("format", "") != "dense" {
		q.refuse("quantization_config: sparsity_config", "weights that are left out")
	}
	for name := range groups.m {
		if err := c.scheme(groups.object(name)); q.err == nil {
			q.err = cmp.Or(groups.err, err)
		}
	}
}

// scheme reads the one group of compressed-tensors.
func (c *Quantized) scheme(g *object) error {
	if g == nil {
		return unsupported("quantization_config: config_groups", "a group without weights")
	}
	w := g.object("weights")
	if w == nil {
		g.fail("weights", "is missing")
		return g.err
	}
	for _, key := range []string{"input_activations", "output_activations"} {
		if g.has(key) {
			w.refuse("quantization_config: "+key, "quantized activations")
		}
	}
	fourBits(w, "num_bits")
	if v := w.stringOr("type", "int"); v != "int" {
		w.refuse("quantization_config: type", "%q", short([]byte(v)))
	}
	switch v := w.stringOr("strategy", "group"); v {
	case "channel":
	case "group":
		c.groupSize(w, "group_size", -1)
	default:
		w.refuse("quantization_config: strategy", "%q", short([]byte(v)))
	}
	c.Zeros = !w.boolOr("symmetric", true)
	return cmp.Or(g.err, w.err)
}

// mayBePacked are the matrices that quantization makes smaller.
func mayBePacked(role Role) bool {
	return role == LMHead || role == O || slices.Contains([]Role{Q, K, V, Gate, Up, Down}, role) ||
		role >= ExpertGate && role <= SharedDown
}

// emptyBias recognises the biases of nothing but zeros that writers of GPTQ give every matrix.
func (c *Quantized) emptyBias(e *entry) bool {
	return c != nil && c.Method == "gptq" && strings.HasSuffix(e.name, "_proj.bias") &&
		!slices.ContainsFunc(e.data, func(b byte) bool { return b != 0 })
}

// together checks that the tensors that are one product, Q, K and V, gate and up, and all of a layer's experts, are held
// alike.
func together(tensors []Tensor) error {
	type product struct {
		layer int
		first Role
	}
	firsts := map[Role]Role{Q: Q, K: Q, V: Q, Gate: Gate, Up: Gate}
	for role := ExpertGate; role <= SharedDown; role++ {
		firsts[role] = ExpertGate
	}
	held := map[product]int{}
	for _, t := range tensors {
		first, ok := firsts[t.Role]
		if !ok {
			continue
		}
		at := product{t.Layer, first}
		group, seen := held[at]
		if seen && group != t.DType.group() {
			return unsupported("quantization_config", "some of layer %d's Q, K and V, gate and up, or experts in 4 bits, and others not", t.Layer)
		}
		held[at] = t.DType.group()
	}
	return nil
}
