package plan

import (
	"math/bits"
	"time"
)

// Step is what one step of an instance computed, and how long it took.
type Step struct {
	Tokens int // of all requests
	KV     int // tokens whose K and V were read here by requests with one token
	Scores int // queries times keys of requests with more, here: their attention costs arithmetic, not reading
	// Asked is the most KV tokens that one creditor attended to for the step; 0: it asked nobody.
	Asked int
	Hosts bool // it had blocks of others, and may have worked for them meanwhile
	Took  time.Duration
}

const (
	tokenClasses = 14 // by powers of two
	kvClasses    = 14 // none, and by powers of four
	scoreClasses = 18 // likewise

	bucketMemory = 64      // steps that a bucket's means are made of; older ones fade
	bucketLeast  = 8       // steps from which on a bucket counts
	heldUp       = 4       // times the others' mean: nothing that a step of the kind computes takes so long
	forgetAfter  = 1 << 17 // steps after which a bucket that was not filled again does not count any more
	remoteMemory = 64
	remoteLeast  = 8
)

// Fit measures an instance's Model from its steps. The zero value has seen none. It allocates nothing, and one
// goroutine uses it at a time.
//
// Steps are sorted into buckets by what they computed, and each bucket keeps the means of its last steps. The mean of a
// linear function is the function of the means, so nothing is lost by that, and a load that stays the same for hours
// neither outweighs what was seen under another one nor makes it forgotten.
//
// What would bias the fit has no part in it: a step that asked creditors waited for them, so it only tells Remote;
// prefill has a term of its own, since its attention costs far less per key than a decode's; and a step that was held
// up (the process did not run for a while) counts as at most heldUp times its bucket's mean. An instance that hosts learns
// nothing, since it shares its device with answers to others; it is no debtor either.
type Fit struct {
	buckets [tokenClasses][kvClasses][scoreClasses]bucket
	steps   uint64
	last    Model // what Model found last; Base 0: nothing that can be trusted
	remote  mean
}

// bucket holds means over steps of a kind.
type bucket struct {
	n                        float64 // steps, at most bucketMemory
	tokens, kv, scores, took float64
	latest                   uint64 // step
}

// mean fades: it is of about the last remoteMemory values.
type mean struct{ n, value float64 }

func (m *mean) add(x float64) {
	m.n = min(m.n+1, remoteMemory)
	m.value += (x - m.value) / m.n
}

// Add takes a step.
func (f *Fit) Add(s Step) {
	if s.Hosts || s.Tokens < 1 || s.Took <= 0 || s.KV < 0 || s.Scores < 0 {
		return
	}
	f.steps++
	if s.Asked > 0 {
		f.addRemote(s)
		return
	}
	b := &f.buckets[min(bits.Len(uint(s.Tokens)), tokenClasses-1)][min((bits.Len(uint(s.KV))+1)/2, kvClasses-1)][min((bits.Len(uint(s.Scores))+1)/2, scoreClasses-1)]
	took := float64(s.Took)
	switch {
	case b.n > 0 && took > heldUp*b.took:
		took = heldUp * b.took
	case took < b.took/heldUp:
		b.n = 0 // those so far were held up
	}
	b.n = min(b.n+1, bucketMemory)
	b.latest = f.steps
	b.tokens += (float64(s.Tokens) - b.tokens) / b.n
	b.kv += (float64(s.KV) - b.kv) / b.n
	b.scores += (float64(s.Scores) - b.scores) / b.n
	b.took += (took - b.took) / b.n
}

// addRemote learns from a decode step that asked creditors: what it took beyond all that is no attention is the longer of
// its own attention and Remote plus the creditor's. That one is taken to be as fast as this instance; if it is
// slower, Remote has the difference, which is as well. A step whose own attention took longer says only that Remote
// is not above a bound.
func (f *Fit) addRemote(s Step) {
	if f.last.Base == 0 || s.Scores > 0 {
		return
	}
	attention := float64(s.Took) - f.last.Base - f.last.PerToken*float64(s.Tokens)
	remote := max(1, attention-f.last.PerKV*float64(s.Asked))
	if f.remote.n >= remoteLeast {
		remote = min(remote, 2*f.remote.value) // it was held up
	}
	if hidden := attention <= 1.1*f.last.PerKV*float64(s.KV); hidden {
		if f.remote.n == 0 {
			return
		}
		remote = min(remote, f.remote.value)
	}
	f.remote.add(remote)
}

// Model is the fit of the steps so far; ok is false while it cannot be trusted: too few steps, too few kinds of them,
// or figures that no instance has.
func (f *Fit) Model() (m Model, ok bool) {
	var sum equations
	for i := range f.buckets {
		for j := range f.buckets[i] {
			for k := range f.buckets[i][j] {
				b := &f.buckets[i][j][k]
				if b.n >= bucketLeast && f.steps-b.latest <= forgetAfter {
					sum.add([terms]float64{1, b.tokens, b.kv, b.scores}, b.took)
				}
			}
		}
	}
	x, ok := sum.solve()
	if !ok {
		f.last = Model{}
		return Model{}, false
	}
	f.last = Model{Base: x[0], PerToken: x[1], PerKV: x[2]}
	m = f.last
	if f.remote.n >= remoteLeast {
		m.Remote = f.remote.value
	}
	return m, true
}
