package doctor

import (
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

// pciDevice is a PCI device and the way to it from its root: host bridge, bridges, itself.
type pciDevice struct {
	address string // 0000:17:00.0
	path    []string
	node    int // NUMA, -1: unknown or none
}

const pciFolder = "/sys/bus/pci/devices/"

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// pci looks at a device. What cannot be read of it stays empty.
func (m *Machine) pci(address string) pciDevice {
	d := pciDevice{address: address, node: -1}
	if target, err := m.link(pciFolder + address); err == nil {
		d.path = pciPath(target)
	}
	if node, err := m.number(pciFolder + address + "/numa_node"); err == nil && node >= 0 && node < 1<<20 {
		d.node = int(node)
	}
	return d
}

// pciPath takes the way to the last PCI device that a link into /sys/devices passes; nil if it passes none,
// as that of a device that is software.
func pciPath(target string) []string {
	parts := strings.Split(target, "/")
	first, last := -1, -1
	for i, p := range parts {
		switch {
		case strings.HasPrefix(p, "pci") && first < 0:
			first = i
		case pciAddress.MatchString(p):
			last = i
		}
	}
	if last < 0 {
		return nil
	}
	if first < 0 || first > last {
		return parts[last : last+1]
	}
	return parts[first : last+1]
}

func (d pciDevice) String() string {
	node := "unknown"
	if d.node >= 0 {
		node = strconv.Itoa(d.node)
	}
	return fmt.Sprintf("PCI %s, NUMA node %s", d.address, node)
}

// pciClass lists the devices of a vendor whose class is among those given, by the class's first digits.
func (m *Machine) pciClass(vendor string, classes ...string) ([]pciDevice, error) {
	names, err := m.names(pciFolder)
	if err != nil {
		return nil, err
	}
	var out []pciDevice
	for _, name := range names {
		if !pciAddress.MatchString(name) {
			continue
		}
		if text, err := m.read(pciFolder + name + "/vendor"); err != nil || text != vendor {
			continue
		}
		class, err := m.read(pciFolder + name + "/class")
		for _, c := range classes {
			if err == nil && strings.HasPrefix(class, c) {
				out = append(out, m.pci(name))
				break
			}
		}
	}
	return out, nil
}

// nvidiaGPUs lists NVIDIA's display and 3D controllers, whether there is a driver or not.
func (m *Machine) nvidiaGPUs() ([]pciDevice, error) {
	return m.pciClass("0x10de", "0x0300", "0x0302")
}

// distance tells how far apart two PCI devices are, the nearest first.
type distance int

const (
	sameBridge distance = iota
	sameRoot
	sameNode
	otherNode
	unknownDistance
)

func (d distance) String() string {
	return []string{"behind the same PCIe bridge", "at the same host bridge", "on the same NUMA node",
		"on another NUMA node", "at an unknown distance"}[d]
}

// common is how many steps of the way from the root two devices share.
func common(a, b pciDevice) int {
	n := 0
	for n < len(a.path)-1 && n < len(b.path)-1 && a.path[n] == b.path[n] {
		n++
	}
	return n
}

func between(a, b pciDevice) distance {
	n := common(a, b)
	switch {
	case n > 0 && pciAddress.MatchString(a.path[n-1]):
		return sameBridge
	case n > 0:
		return sameRoot
	case a.node < 0 || b.node < 0:
		return unknownDistance
	case a.node == b.node:
		return sameNode
	}
	return otherNode
}

// nearest picks the device of the list that is nearest to d, the first of several.
func nearest(d pciDevice, list []pciDevice) (pciDevice, distance) {
	best := list[0]
	for _, other := range list[1:] {
		how, now := between(d, other), between(d, best)
		if how < now || how == now && common(d, other) > common(d, best) {
			best = other
		}
	}
	return best, between(d, best)
}

const (
	extendedStart = 0x100 // of PCI Express's extended capabilities in the configuration space
	capACS        = 0x000d
	acsControl    = 6           // offset in the capability
	acsRedirect   = 1<<2 | 1<<3 // requests, completions
)

// redirects tells whether a bridge sends what one device below it sends to another up to the root first
// (Access Control Services). Only root may read that far.
func (m *Machine) redirects(address string) (bool, error) {
	path := pciFolder + address + "/config"
	f, err := m.FS.Open(hostfs.Within(path))
	if err != nil {
		return false, hostfs.PathError(path, err)
	}
	defer func() { _ = f.Close() }()
	space, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return false, hostfs.PathError(path, err)
	}
	if len(space) <= extendedStart {
		return false, fmt.Errorf("cannot read %s beyond %d bytes, which needs root", path, len(space))
	}
	for at, seen := extendedStart, 0; at >= extendedStart && at+acsControl+2 <= len(space) && seen < 512; seen++ {
		header := binary.LittleEndian.Uint32(space[at:])
		if header&0xffff == capACS {
			return binary.LittleEndian.Uint16(space[at+acsControl:])&acsRedirect != 0, nil
		}
		at = int(header >> 20)
	}
	return false, nil
}

// redirecting lists the bridges between two devices that send their traffic over the root.
func (m *Machine) redirecting(a, b pciDevice) ([]string, error) {
	n := common(a, b)
	var out []string
	for _, d := range []pciDevice{a, b} {
		for _, bridge := range d.path[n:max(n, len(d.path)-1)] {
			if on, err := m.redirects(bridge); err != nil {
				return nil, err
			} else if on {
				out = append(out, bridge)
			}
		}
	}
	return out, nil
}
