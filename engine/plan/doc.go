// Package plan is the cluster's performance model: how long an instance's steps take, measured on it, and which moves
// of KV blocks raise the cluster's token rate by that. It has no clock, no goroutine and no I/O.
//
//	fit.go    an instance's model, from its own steps
//	solve.go  least squares
//	state.go  the rates of a snapshot of the cluster, and what a move does to them
//	plan.go   the search for moves
package plan

// Model says how long a step of an instance takes, in nanoseconds:
//
//	Base + PerToken * tokens + max(PerKV * KV tokens read here, Remote + what the slowest creditor needs)
//
// Base and PerToken are the paper's W(b)/f(b): f(b), the tokens per time without attention, rises with the batch
// towards 1/PerToken. PerKV is 1/g.
type Model struct {
	Base     float64 // of a step, whatever it computes; above 0
	PerToken float64 // above 0
	PerKV    float64 // for each token whose K and V are read; above 0
	Remote   float64 // what asking creditors takes beside their work: the round trips of all layers; 0: not measured
}

// saturated is the share of its limit at which f counts as saturated: a larger batch brings little more.
const saturated = 0.9

// Saturation is the batch from which on f is saturated, in tokens.
func (m Model) Saturation() float64 { return saturated / (1 - saturated) * m.Base / m.PerToken }

// remote is Remote, and while that is not measured half of Base: on the GPU where both were measured it was less than
// a third. Such a guess lets a plan be tried where there is much to gain, and the first steps after it replace the guess.
// A tenth of Base is the least that is believed: Remote is what is left of a step when all else is taken off, and
// whatever is overrated there is missing from it.
func (m Model) remote() float64 {
	if m.Remote > 0 {
		return max(m.Remote, m.Base/10)
	}
	return m.Base / 2
}
