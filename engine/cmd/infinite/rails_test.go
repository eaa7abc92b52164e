package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/rdma"
)

// Two instances with two RDMA ports each: moves have a lane on both, one of which dies and comes back while
// the cluster answers. It needs four devices, one number apart: the guest's switch has them.
func TestVerbsRails(t *testing.T) {
	ports, err := rdma.VerbsPorts(rdma.VerbsConfig{}, nil)
	if len(ports) < 4 {
		t.Skipf("%d RDMA ports are usable, four are needed: %v", len(ports), err)
	}
	r := references(t)[0]
	args := func(i int, more ...string) []string {
		return append(more, "--transport", "verbs", "--rdma-device", ports[i].Device+","+ports[i+1].Device, "--peer-timeout", "10s")
	}
	p := r.serve(t, 1, exactBlocks/2, args(0)...)
	cmd := command(args(2, append([]string{"serve", "--join", p.join, "--threads", "1", "--instance-id", "j1"}, r.flags(t, exactBlocks/2)...)...)...)
	startBeside(t, cmd, p)
	const more, lost = "moves to a peer have one more rail", "lost a rail to a peer"
	p.loggedTimes(more, 2)
	if n := strings.Count(p.logs(), "put from pool to pool"); n != 2 {
		t.Errorf("%d of 2 peers say that blocks are put\n%s", n, p.logs())
	}
	first := r.whole(p)
	// The rails beyond the first are on the ports that the first lines do not name.
	found := regexp.MustCompile(more + `.* rail=(\d) why="[^"]*; (rxe)(\d) port`).FindStringSubmatch(p.logs())
	if found == nil {
		t.Fatalf("no line names the port of a rail\n%s", p.logs())
	}
	device := "v" + found[3]
	guest(t, "guest_down "+device)
	p.loggedTimes(lost, 1)
	sameAnswer(t, first, r.whole(p))
	before := strings.Count(p.logs(), more)
	guest(t, "guest_up "+device)
	p.loggedTimes(more, before+1)
	sameAnswer(t, first, r.whole(p))
	if strings.Contains(p.logs(), "lost a peer") {
		t.Errorf("a rail's end was a peer's\n%s", p.logs())
	}
}

// loggedTimes waits until the log has a text so many times.
func (p *process) loggedTimes(what string, n int) {
	p.t.Helper()
	p.eventually(what, func(server.ClusterView) bool { return strings.Count(p.logs(), what) >= n })
}

// whole asks for the answer that needs every block, and checks it.
func (r *reference) whole(p *process) answer {
	p.t.Helper()
	a := p.complete(r.request(exactTokens - len(r.Prompt)))
	r.checkReference(p.t, a)
	p.eventually("all blocks free", idle)
	return a
}
