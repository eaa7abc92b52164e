package plan

import "math"

const (
	terms = 4 // of a step's time: the constant, tokens, KV, scores
	wants = 3 // of them are asked for; scores may be missing, and have any coefficient

	spare       = 2    // kinds of steps beyond as many as there are terms
	worstMisfit = 0.3  // of a step's time, as the root of the mean square over kinds of steps
	leastMisfit = 0.02 // what is assumed at least, however well few kinds of steps agree
	worstError  = 0.5  // of a coefficient: its standard error
)

// equations are the normal equations of a least-squares fit of relative errors: a decode step of a millisecond counts as
// much as a prefill step of a second.
type equations struct {
	n  int
	a  [terms][terms]float64
	b  [terms]float64
	yy float64
}

// add takes what was measured of one kind of steps.
func (e *equations) add(x [terms]float64, took float64) {
	e.n++
	for i := range x {
		x[i] /= took
	}
	for i := range x {
		for j := range x {
			e.a[i][j] += x[i] * x[j]
		}
		e.b[i] += x[i]
	}
	e.yy++
}

// solve returns the coefficients; ok is false where the equations do not determine them well, or one of those that are
// asked for is not above 0.
func (e *equations) solve() (x [terms]float64, ok bool) {
	n := terms
	if e.a[terms-1][terms-1] == 0 {
		n = wants
	}
	if e.n < n+spare {
		return x, false
	}
	inv, ok := e.invert(n)
	if !ok {
		return x, false
	}
	misfit := e.yy
	for i := range n {
		for j := range n {
			x[i] += inv[i][j] * e.b[j]
		}
		misfit -= x[i] * e.b[i]
	}
	misfit = math.Sqrt(max(0, misfit) / float64(e.n-n))
	if !(misfit <= worstMisfit) {
		return x, false
	}
	for i := range wants {
		if !(x[i] > 0) || !(math.Sqrt(inv[i][i])*max(misfit, leastMisfit) <= worstError*x[i]) {
			return x, false
		}
	}
	return x, true
}

// invert returns the inverse of the first n equations' matrix, by Gauss and Jordan over one scaled to ones on its
// diagonal; the terms differ by many powers of ten.
func (e *equations) invert(n int) (inv [terms][terms]float64, ok bool) {
	var m [terms][2 * terms]float64
	var scale [terms]float64
	for i := range n {
		if !(e.a[i][i] > 0) || math.IsInf(e.a[i][i], 0) {
			return inv, false
		}
		scale[i] = math.Sqrt(e.a[i][i])
	}
	for i := range n {
		for j := range n {
			m[i][j] = e.a[i][j] / (scale[i] * scale[j])
		}
		m[i][terms+i] = 1
	}
	for k := range n {
		// Positive definite, so pivots need no search; one that is next to nothing says that a term is made of others.
		p := m[k][k]
		if !(p > 1e-9) {
			return inv, false
		}
		for j := range m[k] {
			m[k][j] /= p
		}
		for i := range n {
			if q := m[i][k]; i != k && q != 0 {
				for j := range m[i] {
					m[i][j] -= q * m[k][j]
				}
			}
		}
	}
	for i := range n {
		for j := range n {
			inv[i][j] = m[i][terms+j] / (scale[i] * scale[j])
		}
	}
	return inv, true
}
