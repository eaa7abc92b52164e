package main

import (
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/rdma"
)

// verbsPeerTimeout is what the instances of these tests run with: over verbs a peer's silence may be all that
// tells of its end.
const verbsPeerTimeout = 10 * time.Second

// verbsCluster is three instances that talk over verbs, each a process with an RDMA device of its own, so that
// every packet crosses a wire: i0, which has the API too, and j1 and j2.
type verbsCluster struct {
	*process // i0
	devices  map[string]string
	flags    []string // all instances have
	joined   map[string]*exec.Cmd
	logOf    map[string]*process // what each instance said since it was started
}

// startVerbs starts such a cluster. It needs three devices: the guest with Soft-RoCE has them. Its CPU is
// emulated, so that models must be small.
func startVerbs(t *testing.T, flags ...string) *verbsCluster {
	t.Helper()
	ports, err := rdma.VerbsPorts(rdma.VerbsConfig{}, nil)
	if len(ports) < 3 {
		t.Skipf("%d RDMA ports are usable, three are needed: %v", len(ports), err)
	}
	c := &verbsCluster{
		devices: map[string]string{"i0": ports[0].Device, "j1": ports[1].Device, "j2": ports[2].Device},
		flags:   append(flags, "--transport", "verbs", "--peer-timeout", verbsPeerTimeout.String(), "--log-level", "debug"),
		joined:  map[string]*exec.Cmd{}, logOf: map[string]*process{},
	}
	c.process = serve(t, append([]string{"--rdma-device", c.devices["i0"]}, c.flags...)...)
	c.logOf["i0"] = c.process
	c.start("j1")
	c.start("j2")
	c.eventually("three instances, each connected to each", func(server.ClusterView) bool { return c.connected() })
	return c
}

// start starts an instance that joins, also one that was there before and is gone.
func (c *verbsCluster) start(id string) {
	c.t.Helper()
	args := append([]string{"serve", "--join", c.join, "--threads", "1", "--instance-id", id, "--rdma-device", c.devices[id]}, c.flags...)
	cmd, log := command(args...), &process{t: c.t}
	c.joined[id], c.logOf[id] = cmd, log
	c.t.Cleanup(func() { // after the process's end
		if c.t.Failed() {
			c.t.Logf("log of %s:\n%s", id, log.logs())
		}
	})
	startBeside(c.t, cmd, log)
}

// startBeside starts one more process until the test ends; what it says goes to log.
func startBeside(t *testing.T, cmd *exec.Cmd, log *process) {
	t.Helper()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

var peerLine = regexp.MustCompile(`msg="(connected to a peer|lost a peer)".* peer=(\w+)(?: transport=(\w+))?`)

// connected says whether each instance has links to each other one, over verbs.
func (c *verbsCluster) connected() bool {
	for _, log := range c.logOf {
		up := map[string]bool{}
		for _, m := range peerLine.FindAllStringSubmatch(log.logs(), -1) {
			up[m[2]] = m[1] == "connected to a peer" && m[3] == "verbs"
		}
		for id := range c.logOf {
			if c.logOf[id] != log && !up[id] {
				return false
			}
		}
	}
	return true
}

// guest runs a function of the guest's library, e.g. guest_loss 2%.
func guest(t *testing.T, call string) {
	t.Helper()
	if os.Getenv("GUEST_LIB") == "" {
		t.Skip("not in the guest")
	}
	if out, err := exec.Command("sh", "-c", `. "$GUEST_LIB"; `+call).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", call, err, out)
	}
}

// A request that needs every block of three instances is answered as transformers does, also while packets
// are lost.
func TestVerbsExactness(t *testing.T) {
	r := references(t)[0]
	c := startVerbs(t, r.flags(t, exactBlocks/3)...)
	req := r.request(exactTokens - len(r.Prompt))
	got := r.whole(c.process)
	t.Run("with 2 % loss", func(t *testing.T) {
		guest(t, "guest_loss 2%")
		defer guest(t, "guest_loss 0%")
		sameAnswer(t, got, c.complete(req))
	})
	c.eventually("all blocks free, and no message that a peer could not take", func(v server.ClusterView) bool {
		for _, in := range v.Instances {
			if in.RefusedMessages != 0 || in.RemoteQueries+in.RemoteAnswers == 0 {
				return false
			}
		}
		return idle(v)
	})
}
