package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
)

// cannotError says why there is no trace, and what would make one possible.
type cannotError struct{ what, reason, remedy string }

func (e *cannotError) Error() string {
	text := "cannot " + e.what + ": " + e.reason
	if e.remedy != "" {
		text += "\n  -> " + e.remedy
	}
	return text
}

// What was tried.
type attempt int

const (
	maps attempt = iota
	uprobe
	kprobe
)

var errNoKprobes = errors.New("this kernel has no kprobes")

// facts are what of a kernel decides whether it can be traced.
type facts struct {
	release   string // "" where it cannot be read, as with all of these
	uprobes   bool
	kprobes   bool
	paranoid  string // kernel.perf_event_paranoid
	unpriv    string // kernel.unprivileged_bpf_disabled
	lockdown  string // none, integrity, confidentiality
	seccomp   bool   // a filter is on this process
	caps      uint64
	capsKnown bool
	modules   map[string]bool
}

// thisKernel reads them below root.
func thisKernel(root string) facts {
	read := func(file string) string {
		b, _ := os.ReadFile(filepath.Join(root, file))
		return strings.TrimSpace(string(b))
	}
	exists := func(file string) bool {
		_, err := os.Stat(filepath.Join(root, file))
		return err == nil
	}
	k := facts{
		release: read("proc/sys/kernel/osrelease"), paranoid: read("proc/sys/kernel/perf_event_paranoid"),
		unpriv: read("proc/sys/kernel/unprivileged_bpf_disabled"), modules: map[string]bool{},
		uprobes: exists("sys/bus/event_source/devices/uprobe") || exists("sys/kernel/tracing/uprobe_events"),
		kprobes: exists("sys/bus/event_source/devices/kprobe") || exists("sys/kernel/tracing/kprobe_events"),
	}
	if _, rest, ok := strings.Cut(read("sys/kernel/security/lockdown"), "["); ok {
		k.lockdown, _, _ = strings.Cut(rest, "]")
	}
	for line := range strings.Lines(read("proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Seccomp":
			k.seccomp = value == "2"
		case "CapEff":
			caps, err := strconv.ParseUint(value, 16, 64)
			k.caps, k.capsKnown = caps, err == nil
		}
	}
	for _, m := range modules {
		k.modules[m] = exists("sys/module/" + m)
	}
	return k
}

// absent says why the symbol table lacks a function.
func (k facts) absent(name string) error {
	module := modules[0]
	if strings.HasPrefix(name, "rxe_") {
		module = modules[1]
	}
	if !k.modules[module] {
		return fmt.Errorf("the kernel's module %s is not loaded", module)
	}
	return errors.New("this kernel has no function of that name, or the compiler made it part of another")
}

const (
	capSysAdmin = 1 << 21
	capPerfmon  = 1 << 38
	capBPF      = 1 << 39
)

func (k facts) mayTrace() bool {
	return !k.capsKnown || k.caps&capSysAdmin != 0 || k.caps&capPerfmon != 0 && k.caps&capBPF != 0
}

// explain turns an error of the kernel into a reason, and a remedy where there is one.
func (k facts) explain(err error, tried attempt) (reason, remedy string) {
	switch {
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES):
		return k.forbidden(err)
	case errors.Is(err, syscall.ENOSYS):
		return fmt.Sprintf("there is no such system call here: %v", err),
			"use a kernel with CONFIG_BPF_SYSCALL and CONFIG_PERF_EVENTS; in a container, a seccomp profile that lets bpf and perf_event_open through"
	case errors.Is(err, errNoMark):
		return "the program has none: it is another one, or an older build", "give the --pid of an instance"
	case errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrNotExist) && tried == uprobe && k.uprobes:
		return "the process is gone", ""
	case tried == maps && (errors.Is(err, syscall.EINVAL) || errors.Is(err, ebpf.ErrNotSupported)):
		return fmt.Sprintf("the kernel (%s) has no BPF ring buffers: %v", k.release, err), "use Linux 5.8 or newer"
	case tried == uprobe && !k.uprobes:
		return "this kernel has no uprobes", "use a kernel built with CONFIG_UPROBES and CONFIG_UPROBE_EVENTS"
	case tried == kprobe && !k.kprobes:
		return "this kernel has no kprobes", "use a kernel built with CONFIG_KPROBES and CONFIG_KPROBE_EVENTS"
	case tried == uprobe && errors.Is(err, syscall.EIO):
		return fmt.Sprintf("the file system that the program lies on does not let uprobes read it: %v", err), "start the instances from another file system"
	}
	return err.Error(), ""
}

// forbidden says what keeps this process from it: the first that does.
func (k facts) forbidden(err error) (reason, remedy string) {
	switch {
	case !k.mayTrace():
		reason, remedy = "this process may not load probes", "run as root, or with CAP_BPF and CAP_PERFMON (and CAP_SYS_PTRACE for others' processes)"
	case k.lockdown == "confidentiality":
		return "the kernel is locked down to keep its memory confidential, which forbids probes", "boot with lockdown=integrity or without Secure Boot's lockdown"
	case k.seccomp:
		return fmt.Sprintf("a seccomp filter, as containers have, may forbid it: %v", err), "run outside of the container, or with a seccomp profile that lets bpf and perf_event_open through"
	default:
		reason, remedy = fmt.Sprintf("the kernel forbids it: %v", err), "see what security modules say in dmesg"
	}
	if k.unpriv != "" || k.paranoid != "" {
		reason += fmt.Sprintf(" (kernel.unprivileged_bpf_disabled=%s, kernel.perf_event_paranoid=%s)", k.unpriv, k.paranoid)
	}
	return reason, remedy
}
