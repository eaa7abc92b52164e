// Package arrival is the order of requests in the cluster: whose arrival is smaller is scheduled first, has room first,
// and is preempted last, on whatever instance it is. An arrival is a priority in bits 55 to 62, above a clock that never
// stands still; so what is said of older and younger requests holds for those of one priority, and between priorities
// the smaller one counts as the older.
package arrival

import "time"

// Priorities that requests may have; 0 where none is given, smaller goes first.
const (
	MinPriority = -128
	MaxPriority = 127
)

// clockBits are those of the clock, which counts 128 ns since 1970: until 2116.
const clockBits = 55

// MaxClock is a clock that leaves room for all that come, for decades.
const MaxClock = 3 << (clockBits - 2)

// Of makes an arrival. Both have to be in range.
func Of(priority int, clock uint64) uint64 {
	return uint64(priority-MinPriority)<<clockBits | clock
}

// Clock is an arrival's.
func Clock(arrival uint64) uint64 { return arrival & (1<<clockBits - 1) }

// Now is the clock of a time.
func Now(t time.Time) uint64 { return uint64(t.UnixNano()) >> 7 }
