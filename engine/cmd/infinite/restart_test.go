package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/server"
)

// nextPort is where fixedPort looks next; tests that run at the same time get others.
var nextPort atomic.Int32

func init() { nextPort.Store(20000 + int32(time.Now().UnixNano()/1000%10000)) }

// fixedPort is one that a head can have again after a restart: connections are not given ports below 32768.
func fixedPort(t *testing.T) string {
	t.Helper()
	for port := nextPort.Add(1); port < 32768; port = nextPort.Add(1) {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return fmt.Sprint(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

// stop ends a server in its own way, or not.
func (p *process) stop(how syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(how); err != nil {
		p.t.Fatal(err)
	}
	<-p.ended
}

func (p *process) instances(n int) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%d instances", n), func(v server.ClusterView) bool { return len(v.Instances) == n })
}

// linked waits for n instances that can all borrow from each other: the first try to connect may come before the peer
// has heard of who tries.
func (p *process) linked(n int) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%d instances with links", n), func(v server.ClusterView) bool {
		for _, in := range v.Instances {
			links := 0
			for _, peers := range in.Links {
				links += int(peers)
			}
			if links != n-1 {
				return false
			}
		}
		return len(v.Instances) == n
	})
}

// A head that ends takes the list of members with it. What had joined it joins the one that comes in its place, as
// another member: it counts, it serves, and nobody else gets its id.
func TestHeadIsRestarted(t *testing.T) {
	t.Parallel()
	single := serve(t, "--dtype", "float32", poolFlag(t, 400))
	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(how.String(), func(t *testing.T) {
			t.Parallel()
			port := fixedPort(t)
			start := func() *process { return serve(t, "--dtype", "float32", "--cluster-port", port, poolFlag(t, 30)) }
			p := start()
			log := &process{t: t}
			join := func() {
				startBeside(t, command("serve", "--join", p.join, "--dtype", "float32", "--threads", "1", poolFlag(t, 30)), log)
			}
			defer func() {
				if t.Failed() {
					t.Logf("log of what joined:\n%s", log.logs())
				}
			}()
			join()
			p.instances(2)
			p.stop(how)

			p = start()
			p.instances(2)
			two := body(prompt(16*45, 1), 16)
			sameAnswer(t, single.complete(two), p.complete(two))
			join()
			p.instances(3)
			three := body(prompt(16*75, 2), 16)
			sameAnswer(t, single.complete(three), p.complete(three))
			p.eventually("all blocks free", idle)
		})
	}
}

// A cluster that the instance does not fit any more refuses it as at its first start, and it ends with that.
func TestHeadIsRestartedWithOtherLimits(t *testing.T) {
	port := fixedPort(t)
	p := serve(t, "--cluster-port", port)
	log := &process{t: t}
	joined := command("serve", "--join", p.join, "--threads", "1")
	startBeside(t, joined, log)
	kill := time.AfterFunc(patience, func() { _ = joined.Process.Kill() }) // it was taken in
	defer kill.Stop()
	p.instances(2)
	p.stop(syscall.SIGKILL)
	p = serve(t, "--cluster-port", port, "--max-num-seqs", "32")
	err := joined.Wait()
	if want := "cannot join anew: cannot join the cluster at " + p.join; err == nil || joined.ProcessState.ExitCode() != 1 ||
		!strings.Contains(log.logs(), want) || !strings.Contains(log.logs(), "the cluster runs with --max-num-seqs 32, this instance with 64") {
		t.Fatalf("%v\n%s", err, log.logs())
	}
	p.instances(1)
}

// With an etcd of its own the cluster outlives its head: what had joined stays a member.
func TestHeadIsRestartedBesideItsEtcd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	etcd, err := cluster.StartEtcd(ctx, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	port := fixedPort(t)
	start := func() *process {
		return serve(t, "--dtype", "float32", "--cluster-port", port, "--etcd-endpoints", etcd.Endpoint, poolFlag(t, 30))
	}
	p := start()
	log := &process{t: t}
	startBeside(t, command("serve", "--join", p.join, "--instance-id", "joined", "--dtype", "float32", "--threads", "1", poolFlag(t, 30)), log)
	p.instances(2)
	p.stop(syscall.SIGKILL)
	p = start()
	p.eventually("the new head's instance and what joined the old one", func(v server.ClusterView) bool {
		return len(v.Instances) == 2 && slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.ID == "joined" })
	})
	if got := p.complete(body(prompt(16*45, 1), 16)); got.status != 200 {
		t.Fatalf("both together: %d %s", got.status, got.message)
	}
	if strings.Contains(log.logs(), "joins anew") {
		t.Fatalf("it joined anew:\n%s", log.logs())
	}
}
