package rdma

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/Mellanox/rdmamap"
)

// Devices names the host's RDMA devices, in order; none is an empty list, not an error. It reads the kernel's class tree
// alone and needs no RDMA library.
func Devices() ([]string, error) {
	if _, err := os.Stat(rdmamap.RdmaClassDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("cannot look for RDMA devices: %w", err)
	}
	names := rdmamap.GetRdmaDeviceList()
	slices.Sort(names)
	return names, nil
}

// Near names the RDMA devices that are nearest to the PCI device with this address (0000:17:00.0), a GPU: all that
// share the most of the way from the root with it, else all of its NUMA node; none if none shares that.
func Near(address string) ([]string, error) {
	names, err := Devices()
	if err != nil {
		return nil, err
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
