// Package doctor looks at a machine as the engine will find it, and says of each thing whether it is
// fit, and if not, what would make it so.
//
//	doctor.go    Check, Result, Run
//	machine.go   what the checks look at: a file tree and a few small interfaces
//	files.go     reading that tree
//	cpu.go memory.go limits.go kernel.go gpu.go cuda.go rdma.go ports.go gpudirect.go network.go config.go   the checks
//	pci.go       the tree of PCI devices, and how far two of them are apart
//
// A check never guesses: a value that cannot be read is reported as unknown.
package doctor

import (
	"context"
	"fmt"
	"time"
)

// Level says how much a result matters.
type Level string

// The levels. A warning costs speed or a feature; an error keeps the engine from doing what it is configured to.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Result is what a check found of one subject.
type Result struct {
	Check   string `json:"check"`
	Subject string `json:"subject"`
	Level   Level  `json:"level"`
	Found   string `json:"found"`
	Remedy  string `json:"remedy"` // one sentence; empty if and only if Level is OK
}

// Check looks at one topic.
type Check struct {
	Name, Subject string
	run           func(ctx context.Context, m *Machine) []Result
	slow          string // remedy when it gives no answer in time
}

const (
	// checkLimit bounds one check. What hangs, such as a driver, is left behind.
	checkLimit = 2 * time.Second
	// askLimit bounds what a check asks of others, so that it can still tell who did not answer.
	askLimit = checkLimit - 200*time.Millisecond
)

// Checks lists all checks in the order in which they run.
func Checks() []Check {
	slowFiles := "look for a file system or driver that hangs (dmesg)"
	slowModel := "put the model on a file system that answers soon; serve waits for it"
	return []Check{
		{"cpu", "instructions", one(checkInstructions), slowFiles},
		{"cpu", "cores", one(checkCores), slowFiles},
		{"cpu", "numa", one(checkNUMA), slowFiles},
		{"memory", "size", one(checkMemory), slowFiles},
		{"memory", "huge pages", one(checkHugePages), slowFiles},
		{"memory", "overcommit", one(checkOvercommit), slowFiles},
		{"memory", "shared", one(checkShared), slowFiles},
		{"memory", "memlock", one(checkMemlock), slowFiles},
		{"memory", "open files", one(checkOpenFiles), slowFiles},
		{"kernel", "version", one(checkKernel), slowFiles},
		{"kernel", "features", one(checkFeatures), slowFiles},
		{"kernel", "tracing", one(checkTracing), slowFiles},
		{"kernel", "clock", one(checkClock), slowFiles},
		{"gpu", "driver", checkGPUs, "keep the driver loaded, so that it need not start each time: systemctl enable --now nvidia-persistenced"},
		{"gpu", "build", one(checkBuild), slowFiles},
		{"gpu", "library", one(checkCUDALibrary), "see that INFINITE_CUDA_LIBRARY is on a file system that answers soon"},
		{"rdma", "library", one(checkLibrary), slowFiles},
		{"rdma", "devices", checkDevices, slowFiles},
		{"rdma", "ports", checkPorts, slowFiles},
		{"rdma", "pairing", checkPairing, slowFiles},
		{"rdma", "gpudirect", one(checkGPUDirect), slowFiles},
		{"network", "interfaces", checkInterfaces, slowFiles},
		{"network", "cluster-host", one(checkClusterHost), "correct the name server's settings in /etc/resolv.conf, or give --cluster-host an address"},
		{"network", "listen", checkListen, "correct the name server's settings in /etc/resolv.conf, or give --host and --cluster-host addresses"},
		{"config", "settings", checkSettings, slowFiles},
		{"config", "device", one(checkDevice), slowFiles},
		{"config", "model", one(checkModel), slowModel},
		{"config", "start", one(checkStart), slowModel},
		{"config", "tokenizer", one(checkTokenizer), slowModel},
		{"config", "memory", one(checkNeed), slowModel},
		{"config", "etcd", checkEtcd, "see that etcd answers: etcdctl endpoint health"},
		{"config", "join", one(checkJoin), "see that the cluster runs, and that no firewall is between"},
	}
}

// one makes a check of a function with a single result, or the zero Result where there is nothing to say.
func one(f func(context.Context, *Machine) Result) func(context.Context, *Machine) []Result {
	return func(ctx context.Context, m *Machine) []Result {
		if r := f(ctx, m); r != (Result{}) {
			return []Result{r}
		}
		return nil
	}
}

// Run runs the checks one after the other and reports each result as soon as it is known. It ends early
// when ctx does.
func Run(ctx context.Context, m *Machine, checks []Check, report func(Result)) {
	for _, c := range checks {
		for _, r := range c.do(ctx, m, checkLimit) {
			if ctx.Err() != nil {
				return
			}
			r.Found, r.Remedy = clean(r.Found), clean(r.Remedy) // others wrote parts of them
			report(r)
		}
	}
}

func (c Check) do(ctx context.Context, m *Machine, limit time.Duration) []Result {
	done := make(chan []Result, 1) // has room, so that a late check ends
	go func() {
		defer func() {
			if p := recover(); p != nil { // of a library; the other checks are still worth having
				done <- []Result{{c.Name, c.Subject, Warning, fmt.Sprintf("unknown: the check failed: %v", p), "report this as a fault of infinite doctor"}}
			}
		}()
		done <- c.run(ctx, m)
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case results := <-done:
		return results
	case <-late.C:
		return []Result{{c.Name, c.Subject, Warning, fmt.Sprintf("unknown: no answer within %s", limit), c.slow}}
	case <-ctx.Done():
		return nil
	}
}

// Summary counts results by level.
type Summary struct{ Errors, Warnings int }

// Add counts one result.
func (s *Summary) Add(r Result) {
	switch r.Level {
	case Error:
		s.Errors++
	case Warning:
		s.Warnings++
	}
}

// Err is nil if the machine is fit; strict wants it free of warnings, too.
func (s Summary) Err(strict bool) error {
	if s.Errors == 0 && (!strict || s.Warnings == 0) {
		return nil
	}
	return fmt.Errorf("cannot call this machine fit: %s, %s", count(s.Errors, "error"), count(s.Warnings, "warning"))
}

// Line is a result as one line of text.
func (r Result) Line(colour bool) string {
	level := fmt.Sprintf("%-7s", r.Level)
	if colour {
		level = fmt.Sprintf("\x1b[%dm%s\x1b[0m", map[Level]int{OK: 32, Warning: 33, Error: 31}[r.Level], level)
	}
	line := fmt.Sprintf("%s  %-7s  %-12s  %s", level, r.Check, r.Subject, r.Found)
	if r.Remedy != "" {
		line += " -> " + r.Remedy
	}
	return line
}

func ok(check, subject, format string, args ...any) Result {
	return Result{check, subject, OK, fmt.Sprintf(format, args...), ""}
}

func warning(check, subject, remedy, format string, args ...any) Result {
	return Result{check, subject, Warning, fmt.Sprintf(format, args...), remedy}
}

func failure(check, subject, remedy, format string, args ...any) Result {
	return Result{check, subject, Error, fmt.Sprintf(format, args...), remedy}
}

// unknown reports what could not be read, and would have mattered.
func unknown(check, subject string, err error) Result {
	return warning(check, subject, "run where /proc and /sys are mounted and readable", "unknown: %v", err)
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// size is a number of bytes for reading.
func size(n uint64) string {
	for _, unit := range []struct {
		name  string
		shift int
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if n >= 1<<unit.shift {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(uint64(1)<<unit.shift), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
