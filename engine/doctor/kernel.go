package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

// release is the kernel's version, and its first two numbers.
func (m *Machine) release() (text string, major, minor int, err error) {
	const file = "/proc/sys/kernel/osrelease"
	if text, err = m.word(file); err != nil {
		return "", 0, 0, err
	}
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return "", 0, 0, fmt.Errorf("cannot read %s: %s is not a version", file, hostfs.Quoted(text))
	}
	digits := func(s string) string {
		if i := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			s = s[:i]
		}
		return s
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(digits(parts[1]))
	if errMajor != nil || errMinor != nil {
		return "", 0, 0, fmt.Errorf("cannot read %s: %s is not a version", file, hostfs.Quoted(text))
	}
	return text, major, minor, nil
}

func atLeast(major, minor, wantMajor, wantMinor int) bool {
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

func checkKernel(_ context.Context, m *Machine) Result {
	text, _, _, err := m.release()
	if err != nil {
		return unknown("kernel", "version", err)
	}
	return ok("kernel", "version", "Linux %s", text)
}

func checkFeatures(_ context.Context, m *Machine) Result {
	err := errors.Join(m.System.Eventfd(), m.System.AbstractSocket())
	if err != nil {
		return failure("kernel", "features", "allow eventfd2 and unix sockets in the container's seccomp profile", "%s", oneLine(err))
	}
	return ok("kernel", "features", "eventfd and abstract unix sockets work")
}

// oneLine writes joined errors in one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// checkTracing looks at what infinite trace needs. The engine itself needs none of it.
func checkTracing(_ context.Context, m *Machine) Result {
	const subject = "tracing"
	if !m.exists("/sys/kernel") {
		return unknown("kernel", subject, errors.New("cannot read /sys/kernel"))
	}
	if !m.exists("/sys/bus/event_source/devices/uprobe") {
		return warning("kernel", subject, "use a kernel built with it",
			"infinite trace cannot look at a running engine: the kernel lacks CONFIG_UPROBE_EVENTS=y (/sys/bus/event_source/devices/uprobe)")
	}
	kprobes := "kprobes"
	if !m.exists("/sys/bus/event_source/devices/kprobe") {
		kprobes = "no kprobes, so without the kernel's part of verbs"
	}
	bpf, err := m.mayTrace()
	if err != nil {
		return unknown("kernel", subject, err)
	}
	who := "this process may load probes"
	if !bpf {
		who = "loading probes needs root, or CAP_BPF and CAP_PERFMON"
	}
	setting := "unknown"
	if n, err := m.number("/proc/sys/kernel/unprivileged_bpf_disabled"); err == nil {
		setting = strconv.FormatInt(n, 10)
	}
	return ok("kernel", subject, "infinite trace has uprobes and %s; %s (kernel.unprivileged_bpf_disabled=%s)", kprobes, who, setting)
}

func (m *Machine) mayTrace() (bool, error) {
	admin, err := m.capable(capSysAdmin)
	if err != nil || admin {
		return admin, err
	}
	bpf, err := m.capable(capBPF)
	if err != nil || !bpf {
		return false, err
	}
	return m.capable(capPerfmon)
}

// slowClocks are read from a device at every look at the time.
var slowClocks = []string{"hpet", "acpi_pm", "jiffies", "refined-jiffies"}

func checkClock(_ context.Context, m *Machine) Result {
	const subject, folder = "clock", "/sys/devices/system/clocksource/clocksource0/"
	current, err := m.word(folder + "current_clocksource")
	if err == nil && current == "" {
		err = errors.New("cannot read " + folder + "current_clocksource: it holds no name")
	}
	if err != nil {
		return unknown("kernel", subject, err)
	}
	if !slices.Contains(slowClocks, current) {
		return ok("kernel", subject, "%s", current)
	}
	remedy := "boot with tsc=reliable, or look in dmesg for why the kernel gave the TSC up"
	if others, err := m.read(folder + "available_clocksource"); err == nil && slices.Contains(strings.Fields(others), "tsc") {
		remedy = "echo tsc | sudo tee " + folder + "current_clocksource"
	}
	return warning("kernel", subject, remedy, "%s; each look at the time is a system call and a slow read", current)
}
