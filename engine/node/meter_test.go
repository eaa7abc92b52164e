package node

import (
	"testing"
	"testing/fstest"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/infinite-llm/infinite/engine/device"
)

func TestMeter(t *testing.T) {
	box := dgxh100.New()
	var closed int
	box.ShutdownFunc = func() nvml.Return { closed++; return nvml.SUCCESS }
	for i, d := range box.Devices {
		d.(*server.Device).MemoryInfo = nvml.Memory{Total: 80 << 30, Used: uint64(i) << 30}
	}
	third := box.Devices[3].(*server.Device)
	for name, gpu := range map[string]device.GPU{
		"by its UUID":    {Ordinal: 0, UUID: third.UUID, PCI: "00000000:ff:00.0"}, // number 0 of those that are visible
		"by its address": {Ordinal: 0, PCI: third.PciBusID},
		"by its address, when its UUID is unknown": {Ordinal: 0, UUID: "GPU-of-another-machine", PCI: third.PciBusID},
	} {
		before := closed
		m := newMeter(box, Place{GPU: 0, Info: &gpu})
		if got := m.memory(); got.GetTotalBytes() != 80<<30 || got.GetUsedBytes() != 3<<30 || got.GetSource() != "nvml" {
			t.Errorf("%s: %v", name, got)
		}
		m.close()
		m.close()
		if closed != before+1 {
			t.Errorf("%s: %d times closed", name, closed-before)
		}
	}
	pair := newMeter(box, Place{Info: &device.GPU{UUID: third.UUID}, More: []device.GPU{{UUID: box.Devices[5].(*server.Device).UUID}}})
	if got := pair.memory(); got.GetTotalBytes() != 160<<30 || got.GetUsedBytes() != 8<<30 {
		t.Errorf("two GPUs: %v", got)
	}
	pair.close()
	for name, place := range map[string]Place{
		"unknown": {GPU: 0}, "gone": {GPU: 0, Info: &device.GPU{UUID: "GPU-of-another-machine"}}, "nameless": {GPU: 0, Info: &device.GPU{}},
		"one of two": {GPU: 0, Info: &device.GPU{UUID: third.UUID}, More: []device.GPU{{}}},
	} {
		m := newMeter(box, place)
		if got := m.memory(); got != nil {
			t.Errorf("%s: %v", name, got)
		}
		m.close()
	}
	broken := dgxh100.New()
	broken.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }
	if got := newMeter(broken, Place{GPU: 0, Info: &device.GPU{UUID: third.UUID}}).memory(); got != nil {
		t.Errorf("without NVML: %v", got)
	}
	third.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST }
	m := newMeter(box, Place{GPU: 0, Info: &device.GPU{UUID: third.UUID}})
	if got := m.memory(); got != nil {
		t.Errorf("a lost GPU: %v", got)
	}
	m.close()
	host := newMeter(nil, Place{GPU: -1})
	if got := host.memory(); got.GetSource() != "proc" && got.GetSource() != "cgroup" || got.GetTotalBytes() == 0 || got.GetUsedBytes() > got.GetTotalBytes() {
		t.Errorf("the host: %v", got)
	}
	host.close()
	(*meter)(nil).close()
}

// A container's limit counts where it leaves less than the machine has.
func TestHostMemory(t *testing.T) {
	files := fstest.MapFS{}
	put := func(name, text string) { files[name] = &fstest.MapFile{Data: []byte(text)} }
	expect := func(source string, total, used uint64) {
		t.Helper()
		if got := hostMemory(files); got.GetSource() != source || got.GetTotalBytes() != total || got.GetUsedBytes() != used {
			t.Errorf("%v, not %s with %d of %d", got, source, used, total)
		}
	}
	expect("proc", 0, 0)
	put("proc/meminfo", "MemTotal:       16 kB\nMemFree:        1 kB\nMemAvailable:    4 kB\n")
	expect("proc", 16<<10, 12<<10)
	put("proc/self/cgroup", "0::/\n")
	put("proc/self/mountinfo", "30 23 0:26 /pod /sys/fs/cgroup ro - cgroup2 cgroup rw\n")
	put("sys/fs/cgroup/memory.max", "8192\n")
	put("sys/fs/cgroup/memory.current", "1024\n")
	expect("proc", 16<<10, 12<<10) // the machine has less left than the limit
	put("sys/fs/cgroup/memory.current", "6144\n")
	expect("cgroup", 8192, 6144)
}
