// Package top makes what operators look at of what a server says of its cluster: totals, instances, the largest requests,
// and rates, which are differences between samples of counters. It has no clock, no goroutine and no I/O. Nothing of a
// sample is trusted: text is cut to printable ASCII, numbers to what can be, lists to what can be drawn.
//
//	sample.go   what a server said at one time
//	history.go  samples -> rates; counters that start anew, instances that come and go
//	figures.go  the two together, largest requests first; also the JSON of `infinite top`
//	row.go      text of some width, in colours or not
//	text.go     figures as text
//	tables.go   their tables
//
// The dashboard has the same in server/dashboard/figures.mjs, which is held to testdata/figures.json too.
package top

import (
	"encoding/json"
	"time"
)

// Figures are what is shown of one time.
type Figures struct {
	At        time.Time  `json:"time"`
	GManager  string     `json:"gmanager"`
	BlockSize int        `json:"block_size"` // tokens
	Cluster   Totals     `json:"cluster"`
	Instances []Instance `json:"instances"`
	Requests  []Request  `json:"requests"` // the largest first
}

// Totals are sums over all instances, but for the tokens and what is missing, which are those of the API process that was
// asked.
type Totals struct {
	Instances   int  `json:"instances"`
	Missing     int  `json:"instances_missing"` // of the API process that was asked
	Requests    int  `json:"requests"`          // with KV somewhere
	Running     int  `json:"running"`
	Waiting     int  `json:"waiting"`
	TokensIn    Rate `json:"prompt_tokens_per_second"`
	TokensOut   Rate `json:"generated_tokens_per_second"`
	Pool        Pool `json:"kv_blocks"`
	Preemptions int  `json:"preemptions"` // since the instances started
	Recoveries  int  `json:"recoveries"`
	Waves       int  `json:"parallel_prefills"`
	Rehomed     int  `json:"rehomed"` // since the API process started
}

// Pool is what KV blocks are used for. Own + Hosted + Free = Total; Cached is a part of Free. Blocks that others use where
// they lie are a part of Own, and Shared counts each as often as it is used, so it may be more than there are.
type Pool struct {
	Total  int `json:"total"`
	Own    int `json:"own"`
	Hosted int `json:"hosted"`
	Free   int `json:"free"`
	Cached int `json:"cached"`
	Lent   int `json:"lent"` // blocks elsewhere, of requests here
	Shared int `json:"shared"`
}

// Instance is one instance's state and rates.
type Instance struct {
	ID              string         `json:"id"`
	Device          string         `json:"device"`
	MemoryOnly      bool           `json:"memory_only"`
	Pool            Pool           `json:"kv_blocks"`
	Running         int            `json:"running"`
	Waiting         int            `json:"waiting"`
	TokensPerSecond float64        `json:"tokens_per_second"` // generated, as the instance says
	Steps           Rate           `json:"steps_per_second"`
	StepTime        Rate           `json:"step_seconds"`            // mean of one step
	RemoteWait      Rate           `json:"remote_wait_share"`       // of the time of steps
	Moved           Rate           `json:"moved_blocks_per_second"` // to creditors
	Hits            Rate           `json:"prefix_hit_share"`        // of the tokens of requests that began
	HitsElsewhere   Rate           `json:"shared_hit_share"`        // a part of Hits: used at other instances
	Links           map[string]int `json:"links"`                   // peers by transport
	MemoryTotal     int            `json:"memory_total_bytes"`
	MemoryUsed      int            `json:"memory_used_bytes"`
}

// Request is a request's size and where its KV lies.
type Request struct {
	ID     string `json:"id"`
	Home   string `json:"home"`
	Tokens int    `json:"tokens"`
	Blocks int    `json:"blocks"`
	Spans  []Span `json:"spans"` // in order of position; neighbours are on different instances
}

// Span is a run of blocks on one instance, "" for several of which each is too small to be told apart.
type Span struct {
	Instance string `json:"instance"`
	Blocks   int    `json:"blocks"`
}

// Rate is a figure that may not be known yet: null in JSON.
type Rate struct {
	Value float64
	Known bool
}

// MarshalJSON is the value, or null.
func (r Rate) MarshalJSON() ([]byte, error) {
	if !r.Known {
		return []byte("null"), nil
	}
	return json.Marshal(r.Value)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Rate) UnmarshalJSON(data []byte) error {
	var v *float64
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	if *r = (Rate{}); v != nil {
		*r = Rate{*v, true}
	}
	return nil
}

// per is a / b, unknown where b is nothing.
func per(a, b float64) Rate {
	if b <= 0 {
		return Rate{}
	}
	return Rate{a / b, true}
}
