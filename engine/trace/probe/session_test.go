//go:build linux

package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/trace"
)

// player is csrc/tests/test_marks.c, which plays messages on demand.
type player struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func startPlayer(t *testing.T) *player {
	t.Helper()
	const program = "../../../.build/cpu/test_marks"
	if _, err := os.Stat(program); err != nil {
		t.Skipf("the C tests are not built: %v", err)
	}
	p := &player{t: t, cmd: exec.Command(program, "play")}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err = p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = p.cmd.Wait()
	})
	p.line()
	return p
}

func (p *player) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// play plays n steps and says how long it took.
func (p *player) play(n int) time.Duration {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, n); err != nil {
		p.t.Fatal(err)
	}
	ns, err := strconv.Atoi(p.line())
	if err != nil {
		p.t.Fatal(err)
	}
	return time.Duration(ns)
}

// open skips the test where the kernel does not let this process trace.
func open(t *testing.T, pids ...int) *Session {
	t.Helper()
	cfg := Config{RingBytes: DefaultRing, Functions: true}
	for _, pid := range pids {
		p, err := Look("/proc", pid)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Processes = append(cfg.Processes, p)
	}
	s, err := Open(cfg)
	var cannot *cannotError
	k := thisKernel("/")
	if errors.As(err, &cannot) && (os.Getuid() != 0 || !k.mayTrace() || !k.uprobes || k.seccomp || k.lockdown == "confidentiality") {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Every mark of a running process is seen, in order and with its arguments; another process of the same program
// is not seen.
func TestSession(t *testing.T) {
	p, other := startPlayer(t), startPlayer(t)
	s := open(t, p.cmd.Process.Pid)
	if got := s.Processes()[0].Marks; got != len(trace.Marks()) {
		t.Fatalf("%d of %d marks have a probe: %+v", got, len(trace.Marks()), s.Refused())
	}
	for _, r := range s.Refused() {
		if r.Process != "" || r.Reason == "" {
			t.Errorf("%+v", r)
		}
		t.Logf("no probe on %s: %s %s", r.Probe, r.Reason, r.Remedy)
	}
	ctx, stop := context.WithCancel(context.Background())
	tr := trace.New()
	read := make(chan error)
	const steps = 50
	const events = steps * (1 + 1 + 2*7 + 1 + 6)
	go func() {
		read <- s.Read(ctx, func(e trace.Event) { tr.Add(e) })
	}()
	other.play(steps)
	p.play(steps)
	stop()
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	lost, err := s.Lost()
	if err != nil || lost != 0 || s.Unknown() != 0 || tr.Events != events {
		t.Fatalf("%d events of %d, %d lost, %d unknown: %v", tr.Events, events, lost, s.Unknown(), err)
	}
	functions, err := s.Functions()
	if err != nil {
		t.Fatal(err)
	}
	r := tr.Report(trace.Source{Processes: s.Processes(), Refused: s.Refused(), Functions: functions}, trace.Options{Peer: -1})
	if r.Order.Checked != 3*steps || r.Order.Disordered != 0 || r.Order.Overtaken != 0 {
		t.Errorf("order %+v", r.Order)
	}
	if len(r.Lanes) != 2 || r.Lanes[0].Messages != 2*steps || r.Lanes[0].Whole != 2*steps || r.Lanes[0].Home.Peer != 3 || r.Lanes[0].Creditor.Peer != 5 {
		t.Errorf("lanes %+v", r.Lanes)
	}
	if len(r.Requests) != 1 || r.Requests[0].Tag != "abcd1234" || r.Requests[0].Slot != 7 || r.Requests[0].From != 101 || r.Requests[0].To != 102+steps {
		t.Errorf("requests %+v", r.Requests)
	}
	var text strings.Builder
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
}

// The programs of kernel functions pass the verifier, also of a kernel without kprobes.
func TestFunctionPrograms(t *testing.T) {
	s := open(t, startPlayer(t).cmd.Process.Pid)
	if s.counters == nil {
		if err := s.makeCounters(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range functions {
		if _, err := s.load("infinite_enter", enterProgram(i, s.counters.FD(), s.begun.FD())); err != nil {
			t.Errorf("%s, at its beginning: %v", functions[i].name, err)
		}
		if _, err := s.load("infinite_leave", leaveProgram(i, s.counters.FD(), s.begun.FD())); err != nil {
			t.Errorf("%s, at its end: %v", functions[i].name, err)
		}
	}
}

// What marks cost with and without probes; and that they cost nothing again when the probes are gone.
func TestCost(t *testing.T) {
	const steps, marks = 2000, 1 + 1 + 2*7 + 1 + 6
	p := startPlayer(t)
	per := func() time.Duration {
		best := time.Hour
		for range 5 {
			best = min(best, p.play(steps))
		}
		return best / (steps * marks)
	}
	before := per()
	s := open(t, p.cmd.Process.Pid)
	ctx, stop := context.WithCancel(context.Background())
	read := make(chan error)
	go func() { read <- s.Read(ctx, func(trace.Event) {}) }()
	during := per()
	stop()
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if err := s.detach(); err != nil {
		t.Fatal(err)
	}
	after := per()
	t.Logf("a mark takes %v, with a probe %v, afterwards %v", before, during, after)
	if after > 100*time.Nanosecond && after > 10*before {
		t.Errorf("a mark takes %v after the probes are gone, %v before", after, before)
	}
}
