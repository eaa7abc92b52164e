package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine/cgroup"
)

// instructionSets are those that the kernels are written for, the best first, with the CPU's flags that each
// needs: the same as the dispatch in csrc/kernels/cpu asks for.
var instructionSets = []struct {
	isa, name string
	flags     []string
	asked     bool // taken only where --isa asks for it
}{
	{"avx512_bf16", "products of bfloat16", []string{"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}, true},
	{"avx512", "AVX-512", []string{"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}, false},
	{"avx2", "AVX2", []string{"avx2", "fma"}, false},
}

func checkInstructions(_ context.Context, m *Machine) Result {
	const subject = "instructions"
	text, err := m.read("/proc/cpuinfo")
	if err != nil {
		return unknown("cpu", subject, err)
	}
	model, found := field(text, "model name")
	if model = clean(model); !found || model == "" || len(model) > 80 {
		model = "a CPU of unknown model"
	}
	flags, x86 := field(text, "flags")
	if _, arm := field(text, "Features"); !x86 && !arm {
		return unknown("cpu", subject, errors.New("cannot find the CPU's features in /proc/cpuinfo"))
	}
	has := strings.Fields(flags)
	best, name := "c", "plain C"
	for _, set := range slices.Backward(instructionSets) {
		lacks := slices.ContainsFunc(set.flags, func(f string) bool { return !slices.Contains(has, f) })
		if lacks && m.Config.ISA == set.isa {
			return failure("cpu", subject, "use --isa auto", "%s has no %s, which --isa %s asks for", model, set.name, set.isa)
		}
		if !lacks && (!set.asked || m.Config.ISA == set.isa) {
			best, name = set.isa, set.name
		}
	}
	if m.Config.ISA != "auto" && m.Config.ISA != best {
		return ok("cpu", subject, "%s; --isa %s is asked for, though the kernels could use %s", model, m.Config.ISA, name)
	}
	if best == "c" && m.Config.ISA != "c" {
		return warning("cpu", subject, "use an x86-64 CPU with AVX2; in a virtual machine pass the host's CPU through (QEMU: -cpu host)",
			"%s has neither AVX-512 nor AVX2; the kernels are plain C, several times slower", model)
	}
	return ok("cpu", subject, "%s; the kernels use %s", model, name)
}

// instances is how many of them this machine is to run.
func (m *Machine) instances() int {
	if m.Config.Join != "" {
		return 1
	}
	return max(1, m.Config.Instances)
}

func checkCores(_ context.Context, m *Machine) Result {
	const subject = "cores"
	list, err := m.statusField("Cpus_allowed_list")
	if err != nil {
		return unknown("cpu", subject, err)
	}
	cpus, err := countList(list)
	if err != nil {
		return unknown("cpu", subject, err)
	}
	quota, err := cgroup.CPUs(m.FS)
	if err != nil {
		return unknown("cpu", subject, err)
	}
	room, found := float64(cpus), count(cpus, "CPU")+", no cgroup quota"
	if quota > 0 {
		found = fmt.Sprintf("%s, a cgroup quota of %.4g", count(cpus, "CPU"), quota)
		room = min(room, quota)
	}
	instances, threads := m.instances(), max(1, m.Threads)
	found += fmt.Sprintf("; %s of %s", count(instances, "instance"), count(threads, "thread"))
	if float64(instances*threads) <= room {
		return ok("cpu", subject, "%s", found)
	}
	each := max(1, int(room)/instances)
	if float64(instances*each) > room {
		most := max(1, int(room))
		if instances == 1 {
			return warning("cpu", subject, "give it a whole CPU (docker: --cpus 1; Kubernetes: resources.limits.cpu)", "%s, which wait for each other", found)
		}
		return warning("cpu", subject, fmt.Sprintf("use --instances %d", most), "%s, which wait for each other", found)
	}
	return warning("cpu", subject, fmt.Sprintf("use --threads %d", each), "%s, which wait for each other", found)
}

func checkNUMA(_ context.Context, m *Machine) Result {
	const subject = "numa"
	if !m.exists("/sys/devices/system/node") {
		if _, err := m.read("/proc/self/status"); err != nil { // no /sys either, it may be
			return unknown("cpu", subject, err)
		}
		return ok("cpu", subject, "one node, as far as the kernel tells")
	}
	online, err := m.read("/sys/devices/system/node/online")
	if err != nil {
		return unknown("cpu", subject, err)
	}
	nodes, err := countList(online)
	if err != nil {
		return unknown("cpu", subject, err)
	}
	allowed := nodes
	if list, err := m.statusField("Mems_allowed_list"); err == nil {
		if n, err := countList(list); err == nil {
			allowed = min(nodes, n)
		}
	}
	found := count(nodes, "node")
	if allowed < nodes {
		found += fmt.Sprintf(", memory of %d allowed", allowed)
	}
	if allowed == 1 {
		return ok("cpu", subject, "%s", found)
	}
	return warning("cpu", subject, "start one instance per node, each with its own: numactl --cpunodebind=N --membind=N infinite serve ...",
		"%s; threads that read another node's memory are slower", found)
}
