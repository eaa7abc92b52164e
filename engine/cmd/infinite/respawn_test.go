package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// SIGKILL of one of two instances: another one takes its place, and a prompt that needs both pools is answered as before.
// One that was told to stop stays away.
func TestInstanceIsStartedAnew(t *testing.T) {
	t.Parallel()
	p := serve(t, "--instances", "2", "--max-restarts", "3", "--dtype", "float32", poolFlag(t, 40))
	p.linked(2)
	want := p.complete(body(prompt(900, 1), 20))
	if want.status != 200 {
		t.Fatal(want.status, want.message)
	}
	if err := syscall.Kill(p.pid("i1"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.logged(`an instance ended.* instance=i1 why="signal: killed" left_here=1 left_elsewhere=0 started_anew="in 1s"`)
	p.eventually("another one is there", func(v server.ClusterView) bool { return len(v.Instances) == 2 && v.Instances[1].ID == "i2" })
	p.linked(2)
	sameAnswer(t, want, p.complete(body(prompt(900, 1), 20)))
	if n := p.metric("infinite_instance_restarts_total"); n != 1 {
		t.Errorf("the metrics count %d", n)
	}
	if err := syscall.Kill(p.pid("i0"), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.logged(`an instance has stopped.* instance=i0 left_here=1 left_elsewhere=0`)
	p.instances(1)
	p.stop(syscall.SIGTERM)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 || strings.Count(p.logs(), "started an instance") != 3 {
		t.Errorf("status %d\n%s", code, p.logs())
	}
}
