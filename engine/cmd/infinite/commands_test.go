package main

import (
	"bytes"
	"context"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/server"
)

// What `make run ONCE=1` shows: the right answer, and a placement over several instances of which none
// could hold the prompt.
func TestSample(t *testing.T) {
	cmd := command("sample", "--once", "--port", "0", "--cluster-port", "0", "--threads", "1")
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, log.String())
	}
	text := string(out)
	rows := regexp.MustCompile(`(?m)^  (i\d+) +(home|creditor) +(\d+) +(\d+) .*$`).FindAllStringSubmatch(text, -1)
	creditors := 0
	for _, r := range rows {
		if r[2] == "creditor" {
			creditors++
		}
	}
	if len(rows) < 2 || creditors == 0 || !strings.Contains(text, "the answer is right") {
		t.Fatalf("%d rows of placement, %d creditors:\n%s", len(rows), creditors, text)
	}
	if !regexp.MustCompile(`(?m)^  i\d+ +creditor .*<- the fact`).MatchString(text) {
		t.Fatalf("the fact does not lie with a creditor:\n%s", text)
	}
	// Nor does its orderly end look like a loss.
	if strings.Contains(log.String(), "lost a peer") || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("it went well, but says:\n%s", log.String())
	}
}

func TestSampleSaysWhenTheAnswerIsWrong(t *testing.T) {
	t.Setenv(emptyRemoteEnv, "1")
	cmd := command("sample", "--once", "--port", "0", "--cluster-port", "0", "--threads", "1")
	out, err := cmd.Output()
	if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "the answer is wrong") {
		t.Fatalf("without remote partials: %v\n%s", err, out)
	}
}

func TestChat(t *testing.T) {
	p := serve(t, "--instances", "2", "--api-key", "secret")
	talk := func(key, lines string) (string, error) {
		t.Helper()
		cmd := command("chat", "--url", strings.TrimPrefix(p.url, "http://"), "--api-key", key)
		cmd.Stdin = strings.NewReader(lines)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// The second question needs the first line, /new forgets it.
	got, err := talk("secret", "The password of Mira is copper-lantern.\nWhat is the password of Mira?\n/quit\nnever read\n")
	if lines := strings.Split(strings.TrimSpace(got), "\n"); err != nil || len(lines) != 2 || !strings.Contains(lines[1], "copper-lantern") {
		t.Errorf("the conversation went:\n%s", got)
	}
	got, err = talk("secret", "The password of Mira is copper-lantern.\n/new\nWhat is the password of Mira?\n")
	if err != nil || strings.Contains(got[strings.Index(got, "\n")+1:], "copper-lantern") {
		t.Errorf("after /new:\n%s", got)
	}
	if got, err = talk("wrong", "Hello\n"); err == nil || !strings.Contains(got, "401") {
		t.Errorf("with a wrong key:\n%s", got)
	}
}

// What cannot be asked for is said before anything is.
func TestWrongFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"infinite: cannot use --max-tokens -5: it must be at least 1, or 0 for what fits\n", []string{"chat", "--max-tokens", "-5"}},
		{`infinite: cannot use --max-tokens: "x" is not a whole number` + "\n", []string{"chat", "--max-tokens", "x"}},
		{"infinite: cannot use --url: it must be like HOST:PORT or http://HOST:PORT\n", []string{"chat", "--url", "http://"}},
		{"infinite: cannot use --url: it must be like HOST:PORT or http://HOST:PORT\n", []string{"trace", "--url", "host:port"}},
		{`infinite: cannot use --pid: "me" is not a whole number`, []string{"trace", "--pid", "me"}},
		{`infinite: cannot use --rounds: "1.5" is not a whole number from 0` + "\n", []string{"linkbench", "--rounds", "1.5"}},
		{"cannot reach the server", []string{"chat", "--url", "127.0.0.1:1"}},
	} {
		cmd := command(tc.args...)
		cmd.Stdin = strings.NewReader("Hello\n")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("%v: %v: %s", tc.args, err, out)
		}
	}
}

// Two API processes on one external etcd are one cluster: either answers with the instances of both, and
// when the gManager's process dies the other takes its part.
func TestExternalEtcd(t *testing.T) {
	etcd, err := cluster.StartEtcd(context.Background(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	single := serve(t, "--dtype", "float32", poolFlag(t, 400))
	args := []string{"--dtype", "float32", "--etcd-endpoints", etcd.Endpoint, poolFlag(t, 40)}
	a := serve(t, args...)
	b := serve(t, args...)
	for _, p := range []*process{a, b} {
		p.eventually("both instances", func(v server.ClusterView) bool { return len(v.Instances) == 2 })
	}
	long := body(prompt(16*60, 1), 16)
	want := single.complete(long)
	sameAnswer(t, want, a.complete(long))
	sameAnswer(t, want, b.complete(long))
	if err := a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-a.ended
	b.eventually("one instance", func(v server.ClusterView) bool { return len(v.Instances) == 1 })
	sameAnswer(t, single.complete(body(prompt(100, 2), 8)), b.complete(body(prompt(100, 2), 8)))
	if got := b.complete(long); got.status != http.StatusBadRequest {
		t.Errorf("what needs both instances got %d: %s", got.status, got.message)
	}
}

// Who cannot be reached is named, with the reason, and so is what was given in vain.
func TestWhatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ args, want []string }{
		{[]string{"--join", "127.0.0.1:1", "--port", "9000", "--api-key", "secret"}, []string{
			"infinite: cannot join the cluster at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused\n",
			"cannot join the cluster yet; trying on",
			`flags="--port --api-key"`,
		}},
		{[]string{"--join", "nonsense"}, []string{`cannot use flag --join: "nonsense" is not host:port`}},
		{[]string{"--port", "0", "--cluster-port", "0", "--etcd-endpoints", "http://127.0.0.1:1,http://127.0.0.1:2"}, []string{
			"cannot read the members from etcd at http://127.0.0.1:1, http://127.0.0.1:2: "}},
	} {
		cmd := command(append([]string{"serve"}, tc.args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%v: %v", tc.args, err)
		}
		for _, want := range tc.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%v: no %q in:\n%s", tc.args, want, out)
			}
		}
	}
}

func TestSecondServerOnTheSamePort(t *testing.T) {
	p := serve(t)
	port := p.url[strings.LastIndex(p.url, ":")+1:]
	cmd := command("serve", "--port", port, "--cluster-port", "0")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "cannot listen for the API") {
		t.Fatalf("%v: %s", err, out)
	}
}

// A variable that is misspelt is named at the start, once however many instances there are, and not its value.
func TestVariableThatIsNoSetting(t *testing.T) {
	t.Setenv("INFINITE_PROT", "secret")
	p := serve(t, "--instances", "2")
	if log := p.logs(); strings.Count(log, "INFINITE_PROT") != 1 || strings.Contains(log, "secret") || strings.Contains(log, childEnv) {
		t.Error("see the log")
	}
	if out, err := command("serve", "--port", "70000").CombinedOutput(); err == nil || !strings.Contains(string(out), "INFINITE_PROT") {
		t.Errorf("beside an error: %v: %s", err, out)
	}
}

// What --device cannot be is said at once, and float16 is the GPU's.
func TestDevicesThatAreNotThere(t *testing.T) {
	for want, args := range map[string][]string{
		"cannot use flag --device":                 {"--device", "gpu"},
		"cannot use --dtype float16 on the CPU":    {"--device", "cpu", "--dtype", "float16"},
		"cannot use --device cuda:999":             {"--device", "cuda:999"},
		"cannot use flag --gpu-memory-utilization": {"--gpu-memory-utilization", "2"},
		"between 2 and":                            {"--device", "cpu", "--kv-cache-memory", "4096"},
		"the model's 2 KV heads are no multiple":   {"--device", "cpu", "--tensor-parallel-size", "4"},
	} {
		cmd := command(append([]string{"serve", "--port", "0", "--cluster-port", "0"}, args...)...)
		cmd.Env = append(cmd.Env, "INFINITE_CUDA_LIBRARY=")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

// Who asks for RDMA where there is none hears why, at the start and not as a slow cluster later.
func TestTransportThatIsNotThere(t *testing.T) {
	out, err := command("serve", "--port", "0", "--cluster-port", "0", "--transport", "verbs", "--rdma-device", "none").CombinedOutput()
	if err == nil || !regexp.MustCompile(`cannot use --transport verbs: cannot use verbs: .*(none|libibverbs)`).Match(out) || !strings.Contains(string(out), "infinite doctor") {
		t.Fatalf("%v\n%s", err, out)
	}
}
