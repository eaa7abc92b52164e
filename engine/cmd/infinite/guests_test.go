package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/tools/guest/lan"
)

// guestsEnv names tools/guest/run.sh, and lets tests start guests with it. This binary must lie where a guest sees it.
const guestsEnv = "INFINITE_TEST_GUESTS"

// machines are guests on a network, each with a kernel, an address and an RDMA device of its own.
type machines struct {
	t       *testing.T
	network *lan.Switch
	socket  string
	all     []*machine
}

// machine is one of them, while it has power and when it has none.
type machine struct {
	*machines
	number int
	clock  string // its clock's difference, for run.sh
	dir    string
	door   string // what leads to its agent
	log    *process
	ended  chan struct{} // run.sh, of the last start
}

// startMachines boots one guest for each clock.
func startMachines(t *testing.T, clocks ...string) *machines {
	t.Helper()
	if os.Getenv(guestsEnv) == "" {
		t.Skip("guests are started by make rdma-test")
	}
	dir := t.TempDir()
	m := &machines{t: t, socket: filepath.Join(dir, "lan")}
	var err error
	if m.network, err = lan.Listen(m.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.network.Close() })
	for i, clock := range clocks {
		v := &machine{machines: m, number: i, clock: clock, dir: dir, door: "127.0.0.1:" + fixedPort(t), ended: make(chan struct{})}
		close(v.ended)
		m.all = append(m.all, v)
		v.start()
		t.Cleanup(v.losePower)
	}
	for _, v := range m.all {
		v.waitBooted()
	}
	return m
}

func (v *machine) address() string { return fmt.Sprintf("10.77.0.%d", v.number+1) }

// start switches the machine on.
func (v *machine) start() {
	v.t.Helper()
	self, err := os.Executable()
	if err != nil {
		v.t.Fatal(err)
	}
	_, port, _ := strings.Cut(v.door, ":")
	args := []string{"--mem", "1G", "--cpus", "1", "--timeout", "3600", "--lan", v.socket, "--number", strconv.Itoa(v.number), "--door", port, "--pid", v.pidFile()}
	if v.clock != "" {
		args = append(args, "--clock", v.clock)
	}
	cmd := exec.Command(os.Getenv(guestsEnv), append(args, "--", "env", agentEnv+"=:9000", self)...)
	cmd.Env = append(os.Environ(), "OUT=")
	v.log = &process{t: v.t}
	cmd.Stdout, cmd.Stderr = v.log, v.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // no guest outlives this test
	if err = cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	ended := make(chan struct{})
	v.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
}

func (v *machine) pidFile() string { return filepath.Join(v.dir, fmt.Sprintf("pid%d", v.number)) }

func (v *machine) waitBooted() {
	v.t.Helper()
	poll(v.t, fmt.Sprintf("guest %d answers", v.number), func() bool {
		select {
		case <-v.ended:
			v.t.Fatalf("guest %d ended:\n%s", v.number, v.log.logs())
		default:
		}
		_, status, err := v.try("true")
		return err == nil && status == 0
	})
}

// losePower ends the machine from one moment to the next, so that nobody hears from it again.
func (v *machine) losePower() {
	select {
	case <-v.ended:
		return
	default:
	}
	text, err := os.ReadFile(v.pidFile())
	pid, perr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && perr == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil || perr != nil {
		v.t.Errorf("cannot end guest %d: %v, %v", v.number, err, perr)
		return
	}
	<-v.ended
	_ = os.Remove(v.pidFile())
}

// try runs a script on the machine.
func (v *machine) try(script string) (out string, status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var b strings.Builder
	status, err = v.follow(ctx, script, &b)
	return b.String(), status, err
}

// follow runs a script, and gives what it prints to w as it comes.
func (v *machine) follow(ctx context.Context, script string, w io.Writer) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.door+"/agent", strings.NewReader(script))
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err = io.Copy(w, resp.Body); err != nil {
		return 0, err
	}
	return strconv.Atoi(resp.Trailer.Get(statusTrailer))
}

// sh runs a script that must succeed, and returns what it prints.
func (v *machine) sh(script string) string {
	v.t.Helper()
	out, status, err := v.try(script)
	if err != nil || status != 0 {
		v.t.Fatalf("guest %d: %s: status %d, %v\n%s", v.number, script, status, err, out)
	}
	return out
}

// cut takes the machine off the network, which its own port does not show, or brings it back.
func (v *machine) cut(cut bool) { v.network.Cut(v.number, cut) }

// hold is holdSteps' on the machine: steps that only decode, and have a request of so many tokens.
func (v *machine) hold(from int) {
	v.t.Helper()
	v.sh(fmt.Sprintf("echo -n %d >%s.new && mv %[2]s.new %[2]s", from, agentHold))
}

func (v *machine) release() {
	v.t.Helper()
	v.sh("rm -f " + agentHold)
}

// program is `infinite` running on a machine.
type program struct {
	*process // its log; its url leads to the machine's API
	machine  *machine
	status   int // once it has ended
}

// run starts `infinite` on the machine.
func (v *machine) run(args ...string) *program {
	v.t.Helper()
	p := &program{process: &process{t: v.t, url: "http://" + v.door, ended: make(chan struct{})}, machine: v}
	var begun sync.WaitGroup
	begun.Add(1)
	go func() {
		defer close(p.ended)
		begun.Done()
		p.status = -1 // without a status it ended with the machine
		if status, err := v.follow(context.Background(), "echo $$ >/tmp/infinite.pid; exec $infinite "+strings.Join(args, " "), p.process); err == nil {
			p.status = status
		}
	}()
	begun.Wait()
	return p
}

// stop asks it to end, and returns its status.
func (p *program) stop() int {
	p.t.Helper()
	p.machine.sh("kill -TERM $(cat /tmp/infinite.pid)")
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("the program on guest %d did not stop on SIGTERM:\n%s", p.machine.number, p.logs())
	}
	return p.status
}
