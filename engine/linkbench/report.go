package linkbench

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/infinite-llm/infinite/rdma"
)

// Report is what was measured of a link.
type Report struct {
	Transport rdma.Transport `json:"transport"`
	Reason    string         `json:"reason"`
	Device    string         `json:"device,omitempty"` // RDMA device of this end
	Peer      string         `json:"peer"`
	Ends      string         `json:"ends"`   // "poll" or "wait"; who only receives always waits
	Copies    bool           `json:"copies"` // the ends write and read every message; else only the transport does
	Slots     uint32         `json:"slots"`
	SlotBytes uint64         `json:"slot_bytes"`
	Results   []Result       `json:"results"`
}

// Result is of one size. What was not measured is nil.
type Result struct {
	Bytes     uint64      `json:"bytes"`
	Latency   *RoundTrips `json:"latency,omitempty"`
	Bandwidth *Rate       `json:"bandwidth,omitempty"`
	Puts      *Rate       `json:"puts,omitempty"`
}

// RoundTrips are whole round trips, there and back, in ns.
type RoundTrips struct {
	Rounds int   `json:"rounds"`
	Min    int64 `json:"min_ns"`
	P50    int64 `json:"p50_ns"`
	P99    int64 `json:"p99_ns"`
	Max    int64 `json:"max_ns"`
}

// Rate is of one direction, until the last message had arrived.
type Rate struct {
	Messages       uint64  `json:"messages"`
	Seconds        float64 `json:"seconds"`
	BytesPerSecond float64 `json:"bytes_per_second"`
}

// newRoundTrips sorts ns, which is not empty.
func newRoundTrips(ns []int64) *RoundTrips {
	slices.Sort(ns)
	n := len(ns)
	rank := func(percent int) int64 { return ns[(n*percent+99)/100-1] } // the smallest that so many are not above
	return &RoundTrips{Rounds: n, Min: ns[0], P50: rank(50), P99: rank(99), Max: ns[n-1]}
}

func newRate(bytes uint64, r rdma.BenchResult) *Rate {
	s := r.Took.Seconds()
	return &Rate{Messages: r.Rounds, Seconds: s, BytesPerSecond: float64(bytes) * float64(r.Rounds) / s}
}

// Table prints the report for people.
func (r *Report) Table(out io.Writer) error {
	ends := "both ends poll for round trips, the sender one way"
	if r.Ends == "wait" {
		ends = "both ends sleep between messages"
	}
	if r.Copies {
		ends += "; messages are copied in and out"
	}
	_, err := fmt.Fprintf(out, "%s to %s (%s); %s\n\n", r.Transport, r.Peer, r.Reason, ends)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tround trip, us\t\t\t\tone way, MiB/s\t\t")
	fmt.Fprintln(w, "bytes\trounds\tp50\tp99\tmax\tmessages\tputs\t")
	for _, x := range r.Results {
		rounds, p50, p99, most := "-", "-", "-", "-"
		if l := x.Latency; l != nil {
			us := func(ns int64) string { return fmt.Sprintf("%.2f", float64(ns)/1e3) }
			rounds, p50, p99, most = fmt.Sprint(l.Rounds), us(l.P50), us(l.P99), us(l.Max)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t\n", x.Bytes, rounds, p50, p99, most, x.Bandwidth.text(), x.Puts.text())
	}
	return w.Flush()
}

func (r *Rate) text() string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f", r.BytesPerSecond/(1<<20))
}
