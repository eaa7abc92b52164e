package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

// The pools of these tests, in 16 tokens, which are two blocks. i0's is the smallest, so that a request's home is j1 while
// that has room.
var hostPools = []int{3, 6, 6}

const (
	// Requests: one that needs all three pools, one that needs two of them, any two, and one for any of them.
	// Emulated CPUs compute ten tokens of a prompt a second.
	allPrompt, allAnswer = 205, 15
	twoPrompt, twoAnswer = 100, 25
	onePrompt, oneAnswer = 30, 4
	// hostHold is how many tokens of an answer there are when it is held up.
	hostHold = 5
	// hostPeerTimeout is --peer-timeout.
	hostPeerTimeout = 10 * time.Second
	// homeSilent is how long a home may be silent without being dead, as the README says.
	homeSilent = 15 * time.Second
	// slack is what emulated CPUs may take longer, with all that else runs on this machine.
	slack = time.Minute
)

// hostCluster is a cluster of three hosts: i0 with the API and etcd, and j1 and j2, which joined it.
type hostCluster struct {
	*machines
	t        *testing.T
	verbs    bool // the hosts have RDMA devices
	programs []*program
	before   []int          // how much they had said when a part of the test began
	want     map[int]answer // by prompt's length, from one instance outside
}

var hostNames = []string{"i0", "j1", "j2"}

func (c *hostCluster) request(prompted, answered int) map[string]any {
	b := body(prompt(prompted, prompted), answered)
	b["return_kv_placement"] = true
	return b
}

func (c *hostCluster) api() *program { return c.programs[0] }

// startOn starts a host's instance, by the flags that README names for several machines.
func (c *hostCluster) startOn(i int) *program {
	v := c.all[i]
	args := []string{
		"serve", "--cluster-host", v.address(), "--cluster-secret", "of-all-hosts", "--dtype", "float32", "--threads", "1", "--log-level", "debug",
		"--no-enable-prefix-caching", // or a home would be where a prompt was before
		"--peer-timeout", hostPeerTimeout.String(), poolFlag(c.t, hostPools[i]), "--block-size", "8",
	}
	if i > 0 {
		args = append(args, "--join", c.all[0].address()+":8001", "--instance-id", hostNames[i])
	}
	p := v.run(args...)
	p.t = c.t
	return p
}

// rdma gives a host its RDMA device, or takes it away. i0's stays: alone it is of no use.
func (c *hostCluster) rdma(i int) {
	c.t.Helper()
	if c.verbs || i == 0 {
		c.all[i].sh("[ -e /sys/class/infiniband/rxe0 ] || rdma link add rxe0 type rxe netdev v0")
	} else {
		c.all[i].sh("[ ! -e /sys/class/infiniband/rxe0 ] || rdma link delete rxe0")
	}
}

// whole waits until all have links to all, and nothing is left of any request.
func (c *hostCluster) whole() {
	c.t.Helper()
	c.api().linked(len(c.all))
	c.api().eventually("all blocks free", idle)
}

// startHosts starts the three programs.
func (m *machines) startHosts(t *testing.T, verbs bool, want map[int]answer) *hostCluster {
	t.Helper()
	c := &hostCluster{machines: m, t: t, verbs: verbs, want: want}
	c.in(t, "start", func(*testing.T) {
		for i, v := range m.all {
			v.release()
			c.rdma(i)
			c.programs, c.before = append(c.programs, c.startOn(i)), append(c.before, 0)
			if i == 0 {
				c.api().logged(`(?m)^add an instance: infinite serve --join 10\.77\.0\.1:8001$`)
			}
		}
		c.whole()
	})
	if t.Failed() {
		t.FailNow()
	}
	return c
}

// right asks for an answer, and checks it.
func (c *hostCluster) right(prompted, answered int) answer {
	c.t.Helper()
	got := c.api().complete(c.request(prompted, answered))
	sameAnswer(c.t, c.want[prompted], got)
	return got
}

// all of them serve together, as before whatever happened.
func (c *hostCluster) asBefore() {
	c.t.Helper()
	c.whole()
	got := c.right(allPrompt, allAnswer)
	for _, name := range hostNames {
		if !slices.ContainsFunc(got.lay, func(s server.SpanView) bool { return s.Instance == name && s.Blocks > 0 }) {
			c.t.Errorf("no KV lay on %s: %v", name, got.lay)
		}
	}
	c.api().eventually("all blocks free", idle)
}

// ask does not wait for the answer.
func (c *hostCluster) ask(prompted, answered int) <-chan asked {
	done := make(chan asked, 1)
	p := c.api()
	go func() {
		a, err := p.post(context.Background(), "/v1/completions", c.request(prompted, answered))
		if err != nil {
			a.message = err.Error()
		}
		done <- asked{a, time.Now()}
	}()
	return done
}

// decoding begins the request that needs two pools, and waits until it is held up in decode at j1 with blocks at j2.
func (c *hostCluster) decoding() <-chan asked {
	c.t.Helper()
	c.all[1].hold(twoPrompt + hostHold)
	done := c.ask(twoPrompt, twoAnswer)
	c.api().eventually("a request in decode at j1, with blocks at j2", func(v server.ClusterView) bool {
		return slices.ContainsFunc(v.Requests, func(q server.RequestPlacement) bool {
			return q.Home == "j1" && q.Tokens >= twoPrompt+hostHold && slices.ContainsFunc(q.Spans, func(s server.SpanView) bool { return s.Instance == "j2" })
		})
	})
	return done
}

// within waits for the right answer, and fails if it takes longer after a moment than the limit and some slack.
func (c *hostCluster) within(done <-chan asked, since time.Time, limit time.Duration) {
	c.t.Helper()
	select {
	case got := <-done:
		c.t.Logf("status %d after %s %s", got.status, got.at.Sub(since).Round(100*time.Millisecond), got.message)
		sameAnswer(c.t, c.want[twoPrompt], got.answer)
	case <-time.After(time.Until(since.Add(limit + slack))):
		c.t.Fatalf("no answer %s after the loss", limit+slack)
	}
}

// tell shows what the instances have said during a part of the test: all of it, or what there was to warn of.
func (c *hostCluster) tell(t *testing.T, all bool) {
	for i, p := range c.programs {
		text := p.logs()
		if len(text) >= c.before[i] { // else it is another program
			text = text[c.before[i]:]
		}
		for line := range strings.Lines(text) {
			if all || strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") || strings.Contains(line, "connected to a peer") {
				t.Logf("%s: %s", hostNames[i], strings.TrimSpace(line))
			}
		}
	}
}

func (c *hostCluster) in(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		whole := c.machines.t
		defer func() { c.machines.t = whole }()
		c.t, c.machines.t = t, t
		for _, p := range c.programs {
			p.t = t
		}
		begun := time.Now()
		c.before = nil
		for _, p := range c.programs {
			c.before = append(c.before, len(p.logs()))
		}
		defer func() {
			c.tell(t, t.Failed())
		}()
		f(t)
		t.Logf("took %s", time.Since(begun).Round(time.Second))
	})
}
