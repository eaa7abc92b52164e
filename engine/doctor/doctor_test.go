package doctor

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestRunReportsInOrder(t *testing.T) {
	var got []string
	Run(t.Context(), machine(plain, nil), Checks(), func(r Result) {
		checkShape(t, r)
		got = append(got, r.Check)
	})
	order := []string{"cpu", "memory", "kernel", "gpu", "rdma", "network", "config"}
	at := 0
	for _, check := range got {
		for at < len(order) && order[at] != check {
			at++
		}
		if at == len(order) {
			t.Fatalf("%s is out of order in %v", check, got)
		}
	}
	if len(got) < 20 || at != len(order)-1 {
		t.Errorf("got %v", got)
	}
}

// A plain machine is fit, strictly.
func TestPlainMachineIsFit(t *testing.T) {
	var sum Summary
	Run(t.Context(), machine(plain, nil), Checks(), func(r Result) {
		if sum.Add(r); r.Level != OK {
			t.Errorf("%s", r.Line(false))
		}
	})
	if err := sum.Err(true); err != nil {
		t.Error(err)
	}
}

func TestRunSurvivesChecks(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hangs := Check{"x", "hangs", func(context.Context, *Machine) []Result { <-release; return nil }, "wake it"}
	if r := hangs.do(t.Context(), machine(plain, nil), 10*time.Millisecond); len(r) != 1 || r[0].Level != Warning || r[0].Remedy != "wake it" || !strings.Contains(r[0].Found, "no answer") {
		t.Errorf("a check that hangs: %+v", r)
	}
	panics := Check{"x", "panics", func(context.Context, *Machine) []Result { panic("ouch") }, ""}
	if r := panics.do(t.Context(), machine(plain, nil), time.Minute); len(r) != 1 || r[0].Level != Warning || !strings.Contains(r[0].Found, "ouch") {
		t.Errorf("a check that panics: %+v", r)
	}
	ctx, stop := context.WithCancel(t.Context())
	reported := 0
	first := Check{"x", "one", one(func(context.Context, *Machine) Result { return ok("x", "one", "fine") }), ""}
	Run(ctx, machine(plain, nil), []Check{first, hangs, first}, func(Result) { reported++; stop() })
	if reported != 1 {
		t.Errorf("%d results after the context ended", reported)
	}
}

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		levels       []Level
		plain, stern bool // fails
	}{
		{nil, false, false},
		{[]Level{OK, OK}, false, false},
		{[]Level{OK, Warning}, false, true},
		{[]Level{Error, OK}, true, true},
		{[]Level{Error, Warning, Error}, true, true},
	} {
		var s Summary
		for _, level := range c.levels {
			s.Add(Result{Level: level})
		}
		if (s.Err(false) != nil) != c.plain || (s.Err(true) != nil) != c.stern {
			t.Errorf("%v: %v, strictly %v", c.levels, s.Err(false), s.Err(true))
		}
	}
	if err := (Summary{Errors: 2, Warnings: 1}).Err(false); err.Error() != "cannot call this machine fit: 2 errors, 1 warning" {
		t.Error(err)
	}
}

func TestJSON(t *testing.T) {
	text, err := json.Marshal([]Result{warning("cpu", "numa", "do it", "found %d", 2), ok("cpu", "cores", "2")})
	want := `[{"check":"cpu","subject":"numa","level":"warning","found":"found 2","remedy":"do it"},` +
		`{"check":"cpu","subject":"cores","level":"ok","found":"2","remedy":""}]`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}

func TestLine(t *testing.T) {
	r := failure("rdma", "mlx5_0/1", "mend it", "broken")
	if got := r.Line(false); got != "error    rdma     mlx5_0/1      broken -> mend it" {
		t.Errorf("%q", got)
	}
	if got := r.Line(true); !strings.HasPrefix(got, "\x1b[31merror  \x1b[0m  rdma") {
		t.Errorf("%q", got)
	}
	if got := ok("cpu", "numa", "1 node").Line(false); strings.Contains(got, "->") {
		t.Errorf("%q", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 256 << 20: "256.0 MiB", 3 << 39: "1.5 TiB", 1 << 63: "8388608.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
