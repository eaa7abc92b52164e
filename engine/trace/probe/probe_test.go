//go:build linux

package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/infinite-llm/infinite/engine/trace"
)

func write(t *testing.T, root, file, text string) {
	t.Helper()
	path := filepath.Join(root, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// fakeProcess adds a process to a fake /proc.
func fakeProcess(t *testing.T, proc string, pid, exe, cmdline, environ string) {
	t.Helper()
	write(t, proc, pid+"/cmdline", strings.ReplaceAll(cmdline, " ", "\x00"))
	write(t, proc, pid+"/environ", strings.ReplaceAll(environ, " ", "\x00"))
	if err := os.Symlink(exe, filepath.Join(proc, pid, "exe")); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	proc, bin := t.TempDir(), t.TempDir()
	write(t, bin, "renamed", "x")
	write(t, bin, "other", "y")
	write(t, proc, "uptime", "")
	own := filepath.Join(bin, "renamed")
	fakeProcess(t, proc, "30", own, "renamed serve --instance-id=a", "")
	fakeProcess(t, proc, "4", own, "renamed serve --instance-id b --port 1", "INFINITE_INSTANCE_ID=c")
	fakeProcess(t, proc, "5", "/gone/infinite-cuda (deleted)", "infinite serve", "HOME=/ INFINITE_INSTANCE_ID=i3")
	fakeProcess(t, proc, "2", own, "x --instance-id=\x1b[2J", "")
	fakeProcess(t, proc, "6", filepath.Join(bin, "other"), "other", "")
	fakeProcess(t, proc, "7", own, "renamed trace", "")
	write(t, proc, "8/cmdline", "") // a kernel thread, or none of ours
	list, err := Find(proc, own, 7)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list {
		got = append(got, fmt.Sprintf("%d %s", p.PID, p.Name()))
	}
	if text := strings.Join(got, ", "); text != "2 pid 2, 4 b, 5 i3, 30 a" {
		t.Error(text)
	}
	if _, err := Find(filepath.Join(proc, "none"), own, 1); err == nil {
		t.Error("there is no such folder")
	}
	if _, err := Look(proc, 99); err == nil || !strings.Contains(err.Error(), "process 99") {
		t.Error(err)
	}
}

func TestPresent(t *testing.T) {
	symbols := `ffffffff81000000 T _text
0000000000000000 t rxe_requester	[rdma_rxe]
0000000000000000 t rxe_completer.cold	[rdma_rxe]
0000000000000000 d rxe_rcv	[rdma_rxe]
broken
0000000000000000 T ib_uverbs_write	[ib_uverbs]
`
	has, err := present(strings.NewReader(symbols), functions)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range functions {
		if want := f.name == "rxe_requester" || f.name == "ib_uverbs_write"; has[f.name] != want {
			t.Errorf("%s: %v", f.name, has[f.name])
		}
	}
}

// What the kernel does not allow is said with its reason, and what would help.
func TestReasons(t *testing.T) {
	able := facts{release: "6.1.0", uprobes: true, kprobes: true, capsKnown: true, caps: capBPF | capPerfmon, unpriv: "2", paranoid: "3"}
	with := func(change func(*facts)) facts {
		k := able
		change(&k)
		return k
	}
	perm := fmt.Errorf("load: %w", syscall.EPERM)
	for _, c := range []struct {
		k              facts
		err            error
		tried          attempt
		reason, remedy string
	}{
		{with(func(k *facts) { k.caps = capBPF }), perm, maps, "may not load probes (kernel.unprivileged_bpf_disabled=2, kernel.perf_event_paranoid=3)", "CAP_BPF and CAP_PERFMON"},
		{with(func(k *facts) { k.lockdown = "confidentiality" }), perm, kprobe, "locked down", "lockdown=integrity"},
		{with(func(k *facts) { k.seccomp = true }), perm, uprobe, "seccomp", "container"},
		{able, perm, uprobe, "the kernel forbids it", "dmesg"},
		{able, syscall.ENOSYS, maps, "no such system call", "CONFIG_BPF_SYSCALL"},
		{with(func(k *facts) { k.release = "5.4.0" }), syscall.EINVAL, maps, "(5.4.0) has no BPF ring buffers", "5.8"},
		{able, fmt.Errorf("x: %w", ebpf.ErrNotSupported), maps, "ring buffers", "5.8"},
		{able, errNoMark, uprobe, "older build", "--pid"},
		{able, syscall.ESRCH, uprobe, "gone", ""},
		{able, fmt.Errorf("open: %w", os.ErrNotExist), uprobe, "gone", ""},
		{with(func(k *facts) { k.uprobes = false }), errors.New("tracefs"), uprobe, "no uprobes", "CONFIG_UPROBE_EVENTS"},
		{with(func(k *facts) { k.kprobes = false }), errNoKprobes, kprobe, "no kprobes", "CONFIG_KPROBES"},
		{able, syscall.EIO, uprobe, "file system", "another file system"},
		{able, errors.New("what nobody thought of"), kprobe, "what nobody thought of", ""},
	} {
		reason, remedy := c.k.explain(c.err, c.tried)
		if !strings.Contains(reason, c.reason) || !strings.Contains(remedy, c.remedy) || c.remedy == "" && remedy != "" {
			t.Errorf("%v: %q -> %q", c.err, reason, remedy)
		}
	}
	err := (&cannotError{"attach", "no", "do"}).Error()
	if err != "cannot attach: no\n  -> do" {
		t.Error(err)
	}
}

func TestFacts(t *testing.T) {
	root := t.TempDir()
	write(t, root, "proc/sys/kernel/osrelease", "5.15.0\n")
	write(t, root, "proc/self/status", "Name:\tx\nCapEff:\t000000c000000000\nSeccomp:\t2\n")
	write(t, root, "sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
	write(t, root, "sys/bus/event_source/devices/uprobe/type", "8\n")
	write(t, root, "sys/module/ib_uverbs/refcnt", "0\n")
	k := thisKernel(root)
	if k.release != "5.15.0" || k.lockdown != "integrity" || !k.seccomp || !k.mayTrace() || !k.uprobes || k.kprobes {
		t.Errorf("%+v", k)
	}
	if err := k.absent("rxe_rcv"); !strings.Contains(err.Error(), "rdma_rxe is not loaded") {
		t.Error(err)
	}
	if err := k.absent("ib_uverbs_write"); !strings.Contains(err.Error(), "no function of that name") {
		t.Error(err)
	}
	// Where nothing can be read nothing is held against this process.
	if !thisKernel(t.TempDir()).mayTrace() {
		t.Error("without facts it may not trace")
	}
}

func TestMarkProgram(t *testing.T) {
	for arch := range argOffsets {
		p, err := markProgram(trace.StepEnded, 3, arch, 5, 6)
		if err != nil || len(p) < 30 {
			t.Errorf("%s: %d instructions, %v", arch, len(p), err)
		}
	}
	if _, err := markProgram(trace.StepEnded, 3, "riscv64", 5, 6); err == nil || !strings.Contains(err.Error(), "riscv64") {
		t.Error(err)
	}
}

// Every mark is in the C test's file; a file that is no program is an error, one without marks has none.
func TestPrograms(t *testing.T) {
	var ps programs
	for _, file := range []string{"probe_test.go", "none"} {
		if _, err := ps.open(file).offset(trace.StepBegun); err == nil || errors.Is(err, errNoMark) {
			t.Errorf("%s: %v", file, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ps.open(self).offset(trace.StepBegun); !errors.Is(err, errNoMark) {
		t.Errorf("the test itself: %v", err)
	}
	const player = "../../../.build/cpu/test_marks"
	if _, err := os.Stat(player); err != nil {
		t.Skipf("the C tests are not built: %v", err)
	}
	for _, m := range trace.Marks() {
		if at, err := ps.open(player).offset(m); err != nil || at == 0 {
			t.Errorf("%s at %d: %v", m.Symbol(), at, err)
		}
	}
	if ps.open(player) != ps.open("./"+player) {
		t.Error("it is read twice")
	}
}
