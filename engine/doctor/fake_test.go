package doctor

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/hostfs"
)

// tree is a file tree: path -> text. A text that begins with linkMark is a symbolic link.
type tree map[string]string

const linkMark = "->"

// with returns a copy with changes; what is changed to gone is left out, with all below it.
func (t tree) with(changes tree) tree {
	out := maps.Clone(t)
	for name, text := range changes {
		if text == gone {
			maps.DeleteFunc(out, func(other, _ string) bool { return other == name || strings.HasPrefix(other, name+"/") })
		} else {
			out[name] = text
		}
	}
	return out
}

const gone = "\x00gone"

func (t tree) fs() fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range t {
		if target, isLink := strings.CutPrefix(text, linkMark); isLink {
			out[hostfs.Within(name)] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
		} else {
			out[hostfs.Within(name)] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
		}
	}
	return out
}

// plain is a machine of two CPUs that has nothing of note.
var plain = tree{
	"/proc/cpuinfo": "processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: fpu avx2 fma avx512f avx512bw avx512vl avx512dq\n\n" +
		"processor\t: 1\nmodel name\t: Test CPU\nflags\t\t: fpu avx2\n",
	"/proc/meminfo":                              "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nCommitLimit:     8388608 kB\nCommitted_AS:    1048576 kB\n",
	"/proc/self/status":                          "Name:\tinfinite\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-1\nMems_allowed_list:\t0\n",
	"/proc/self/limits":                          "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \nMax locked memory         8388608              8388608              bytes     \n",
	"/proc/self/cgroup":                          "0::/user.slice/one\n",
	"/proc/self/mountinfo":                       "22 27 0:21 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
	"/proc/sys/kernel/osrelease":                 "6.1.0-37-amd64\n",
	"/proc/sys/kernel/unprivileged_bpf_disabled": "2\n",
	"/proc/sys/vm/overcommit_memory":             "0\n",
	"/sys/devices/system/node/online":            "0\n",
	"/sys/devices/system/clocksource/clocksource0/current_clocksource":   "tsc\n",
	"/sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm\n",
	"/sys/kernel/mm/transparent_hugepage/enabled":                        "always [madvise] never\n",
	"/sys/bus/event_source/devices/kprobe/type":                          "6\n",
	"/sys/bus/event_source/devices/uprobe/type":                          "9\n",
	"/sys/fs/cgroup/user.slice/memory.max":                               "max\n",
	"/sys/fs/cgroup/user.slice/memory.current":                           "1048576\n",
	"/sys/fs/cgroup/user.slice/one/cpu.max":                              "max 100000\n",
}

// machine is a fit one; change, unless nil, alters it.
func machine(t tree, change func(m *Machine)) *Machine {
	c := config.Default()
	m := &Machine{
		FS: t.fs(), System: &fakeSystem{}, Network: newNetwork(), NVML: noDriver(nvml.ERROR_LIBRARY_NOT_FOUND), Libraries: &fakeLibraries{},
		Config: c, Threads: 2,
		Etcd:      func(context.Context, string) error { return nil },
		Ports:     func() ([]VerbsPort, error) { return nil, nil },
		RingBytes: func() (uint64, error) { return 16 << 20, nil },
	}
	if change != nil {
		change(m)
	}
	return m
}

type fakeSystem struct{ memfd, eventfd, socket error }

func (s *fakeSystem) Memfd() error          { return s.memfd }
func (s *fakeSystem) Eventfd() error        { return s.eventfd }
func (s *fakeSystem) AbstractSocket() error { return s.socket }

type fakeNetwork struct {
	interfaces []Interface
	err        error
	hosts      map[string]string
	listen     map[string]error
	dial       error
}

func newNetwork() *fakeNetwork {
	return &fakeNetwork{
		interfaces: []Interface{
			{Name: "lo", MTU: 65536, Up: true, Loopback: true, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}},
			{Name: "eth0", MTU: 1500, Up: true, Addresses: []netip.Addr{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("10.0.0.5")}},
			{Name: "eth1", MTU: 9000, Up: false, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.5")}},
		},
		hosts: map[string]string{"localhost": "127.0.0.1", "here": "10.0.0.5", "there": "10.0.0.6"},
	}
}

func (n *fakeNetwork) Interfaces() ([]Interface, error) { return n.interfaces, n.err }

func (n *fakeNetwork) Lookup(_ context.Context, host string) ([]netip.Addr, error) {
	if a, found := n.hosts[host]; found {
		if a == "" {
			return nil, nil
		}
		return []netip.Addr{netip.MustParseAddr(a)}, nil
	}
	return nil, errors.New("no such host")
}

func (n *fakeNetwork) Listen(_ context.Context, address string) error { return n.listen[address] }
func (n *fakeNetwork) Dial(context.Context, string) error             { return n.dial }

type fakeLibraries struct {
	missing []string
	err     error
}

func (l *fakeLibraries) Missing(_ string, symbols ...string) ([]string, error) {
	var missing []string
	for _, s := range symbols {
		for _, other := range l.missing {
			if s == other {
				missing = append(missing, s)
			}
		}
	}
	return missing, l.err
}

// noDriver is an NVML that does not start.
func noDriver(ret nvml.Return) NVML {
	return &mock.Interface{InitFunc: func() nvml.Return { return ret }}
}

// test is one row of the tables: a check on a machine, and one of its results.
type test struct {
	name   string
	change tree
	alter  func(m *Machine)
	at     int // which result
	level  Level
	found  string // part of it
	remedy string // likewise
}

// runTable runs rows on a base tree.
func runTable(t *testing.T, base tree, check func(context.Context, *Machine) []Result, rows []test) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			results := check(t.Context(), machine(base.with(row.change), row.alter))
			if row.at >= len(results) {
				t.Fatalf("%d results, wanted number %d: %v", len(results), row.at, results)
			}
			r := results[row.at]
			if r.Level != row.level || !strings.Contains(r.Found, row.found) || !strings.Contains(r.Remedy, row.remedy) {
				t.Errorf("got  %s\nwant %s, %q, %q", r.Line(false), row.level, row.found, row.remedy)
			}
			for _, r := range results {
				checkShape(t, r)
			}
		})
	}
}

// checkShape holds what is true of every result.
func checkShape(t *testing.T, r Result) {
	t.Helper()
	if r.Check == "" || r.Subject == "" || r.Found == "" {
		t.Errorf("incomplete: %+v", r)
	}
	if (r.Level == OK) != (r.Remedy == "") {
		t.Errorf("a remedy belongs to warnings and errors: %+v", r)
	}
	if r.Level != OK && r.Level != Warning && r.Level != Error {
		t.Errorf("no level: %+v", r)
	}
	if strings.ContainsAny(r.Line(false), "\n\x00") {
		t.Errorf("not one line: %q", r.Line(false))
	}
}
