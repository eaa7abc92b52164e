package rdma

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

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
