package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// checkGPUs asks NVML. Devices are found on the PCI bus as well, which tells a machine without a GPU from
// one without its driver.
func checkGPUs(_ context.Context, m *Machine) []Result {
	onBus, err := m.nvidiaGPUs()
	if err != nil {
		return []Result{unknown("gpu", "driver", err)}
	}
	if ret := m.NVML.Init(); ret != nvml.SUCCESS {
		return []Result{m.noNVML(ret, onBus)}
	}
	defer m.NVML.Shutdown()
	n, ret := m.NVML.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return []Result{m.noNVML(ret, onBus)}
	}
	if n == 0 && len(onBus) == 0 {
		return []Result{ok("gpu", "driver", "none: the CPU is used")}
	}
	results := []Result{m.driver(n, onBus)}
	for i := range n {
		results = append(results, m.gpu(i))
	}
	return results
}

// noNVML says why NVML does not answer.
func (m *Machine) noNVML(ret nvml.Return, onBus []pciDevice) Result {
	const subject = "driver"
	var addresses []string
	for _, d := range onBus {
		addresses = append(addresses, d.address)
	}
	at := "NVIDIA GPU at " + strings.Join(addresses, ", ")
	switch {
	case ret == nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		module, _ := m.word("/sys/module/nvidia/version")
		const remedy = "restart the machine, or load the modules anew (sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; sudo modprobe nvidia)"
		return failure("gpu", subject, remedy, "the driver's library and its kernel module (version %s) do not match", orUnknown(module))
	case ret == nvml.ERROR_NO_PERMISSION:
		return failure("gpu", subject, "give this user the right to open /dev/nvidiactl and /dev/nvidia[0-9]*", "the driver may not be used: %s", nvmlText(ret))
	case len(onBus) == 0 && (ret == nvml.ERROR_LIBRARY_NOT_FOUND || ret == nvml.ERROR_DRIVER_NOT_LOADED):
		return ok("gpu", subject, "none: the CPU is used")
	case ret == nvml.ERROR_LIBRARY_NOT_FOUND:
		return warning("gpu", subject, "install the NVIDIA driver (Debian: apt-get install nvidia-driver; Ubuntu: ubuntu-drivers install; docker: --gpus all)",
			"%s, but libnvidia-ml.so.1 cannot be loaded; the CPU is used", at)
	case ret == nvml.ERROR_DRIVER_NOT_LOADED:
		return failure("gpu", subject, "sudo modprobe nvidia (if that fails: dkms status, dmesg)", "%s, but the kernel module is not loaded", at)
	}
	return failure("gpu", subject, "look for NVRM in dmesg, and run nvidia-smi", "the driver does not answer: %s", nvmlText(ret))
}

// nvmlText is a return value in words. The library's own text function is gone with the library.
func nvmlText(ret nvml.Return) string {
	words := map[nvml.Return]string{
		nvml.ERROR_UNINITIALIZED: "not initialized", nvml.ERROR_NOT_SUPPORTED: "not supported", nvml.ERROR_NO_PERMISSION: "no permission",
		nvml.ERROR_IRQ_ISSUE: "interrupts do not work", nvml.ERROR_GPU_IS_LOST: "the GPU is lost", nvml.ERROR_RESET_REQUIRED: "the GPU must be reset",
		nvml.ERROR_OPERATING_SYSTEM: "the operating system blocks the GPU", nvml.ERROR_INSUFFICIENT_POWER: "power is not connected",
		nvml.ERROR_MEMORY: "no memory", nvml.ERROR_TIMEOUT: "timeout", nvml.ERROR_UNKNOWN: "unknown error",
	}
	if text, found := words[ret]; found {
		return text
	}
	return fmt.Sprintf("NVML error %d", int(ret))
}

func (m *Machine) driver(n int, onBus []pciDevice) Result {
	const subject = "driver"
	version, ret := m.NVML.SystemGetDriverVersion()
	if ret != nvml.SUCCESS || version == "" {
		version = "unknown"
	}
	cuda := "unknown"
	if m.nvmlHas("nvmlSystemGetCudaDriverVersion") {
		if v, ret := m.NVML.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS && v > 0 {
			cuda = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
		}
	}
	found := fmt.Sprintf("%s, driver %s, CUDA %s", count(n, "GPU"), version, cuda)
	if n < len(onBus) { // as in a container that was given some of them
		found += fmt.Sprintf("; %d are on the PCI bus", len(onBus))
	}
	if !m.UsesGPUs {
		found += "; this build computes on the CPU and does not use them"
	}
	return ok("gpu", subject, "%s", found)
}

// nvmlHas tells whether the loaded library has a function. Calling one that it lacks ends the process.
func (m *Machine) nvmlHas(symbol string) bool {
	extensions := m.NVML.Extensions()
	return extensions != nil && extensions.LookupSymbol(symbol) == nil
}

// gpu describes one GPU.
func (m *Machine) gpu(index int) Result {
	subject := fmt.Sprintf("gpu%d", index)
	reset := fmt.Sprintf("end what uses it, then sudo nvidia-smi --gpu-reset -i %d; if it comes again, have the card checked", index)
	d, ret := m.NVML.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return failure("gpu", subject, reset, "it cannot be used: %s", nvmlText(ret))
	}
	name, ret := d.GetName()
	if ret == nvml.ERROR_GPU_IS_LOST || ret == nvml.ERROR_RESET_REQUIRED {
		return failure("gpu", subject, reset, "it cannot be used: %s", nvmlText(ret))
	}
	if ret != nvml.SUCCESS || name == "" {
		name = "GPU of unknown name"
	}
	found := []string{name}
	memory, ret := d.GetMemoryInfo()
	switch {
	case ret == nvml.ERROR_GPU_IS_LOST || ret == nvml.ERROR_RESET_REQUIRED:
		return failure("gpu", subject, reset, "%s cannot be used: %s", name, nvmlText(ret))
	case ret != nvml.SUCCESS || memory.Total == 0:
		found = append(found, "memory unknown")
	default:
		found = append(found, fmt.Sprintf("%s, %s free", size(memory.Total), size(memory.Free)))
	}
	if address, err := gpuAddress(d); err != nil {
		found = append(found, "PCI address unknown")
	} else {
		found = append(found, m.pci(address).String())
	}
	ecc, problem, remedy := m.ecc(d, index)
	found = append(found, ecc, m.mig(d))
	text := strings.Join(found, ", ")
	switch {
	case problem == "":
		return ok("gpu", subject, "%s", text)
	case strings.HasPrefix(problem, "uncorrected"):
		return failure("gpu", subject, reset, "%s; %s", text, problem)
	}
	return warning("gpu", subject, remedy, "%s; %s", text, problem)
}

// gpuAddress is a GPU's PCI address as /sys writes it.
func gpuAddress(d nvml.Device) (string, error) {
	info, ret := d.GetPciInfo()
	if ret != nvml.SUCCESS {
		return "", fmt.Errorf("cannot read the PCI address: %s", nvmlText(ret))
	}
	var text strings.Builder
	for _, c := range info.BusId {
		if c == 0 {
			break
		}
		text.WriteByte(byte(c))
	}
	address := strings.ToLower(text.String())
	// NVML writes eight digits of the domain, /sys four where they do.
	if len(address) == len("00000000:17:00.0") && strings.HasPrefix(address, "0000") {
		address = address[4:]
	}
	if !pciAddress.MatchString(address) {
		return "", errors.New("cannot read the PCI address: NVML gives none")
	}
	return address, nil
}

// ecc describes the memory's error correction; problem is what is wrong with it, if anything.
func (m *Machine) ecc(d nvml.Device, index int) (text, problem, remedy string) {
	if !m.nvmlHas("nvmlDeviceGetEccMode") {
		return "ECC unknown", "", ""
	}
	now, next, ret := d.GetEccMode()
	switch {
	case ret == nvml.ERROR_NOT_SUPPORTED:
		return "no ECC", "", ""
	case ret != nvml.SUCCESS:
		return "ECC unknown", "", ""
	case now != next:
		return "ECC " + onOff(now == nvml.FEATURE_ENABLED), "ECC will be " + onOff(next == nvml.FEATURE_ENABLED) + " after a restart", "restart the machine"
	case now != nvml.FEATURE_ENABLED:
		return "ECC off", "memory errors go unnoticed", fmt.Sprintf("sudo nvidia-smi -i %d -e 1, then restart the machine", index)
	}
	if m.nvmlHas("nvmlDeviceGetTotalEccErrors") {
		if n, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS && n > 0 {
			return "ECC on", fmt.Sprintf("uncorrected memory errors since the driver was loaded: %d", n), ""
		}
	}
	return "ECC on", "", ""
}

func (m *Machine) mig(d nvml.Device) string {
	if !m.nvmlHas("nvmlDeviceGetMigMode") {
		return "MIG unknown"
	}
	now, _, ret := d.GetMigMode()
	switch {
	case ret == nvml.ERROR_NOT_SUPPORTED:
		return "no MIG"
	case ret != nvml.SUCCESS:
		return "MIG unknown"
	}
	return "MIG " + onOff(now == nvml.DEVICE_MIG_ENABLE)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
