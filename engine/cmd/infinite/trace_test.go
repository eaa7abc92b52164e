package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/trace"
)

// traced runs `infinite trace` on the processes while f runs. The test is skipped, with the reason, where this
// process may not trace.
func traced(t *testing.T, pids []int, f func(), args ...string) *trace.Report {
	t.Helper()
	args = append([]string{"trace", "--json", "--duration", "0"}, args...)
	for _, pid := range pids {
		args = append(args, "--pid", fmt.Sprint(pid))
	}
	cmd := command(args...)
	var out bytes.Buffer
	cmd.Stdout = &out
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, log := bufio.NewReader(logs), ""
	for !strings.Contains(log, "msg=tracing") && err == nil {
		var line string
		line, err = lines.ReadString('\n')
		log += line
	}
	if err != nil {
		_ = cmd.Wait()
		if !strings.Contains(log, "the program has none") && (strings.Contains(log, "cannot attach") || strings.Contains(log, "cannot make a ring")) {
			t.Skip(log)
		}
		t.Fatalf("%v: %s", err, log)
	}
	f()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(lines)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s%s", err, log, rest)
	}
	var r trace.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	var text strings.Builder
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	return &r
}

// checkTrace expects that messages between so many instances were seen whole, at all stages, in order.
func checkTrace(t *testing.T, r *trace.Report, request string) {
	t.Helper()
	if r.Lost != 0 || r.Events == 0 {
		t.Errorf("%d events, %d lost", r.Events, r.Lost)
	}
	for _, p := range r.Processes {
		if p.Marks != len(trace.Marks()) {
			t.Errorf("%s: %d of %d marks have a probe", p.Name(), p.Marks, len(trace.Marks()))
		}
	}
	if o := r.Order; o.Checked == 0 || o.Disordered != 0 || o.Overtaken == o.Checked {
		t.Errorf("order %+v", o)
	}
	kinds := map[trace.Kind]int{}
	for _, l := range r.Lanes {
		kinds[l.Kind] += l.Messages
		if want := map[trace.Kind]int{trace.Query: 7, trace.Move: 6}[l.Kind]; len(l.Stages) != want || l.Whole != l.Messages ||
			l.Home.Process == "" || l.Creditor.Process == "" || l.Home.Process == l.Creditor.Process {
			t.Errorf("%d of %d %s messages from %+v to %+v were seen whole, with %d times", l.Whole, l.Messages, l.Kind, l.Home, l.Creditor, len(l.Stages))
		}
		for _, s := range l.Stages {
			if s.Count != uint64(l.Messages) {
				t.Errorf("%s of %d messages, of %d", s.Name, s.Count, l.Messages)
			}
		}
	}
	if kinds[trace.Query] == 0 || kinds[trace.Move] == 0 {
		t.Errorf("messages %v", kinds)
	}
	if len(r.Requests) != 1 || r.Requests[0].ID != request+"-0" || r.Requests[0].Steps.Count < 10 {
		t.Errorf("requests %+v", r.Requests)
	}
	if tl := r.Timeline; tl == nil || len(tl.Messages) == 0 || len(tl.Messages[0].At) != 7 {
		t.Errorf("timeline %+v", tl)
	}
}

// tracedRequest needs all three instances' blocks. Its id tells the trace which it is.
func tracedRequest(r *reference) (body map[string]any, id string) {
	body = r.request(exactTokens - len(r.Prompt))
	body["request_id"] = "traced"
	return body, "cmpl-traced"
}

// Over shm and tcp, three instances of one host: every message is seen at both its ends.
func TestTrace(t *testing.T) {
	for _, transport := range []string{"shm", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			r := references(t)[0]
			p := r.serve(t, 3, exactBlocks/3, "--transport", transport)
			req, id := tracedRequest(r)
			report := traced(t, []int{p.pid("i0"), p.pid("i1"), p.pid("i2")}, func() { r.checkReference(t, p.complete(req)) }, "--request", id)
			checkTrace(t, report, id)
			for _, pr := range report.Processes {
				if !strings.HasPrefix(pr.Instance, "i") {
					t.Errorf("process %+v has no name", pr)
				}
			}
		})
	}
}

// Over verbs, with the kernel's part.
func TestVerbsTrace(t *testing.T) {
	r := references(t)[0]
	c := startVerbs(t, r.flags(t, exactBlocks/3)...)
	pids := []int{c.pid("i0")}
	for _, cmd := range c.joined {
		pids = append(pids, cmd.Process.Pid)
	}
	req, id := tracedRequest(r)
	report := traced(t, pids, func() { r.checkReference(t, c.complete(req)) }, "--request", id)
	checkTrace(t, report, id)
	calls := map[string]uint64{}
	for _, f := range report.Functions {
		calls[f.Name] = f.Calls
		if f.Calls > 0 && f.Times.Count == 0 && f.Untimed == "" {
			t.Errorf("%s was called %d times and never timed", f.Name, f.Calls)
		}
	}
	refused := map[string]string{}
	for _, x := range report.Refused {
		refused[x.Probe] = x.Reason
	}
	for _, name := range []string{"rxe_requester", "rxe_responder", "rxe_completer"} {
		if calls[name] == 0 && refused[name] == "" {
			t.Errorf("%s was not called, and nothing says why not", name)
		}
	}
}

// Where there is nothing to trace that is said, and what is no process is no crash.
func TestTraceRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"cannot look at process 999999999": {"--pid", "999999999"},
		"cannot ":                          {"--pid", "1"}, // no program of ours, or not for us to look at
	} {
		out, err := command(append([]string{"trace", "--duration", "1s"}, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}
