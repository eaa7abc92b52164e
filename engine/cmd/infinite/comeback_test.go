package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/rdma"
)

// Two hosts whose only common RDMA network goes down: under auto they go on over TCP, with a warning that says
// why, and return to RDMA when it is back and nobody's blocks would be lost. The second host is a network
// namespace with a TCP network of its own.
func TestVerbsComesBack(t *testing.T) {
	ports, err := rdma.VerbsPorts(rdma.VerbsConfig{}, nil)
	if len(ports) < 2 || os.Getenv("GUEST_LIB") == "" {
		t.Skipf("not in the guest, or %d RDMA ports are usable and two are needed: %v", len(ports), err)
	}
	guest(t, "guest_hosts 2")
	r := references(t)[0]
	common := []string{"--cluster-secret", "s", "--peer-timeout", "10s", "--rdma-device"}
	p := r.serve(t, 1, exactBlocks/2, append(common, ports[0].Device, "--cluster-host", "10.88.0.254")...)
	cmd := command(append(append([]string{"serve", "--join", p.join, "--threads", "1", "--instance-id", "j1", "--cluster-host", "10.88.0.2"},
		r.flags(t, exactBlocks/2)...), append(common, ports[1].Device)...)...)
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append([]string{ip, "netns", "exec", "host1"}, append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path = ip
	startBeside(t, cmd, p)
	const verbs, tcp = "transport=verbs", "transport=tcp"
	p.loggedTimes(verbs, 2)
	first := r.whole(p)
	netdev := "v" + strings.TrimPrefix(ports[1].Device, "rxe")
	guest(t, "guest_down "+netdev)
	p.loggedTimes(tcp, 2)
	if !strings.Contains(p.logs(), "is down") {
		t.Errorf("no line says that a port is down\n%s", p.logs())
	}
	sameAnswer(t, first, r.whole(p))
	before := strings.Count(p.logs(), verbs)
	guest(t, "guest_up "+netdev)
	p.loggedTimes("changing a peer's links", 1)
	p.loggedTimes(verbs, before+2)
	sameAnswer(t, first, r.whole(p))
}
