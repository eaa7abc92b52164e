package main

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

// endedWith waits for a server that ends by itself, and wants its status and, in its log, one line with why.
func (p *process) endedWith(status int, why string) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatal("it goes on")
	}
	if got := p.cmd.ProcessState.ExitCode(); got != status || strings.Count(p.logs(), why) != 1 {
		p.t.Errorf("it ended with status %d, and %d lines of %q", got, strings.Count(p.logs(), why), why)
	}
}

// decoding waits until a request is in its answer.
func (p *process) decoding(tokens int) {
	p.t.Helper()
	p.eventually("the request decodes", func(v server.ClusterView) bool { return len(v.Requests) == 1 && v.Requests[0].Tokens > tokens })
}

// An API process none of whose instances is left, and that knows no other one which serves, ends with status 1, once its
// clients have been told. As long as one is left it goes on, and says how many.
func TestAllInstancesAreKilled(t *testing.T) {
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--instances", "2")
	// It lends its memory, but cannot serve.
	startBeside(t, command("serve", "--join", p.join, "--memory-only", "--instance-id", "m", "--threads", "1"), &process{t: t})
	p.instances(3)
	s := p.stream(body(prompt(50, 1), 100))
	s.next()
	p.decoding(50)
	pids := []int{p.pid("i0"), p.pid("i1")}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.logged(`an instance ended.* instance=i0 why="signal: killed" left_here=1 left_elsewhere=0`)
	if err := syscall.Kill(pids[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := s.rest(); got.status < 500 || got.message == "" {
		t.Errorf("its client got %d %q", got.status, got.message)
	}
	p.endedWith(1, "infinite: cannot go on: no instance is left; the last: instance i1: signal: killed\n")
	p.logged("cannot go on; draining.* why=.cannot go on: no instance is left")
	if strings.Contains(p.logs(), "go on with") || strings.Contains(p.logs(), "the others") {
		t.Error("the log speaks of others")
	}
}

// While instances that joined serve, an API process that has none of its own any more goes on; without them it waits for a
// while, and ends.
func TestJoinedInstancesGoOn(t *testing.T) {
	t.Parallel()
	p := serve(t)
	joined := command("serve", "--join", p.join, "--instance-id", "j", "--threads", "1")
	startBeside(t, joined, &process{t: t})
	p.instances(2)
	if err := syscall.Kill(p.pid("i0"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.logged(`an instance ended.* instance=i0 why="signal: killed" left_here=0 left_elsewhere=1`)
	p.instances(1)
	if got := p.complete(body(prompt(50, 1), 10)); got.status != 200 {
		t.Fatalf("the one that joined: %d %s", got.status, got.message)
	}
	if err := joined.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.logged("no instance serves any more")
	// Kubernetes sends it no requests then, and does not kill it either.
	probes := kubernetes(t)["Deployment/infinite-api"].Spec.Template.Spec.Containers[0]
	if ready, alive := probes.Readiness.ask(p), probes.Liveness.ask(p); ready != http.StatusServiceUnavailable || alive != http.StatusOK {
		t.Errorf("readiness is %d, liveness %d", ready, alive)
	}
	p.endedWith(1, "infinite: cannot go on: no instance of this process is left, and no other one has served for 10s")
}

// An API process also waits for one that served beside its own instances, and was away when these ended.
func TestJoinedInstanceIsAwayForMoments(t *testing.T) {
	p := serve(t)
	join := func() *exec.Cmd {
		joined := command("serve", "--join", p.join, "--instance-id", "j", "--threads", "1")
		startBeside(t, joined, &process{t: t})
		return joined
	}
	joined := join()
	p.instances(2)
	if err := joined.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.instances(1)
	if err := syscall.Kill(p.pid("i0"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.logged("no instance serves any more")
	join()
	p.eventually("it serves again", func(v server.ClusterView) bool { return len(v.Instances) == 1 && v.Instances[0].ID == "j" })
	if got := p.complete(body(prompt(50, 1), 10)); got.status != 200 {
		t.Errorf("the one that came back: %d %s", got.status, got.message)
	}
}

// A second signal cuts draining short: streams end with an error, and the instances with their head, at once, although one
// that joined is still a client of its etcd.
func TestSecondSignal(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--instances", "2", "--drain-timeout", "5m")
	startBeside(t, command("serve", "--join", p.join, "--memory-only", "--threads", "1"), &process{t: t})
	p.instances(3)
	s := p.stream(body(prompt(50, 1), 100))
	s.next()
	p.decoding(50)
	pids := []int{p.pid("i0"), p.pid("i1")}
	signal := func(how syscall.Signal) {
		if err := p.cmd.Process.Signal(how); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGTERM)
	p.logged("draining")
	time.Sleep(oneStop)
	signal(syscall.SIGINT)
	begun := time.Now()
	over := time.AfterFunc(20*time.Second, h.release) // nobody was cut short
	defer over.Stop()
	if got := s.rest(); got.status != http.StatusServiceUnavailable || !strings.Contains(got.message, "stopping") {
		t.Errorf("its client got %d %q", got.status, got.message)
	}
	p.endedWith(0, "another signal: what still runs is cut short")
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("instance %d: %v", pid, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "infinite-etcd-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// An instance that joined is cut short likewise, and hands its requests on.
func TestSecondSignalToOneThatJoined(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 60))
	p, h, log, joined := joinedByHeld(t, "5m")
	defer h.release()
	s := p.stream(body(prompt(200, 1), 300))
	s.next()
	p.decoding(200)
	if err := joined.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.instances(1)
	time.Sleep(oneStop)
	if err := joined.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log.logged("another signal: what still runs is cut short")
	log.logged("requests are cut short")
	h.release()
	sameAnswer(t, single.complete(body(prompt(200, 1), 300)), s.rest())
	if err := joined.Wait(); err != nil {
		t.Errorf("it did not end well: %v\n%s", err, log.logs())
	}
}

// A third signal ends the process as if nobody listened for it, also when it hangs.
func TestThirdSignal(t *testing.T) {
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t)
	log := &process{t: t}
	joined := command("serve", "--join", p.join, "--instance-id", "j", "--threads", "1", "--drain-timeout", "5m")
	startBeside(t, joined, log)
	p.instances(2)
	var streams []*stream
	for i := range 2 { // one on each
		streams = append(streams, p.stream(body(prompt(50, i), 100)))
		streams[i].next()
	}
	p.eventually("it has one that does not end", func(v server.ClusterView) bool {
		return slices.ContainsFunc(v.Requests, func(r server.RequestPlacement) bool { return r.Home == "j" && r.Tokens > 50 })
	})
	for _, wait := range []string{"", "another signal", ""} {
		if err := joined.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if wait == "" {
			p.instances(1)
		} else {
			log.logged(wait)
		}
		time.Sleep(2 * oneStop) // from when on the next one is another
	}
	_ = joined.Wait()
	if s := joined.ProcessState.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v\n%s", joined.ProcessState, log.logs())
	}
	h.release()
	for _, s := range streams {
		if got := s.rest(); got.status != 200 {
			t.Errorf("its request: %d %s", got.status, got.message)
		}
	}
}
