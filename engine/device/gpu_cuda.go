//go:build cuda

package device

// gorgonia.org/cu calls cuInit as soon as the program starts, and ends it when that fails, as it does on a
// machine without a GPU. The linker leads that call to a function that does nothing, so that the driver is
// started by who asks for GPUs.

// #cgo LDFLAGS: -Wl,--wrap=cuInit -lcuda
// int __real_cuInit(unsigned flags);
// int __wrap_cuInit(unsigned flags) { return (void)flags, 0; }
// static int start_driver(void) { return __real_cuInit(0); }
// int cuGetErrorString(int error, const char **text);
import "C"

import (
	"fmt"
	"runtime"
	"sync"

	"gorgonia.org/cu"
)

// BuiltForCUDA tells whether this build can list GPUs.
const BuiltForCUDA = true

var startDriver = sync.OnceValue(func() error {
	code := C.start_driver()
	if code == 0 {
		return nil
	}
	var text *C.char
	if C.cuGetErrorString(code, &text) != 0 || text == nil {
		return fmt.Errorf("cannot start the CUDA driver: error %d", code)
	}
	return fmt.Errorf("cannot start the CUDA driver: %s (%d)", C.GoString(text), code)
})

// GPUs lists the CUDA devices that this process sees.
func GPUs() ([]GPU, error) {
	if err := startDriver(); err != nil {
		return nil, err
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, fmt.Errorf("cannot count the GPUs: %w", err)
	}
	gpus := make([]GPU, n)
	for i := range gpus {
		if gpus[i], err = describe(i); err != nil {
			return nil, fmt.Errorf("cannot describe CUDA device %d: %w", i, err)
		}
	}
	return gpus, nil
}

func describe(ordinal int) (g GPU, err error) {
	g.Ordinal = ordinal
	d, err := cu.GetDevice(ordinal)
	if err != nil {
		return g, err
	}
	if g.Name, err = d.Name(); err != nil {
		return g, err
	}
	memory, err := d.TotalMem()
	if err != nil {
		return g, err
	}
	g.Memory = uint64(memory)
	var domain, bus, slot int
	for _, a := range []struct {
		attribute cu.DeviceAttribute
		to        *int
	}{
		{cu.ComputeCapabilityMajor, &g.Major}, {cu.ComputeCapabilityMinor, &g.Minor},
		{cu.PciDomainID, &domain}, {cu.PciBusID, &bus}, {cu.PciDeviceID, &slot},
	} {
		if *a.to, err = d.Attribute(a.attribute); err != nil {
			return g, err
		}
	}
	g.PCI = fmt.Sprintf("%08x:%02x:%02x.0", domain, bus, slot)
	if id, err := d.UUID(); err == nil { // else it is found by its address
		g.UUID = "GPU-" + id.String()
	}
	return g, nil
}

// GPUFree is the memory of a GPU that nobody has taken, in bytes. The answer needs a context, which takes some
// memory itself while it is there.
func GPUFree(ordinal int) (uint64, error) {
	free, err := gpuFree(ordinal)
	if err != nil {
		return 0, fmt.Errorf("cannot ask CUDA device %d for its free memory: %w", ordinal, err)
	}
	return free, nil
}

func gpuFree(ordinal int) (uint64, error) {
	if err := startDriver(); err != nil {
		return 0, err
	}
	d, err := cu.GetDevice(ordinal)
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // whose current context the new one is
	defer runtime.UnlockOSThread()
	context, err := d.MakeContext(0)
	if err != nil {
		return 0, err
	}
	free, _, err := cu.MemInfo()
	if gone := context.Destroy(); err == nil {
		err = gone
	}
	return uint64(max(free, 0)), err
}
