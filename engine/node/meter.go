package node

import (
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/infinite-llm/infinite/engine/cgroup"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/device"
)

// gpuLibrary is the part of NVML that is asked.
type gpuLibrary interface {
	Init() nvml.Return
	Shutdown() nvml.Return
	DeviceGetHandleByUUID(uuid string) (nvml.Device, nvml.Return)
	DeviceGetHandleByPciBusId(address string) (nvml.Device, nvml.Return)
}

// meter reads how much memory is taken where the instance computes.
type meter struct {
	host    bool
	library gpuLibrary // nil: none was opened
	gpus    []nvml.Device
}

// newMeter finds the instance's GPUs, which count together, each by what it is, and not by its number: NVML counts all GPUs of the machine, a process only
// those that it sees. Where it cannot be found, nothing is told.
func newMeter(library gpuLibrary, place Place) *meter {
	if !place.OnGPU() {
		return &meter{host: true}
	}
	if place.Info == nil {
		return &meter{}
	}
	if ret := library.Init(); ret != nvml.SUCCESS {
		slog.Warn("cannot watch the GPU's memory", "device", place.String(), "nvml_error", int(ret))
		return &meter{}
	}
	m := &meter{library: library}
	for _, gpu := range append([]device.GPU{*place.Info}, place.More...) {
		d, ret := find(library, &gpu)
		if ret != nvml.SUCCESS {
			slog.Warn("cannot watch the GPU's memory", "device", place.String(), "nvml_error", int(ret))
			m.close()
			break
		}
		m.gpus = append(m.gpus, d)
	}
	return m
}

func find(library gpuLibrary, gpu *device.GPU) (d nvml.Device, ret nvml.Return) {
	ret = nvml.ERROR_NOT_FOUND
	if gpu.UUID != "" {
		d, ret = library.DeviceGetHandleByUUID(gpu.UUID)
	}
	if ret != nvml.SUCCESS && gpu.PCI != "" {
		d, ret = library.DeviceGetHandleByPciBusId(gpu.PCI)
	}
	return d, ret
}

// memory is what the heartbeat tells, nil where nothing is known.
func (m *meter) memory() *pb.Memory {
	if m.host {
		return hostMemory(os.DirFS("/"))
	}
	if m.library == nil {
		return nil
	}
	sum := &pb.Memory{Source: "nvml"}
	for _, gpu := range m.gpus {
		info, ret := gpu.GetMemoryInfo()
		if ret != nvml.SUCCESS {
			return nil
		}
		sum.TotalBytes += info.Total
		sum.UsedBytes += info.Used
	}
	return sum
}

// close is safe on nil, and when nobody calls memory any more.
func (m *meter) close() {
	if m != nil && m.library != nil {
		m.library.Shutdown()
		m.library = nil
	}
}

// hostMemory is what a CPU instance's device memory is: the machine's, or, where a control group leaves less of it than
// there is, the group's.
func hostMemory(root fs.FS) *pb.Memory {
	text, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return &pb.Memory{Source: "proc"}
	}
	field := func(name string) uint64 {
		_, rest, _ := strings.Cut(string(text), name+":")
		kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, _ := strconv.ParseUint(kib, 10, 64)
		return n << 10
	}
	total := field("MemTotal")
	available := min(total, field("MemAvailable"))
	if limit, used, err := cgroup.Memory(root); err == nil && limit > 0 && limit-used < available {
		return &pb.Memory{TotalBytes: limit, UsedBytes: used, Source: "cgroup"}
	}
	return &pb.Memory{TotalBytes: total, UsedBytes: total - available, Source: "proc"}
}
