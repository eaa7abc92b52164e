package cgroup

import (
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

// tree is files by their paths from the root.
type tree map[string]string

func (t tree) fs() fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range t {
		out[hostfs.Within(name)] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

func (t tree) with(more tree) tree {
	out := maps.Clone(t)
	maps.Copy(out, more)
	return out
}

// unified is a process in a service of a machine with version 2.
var unified = tree{
	"/proc/self/cgroup":    "0::/system.slice/one.service\n",
	"/proc/self/mountinfo": "22 27 0:21 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
}

// v1 is one in a box of a machine with version 1.
var v1 = tree{
	"/proc/self/cgroup":    "5:memory:/a/b\n4:cpuacct,cpu:/a/b\n0::/\n",
	"/proc/self/mountinfo": "30 1 0:3 / /cg/unified rw - cgroup2 cgroup2 rw\n31 1 0:4 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n33 31 0:30 / /cg/memory rw - cgroup cgroup rw,memory\n",
}

func TestMemory(t *testing.T) {
	const slice, own = "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/system.slice/one.service"
	for _, tc := range []struct {
		name        string
		files       tree
		limit, used uint64
		err         string
	}{
		{name: "no group", files: tree{"/proc/self/cgroup": "", "/proc/self/mountinfo": ""}},
		{name: "no limit", files: unified.with(tree{own + "/memory.max": "max\n", own + "/memory.current": "5\n"})},
		{name: "its own", files: unified.with(tree{own + "/memory.max": "1000\n", own + "/memory.current": "300\n"}), limit: 1000, used: 300},
		{name: "file cache is not in use", limit: 1000, used: 100, files: unified.with(tree{
			own + "/memory.max": "1000\n", own + "/memory.current": "300\n", own + "/memory.stat": "anon 1\ninactive_file 200\nactive_file 7\n"})},
		{name: "the tighter one of an ancestor", limit: 2000, used: 1900, files: unified.with(tree{
			own + "/memory.max": "1000\n", own + "/memory.current": "300\n", slice + "/memory.max": "2000\n", slice + "/memory.current": "1900\n"})},
		{name: "more than the limit in use", limit: 1000, used: 1000, files: unified.with(tree{own + "/memory.max": "1000\n", own + "/memory.current": "1300\n"})},
		{name: "no size", files: unified.with(tree{own + "/memory.max": "much\n"}), err: `"much" is not a size`},
		{name: "no number", files: unified.with(tree{own + "/memory.max": "1000\n", own + "/memory.current": "x\n"}), err: "not a whole number"},
		{name: "no files", files: tree{}, err: "cannot read /proc/self/cgroup"},
		// What version 1 calls no limit is a number, and a group's ancestors count.
		{name: "version 1", limit: 1000, used: 300, files: v1.with(tree{
			"/cg/memory/memory.limit_in_bytes": "9223372036854771712", "/cg/memory/memory.usage_in_bytes": "1",
			"/cg/memory/a/memory.limit_in_bytes": "1000", "/cg/memory/a/memory.usage_in_bytes": "400",
			"/cg/memory/a/memory.stat":             "total_inactive_file 100\n",
			"/cg/memory/a/b/memory.limit_in_bytes": "5000", "/cg/memory/a/b/memory.usage_in_bytes": "10",
		})},
		// A container's mount begins at its own group.
		{name: "a container", limit: 1000, used: 10, files: tree{
			"/proc/self/cgroup":         "0::/kubepods/pod1/c1\n",
			"/proc/self/mountinfo":      "30 23 0:26 /kubepods/pod1/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
			"/sys/fs/cgroup/memory.max": "1000\n", "/sys/fs/cgroup/memory.current": "10\n",
		}},
	} {
		limit, used, err := Memory(tc.files.fs())
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if limit != tc.limit || used != tc.used {
			t.Errorf("%s: %d of %d, not %d of %d", tc.name, used, limit, tc.used, tc.limit)
		}
	}
}

func TestCPUs(t *testing.T) {
	const own = "/sys/fs/cgroup/system.slice/one.service/cpu.max"
	for _, tc := range []struct {
		name  string
		files tree
		cpus  float64
		err   string
	}{
		{name: "no quota", files: unified.with(tree{own: "max 100000\n"})},
		{name: "its own", files: unified.with(tree{own: "150000 100000\n"}), cpus: 1.5},
		{name: "the least of the ancestors", files: unified.with(tree{own: "800000 100000\n", "/sys/fs/cgroup/system.slice/cpu.max": "200000 100000\n"}), cpus: 2},
		{name: "version 1", files: v1.with(tree{"/cg/cpu/a/cpu.cfs_quota_us": "50000", "/cg/cpu/a/cpu.cfs_period_us": "100000", "/cg/cpu/a/b/cpu.cfs_quota_us": "-1", "/cg/cpu/a/b/cpu.cfs_period_us": "100000"}), cpus: 0.5},
		{name: "nonsense", files: unified.with(tree{own: "150000 0\n"}), err: "not a quota and a period"},
	} {
		cpus, err := CPUs(tc.files.fs())
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if cpus != tc.cpus {
			t.Errorf("%s: %g CPUs, not %g", tc.name, cpus, tc.cpus)
		}
	}
}

func TestAncestors(t *testing.T) {
	for _, c := range []struct{ root, point, own, want string }{
		{"/", "/cg", "/", "/cg"},
		{"/", "/cg", "/a/b", "/cg/a/b /cg/a /cg"},
		{"/docker/x", "/cg", "/docker/x/y", "/cg/y /cg"},
		{"/docker/x", "/cg", "/elsewhere", "/cg"},
		{"/docker/x", "/cg", "/docker/xy", "/cg"},
		{"/docker/x", "/cg/", "/docker/x", "/cg"},
		{"/", "/cg", "/../../outside", "/cg/outside /cg"},
	} {
		if got := strings.Join(ancestors(c.root, c.point, c.own), " "); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
