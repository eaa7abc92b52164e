package doctor

import (
	"context"
	"fmt"

	"github.com/infinite-llm/infinite/engine/config"
)

// checkBuild says whether this program can list GPUs.
func checkBuild(_ context.Context, m *Machine) Result {
	const subject = "build"
	if m.UsesGPUs {
		return ok("gpu", subject, "this build: -tags cuda yes")
	}
	onBus, err := m.nvidiaGPUs()
	if err == nil && len(onBus) > 0 {
		return warning("gpu", subject, "make build-cuda, and run bin/infinite-cuda", "this build: -tags cuda no; there is a GPU, which it does not find by itself")
	}
	return ok("gpu", subject, "this build: -tags cuda no")
}

// checkCUDALibrary looks for the kernels, which are a library of their own.
func checkCUDALibrary(_ context.Context, m *Machine) Result {
	const subject = "library"
	if m.CUDALibrary == nil {
		return Result{}
	}
	where, err := m.CUDALibrary()
	if err == nil {
		return ok("gpu", subject, "CUDA library: %s", where)
	}
	onBus, unread := m.nvidiaGPUs()
	if m.OnGPU || unread == nil && len(onBus) > 0 {
		return warning("gpu", subject, "make cuda, which builds it (or set INFINITE_CUDA_LIBRARY to where it is)", "CUDA library: %s", oneLine(err))
	}
	return ok("gpu", subject, "CUDA library: none; the CPU needs none")
}

// checkDevice says what --device comes to.
func checkDevice(_ context.Context, m *Machine) Result {
	const subject = "device"
	switch {
	case m.ConfigErr != nil || m.Device == "" && m.DeviceErr == nil:
		return Result{}
	case m.DeviceErr != nil:
		return failure("config", subject, "use --device auto, or mend what the lines on gpu say", "%s", oneLine(m.DeviceErr))
	}
	return ok("config", subject, "--device %s: %s", m.Config.Device, m.Device)
}

// pool is the memory of the host that an instance's KV pool takes, in bytes.
func (m *Machine) pool() uint64 {
	if m.OnGPU {
		return 0
	}
	if m.Config.KVCacheMemory == 0 {
		return uint64(config.CPUPool)
	}
	return uint64(m.Config.KVCacheMemory)
}

// poolText is how the pools are sized.
func (m *Machine) poolText() string {
	if m.OnGPU && m.Config.KVCacheMemory == 0 {
		return fmt.Sprintf("--gpu-memory-utilization %g", m.Config.GPUMemoryUtilization)
	}
	return "--kv-cache-memory " + max(m.Config.KVCacheMemory, config.Size(m.pool())).String()
}

// checkGPUNeed is checkNeed for instances on GPUs.
func (m *Machine) checkGPUNeed() Result {
	const subject = "memory"
	if m.GPUNeed == nil {
		return Result{}
	}
	found, err := m.GPUNeed()
	if err != nil {
		return failure("config", subject, "use other settings, as it says, or give --kv-cache-memory", "%s", oneLine(err))
	}
	return ok("config", subject, "%s", found)
}
