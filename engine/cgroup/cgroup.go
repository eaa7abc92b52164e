// Package cgroup reads what limits the kernel's control groups, of version 1 or 2, set to this process: those of a
// container, a pod or a service.
package cgroup

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

// group is where a controller's files of this process's control group lie: the group's own folder first,
// then its ancestors', up to the one that is visible as the root here.
type group struct {
	unified bool // version 2
	folders []string
}

// find finds the group of a controller ("cpu", "memory"); nil if this process is in none.
func find(f hostfs.Files, controller string) (*group, error) {
	own, err := f.Read("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := f.Read("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	unifiedPath, controllerPath := "", ""
	for line := range strings.Lines(own) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(parts) != 3:
		case parts[0] == "0" && parts[1] == "":
			unifiedPath = parts[2]
		case slices.Contains(strings.Split(parts[1], ","), controller):
			controllerPath = parts[2]
		}
	}
	// A machine may have both versions mounted; the controller is then in one of them.
	for line := range strings.Lines(mounts) {
		root, point, kind, options, found := mountLine(line)
		switch {
		case !found:
		case controllerPath != "" && kind == "cgroup" && slices.Contains(strings.Split(options, ","), controller):
			return &group{false, ancestors(root, point, controllerPath)}, nil
		case controllerPath == "" && unifiedPath != "" && kind == "cgroup2":
			return &group{true, ancestors(root, point, unifiedPath)}, nil
		}
	}
	return nil, nil
}

// mountLine takes the fields of a line of mountinfo that matter here. Between the sixth and "-" there may be
// any number of others.
func mountLine(line string) (root, point, kind, options string, found bool) {
	before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !ok || len(left) < 5 || len(right) < 3 {
		return "", "", "", "", false
	}
	return left[3], left[4], right[0], right[2], true
}

// ancestors lists the folders of a group from its own to the mount's. In a container the mount shows only a
// part of the tree, which begins at root.
func ancestors(root, point, own string) []string {
	point = path.Clean(point)
	rest, inside := strings.CutPrefix(path.Clean(own), strings.TrimSuffix(path.Clean(root), "/"))
	if !inside || rest != "" && rest[0] != '/' {
		return []string{point}
	}
	folders := []string{path.Join(point, rest)}
	for folders[len(folders)-1] != point && len(folders) < 64 {
		folders = append(folders, path.Dir(folders[len(folders)-1]))
	}
	return folders
}

// CPUs is the number of CPUs whose time this process may use, 0 if there is no limit.
func CPUs(root fs.FS) (float64, error) {
	f := hostfs.Files{Root: root}
	g, err := find(f, "cpu")
	if g == nil || err != nil {
		return 0, err
	}
	least := 0.0
	for _, folder := range g.folders {
		folderQuota, err := quota(f, g.unified, folder)
		if err != nil {
			return 0, err
		}
		if folderQuota > 0 && (least == 0 || folderQuota < least) {
			least = folderQuota
		}
	}
	return least, nil
}

func quota(f hostfs.Files, unified bool, folder string) (float64, error) {
	var text string
	if unified {
		file := folder + "/cpu.max"
		if !f.Exists(file) { // the root has none, nor has a group without the controller
			return 0, nil
		}
		var err error
		if text, err = f.Read(file); err != nil {
			return 0, err
		}
	} else {
		if !f.Exists(folder + "/cpu.cfs_quota_us") {
			return 0, nil
		}
		quota, err := f.Read(folder + "/cpu.cfs_quota_us")
		if err != nil {
			return 0, err
		}
		period, err := f.Read(folder + "/cpu.cfs_period_us")
		if err != nil {
			return 0, err
		}
		text = quota + " " + period
	}
	parts := strings.Fields(text)
	if len(parts) == 2 && (parts[0] == "max" || parts[0] == "-1") {
		return 0, nil
	}
	if len(parts) == 2 {
		quota, errQ := strconv.ParseUint(parts[0], 10, 62)
		period, errP := strconv.ParseUint(parts[1], 10, 62)
		if errQ == nil && errP == nil && period > 0 {
			return float64(quota) / float64(period), nil
		}
	}
	return 0, fmt.Errorf("cannot read the CPU quota in %s: %s is not a quota and a period", folder, hostfs.Quoted(text))
}

// noLimit is what version 1 writes for no limit, or more: the largest number, rounded to pages.
const noLimit = 1 << 62

// Memory is the tightest limit on this process's memory, and what of that is in use, in bytes, without file cache that the
// kernel gives up first; limit 0 is none.
func Memory(root fs.FS) (limit, used uint64, err error) {
	f := hostfs.Files{Root: root}
	g, err := find(f, "memory")
	if g == nil || err != nil {
		return 0, 0, err
	}
	limitFile, usedFile, cacheField := "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file"
	if g.unified {
		limitFile, usedFile, cacheField = "/memory.max", "/memory.current", "inactive_file"
	}
	room := uint64(0)
	for _, folder := range g.folders {
		if !f.Exists(folder + limitFile) {
			continue
		}
		text, err := f.Read(folder + limitFile)
		if err != nil {
			return 0, 0, err
		}
		if text == "max" {
			continue
		}
		bytes, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read %s: %s is not a size", folder+limitFile, hostfs.Quoted(text))
		}
		if bytes >= noLimit {
			continue
		}
		inUse, err := f.Number(folder + usedFile)
		if err != nil {
			return 0, 0, err
		}
		taken := min(bytes, uint64(max(0, inUse-cached(f, folder, cacheField))))
		if limit == 0 || bytes-taken < room {
			limit, used, room = bytes, taken, bytes-taken
		}
	}
	return limit, used, nil
}

// cached is the part of a group's memory that is file cache which the kernel gives up first; 0 if it is not told.
func cached(f hostfs.Files, folder, name string) int64 {
	text, err := f.Read(folder + "/memory.stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if parts := strings.Fields(line); len(parts) == 2 && parts[0] == name {
			n, _ := strconv.ParseInt(parts[1], 10, 64)
			return max(0, n)
		}
	}
	return 0
}
