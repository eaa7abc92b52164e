package rdma

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/Mellanox/rdmamap"
)

// RDMADevice is an RDMA device of this host and the network interfaces that lead to it.
type RDMADevice struct {
	Name        string
	Ports       []string
	CharDevices []string // device files a process must be able to open to use it
	NetDevices  []string
}

// Devices lists the host's RDMA devices by name; none is an empty list, not an error. It reads the
// kernel's class tree alone and needs no RDMA library.
func Devices() ([]RDMADevice, error) {
	if _, err := os.Stat(rdmamap.RdmaClassDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("cannot look for RDMA devices: %w", err)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("cannot list network interfaces: %w", err)
	}
	names := rdmamap.GetRdmaDeviceList()
	slices.Sort(names)
	devices := make([]RDMADevice, len(names))
	for i, name := range names {
		devices[i] = RDMADevice{Name: name, Ports: rdmamap.GetPorts(name), CharDevices: rdmamap.GetRdmaCharDevices(name)}
	}
	for _, nic := range interfaces {
		name, err := rdmamap.GetRdmaDeviceForNetdevice(nic.Name)
		if err != nil {
			continue // not an RDMA interface
		}
		if i := slices.Index(names, name); i >= 0 {
			devices[i].NetDevices = append(devices[i].NetDevices, nic.Name)
		}
	}
	return devices, nil
}

// Near names the RDMA devices that are nearest to the PCI device with this address (0000:17:00.0), a GPU: all that
// share the most of the way from the root with it, else all of its NUMA node; none if none shares that.
func Near(address string) ([]string, error) {
	devices, err := Devices()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.Name
	}
	return nearest("/sys", address, names), nil
}

func nearest(sys, address string, names []string) []string {
	address = strings.ToLower(address)
	if long := len(address) - len("0000:00:00.0"); long > 0 && strings.Trim(address[:long], "0") == "" {
		address = address[long:] // NVML writes the domain with eight digits
	}
	gpu := lookAtPCI(filepath.Join(sys, "bus/pci/devices", address))
	var near []string
	best := 0
	for _, name := range names {
		score := gpu.closeness(lookAtPCI(filepath.Join(sys, "class/infiniband", name, "device")))
		if score > best {
			near, best = nil, score
		}
		if score == best && score > 0 {
			near = append(near, name)
		}
	}
	return near
}

// pciPlace is where a PCI device is: the way to it from its host bridge, and its NUMA node.
type pciPlace struct {
	path []string
	node int // -1: unknown, or none
}

// lookAtPCI follows a device's link in sysfs. What is no PCI device, as software is, has no path.
func lookAtPCI(link string) pciPlace {
	p := pciPlace{node: -1}
	target, err := filepath.EvalSymlinks(link)
	if err != nil {
		return p
	}
	parts := strings.Split(target, "/")
	if i := slices.IndexFunc(parts, func(s string) bool { return strings.HasPrefix(s, "pci") }); i >= 0 {
		p.path = parts[i:]
	}
	text, err := os.ReadFile(filepath.Join(target, "numa_node"))
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			p.node = n
		}
	}
	return p
}

// closeness is higher the more of the way two devices share; 1 if it is the NUMA node alone, 0 if nothing is.
func (p pciPlace) closeness(o pciPlace) int {
	n := 0
	for n < len(p.path)-1 && n < len(o.path)-1 && p.path[n] == o.path[n] {
		n++
	}
	switch {
	case n > 0:
		return 1 + n
	case p.node >= 0 && p.node == o.node:
		return 1
	}
	return 0
}
