package doctor

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

// unlimited is a limit that is none.
const unlimited = math.MaxUint64

// limits reads the soft and the hard limit of a resource, by its name in /proc/self/limits.
func (m *Machine) limits(name string) (soft, hard uint64, err error) {
	text, err := m.read("/proc/self/limits")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, name+" ")
		if !found {
			continue
		}
		parts := strings.Fields(rest)
		if len(parts) < 2 {
			break
		}
		var values [2]uint64
		for i := range values {
			if values[i] = unlimited; parts[i] == "unlimited" {
				continue
			}
			if values[i], err = strconv.ParseUint(parts[i], 10, 64); err != nil {
				return 0, 0, fmt.Errorf("cannot read %q in /proc/self/limits: %s is not a number", name, hostfs.Quoted(parts[i]))
			}
		}
		return values[0], values[1], nil
	}
	return 0, 0, fmt.Errorf("cannot find %q in /proc/self/limits", name)
}

// checkOpenFiles looks at the hard limit: the engine raises its soft limit to that.
func checkOpenFiles(_ context.Context, m *Machine) Result {
	const subject = "open files"
	_, hard, err := m.limits("Max open files")
	if err != nil {
		return unknown("memory", subject, err)
	}
	// Every request that runs or waits has a connection of its client. The rest is links, etcd and files.
	const rest = 1024
	clients := uint64(m.instances()) * uint64(m.Config.MaxNumSeqs+m.Config.MaxNumWaiting)
	if hard == unlimited {
		return ok("memory", subject, "unlimited")
	}
	remedy := fmt.Sprintf("raise it to %d (systemd: LimitNOFILE=; docker: --ulimit nofile=; shell: ulimit -Hn)", clients+rest)
	if hard < uint64(m.Files) {
		return failure("memory", subject, remedy,
			"at most %d, but serve needs %d to start", hard, m.Files)
	}
	if hard < clients+rest {
		return warning("memory", subject, remedy,
			"at most %d, but up to %d clients can be connected (--max-num-waiting, --max-num-seqs)", hard, clients)
	}
	return ok("memory", subject, "at most %d; up to %d clients can be connected", hard, clients)
}

// checkMemlock looks at what an instance may lock: RDMA devices write only into locked memory, and each
// process has the limit for itself. Rings are always locked, the pool where blocks are moved by RDMA.
func checkMemlock(_ context.Context, m *Machine) Result {
	const subject = "memlock"
	soft, _, err := m.limits("Max locked memory")
	if err != nil {
		return unknown("memory", subject, err)
	}
	pool, rings := m.pool(), uint64(0)
	what := "a pool of " + size(pool)
	if m.OnGPU {
		what = "no pool, which is the GPU's,"
	}
	if m.RingBytes != nil {
		if n, err := m.RingBytes(); err == nil {
			rings = n
			what += fmt.Sprintf(" and %s of rings per peer", size(rings))
		}
	}
	if soft == unlimited {
		return ok("memory", subject, "unlimited")
	}
	if soft >= pool+rings {
		return ok("memory", subject, "%s; RDMA may lock %s", size(soft), what)
	}
	found := fmt.Sprintf("%s, less than %s, which RDMA may lock", size(soft), what)
	if lifted, err := m.capable(capIPCLock); err != nil {
		return unknown("memory", subject, err)
	} else if lifted {
		return ok("memory", subject, "%s; CAP_IPC_LOCK lifts the limit", found)
	}
	const remedy = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1)"
	devices, err := m.rdmaNames()
	switch {
	case m.Config.Transport == "verbs" && soft < rings:
		return failure("memory", subject, remedy, "%s", found)
	case m.Config.Transport == "verbs" || err != nil || len(devices) > 0:
		return warning("memory", subject, remedy, "%s", found)
	}
	return ok("memory", subject, "%s; not needed, this machine has no RDMA device", found)
}
