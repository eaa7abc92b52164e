package doctor

import (
	"errors"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// simulated completes a simulated box with what it panics on.
func simulated(s *server.Server) *server.Server {
	for i, d := range s.Devices {
		d := d.(*server.Device)
		d.MemoryInfo.Free = d.MemoryInfo.Total - 1<<30
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) {
			return pciInfo("0000000" + string(rune('0'+i)) + ":17:00.0"), nvml.SUCCESS
		}
		d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
	}
	return s
}

// pciInfo writes an address as NVML does.
func pciInfo(address string) nvml.PciInfo {
	var info nvml.PciInfo
	for i := range address {
		setChar(&info.BusId[i], address[i])
	}
	return info
}

// setChar is for C's char, whose sign differs between machines.
func setChar[T int8 | uint8](at *T, value byte) { *at = T(value) }

// onBus puts an NVIDIA GPU on the PCI bus.
func onBus(address string) tree {
	return tree{pciFolder + address + "/vendor": "0x10de\n", pciFolder + address + "/class": "0x030200\n", pciFolder + address + "/numa_node": "1\n"}
}

func TestNoDriver(t *testing.T) {
	says := func(ret nvml.Return) func(m *Machine) { return func(m *Machine) { m.NVML = noDriver(ret) } }
	gpu := onBus("0000:17:00.0")
	audio := tree{pciFolder + "0000:17:00.1/vendor": "0x10de\n", pciFolder + "0000:17:00.1/class": "0x040300\n"}
	runTable(t, plain, checkGPUs, []test{
		{name: "no library, no GPU", level: OK, found: "none: the CPU is used"},
		{name: "no library, its sound device", change: audio, level: OK, found: "none"},
		{name: "no driver, no GPU", alter: says(nvml.ERROR_DRIVER_NOT_LOADED), level: OK, found: "none"},
		{name: "no library", change: gpu, level: Warning, found: "NVIDIA GPU at 0000:17:00.0, but libnvidia-ml.so.1", remedy: "install the NVIDIA driver"},
		{name: "no driver", change: gpu, alter: says(nvml.ERROR_DRIVER_NOT_LOADED), level: Error, found: "not loaded", remedy: "modprobe nvidia"},
		{name: "mismatch", change: tree{"/sys/module/nvidia/version": "550.54.14\n"}, alter: says(nvml.ERROR_LIB_RM_VERSION_MISMATCH), level: Error,
			found: "its kernel module (version 550.54.14) do not match", remedy: "restart the machine"},
		{name: "mismatch, version unknown", alter: says(nvml.ERROR_LIB_RM_VERSION_MISMATCH), level: Error, found: "(version unknown)"},
		{name: "no permission", alter: says(nvml.ERROR_NO_PERMISSION), level: Error, found: "no permission", remedy: "/dev/nvidiactl"},
		{name: "unknown", alter: says(nvml.ERROR_UNKNOWN), level: Error, found: "unknown error", remedy: "dmesg"},
		{name: "newer than we", alter: says(777), level: Error, found: "NVML error 777"},
		{name: "malformed bus", change: tree{pciFolder + "x/vendor": "0x10de", pciFolder + "0000:18:00.0/vendor": "", pciFolder + "0000:19:00.0/vendor": "0x10de"}, level: OK, found: "none"},
	})
}

func TestSimulatedBoxes(t *testing.T) {
	for name, box := range map[string]*server.Server{"A100": dgxa100.New(), "H100": dgxh100.New()} {
		m := machine(plain.with(onBus("0000:17:00.0")), func(m *Machine) { m.NVML = simulated(box) })
		results := checkGPUs(t.Context(), m)
		if len(results) != 9 {
			t.Fatalf("%s: %v", name, results)
		}
		for i, r := range results {
			checkShape(t, r)
			if r.Level != OK {
				t.Errorf("%s: %s", name, r.Line(false))
			}
			if i > 0 && (!strings.Contains(r.Found, name) || !strings.Contains(r.Found, "GiB free") || !strings.Contains(r.Found, "ECC on, MIG off")) {
				t.Errorf("%s: %s", name, r.Line(false))
			}
		}
		if want := "8 GPUs, driver 550.54.15, CUDA 12.4; this build computes on the CPU"; !strings.Contains(results[0].Found, want) {
			t.Errorf("%s: %s", name, results[0].Line(false))
		}
		if want := "PCI 0000:17:00.0, NUMA node 1,"; !strings.Contains(results[1].Found, want) {
			t.Errorf("%s: %s", name, results[1].Line(false))
		}
		if want := "PCI 0001:17:00.0, NUMA node unknown,"; !strings.Contains(results[2].Found, want) {
			t.Errorf("%s: %s", name, results[2].Line(false))
		}
	}
}

func TestDriver(t *testing.T) {
	box := func(change func(s *server.Server)) func(m *Machine) {
		return func(m *Machine) {
			s := simulated(dgxh100.New())
			change(s)
			m.NVML = s
		}
	}
	two := onBus("0000:17:00.0").with(onBus("0000:18:00.0"))
	runTable(t, plain, checkGPUs, []test{
		{name: "some of the bus", change: two, alter: box(func(s *server.Server) { s.Devices = s.Devices[:1] }), level: OK, found: "1 GPU, driver 550.54.15, CUDA 12.4; 2 are on the PCI bus"},
		{name: "used", alter: func(m *Machine) { m.NVML, m.UsesGPUs = simulated(dgxh100.New()), true }, level: OK, found: "CUDA 12.4"},
		{name: "none", alter: box(func(s *server.Server) { s.Devices = nil }), level: OK, found: "none: the CPU is used"},
		{name: "none for us", change: two, alter: box(func(s *server.Server) { s.Devices = nil }), level: OK, found: "0 GPUs, driver 550.54.15"},
		{name: "no count", alter: box(func(s *server.Server) {
			s.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_UNKNOWN }
		}), level: Error, found: "does not answer"},
		{name: "versions unknown", alter: box(func(s *server.Server) {
			s.SystemGetDriverVersionFunc = func() (string, nvml.Return) { return "", nvml.ERROR_UNKNOWN }
			s.SystemGetCudaDriverVersionFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_UNKNOWN }
		}), level: OK, found: "driver unknown, CUDA unknown"},
		{name: "old library", alter: box(func(s *server.Server) {
			s.LookupSymbolFunc = func(string) error { return nvml.ERROR_FUNCTION_NOT_FOUND }
		}), level: OK, found: "CUDA unknown"},
	})
}

func TestGPU(t *testing.T) {
	device := func(change func(d *server.Device)) func(m *Machine) {
		return func(m *Machine) {
			s := simulated(dgxa100.New())
			change(s.Devices[1].(*server.Device))
			m.NVML = s
		}
	}
	ecc := func(now, next nvml.EnableState, ret nvml.Return) func(m *Machine) {
		return device(func(d *server.Device) {
			d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) { return now, next, ret }
		})
	}
	const on, off = nvml.FEATURE_ENABLED, nvml.FEATURE_DISABLED
	rows := []test{
		{name: "MIG", alter: device(func(d *server.Device) { d.MigMode = nvml.DEVICE_MIG_ENABLE }), level: OK, found: "MIG on"},
		{name: "no MIG", alter: device(func(d *server.Device) {
			d.GetMigModeFunc = func() (int, int, nvml.Return) { return 0, 0, nvml.ERROR_NOT_SUPPORTED }
		}), level: OK, found: "no MIG"},
		{name: "no ECC", alter: ecc(off, off, nvml.ERROR_NOT_SUPPORTED), level: OK, found: "no ECC"},
		{name: "ECC unknown", alter: ecc(off, off, nvml.ERROR_UNKNOWN), level: OK, found: "ECC unknown"},
		{name: "ECC off", alter: ecc(off, off, nvml.SUCCESS), level: Warning, found: "memory errors go unnoticed", remedy: "nvidia-smi -i 1 -e 1"},
		{name: "ECC pending", alter: ecc(off, on, nvml.SUCCESS), level: Warning, found: "ECC off, MIG off; ECC will be on", remedy: "restart"},
		{name: "uncorrected errors", alter: device(func(d *server.Device) {
			d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 3, nvml.SUCCESS }
		}), level: Error, found: "uncorrected memory errors since the driver was loaded: 3", remedy: "--gpu-reset -i 1"},
		{name: "lost", alter: device(func(d *server.Device) {
			d.GetNameFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
		}), level: Error, found: "the GPU is lost", remedy: "--gpu-reset -i 1"},
		{name: "lost a moment later", alter: device(func(d *server.Device) {
			d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_RESET_REQUIRED }
		}), level: Error, found: "must be reset"},
		{name: "no handle", alter: func(m *Machine) {
			s := simulated(dgxa100.New())
			s.DeviceGetHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_IRQ_ISSUE }
			m.NVML = s
		}, level: Error, found: "interrupts do not work"},
		{name: "nothing told", alter: device(func(d *server.Device) {
			d.GetNameFunc = func() (string, nvml.Return) { return "", nvml.ERROR_UNKNOWN }
			d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_UNKNOWN }
			d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{}, nvml.ERROR_UNKNOWN }
			d.GetMigModeFunc = func() (int, int, nvml.Return) { return 0, 0, nvml.ERROR_UNKNOWN }
		}), level: OK, found: "GPU of unknown name, memory unknown, PCI address unknown, ECC on, MIG unknown"},
		{name: "no address", alter: device(func(d *server.Device) {
			d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return pciInfo("../../etc"), nvml.SUCCESS }
		}), level: OK, found: "PCI address unknown"},
		{name: "old library", alter: func(m *Machine) {
			s := simulated(dgxa100.New())
			s.LookupSymbolFunc = func(string) error { return nvml.ERROR_FUNCTION_NOT_FOUND }
			m.NVML = s
		}, level: OK, found: "ECC unknown, MIG unknown"},
	}
	for i := range rows {
		rows[i].at = 2 // the driver's line, gpu0, gpu1
	}
	runTable(t, plain, checkGPUs, rows)
}

func TestBuildAndLibrary(t *testing.T) {
	gpu := onBus("0000:17:00.0")
	tagged := func(m *Machine) { m.UsesGPUs = true }
	runTable(t, plain, one(checkBuild), []test{
		{name: "no GPU", level: OK, found: "-tags cuda no"},
		{name: "a GPU", change: gpu, level: Warning, found: "-tags cuda no", remedy: "make build-cuda"},
		{name: "with the tag", change: gpu, alter: tagged, level: OK, found: "-tags cuda yes"},
	})
	library := func(where string, err error, onGPU bool) func(m *Machine) {
		return func(m *Machine) {
			m.CUDALibrary, m.OnGPU = func() (string, error) { return where, err }, onGPU
		}
	}
	missing := errors.New("cannot load the CUDA library: no such file")
	runTable(t, plain, one(checkCUDALibrary), []test{
		{name: "found", change: gpu, alter: library("/opt/libinfinite_cuda.so", nil, true), level: OK, found: "CUDA library: /opt/libinfinite_cuda.so"},
		{name: "missing, a GPU", change: gpu, alter: library("", missing, false), level: Warning, found: "no such file", remedy: "make cuda"},
		{name: "missing, used", alter: library("", missing, true), level: Warning, found: "no such file", remedy: "INFINITE_CUDA_LIBRARY"},
		{name: "missing, no GPU", alter: library("", missing, false), level: OK, found: "the CPU needs none"},
	})
	if r := one(checkCUDALibrary)(t.Context(), machine(plain, nil)); r != nil {
		t.Errorf("nobody looked: %v", r)
	}
}

func TestDevice(t *testing.T) {
	runTable(t, plain, one(checkDevice), []test{
		{name: "CPU", alter: func(m *Machine) { m.Device = "cpu; no GPU" }, level: OK, found: "--device auto: cpu; no GPU"},
		{name: "refused", alter: func(m *Machine) { m.DeviceErr = errors.New("cannot use --device cuda: no GPU") }, level: Error, found: "cannot use --device cuda", remedy: "--device auto"},
	})
	onGPU := func(need func() (string, error)) func(m *Machine) {
		return func(m *Machine) { m.OnGPU, m.GPUNeed = true, need }
	}
	runTable(t, plain, one(checkNeed), []test{
		{name: "fits", alter: onGPU(func() (string, error) { return "a pool of 99 blocks", nil }), level: OK, found: "99 blocks"},
		{name: "does not", alter: onGPU(func() (string, error) { return "", errors.New("cannot fit a KV pool on cuda:0") }), level: Error, found: "cannot fit", remedy: "--kv-cache-memory"},
	})
	runTable(t, plain, checkSettings, []test{
		{name: "pool by utilization", alter: onGPU(nil), level: OK, found: "--gpu-memory-utilization 0.9"},
		{name: "pool as given", alter: func(m *Machine) { m.OnGPU, m.Config.KVCacheMemory = true, 1<<30 }, level: OK, found: "--kv-cache-memory 1GiB"},
	})
	if r := one(checkNeed)(t.Context(), machine(plain, onGPU(nil))); r != nil {
		t.Errorf("nobody asked the GPU: %v", r)
	}
}
