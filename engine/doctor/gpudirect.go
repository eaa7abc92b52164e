package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// cards are the RDMA devices with a PCI device behind them, and NVIDIA's GPUs.
func (m *Machine) cards() (devices []rdmaDevice, gpus []pciDevice, err error) {
	if devices, err = m.rdmaDevices(); err != nil {
		return nil, nil, err
	}
	gpus, err = m.nvidiaGPUs()
	return devices, gpus, err
}

// checkPairing finds the nearest GPU of each RDMA device.
func checkPairing(_ context.Context, m *Machine) []Result {
	devices, gpus, err := m.cards()
	if err != nil {
		return []Result{unknown("rdma", "pairing", err)}
	}
	if len(gpus) == 0 {
		return nil
	}
	var results []Result
	for _, d := range devices {
		if d.pci == nil {
			results = append(results, ok("rdma", d.name, "no PCI device behind it, so that no GPU is nearer than another"))
			continue
		}
		gpu, how := nearest(*d.pci, gpus)
		if how == otherNode {
			results = append(results, warning("rdma", d.name, "put card and GPU into slots of the same socket, or name a nearer device with --rdma-device",
				"the nearest GPU, %s, is %s (%d, the device %d)", gpu.address, how, gpu.node, d.pci.node))
			continue
		}
		results = append(results, ok("rdma", d.name, "the nearest GPU, %s, is %s", gpu.address, how))
	}
	return results
}

// checkGPUDirect tells how RDMA cards reach the memory of GPUs.
func checkGPUDirect(_ context.Context, m *Machine) Result {
	const subject = "gpudirect"
	devices, gpus, err := m.cards()
	if err != nil {
		return unknown("rdma", subject, err)
	}
	var nics []pciDevice
	for _, d := range devices {
		if d.pci != nil {
			nics = append(nics, *d.pci)
		}
	}
	if len(nics) == 0 || len(gpus) == 0 {
		return ok("rdma", subject, "not needed: this machine does not have both an NVIDIA GPU and an RDMA card")
	}
	way, why := m.gpuAccess()
	if way == "" {
		return warning("rdma", subject, "sudo modprobe nvidia-peermem, or install the driver's open kernel modules",
			"cards do not reach the GPUs' memory, bytes go through the host's: nvidia-peermem is not loaded, and for dma-buf %s", why)
	}
	notes := []string{way}
	for _, nic := range nics {
		gpu, how := nearest(nic, gpus)
		if how != sameBridge {
			continue
		}
		bridges, err := m.redirecting(nic, gpu)
		if err != nil {
			notes = append(notes, "ACS unknown: "+err.Error())
			break
		}
		if len(bridges) > 0 {
			return warning("rdma", subject, fmt.Sprintf("sudo setpci -s %s ECAP_ACS+6.w=0, or turn ACS off in the firmware", bridges[0]),
				"%s; bridge %s sends what goes between %s and %s over the root (ACS), which is slower", way, bridges[0], nic.address, gpu.address)
		}
	}
	for _, nic := range nics {
		kind, err := m.word(pciFolder + nic.address + "/iommu_group/type")
		if err == nil && strings.HasPrefix(kind, "DMA") {
			return warning("rdma", subject, "boot with iommu=pt", "%s; the IOMMU translates what %s writes (%s), which is slower", way, nic.address, kind)
		}
	}
	return ok("rdma", subject, "%s", strings.Join(notes, "; "))
}

// gpuAccess is the way by which cards can reach the memory of GPUs; if there is none, why not by dma-buf.
func (m *Machine) gpuAccess() (way, why string) {
	for _, module := range []string{"nvidia_peermem", "nv_peer_mem"} {
		if m.exists("/sys/module/" + module) {
			return "by " + module, ""
		}
	}
	text, major, minor, err := m.release()
	if err != nil {
		return "", "the kernel's version is unknown"
	}
	if !atLeast(major, minor, 5, 12) {
		return "", fmt.Sprintf("kernel %s is older than 5.12", text)
	}
	banner, err := m.read("/proc/driver/nvidia/version")
	if err != nil {
		return "", "the NVIDIA driver is not loaded"
	}
	if !strings.Contains(banner, "Open Kernel Module") {
		return "", "the driver's kernel modules are not the open ones"
	}
	version, err := m.word("/sys/module/nvidia/version")
	first, _, _ := strings.Cut(version, ".")
	if n, bad := strconv.Atoi(first); err != nil || bad != nil {
		return "", "the driver's version is unknown"
	} else if n < 515 {
		return "", fmt.Sprintf("driver %s is older than 515", version)
	}
	missing, err := m.Libraries.Missing(verbsLibrary, "ibv_reg_dmabuf_mr")
	if err != nil || len(missing) > 0 {
		return "", verbsLibrary + " has no ibv_reg_dmabuf_mr"
	}
	return "by dma-buf", ""
}
