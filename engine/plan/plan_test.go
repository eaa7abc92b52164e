package plan

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs testdata/*.txt; -rewrite writes what comes out.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) != ".txt" {
			return // rapid keeps what made a property fail in testdata/rapid
		}
		c := &script{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return c.run(t, d) })
	})
}

// script builds a snapshot by commands; times are in microseconds.
type script struct{ s Snapshot }

func scan[T any](t *testing.T, d *datadriven.TestData, key string, def T) T {
	if d.HasArg(key) {
		d.ScanArgs(t, key, &def)
	}
	return def
}

func (c *script) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "new":
		c.s = Snapshot{BlockSize: scan(t, d, "size", 16), Barred: map[Pair]bool{}}
	case "instance":
		in := Instance{ID: scan(t, d, "id", ""), Blocks: scan(t, d, "blocks", 0), Lent: scan(t, d, "lent", 0), Hosted: scan(t, d, "hosted", 0),
			MaxSeqs: scan(t, d, "seqs", 0), Memory: float64(scan(t, d, "memory", 0)) / 100}
		in.Free = scan(t, d, "free", in.Blocks)
		in.Hostable = scan(t, d, "hostable", in.Free)
		if in.Known = d.HasArg("base"); in.Known {
			us := func(key string) float64 { return scan(t, d, key, 0.0) * 1e3 }
			in.Model = Model{Base: us("base"), PerToken: us("token"), PerKV: us("kv"), Remote: us("remote")}
		}
		c.s.Instances = append(c.s.Instances, in)
	case "request": // n of them at an instance
		for k := range scan(t, d, "n", 1) {
			in := c.instance(t, scan(t, d, "at", ""))
			r := Request{Number: scan(t, d, "number", uint64(1)) + uint64(k), Tokens: scan(t, d, "tokens", 0), Planned: scan(t, d, "planned", 0), PlannedTo: scan(t, d, "to", "")}
			r.ID = fmt.Sprintf("r%d", r.Number)
			if r.Running = !d.HasArg("waits"); r.Running {
				r.Local = scan(t, d, "held", (r.Tokens+c.s.BlockSize-1)/c.s.BlockSize)
				if n := scan(t, d, "there", 0); n > 0 {
					r.Spans = []Span{{Instance: scan(t, d, "with", ""), Blocks: n}}
					r.Local -= n
				}
				r.Movable = scan(t, d, "movable", r.Local-1)
				if !d.HasArg("fixed") {
					in.Free -= r.Local
					in.Hostable -= r.Local
				}
			}
			in.Requests = append(in.Requests, r)
		}
	case "bar":
		c.s.Barred[Pair{scan(t, d, "from", ""), scan(t, d, "to", "")}] = true
	case "plan": // and carries it out
		return c.plan()
	default:
		t.Fatalf("%s: no command %s", d.Pos, d.Cmd)
	}
	return "ok\n"
}

func (c *script) instance(t *testing.T, id string) *Instance {
	for i := range c.s.Instances {
		if c.s.Instances[i].ID == id {
			return &c.s.Instances[i]
		}
	}
	t.Fatalf("no instance %s", id)
	return nil
}

func (c *script) plan() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.1f tokens/s\n", Rate(&c.s))
	moves := Moves(&c.s)
	for _, m := range moves {
		fmt.Fprintf(&b, "%s of %s: %d blocks to %s, gain %.1f\n", m.ID, m.Home, m.Blocks, m.To, m.Gain)
	}
	carryOut(&c.s, moves)
	if len(moves) > 0 {
		fmt.Fprintf(&b, "%.1f tokens/s\n", Rate(&c.s))
	}
	return b.String()
}

// carryOut makes a plan's moves in the snapshot, as the instances would.
func carryOut(s *Snapshot, moves []Move) {
	at := map[string]*Instance{}
	for i := range s.Instances {
		at[s.Instances[i].ID] = &s.Instances[i]
	}
	for _, m := range moves {
		home, to := at[m.Home], at[m.To]
		home.Free += m.Blocks
		home.Lent += m.Blocks
		to.Free -= m.Blocks
		to.Hostable -= m.Blocks
		to.Hosted += m.Blocks
		for i := range home.Requests {
			r := &home.Requests[i]
			if r.Number != m.Number {
				continue
			}
			r.Local -= m.Blocks
			r.Movable -= m.Blocks
			if k := len(r.Spans) - 1; k >= 0 && r.Spans[k].Instance == m.To {
				r.Spans[k].Blocks += m.Blocks
			} else {
				r.Spans = append(r.Spans, Span{m.To, m.Blocks})
			}
		}
	}
}
