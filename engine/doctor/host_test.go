package doctor

import (
	"errors"
	"testing"
)

func TestInstructions(t *testing.T) {
	isa := func(name string) func(m *Machine) { return func(m *Machine) { m.Config.ISA = name } }
	avx2 := tree{"/proc/cpuinfo": "model name : Old CPU\nflags : avx2 fma avx512f\n"}
	none := tree{"/proc/cpuinfo": "flags : sse2\n"}
	bf16 := tree{"/proc/cpuinfo": "model name : New CPU\nflags : avx2 fma avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16\n"}
	runTable(t, plain, one(checkInstructions), []test{
		{name: "avx512", level: OK, found: "Test CPU; the kernels use AVX-512"},
		{name: "avx2", change: avx2, level: OK, found: "Old CPU; the kernels use AVX2"},
		{name: "less than it has", alter: isa("avx2"), level: OK, found: "--isa avx2 is asked for, though the kernels could use AVX-512"},
		{name: "more than it has", change: avx2, alter: isa("avx512"), level: Error, found: "Old CPU has no AVX-512", remedy: "--isa auto"},
		{name: "products of bfloat16, not asked for", change: bf16, level: OK, found: "New CPU; the kernels use AVX-512"},
		{name: "asked for", change: bf16, alter: isa("avx512_bf16"), level: OK, found: "New CPU; the kernels use products of bfloat16"},
		{name: "less asked for", change: bf16, alter: isa("avx2"), level: OK, found: "--isa avx2 is asked for, though the kernels could use AVX-512"},
		{name: "asked for, and not there", alter: isa("avx512_bf16"), level: Error, found: "has no products of bfloat16, which --isa avx512_bf16 asks for", remedy: "--isa auto"},
		{name: "avx2 on neither", change: none, alter: isa("avx2"), level: Error, found: "has no AVX2"},
		{name: "plain C", change: none, level: Warning, found: "a CPU of unknown model has neither", remedy: "AVX2"},
		{name: "plain C asked for", change: none, alter: isa("c"), level: OK, found: "plain C"},
		{name: "ARM", change: tree{"/proc/cpuinfo": "processor : 0\nFeatures : fp asimd\n"}, level: Warning, found: "plain C"},
		{name: "no file", change: tree{"/proc/cpuinfo": gone}, level: Warning, found: "unknown: cannot read /proc/cpuinfo: "},
		{name: "malformed", change: tree{"/proc/cpuinfo": "\x01\x02"}, level: Warning, found: "unknown: "},
	})
}

func TestCores(t *testing.T) {
	config := func(instances, threads int) func(m *Machine) {
		return func(m *Machine) { m.Config.Instances, m.Threads = instances, threads }
	}
	const quota = "/sys/fs/cgroup/user.slice/one/cpu.max"
	eight := tree{"/proc/self/status": "Cpus_allowed_list: 0-3,8-11\n"}
	v1 := tree{
		"/proc/self/cgroup":        "5:memory:/box\n4:cpuacct,cpu:/box/a\n0::/\n",
		"/proc/self/mountinfo":     "30 1 0:3 / /cg/unified rw - cgroup2 cgroup2 rw\n31 1 0:4 /box /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
		"/cg/cpu/cpu.cfs_quota_us": "150000", "/cg/cpu/cpu.cfs_period_us": "100000", "/cg/cpu/a/cpu.cfs_quota_us": "-1", "/cg/cpu/a/cpu.cfs_period_us": "100000",
	}
	runTable(t, plain, one(checkCores), []test{
		{name: "enough", level: OK, found: "2 CPUs, no cgroup quota; 1 instance of 2 threads"},
		{name: "many", change: eight, alter: config(2, 4), level: OK, found: "8 CPUs"},
		{name: "too many threads", alter: config(2, 2), level: Warning, found: "2 instances of 2 threads", remedy: "use --threads 1"},
		{name: "too many instances", alter: config(5, 1), level: Warning, remedy: "use --instances 2"},
		{name: "quota", change: tree{quota: "150000 100000"}, level: Warning, found: "a cgroup quota of 1.5", remedy: "use --threads 1"},
		{name: "quota of the parent", change: tree{"/sys/fs/cgroup/user.slice/cpu.max": "400000 100000", quota: "800000 100000"}, level: OK, found: "a cgroup quota of 4;"},
		{name: "half a CPU", change: tree{quota: "50000 100000"}, alter: config(1, 1), level: Warning, found: "0.5", remedy: "--cpus 1"},
		{name: "version 1", change: v1, alter: config(1, 1), level: OK, found: "a cgroup quota of 1.5; 1 instance of 1 thread"},
		{name: "joins", alter: func(m *Machine) { m.Config.Instances, m.Config.Join = 7, "h:1" }, level: OK, found: "1 instance "},
		{name: "no cgroup", change: tree{"/proc/self/cgroup": ""}, level: OK, found: "no cgroup quota"},
		{name: "no list", change: tree{"/proc/self/status": "Name: x\n"}, level: Warning, found: "unknown: cannot find Cpus_allowed_list"},
		{name: "malformed list", change: tree{"/proc/self/status": "Cpus_allowed_list: 3-1\n"}, level: Warning, found: "unknown: "},
		{name: "malformed quota", change: tree{quota: "a lot"}, level: Warning, found: "unknown: cannot read the CPU quota"},
		{name: "period of 0", change: tree{quota: "5 0"}, level: Warning, found: "unknown: "},
		{name: "no file", change: tree{"/proc/self/cgroup": gone}, level: Warning, found: "unknown: "},
	})
}

func TestNUMA(t *testing.T) {
	const online = "/sys/devices/system/node/online"
	runTable(t, plain, one(checkNUMA), []test{
		{name: "one", level: OK, found: "1 node"},
		{name: "two", change: tree{online: "0-1", "/proc/self/status": "Mems_allowed_list: 0-1\n"}, level: Warning, found: "2 nodes", remedy: "numactl --cpunodebind"},
		{name: "bound to one", change: tree{online: "0-1"}, level: OK, found: "2 nodes, memory of 1 allowed"},
		{name: "a kernel without", change: tree{"/sys/devices/system/node": gone}, level: OK, found: "one node"},
		{name: "malformed", change: tree{online: "all"}, level: Warning, found: `unknown: cannot read "all"`},
		{name: "nothing readable", change: tree{"/sys": gone, "/proc": gone}, level: Warning, found: "unknown"},
	})
}

func TestMemory(t *testing.T) {
	const folder = "/sys/fs/cgroup/user.slice"
	limit := func(max, current string) tree {
		return tree{folder + "/memory.max": max, folder + "/memory.current": current}
	}
	runTable(t, plain, one(checkMemory), []test{
		{name: "plain", level: OK, found: "16.0 GiB, 8.0 GiB available, no cgroup limit"},
		{name: "limit", change: limit("4294967296", "1073741824"), level: OK, found: "limit is 4.0 GiB, 3.0 GiB of it free"},
		{name: "limit with cache", change: limit("4294967296", "4294967296").with(tree{folder + "/memory.stat": "anon 5\ninactive_file 2147483648\n"}), level: OK, found: "2.0 GiB of it free"},
		{name: "limit nearly reached", change: limit("4294967296", "4290000000"), level: Warning, found: "4.7 MiB of it free", remedy: "--memory"},
		{name: "used beyond the limit", change: limit("4294967296", "5000000000"), level: Warning, found: "0 B of it free"},
		{name: "malformed limit", change: limit("much", "0"), level: Warning, found: "unknown: cannot read " + folder + "/memory.max"},
		{name: "malformed use", change: limit("4294967296", ""), level: Warning, found: "unknown: "},
		{name: "no total", change: tree{"/proc/meminfo": "MemAvailable: 1 kB\n"}, level: Warning, found: "unknown: cannot find MemTotal"},
		{name: "malformed", change: tree{"/proc/meminfo": "MemTotal: lots\n"}, level: Warning, found: `unknown: cannot read MemTotal in /proc/meminfo: "lots"`},
		{name: "no available", change: tree{"/proc/meminfo": "MemTotal: 1 kB\n"}, level: Warning, found: "unknown: cannot find MemAvailable"},
		{name: "no file", change: tree{"/proc/meminfo": gone}, level: Warning, found: "unknown: "},
	})
}

func TestHugePages(t *testing.T) {
	const file = "/sys/kernel/mm/transparent_hugepage/enabled"
	runTable(t, plain, one(checkHugePages), []test{
		{name: "madvise", level: OK, found: "madvise"},
		{name: "always", change: tree{file: "[always] madvise never"}, level: OK, found: "always"},
		{name: "never", change: tree{file: "always madvise [never]"}, level: Warning, found: "off", remedy: "echo madvise | sudo tee " + file},
		{name: "not in the kernel", change: tree{"/sys/kernel/mm/transparent_hugepage": gone, "/sys/kernel/mm/ksm/run": "0"}, level: Warning, found: "no transparent huge pages", remedy: "CONFIG_TRANSPARENT_HUGEPAGE"},
		{name: "malformed", change: tree{file: "always [sometimes]"}, level: Warning, found: "unknown: "},
		{name: "unclosed", change: tree{file: "[madvise"}, level: Warning, found: "unknown: "},
		{name: "no /sys", change: tree{"/sys": gone}, level: Warning, found: "unknown: "},
	})
}

func TestOvercommit(t *testing.T) {
	const file = "/proc/sys/vm/overcommit_memory"
	strict := tree{file: "2"}
	runTable(t, plain, one(checkOvercommit), []test{
		{name: "heuristic", level: OK, found: "heuristic"},
		{name: "always", change: tree{file: "1"}, level: OK, found: "always"},
		{name: "strict", change: strict, level: Warning, found: "7.0 GiB can still be promised", remedy: "vm.overcommit_memory=0"},
		{name: "strict, pools too large", change: strict, alter: func(m *Machine) { m.Config.KVCacheMemory = 9 << 30 }, level: Error, found: "the pools need 9.0 GiB", remedy: "vm.overcommit_memory=0"},
		{name: "strict, no limit told", change: tree{file: "2", "/proc/meminfo": "MemTotal: 1 kB\n"}, level: Warning, found: "unknown: "},
		{name: "new mode", change: tree{file: "7"}, level: Warning, found: "unknown: "},
		{name: "negative", change: tree{file: "-1"}, level: Warning, found: "unknown: "},
		{name: "malformed", change: tree{file: "x"}, level: Warning, found: "unknown: "},
	})
}

func TestShared(t *testing.T) {
	broken := func(transport string) func(m *Machine) {
		return func(m *Machine) {
			m.System, m.Config.Transport = &fakeSystem{memfd: errors.New("cannot create shared memory: EPERM")}, transport
		}
	}
	runTable(t, plain, one(checkShared), []test{
		{name: "works", level: OK, found: "8.0 GiB"},
		{name: "auto", alter: broken("auto"), level: Warning, found: "by tcp", remedy: "seccomp"},
		{name: "shm", alter: broken("shm"), level: Error, found: "EPERM", remedy: "seccomp"},
		{name: "tcp", alter: broken("tcp"), level: OK, found: "not needed"},
		{name: "memory unknown", change: tree{"/proc/meminfo": gone}, level: Warning, found: "unknown: "},
	})
}

func limitsFile(lines string) tree { return tree{"/proc/self/limits": lines} }

func TestMemlock(t *testing.T) {
	device := tree{"/sys/class/infiniband/mlx5_0/fw_ver": "1"}
	verbs := func(m *Machine) { m.Config.Transport = "verbs" }
	runTable(t, plain, one(checkMemlock), []test{
		{name: "no device", level: OK, found: "8.0 MiB, less than a pool of 256.0 MiB and 16.0 MiB of rings per peer"},
		{name: "device", change: device, level: Warning, found: "8.0 MiB, less than", remedy: "ulimit -l unlimited"},
		{name: "verbs", alter: verbs, level: Error, remedy: "memlock=-1"},
		{name: "verbs, rings fit", change: limitsFile("Max locked memory 67108864 67108864 bytes\n"), alter: verbs, level: Warning, found: "64.0 MiB, less than", remedy: "memlock=-1"},
		{name: "capability", change: device.with(tree{"/proc/self/status": "CapEff:\t0000000000004000\n"}), alter: verbs, level: OK, found: "CAP_IPC_LOCK"},
		{name: "enough", change: device.with(limitsFile("Max locked memory 1073741824 1073741824 bytes\n")), level: OK, found: "1.0 GiB; RDMA may lock"},
		{name: "unlimited", change: device.with(limitsFile("Max locked memory unlimited unlimited bytes\n")), level: OK, found: "unlimited"},
		{name: "rings unknown", alter: func(m *Machine) { m.RingBytes = nil }, level: OK, found: "a pool of 256.0 MiB, which"},
		{name: "capabilities unknown", change: device.with(tree{"/proc/self/status": "CapEff: x\n"}), level: Warning, found: "unknown: cannot read CapEff"},
		{name: "no line", change: limitsFile("Max open files 1 1 files\n"), level: Warning, found: "unknown: cannot find"},
		{name: "short line", change: limitsFile("Max locked memory 5\n"), level: Warning, found: "unknown: "},
		{name: "malformed", change: limitsFile("Max locked memory -1 -1 bytes\n"), level: Warning, found: "unknown: "},
		{name: "no file", change: tree{"/proc/self/limits": gone}, level: Warning, found: "unknown: "},
	})
}

func TestOpenFiles(t *testing.T) {
	runTable(t, plain, one(checkOpenFiles), []test{
		{name: "enough", level: OK, found: "at most 524288; up to 1088 clients"},
		{name: "soft limit low", change: limitsFile("Max open files 10 4096 files\n"), level: OK, found: "4096"},
		{name: "unlimited", change: limitsFile("Max open files 10 unlimited files\n"), level: OK, found: "unlimited"},
		{name: "too few", change: limitsFile("Max open files 1024 1024 files\n"), level: Warning, found: "at most 1024", remedy: "raise it to 2112 (systemd: LimitNOFILE="},
		{name: "too few to start", change: limitsFile("Max open files 100 100 files\n"), alter: func(m *Machine) { m.Files = 186 },
			level: Error, found: "at most 100, but serve needs 186 to start", remedy: "raise it to 2112"},
		{name: "malformed", change: limitsFile("Max open files many many\n"), level: Warning, found: "unknown: "},
	})
}

func TestKernel(t *testing.T) {
	release := func(text string) tree { return tree{"/proc/sys/kernel/osrelease": text} }
	runTable(t, plain, one(checkKernel), []test{
		{name: "Debian", level: OK, found: "Linux 6.1.0-37-amd64"},
		{name: "short", change: release("7.2-rc1\n"), level: OK, found: "7.2-rc1"},
		{name: "malformed", change: release("six"), level: Warning, found: "unknown: "},
		{name: "no minor", change: release("6.x"), level: Warning, found: "unknown: "},
		{name: "no file", change: release(gone), level: Warning, found: "unknown: "},
	})
	runTable(t, plain, one(checkFeatures), []test{
		{name: "all", level: OK, found: "eventfd"},
		{name: "none", alter: func(m *Machine) {
			m.System = &fakeSystem{eventfd: errors.New("no eventfd"), socket: errors.New("no socket")}
		},
			level: Error, found: "no eventfd; no socket", remedy: "seccomp"},
	})
}

func TestTracing(t *testing.T) {
	runTable(t, plain, one(checkTracing), []test{
		{name: "without rights", level: OK, found: "needs root, or CAP_BPF and CAP_PERFMON (kernel.unprivileged_bpf_disabled=2)"},
		{name: "root", change: tree{"/proc/self/status": "CapEff: 000001ffffffffff\n"}, level: OK, found: "this process may"},
		{name: "two capabilities", change: tree{"/proc/self/status": "CapEff: 000000c000000000\n"}, level: OK, found: "this process may"},
		{name: "one capability", change: tree{"/proc/self/status": "CapEff: 0000008000000000\n"}, level: OK, found: "needs root"},
		{name: "setting unknown", change: tree{"/proc/sys/kernel/unprivileged_bpf_disabled": "?"}, level: OK, found: "disabled=unknown"},
		{name: "no kprobes", change: tree{"/sys/bus/event_source/devices/kprobe": gone}, level: OK, found: "no kprobes"},
		{name: "no uprobes", change: tree{"/sys/bus/event_source": gone}, level: Warning, found: "CONFIG_UPROBE_EVENTS"},
		{name: "capabilities unknown", change: tree{"/proc/self/status": ""}, level: Warning, found: "unknown: "},
		{name: "no /sys", change: tree{"/sys": gone}, level: Warning, found: "unknown: "},
	})
}

func TestClock(t *testing.T) {
	const folder = "/sys/devices/system/clocksource/clocksource0/"
	hpet := tree{folder + "current_clocksource": "hpet\n"}
	runTable(t, plain, one(checkClock), []test{
		{name: "tsc", level: OK, found: "tsc"},
		{name: "kvm", change: tree{folder + "current_clocksource": "kvm-clock\n"}, level: OK, found: "kvm-clock"},
		{name: "hpet, tsc there", change: hpet, level: Warning, found: "hpet", remedy: "echo tsc | sudo tee " + folder + "current_clocksource"},
		{name: "hpet, no tsc", change: hpet.with(tree{folder + "available_clocksource": "hpet"}), level: Warning, remedy: "dmesg"},
		{name: "empty", change: tree{folder + "current_clocksource": ""}, level: Warning, found: "unknown: "},
		{name: "no file", change: tree{folder + "current_clocksource": gone}, level: Warning, found: "unknown: "},
	})
}

func TestCountList(t *testing.T) {
	for text, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8": 5, " 1, 2 ": 2} {
		if n, err := countList(text); n != want || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "-", "a", "1-", "2-1", "0-99999999999999", "1,,2"} {
		if n, err := countList(text); err == nil {
			t.Errorf("%q: %d", text, n)
		}
	}
}
