package trace

import (
	"math/bits"
	"slices"
)

// Histogram counts times by powers of two: bucket i has those of [2^i, 2^(i+1)) ns, the first also 0.
type Histogram struct {
	Buckets [64]uint64
}

// bucket is also what the BPF program of a kernel function computes.
func bucket(ns uint64) int { return max(0, bits.Len64(ns)-1) }

// Add counts a time.
func (h *Histogram) Add(ns uint64) { h.Buckets[bucket(ns)]++ }

// Count is how many times were added.
func (h *Histogram) Count() uint64 {
	n := uint64(0)
	for _, c := range h.Buckets {
		n += c
	}
	return n
}

// Quantile is the upper bound of the bucket that holds the q-th part of all, 0 of none.
func (h *Histogram) Quantile(q float64) uint64 {
	n := h.Count()
	if n == 0 {
		return 0
	}
	rank, seen := uint64(q*float64(n)), uint64(0)
	rank = min(rank, n-1)
	for i, c := range h.Buckets {
		if seen += c; seen > rank {
			return upper(i)
		}
	}
	return 0 // the ranks end before n
}

func upper(i int) uint64 {
	if i >= 63 {
		return ^uint64(0)
	}
	return 1<<(i+1) - 1
}

// Span is the first and last bucket that has any; 0, -1 of none.
func (h *Histogram) Span() (first, last int) {
	first, last = 0, -1
	for i, c := range h.Buckets {
		if c > 0 {
			if last < 0 {
				first = i
			}
			last = i
		}
	}
	return first, last
}

// Times are the figures of a set of times, exact but for the buckets.
type Times struct {
	Count   uint64   `json:"count"`
	P50     uint64   `json:"p50_ns"`
	P99     uint64   `json:"p99_ns"`
	Max     uint64   `json:"max_ns"`
	Low     uint64   `json:"low_ns,omitempty"`  // lower bound of the first bucket
	Buckets []uint64 `json:"buckets,omitempty"` // each reaches twice as far as the one before
}

// timesOf sorts ns.
func timesOf(ns []uint64) Times {
	if len(ns) == 0 {
		return Times{}
	}
	slices.Sort(ns)
	var h Histogram
	for _, t := range ns {
		h.Add(t)
	}
	at := func(q float64) uint64 { return ns[min(len(ns)-1, int(q*float64(len(ns))))] }
	t := h.Times()
	t.P50, t.P99, t.Max = at(0.5), at(0.99), ns[len(ns)-1]
	return t
}

// Times gives what the buckets alone tell.
func (h *Histogram) Times() Times {
	first, last := h.Span()
	if last < 0 {
		return Times{}
	}
	return Times{
		Count: h.Count(), P50: h.Quantile(0.5), P99: h.Quantile(0.99), Max: upper(last), Low: 1 << first,
		Buckets: slices.Clone(h.Buckets[first : last+1]),
	}
}
