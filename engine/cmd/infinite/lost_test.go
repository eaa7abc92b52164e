package main

import (
	"context"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

// SIGKILL of a creditor in mid-decode: its debtor's request is computed anew and answered as if nothing had been, others
// go on.
func TestCreditorIsKilled(t *testing.T) {
	for _, transport := range []string{"shm", "tcp"} {
		t.Run(transport, func(t *testing.T) { creditorIsKilled(t, transport) })
	}
}

func creditorIsKilled(t *testing.T, transport string) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 400))
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--dtype", "float32", "--instances", "3", "--transport", transport, poolFlag(t, 120))
	long := p.stream(body(prompt(2200, 1), 600))
	long.next()
	var creditor, home string
	p.eventually("spans at a creditor, in decode", func(v server.ClusterView) bool {
		for _, r := range v.Requests {
			if r.Tokens > 2200 && len(r.Spans) > 1 {
				creditor, home = r.Spans[0].Instance, r.Home
			}
		}
		// What the creditor tells itself leads the second request away from it.
		return len(v.Instances) == 3 && slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool {
			return in.ID == creditor && in.KVBlocksHosted > 0
		})
	})
	short := p.stream(body(prompt(100, 2), 500))
	short.next()
	p.eventually("the second request runs away from the creditor", func(v server.ClusterView) bool {
		return slices.ContainsFunc(v.Requests, func(r server.RequestPlacement) bool { return r.Home != creditor && r.Home != home && r.Tokens > 100 })
	})
	pid := p.pid(creditor)
	h.release()
	for range 20 { // of hundreds
		long.next()
		short.next()
	}
	killed := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.logged(`a request lost KV with an instance and will be recomputed.* peer=` + creditor)
	// The end of its links tells, and not the time that a peer may be silent, two minutes here.
	if took := time.Since(killed); took > time.Minute {
		t.Errorf("the loss was noticed after %s", took)
	}
	sameAnswer(t, single.complete(body(prompt(2200, 1), 600)), long.rest())
	sameAnswer(t, single.complete(body(prompt(100, 2), 500)), short.rest())
	p.eventually("all blocks free, one request computed anew", func(v server.ClusterView) bool {
		n := uint64(0)
		for _, in := range v.Instances {
			n += in.Recoveries
		}
		return idle(v) && n == 1
	})
}

// SIGKILL of a home in mid-answer, and of the next one: another instance goes on with the answer. Tokens, log
// probabilities and usage are as if nothing had been.
func TestHomeIsKilled(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 100))
	for _, sampled := range []bool{false, true} {
		h := holdSteps(t, 1)
		defer h.release()
		p := serve(t, "--dtype", "float32", "--instances", "3", poolFlag(t, 100))
		req := body(prompt(300, 1), 400)
		if sampled {
			req["temperature"], req["seed"], req["presence_penalty"], req["repetition_penalty"] = 1.2, 7, 0.5, 1.1
		}
		want := single.complete(req)
		s := p.stream(req)
		for n := range 2 {
			s.next()
			var home string
			p.eventually("the request decodes", func(v server.ClusterView) bool {
				for _, r := range v.Requests {
					home = r.Home
				}
				return len(v.Instances) == 3-n && len(v.Requests) == 1 && v.Requests[0].Tokens > 300
			})
			pid := p.pid(home)
			h.release()
			for range 20 { // of hundreds
				s.next()
			}
			h.from(1)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.logged(`a request's home is lost; another one goes on with it.* from=` + home)
			p.instances(2 - n)
		}
		h.release()
		got := s.rest()
		sameAnswer(t, want, got)
		if got.usage != want.usage || got.finish != want.finish || got.text != want.text {
			t.Errorf("got %+v, %s; want %+v, %s", got.usage, got.finish, want.usage, want.finish)
		}
		p.eventually("all blocks free", idle)
	}
}

// Most instances of a cluster go down at once, a request's home among them. Those that are left answer it.
func TestMachineGoesDown(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 100))
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--dtype", "float32", "--instances", "8", poolFlag(t, 100))
	s := p.stream(body(prompt(300, 1), 200))
	s.next()
	var dead []string
	p.eventually("the request decodes", func(v server.ClusterView) bool {
		dead = nil
		for _, r := range v.Requests {
			dead = append(dead, r.Home)
		}
		for _, in := range v.Instances {
			if !slices.Contains(dead, in.ID) && len(dead) < 5 {
				dead = append(dead, in.ID)
			}
		}
		return len(v.Instances) == 8 && len(v.Requests) == 1 && v.Requests[0].Tokens > 300
	})
	var pids []int
	for _, id := range dead {
		pids = append(pids, p.pid(id))
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	p.logged(`a request's home is lost; another one goes on with it.* from=` + dead[0])
	h.release()
	sameAnswer(t, single.complete(body(prompt(300, 1), 200)), s.rest())
	p.instances(3)
	p.eventually("all blocks free", idle)
}

// A request that only waits at homes that die cannot be why: it is answered by the last instance that is left, as are
// those that ran on one each.
func TestWaitingHomesAreKilled(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 100))
	h := holdSteps(t, 1)
	defer h.release()
	p := serve(t, "--dtype", "float32", "--instances", "4", "--max-num-seqs", "1", poolFlag(t, 100))
	var busy []*stream
	for i := range 4 {
		s := p.stream(body(prompt(100, i), 20))
		s.next()
		busy = append(busy, s)
	}
	waits := make(chan answer, 1)
	go func() {
		a, err := p.post(context.Background(), "/v1/completions", body(prompt(60, 9), 20))
		if err != nil {
			a.message = err.Error()
		}
		waits <- a
	}()
	var dead []string
	for range 3 {
		home := ""
		p.eventually("it waits at a home that lives", func(v server.ClusterView) bool {
			for _, r := range v.Requests {
				if r.Tokens == 60 {
					home = r.Home
				}
			}
			return home != "" && !slices.Contains(dead, home)
		})
		dead = append(dead, home)
		if err := syscall.Kill(p.pid(home), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	p.instances(1)
	h.release()
	for i, s := range busy {
		sameAnswer(t, single.complete(body(prompt(100, i), 20)), s.rest())
	}
	sameAnswer(t, single.complete(body(prompt(60, 9), 20)), <-waits)
	p.eventually("all blocks free", idle)
}

// A request that ends the device of whoever computes it does not end them all: two, and then it is given up. Those that
// are left serve on.
func TestPoison(t *testing.T) {
	h := holdSteps(t, 0)
	h.release()
	p := serve(t, "--dtype", "float32", "--instances", "4", poolFlag(t, 100))
	want := p.complete(body(prompt(100, 1), 20))
	bad := prompt(50, 9)
	for i := range 5 {
		bad[10+i] = poison
	}
	got := p.complete(body(bad, 5))
	if got.status != http.StatusServiceUnavailable || !strings.Contains(got.message, "it lost 2 homes since its last token") {
		t.Errorf("the request got %d %q", got.status, got.message)
	}
	p.instances(2)
	sameAnswer(t, want, p.complete(body(prompt(100, 1), 20)))
	p.eventually("all blocks free", idle)
}

// joinedByHeld is a server that an instance with more room has joined, whose steps are held.
func joinedByHeld(t *testing.T, drain string) (p *process, h *hold, log *process, joined *exec.Cmd) {
	t.Helper()
	p = serve(t, "--dtype", "float32", poolFlag(t, 60))
	h = holdSteps(t, 1) // at what starts from here on
	log = &process{t: t}
	joined = command("serve", "--join", p.join, "--dtype", "float32", "--threads", "1", "--drain-timeout", drain, poolFlag(t, 80))
	startBeside(t, joined, log)
	p.instances(2)
	return p, h, log, joined
}

// An instance that must stop before its requests have ended hands them on.
func TestDrainHandsOn(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 60))
	p, h, log, joined := joinedByHeld(t, "1ms")
	defer h.release()
	s := p.stream(body(prompt(200, 1), 300))
	s.next()
	if err := joined.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log.logged("requests are cut short")
	h.release()
	sameAnswer(t, single.complete(body(prompt(200, 1), 300)), s.rest())
	if err := joined.Wait(); err != nil {
		t.Errorf("the joined instance did not end well: %v\n%s", err, log.logs())
	}
	if !strings.Contains(p.logs(), "another one goes on with it") {
		t.Errorf("the request had one home:\n%s", p.logs())
	}
	p.eventually("all blocks free", idle)
}
