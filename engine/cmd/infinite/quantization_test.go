package main

import (
	"math"
	"slices"
	"testing"
)

// With weights in 8 or 4 bits an answer is near the one without, and does not depend on where its KV lies: but for a rounding
// of inputs to 16 bits more or less, where a number stands between two.
func TestQuantization(t *testing.T) {
	req := body(prompt(1500, 3), 40)
	plain := serve(t, "--dtype", "float32", poolFlag(t, 110)).complete(req)
	for _, way := range []string{"int8", "int4"} {
		whole := serve(t, "--dtype", "float32", "--quantization", way, poolFlag(t, 110)).complete(req)
		sameWithin(t, 1e-3, whole, serve(t, "--dtype", "float32", "--quantization", way, "--instances", "3", poolFlag(t, 40)).complete(req))
		if d := math.Abs(plain.lps[0] - whole.lps[0]); d == 0 || d > 0.5 || slices.Equal(plain.lps, whole.lps) {
			t.Errorf("%s: the first log probability is %g, and %g without", way, whole.lps[0], plain.lps[0])
		}
	}
}
