package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/linkbench"
	"github.com/infinite-llm/infinite/rdma"
)

// benchServer is a process that listens for linkbench.
type benchServer struct {
	cmd     *exec.Cmd
	address string
	client  chan struct{} // closed once a client is there
	ended   chan error
	log     *bytes.Buffer // until ended
}

func startBenchServer(t *testing.T, args ...string) *benchServer {
	t.Helper()
	s := &benchServer{client: make(chan struct{}), ended: make(chan error, 1), log: &bytes.Buffer{}}
	s.cmd = command(append([]string{"linkbench", "--listen", "--cluster-secret", "s", "--log-level", "debug"}, args...)...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	logs, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	_, address, ok := strings.Cut(strings.TrimSpace(line), linkbench.Ready)
	if !ok {
		t.Fatalf("it printed %q: %v", line, err)
	}
	s.address = address
	go func() {
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			s.log.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "a client is there") {
				close(s.client)
			}
		}
		s.ended <- s.cmd.Wait()
	}()
	return s
}

// running starts a command, until the test ends at the latest, and says when and how it ended.
func running(t *testing.T, cmd *exec.Cmd) <-chan error {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended
}

// soon fails unless the process ends in time; its error.
func soon(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatal("it did not end")
		return nil
	}
}

// sane checks the figures of a report.
func sane(t *testing.T, raw []byte, sizes []uint64, rounds int, puts bool) linkbench.Report {
	t.Helper()
	var r linkbench.Report
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	if len(r.Results) != len(sizes) {
		t.Fatalf("%d results: %s", len(r.Results), raw)
	}
	for i, x := range r.Results {
		l, b := x.Latency, x.Bandwidth
		if x.Bytes != sizes[i] || l == nil || b == nil || (x.Puts != nil) != puts {
			t.Fatalf("size %d: %s", sizes[i], raw)
		}
		if l.Rounds != rounds || !slices.IsSorted([]int64{1, l.Min, l.P50, l.P99, l.Max}) {
			t.Errorf("round trips of %d bytes: %+v", x.Bytes, l)
		}
		rates := []*linkbench.Rate{b}
		if puts {
			rates = append(rates, x.Puts)
		}
		for _, y := range rates {
			if y.Messages != uint64(rounds) || y.Seconds <= 0 || y.BytesPerSecond <= 0 {
				t.Errorf("rate of %d bytes: %+v", x.Bytes, y)
			}
		}
	}
	return r
}

func TestLinkbench(t *testing.T) {
	for _, transport := range []string{"shm", "tcp"} {
		for _, ends := range []string{"poll", "wait"} {
			s := startBenchServer(t)
			cmd := command("linkbench", "--connect", s.address, "--cluster-secret", "s", "--transport", transport, "--json",
				"--sizes", "64,5000", "--rounds", "20", "--duration", "1m", "--wait="+map[string]string{"poll": "false", "wait": "true"}[ends])
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := soon(t, s.ended); err != nil {
				t.Errorf("the listening end: %v: %s", err, s.log)
			}
			r := sane(t, out, []uint64{64, 5000}, 20, false)
			if string(r.Transport) != transport || r.Ends != ends || r.Copies != (transport == "shm") {
				t.Errorf("report is %+v", r)
			}
		}
	}
}

// With neither --listen nor --connect there is a second process; the table is for people.
func TestLinkbenchAlone(t *testing.T) {
	t.Setenv("INFINITE_HOST", "0.0.0.0") // where a server that is given an empty key is refused; this is none
	out, err := command("linkbench", "--sizes", "1KiB", "--rounds", "10", "--duration", "1m").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if row := strings.Fields(lines[len(lines)-1]); len(row) != 7 || row[0] != "1024" || row[1] != "10" || row[6] != "-" || !strings.HasPrefix(lines[0], "shm to ") {
		t.Errorf("it printed:\n%s", out)
	}
}

// Either end dies while they measure: the other ends with an error, long before its duration.
func TestLinkbenchPeerIsKilled(t *testing.T) {
	for _, transport := range []string{"shm", "tcp"} {
		for _, victim := range []string{"server", "client"} {
			s := startBenchServer(t, "--peer-timeout", "20s")
			cmd := command("linkbench", "--connect", s.address, "--cluster-secret", "s", "--transport", transport,
				"--sizes", "1MiB", "--duration", "10m", "--peer-timeout", "20s", "--json")
			var log bytes.Buffer
			cmd.Stderr = &log
			ended := running(t, cmd)
			select {
			case <-s.client:
			case <-time.After(patience):
				t.Fatal("no client came")
			}
			time.Sleep(100 * time.Millisecond) // into the rounds
			killed := time.Now()
			if victim == "server" {
				_ = s.cmd.Process.Kill()
				_ = soon(t, s.ended)
				if err := soon(t, ended); err == nil || !strings.Contains(log.String(), "cannot") {
					t.Errorf("%s: the client ended with %v: %s", transport, err, log.String())
				}
			} else {
				_ = cmd.Process.Kill()
				_ = soon(t, ended)
				if err := soon(t, s.ended); err == nil || !strings.Contains(s.log.String(), "cannot answer the client") {
					t.Errorf("%s: the server ended with %v: %s", transport, err, s.log)
				}
			}
			if took := time.Since(killed); took > 20*time.Second {
				t.Errorf("%s, %s killed: the other end took %s", transport, victim, took)
			}
		}
	}
}

func TestLinkbenchSaysWhatIsWrong(t *testing.T) {
	s := startBenchServer(t)
	for _, c := range []struct {
		want string
		args []string
	}{
		{"cannot use --sizes", []string{"--sizes", "big"}},
		{"cannot measure messages of 0 bytes", []string{"--sizes", "64,0"}},
		{"cannot measure messages of 1073741824 bytes", []string{"--sizes", "1GiB"}},
		{`cannot measure "speed"`, []string{"--measure", "speed"}},
		{"cannot measure for 0s", []string{"--duration", "0s"}},
		{"cannot measure 99000000 rounds", []string{"--rounds", "99000000"}},
		{"cannot use 1 slots", []string{"--slots", "1"}},
		{"cannot use flag --transport", []string{"--transport", "pigeon"}},
		{"none of the others can be", []string{"--listen", "--connect", "a:1"}},
		{"cannot use --port", []string{"--listen", "--port", "70000"}},
		{"needs a --cluster-secret", []string{"--listen", "--cluster-host", "0.0.0.0"}},
		{"not HOST:PORT", []string{"--connect", "nowhere"}},
		{"cannot connect to 127.0.0.1:1", []string{"--connect", "127.0.0.1:1"}},
		{"does the cluster secret match", []string{"--connect", s.address, "--cluster-secret", "other"}},
		{"cannot put over a link without an RDMA device", []string{"--measure", "puts", "--transport", "shm"}},
	} {
		out, err := command(append([]string{"linkbench"}, c.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v: %s", c.args, err, out)
		}
	}
}

// Over two RDMA devices, as the guest with Soft-RoCE has them: puts too, and the death of the other end.
func TestVerbsLinkbench(t *testing.T) {
	ports, err := rdma.VerbsPorts(rdma.VerbsConfig{}, nil)
	if len(ports) < 2 {
		t.Skipf("%d RDMA ports are usable, two are needed: %v", len(ports), err)
	}
	args := []string{"linkbench", "--transport", "verbs", "--rdma-device", ports[1].Device, "--cluster-secret", "s", "--sizes", "64,40000", "--duration", "1m", "--json"}
	for _, wait := range []string{"false", "true"} {
		s := startBenchServer(t, "--rdma-device", ports[0].Device)
		out, err := command(append(args, "--connect", s.address, "--rounds", "20", "--wait="+wait)...).Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := soon(t, s.ended); err != nil {
			t.Errorf("the listening end: %v: %s", err, s.log)
		}
		if r := sane(t, out, []uint64{64, 40000}, 20, true); r.Transport != rdma.Verbs || r.Device != ports[1].Device {
			t.Errorf("report is %+v", r)
		}
	}
	s := startBenchServer(t, "--rdma-device", ports[0].Device)
	cmd := command(append(args, "--connect", s.address)...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	<-s.client
	time.Sleep(time.Second)
	killed := time.Now()
	_ = s.cmd.Process.Kill()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := soon(t, ended); err == nil || !strings.Contains(log.String(), "cannot measure the verbs link") {
		t.Errorf("the client ended with %v: %s", err, log.String())
	}
	t.Logf("the error came %s after the kill: %s", time.Since(killed).Round(time.Millisecond), log.String())
}
