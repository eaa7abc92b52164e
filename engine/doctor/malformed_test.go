package doctor

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/infinite-llm/infinite/engine/hostfs"
)

// garbage is what a file might hold that should hold something else.
var garbage = map[string]string{
	"empty": "", "blank": "\n\n", "word": "garbage", "negative": "-1", "huge": "99999999999999999999999", "large": "9223372036854775807", "colon": "4:",
	"binary": "\x00\xff\xfe\x01", "long": strings.Repeat("x:", 1<<12), "lines": "a: b\nc d\n: \n::\n", "range": "5-1,-", "brackets": "][",
}

// broken is a file system of which one file cannot be read.
type broken struct {
	fs.FS
	name string
}

func (b broken) Open(name string) (fs.File, error) {
	f, err := b.FS.Open(name)
	if err == nil && name == b.name {
		return brokenFile{f}, nil
	}
	return f, err
}

func (b broken) ReadLink(name string) (string, error) {
	if name == b.name {
		return "", errors.New("input/output error")
	}
	return fs.ReadLink(b.FS, name)
}

func (b broken) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(b.FS, name) }

type brokenFile struct{ fs.File }

func (brokenFile) Read([]byte) (int, error) { return 0, errors.New("invalid argument") }

// Whatever one file of the machine holds, no check fails, and each line is whole.
func TestMalformed(t *testing.T) {
	full := quiet.with(tree{
		"/sys/fs/cgroup/user.slice/memory.max": "4294967296", "/sys/fs/cgroup/user.slice/memory.stat": "inactive_file 5\n",
		"/proc/sys/vm/overcommit_memory": "2", "/sys/devices/" + wayNIC0 + "/iommu_group/type": "identity",
	})
	var checks []Check
	for _, c := range Checks() {
		if c.Name != "config" || c.Subject == "settings" { // the model's files are tested where they are read
			checks = append(checks, c)
		}
	}
	examine := func(t *testing.T, name string, m *Machine) {
		t.Helper()
		Run(t.Context(), m, checks, func(r Result) {
			checkShape(t, r)
			if strings.Contains(r.Found, "the check failed") || len(r.Line(false)) > 1000 {
				t.Errorf("%s: %.1000s", name, r.Line(false))
			}
		})
	}
	alter := func(m *Machine) {
		m.NVML = simulated(dgxh100.New())
		m.Config.Transport, m.Config.RDMAGIDIndex = "verbs", 3
	}
	for file := range full {
		for kind, text := range garbage {
			examine(t, file+" "+kind, machine(full.with(tree{file: text}), alter))
		}
		examine(t, file+" a link to nothing", machine(full.with(tree{file: linkMark + "nowhere"}), alter))
		examine(t, file+" a link out", machine(full.with(tree{file: linkMark + "../../../../../../../.."}), alter))
		examine(t, file+" gone", machine(full.with(tree{file: gone}), alter))
		examine(t, file+" a folder", machine(full.with(tree{file: gone, file + "/x": "1"}), alter))
		examine(t, file+" unreadable", machine(full, func(m *Machine) {
			alter(m)
			m.FS = broken{full.fs(), hostfs.Within(file)}
		}))
	}
}
