package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What serve refuses at once, doctor calls an error by the same words, and serve says it in one line.
func TestDoctorRefusesWhatServeRefuses(t *testing.T) {
	p := serve(t)
	joined := command("serve", "--join", p.join, "--instance-id", "taken", "--threads", "1")
	startBeside(t, joined, &process{t: t})
	p.instances(2)
	for _, tc := range []struct {
		want   string
		tmp    string
		args   []string
		limits string // of the shell
	}{
		{want: "cannot use --dtype float16 on the CPU", args: []string{"--dtype", "float16"}},
		{want: "cannot use --tensor-parallel-size 3: the model's 4 attention heads are no multiple", args: []string{"--tensor-parallel-size", "3"}},
		{want: "cannot use --tensor-parallel-size 4: the model's 2 KV heads are no multiple", args: []string{"--tensor-parallel-size", "4"}},
		{want: "cannot use --kv-cache-memory 4KiB: it holds 0 blocks", args: []string{"--kv-cache-memory", "4KiB", "--instances", "2"}},
		{want: "cannot use --max-model-len 100000", args: []string{"--max-model-len", "100000"}},
		{want: "cannot make etcd's folder: stat /nonexistent: no such file or directory", tmp: "/nonexistent"},
		{want: "taken: that instance is a member", args: []string{"--join", p.join, "--instance-id", "taken"}},
		{want: "the cluster runs with --max-num-seqs 64, this instance with 8", args: []string{"--join", p.join, "--max-num-seqs", "8"}},
		{want: "100", limits: "ulimit -n 100"},
		{want: "24", args: []string{"--join", p.join}, limits: "ulimit -n 20"},
	} {
		run := func(what string) string {
			args := append([]string{what, "--device", "cpu", "--port", "0", "--cluster-port", "0"}, tc.args...)
			if len(tc.args) > 0 && tc.args[0] == "--join" {
				args = append([]string{what, "--device", "cpu"}, tc.args...)
			}
			cmd := command(args...)
			if tc.limits != "" {
				sh, err := exec.LookPath("sh")
				if err != nil {
					t.Fatal(err)
				}
				cmd.Path, cmd.Args = sh, append([]string{"sh", "-c", tc.limits + ` && exec "$0" "$@"`}, cmd.Args...)
			}
			if tc.tmp != "" {
				cmd.Env = append(cmd.Env, "TMPDIR="+tc.tmp)
			}
			cmd.Env = append(cmd.Env, "INFINITE_CUDA_LIBRARY=")
			out, err := cmd.CombinedOutput()
			if err == nil || cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("%s %v: %v\n%s", what, tc.args, err, out)
			}
			return string(out)
		}
		var lines []string
		for line := range strings.Lines(run("serve")) {
			if !strings.Contains(line, "level=INFO") {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "infinite: cannot ") || !strings.Contains(lines[0], tc.want) {
			t.Errorf("serve %v %s: %q", tc.args, tc.limits, lines)
		}
		found := false
		for line := range strings.Lines(run("doctor")) {
			found = found || strings.HasPrefix(line, "error ") && strings.Contains(line, tc.want)
		}
		if !found {
			t.Errorf("doctor %v %s does not say: %s", tc.args, tc.limits, tc.want)
		}
	}
	p.instances(2) // it asked, and left nothing
	// One cause is one error, and the cluster is not said to refuse what it was not asked, or was asked elsewhere.
	for want, args := range map[string][]string{
		"open model":                          {"/nonexist", "--join", p.join},
		"cannot use --tensor-parallel-size 3": {"--join", p.join, "--tensor-parallel-size", "3"},
		"the cluster at " + p.join + " does not take this instance in: cannot accept":                {"--join", p.join, "--cluster-secret", "another"},
		"what listens at " + strings.TrimPrefix(p.url, "http://") + " is no cluster's control plane": {"--join", strings.TrimPrefix(p.url, "http://")},
	} {
		out, err := command(append([]string{"doctor", "--device", "cpu"}, args...)...).CombinedOutput()
		if err == nil || strings.Count(string(out), want) != 1 || strings.Contains(string(out), "the settings fit /nonexist") ||
			strings.Count(string(out), "take this instance in") != strings.Count(want, "take this instance in") {
			t.Errorf("doctor %v: %v\n%s", args, err, out)
		}
	}
}

// An instance that joins is allowed the descriptors of its links, or says that it is not.
func TestJoinWithFewFiles(t *testing.T) {
	p := serve(t)
	cmd := command("serve", "--join", p.join, "--device", "cpu", "--threads", "1")
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path, cmd.Args = sh, append([]string{"sh", "-c", `ulimit -n 36 && exec "$0" "$@"`}, cmd.Args...)
	kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	out, err := cmd.CombinedOutput()
	if want := "infinite: cannot start: 36 file descriptors are allowed, 40 are needed"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v\n%s", err, out)
	}
}

// A device that --rdma-device names and that is not there is an error of doctor's, and a warning of serve's, which goes on
// without it: once, however many instances there are.
func TestRDMADeviceThatIsNotThere(t *testing.T) {
	if _, err := os.Stat("/sys/class/infiniband/foo"); err == nil {
		t.Skip("it is there")
	}
	p := serve(t, "--rdma-device", "foo", "--instances", "2")
	if strings.Count(p.logs(), "--rdma-device names what this machine does not have") != 1 || !strings.Contains(p.logs(), "missing=foo") {
		t.Error("see the log")
	}
	if out, err := command("doctor", "--port", "0", "--cluster-port", "0", "--rdma-device", "foo").CombinedOutput(); err == nil || !strings.Contains(string(out), "foo") {
		t.Errorf("%v\n%s", err, out)
	}
}
