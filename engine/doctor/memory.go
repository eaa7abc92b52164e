package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine/cgroup"
	"github.com/infinite-llm/infinite/engine/hostfs"
)

// meminfo is a field of /proc/meminfo, in bytes.
func (m *Machine) meminfo(name string) (uint64, error) {
	text, err := m.read("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	value, found := field(text, name)
	if !found {
		return 0, fmt.Errorf("cannot find %s in /proc/meminfo", name)
	}
	kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 53)
	if err != nil {
		return 0, fmt.Errorf("cannot read %s in /proc/meminfo: %s is not a size", name, hostfs.Quoted(value))
	}
	return kib << 10, nil
}

// usable is the memory that new processes here could still get.
func (m *Machine) usable() (uint64, error) {
	available, err := m.meminfo("MemAvailable")
	if err != nil {
		return 0, err
	}
	limit, used, err := cgroup.Memory(m.FS)
	if err != nil {
		return 0, err
	}
	if limit > 0 {
		available = min(available, limit-used)
	}
	return available, nil
}

func checkMemory(_ context.Context, m *Machine) Result {
	const subject = "size"
	total, err := m.meminfo("MemTotal")
	if err != nil {
		return unknown("memory", subject, err)
	}
	available, err := m.meminfo("MemAvailable")
	if err != nil {
		return unknown("memory", subject, err)
	}
	limit, used, err := cgroup.Memory(m.FS)
	if err != nil {
		return unknown("memory", subject, err)
	}
	found := fmt.Sprintf("%s, %s available", size(total), size(available))
	if limit == 0 {
		return ok("memory", subject, "%s, no cgroup limit", found)
	}
	found += fmt.Sprintf("; the cgroup's limit is %s, %s of it free", size(limit), size(limit-used))
	if limit-used < limit/20 {
		return warning("memory", subject, "raise the limit (docker: --memory; Kubernetes: resources.limits.memory; systemd: MemoryMax=)", "%s", found)
	}
	return ok("memory", subject, "%s", found)
}

func checkHugePages(_ context.Context, m *Machine) Result {
	const subject, file = "huge pages", "/sys/kernel/mm/transparent_hugepage/enabled"
	if !m.exists("/sys/kernel/mm/transparent_hugepage") && m.exists("/sys/kernel/mm") {
		return warning("memory", subject, "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y", "the kernel has no transparent huge pages; large pools are slower")
	}
	text, err := m.read(file)
	if err != nil {
		return unknown("memory", subject, err)
	}
	_, rest, _ := strings.Cut(text, "[")
	mode, _, closed := strings.Cut(rest, "]")
	switch {
	case closed && mode == "madvise":
		return ok("memory", subject, "transparent huge pages where asked for, as pool and weights do (madvise)")
	case closed && mode == "always":
		return ok("memory", subject, "transparent huge pages everywhere (always)")
	case closed && mode == "never":
		return warning("memory", subject, "echo madvise | sudo tee "+file, "transparent huge pages are off (never); large pools are slower")
	}
	return unknown("memory", subject, fmt.Errorf("cannot read %s: %s has no known mode in brackets", file, hostfs.Quoted(text)))
}

func checkOvercommit(_ context.Context, m *Machine) Result {
	const subject = "overcommit"
	mode, err := m.number("/proc/sys/vm/overcommit_memory")
	if err != nil {
		return unknown("memory", subject, err)
	}
	switch mode {
	case 0, 1:
		return ok("memory", subject, "%s (vm.overcommit_memory=%d)", []string{"heuristic", "always"}[mode], mode)
	case 2:
		limit, err := m.meminfo("CommitLimit")
		if err != nil {
			return unknown("memory", subject, err)
		}
		promised, err := m.meminfo("Committed_AS")
		if err != nil {
			return unknown("memory", subject, err)
		}
		left := limit - min(limit, promised)
		need := uint64(m.instances()) * m.pool()
		const remedy = "sudo sysctl vm.overcommit_memory=0"
		if need > left {
			return failure("memory", subject, remedy, "strict (vm.overcommit_memory=2): %s can still be promised, the pools need %s", size(left), size(need))
		}
		return warning("memory", subject, remedy, "strict (vm.overcommit_memory=2): an allocation can fail while memory is free; %s can still be promised", size(left))
	}
	return unknown("memory", subject, fmt.Errorf("cannot interpret vm.overcommit_memory=%d", mode))
}

// checkShared looks at what shm links lie in. It is anonymous memory (memfd), which /dev/shm's size does
// not bound.
func checkShared(_ context.Context, m *Machine) Result {
	const subject = "shared"
	if err := m.System.Memfd(); err != nil {
		const remedy = "allow memfd_create in the container's seccomp profile"
		switch m.Config.Transport {
		case "shm":
			return failure("memory", subject, remedy, "%v; --transport shm needs it", err)
		case "auto":
			return warning("memory", subject, remedy, "%v; links on this machine will go by tcp", err)
		}
		return ok("memory", subject, "%v; not needed with --transport %s", err, m.Config.Transport)
	}
	room, err := m.usable()
	if err != nil {
		return unknown("memory", subject, err)
	}
	return ok("memory", subject, "memfd works; only free memory bounds it, %s", size(room))
}
