package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/infinite-llm/infinite/engine/hostfs"
)

const rdmaClass = "/sys/class/infiniband/"

// The class tree is read here and not by rdmamap, whose paths are constants and which does not survive
// some malformed files.

// rdmaDevice is an RDMA device as the kernel shows it. What cannot be read is empty.
type rdmaDevice struct {
	name     string
	firmware string
	pci      *pciDevice // nil: software, such as Soft-RoCE
	file     string     // /dev/infiniband/uverbs0
	ports    []string   // "1"
}

type rdmaPort struct {
	device, name string // of the port: "1"
	state        string // ACTIVE
	physical     string // LinkUp
	layer        string // InfiniBand, Ethernet
	rate         string
	netdev       string
	netMTU       int
	gids         []gid
	cut          bool // there may be more GIDs
}

type gid struct {
	index   int
	address netip.Addr
	kind    string // "RoCE v2", "IB/RoCE v1"
}

func (m *Machine) rdmaNames() ([]string, error) { return m.names(rdmaClass) }

func (m *Machine) rdmaDevices() ([]rdmaDevice, error) {
	names, err := m.rdmaNames()
	if err != nil {
		return nil, err
	}
	devices := make([]rdmaDevice, len(names))
	for i, name := range names {
		d := rdmaDevice{name: name, file: m.verbsFile(name)}
		d.firmware, _ = m.word(rdmaClass + name + "/fw_ver")
		if target, err := m.link(rdmaClass + name); err == nil {
			if way := pciPath(target); way != nil {
				pci := m.pci(way[len(way)-1])
				pci.path = way
				d.pci = &pci
			}
		}
		if d.ports, err = m.names(rdmaClass + name + "/ports"); err != nil {
			return nil, err
		}
		slices.SortFunc(d.ports, func(a, b string) int { // by number
			return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
		})
		devices[i] = d
	}
	return devices, nil
}

// verbsFile is the file by which programs use a device.
func (m *Machine) verbsFile(device string) string {
	const class = "/sys/class/infiniband_verbs/"
	names, _ := m.names(class)
	for _, name := range names {
		if of, err := m.read(class + name + "/ibdev"); err == nil && of == device {
			return "/dev/infiniband/" + name
		}
	}
	return ""
}

// rdmaPort reads a port, its GIDs until a moment.
func (m *Machine) rdmaPort(device, port string, until time.Time) rdmaPort {
	folder := rdmaClass + device + "/ports/" + port
	p := rdmaPort{device: device, name: port}
	p.state, p.physical = m.afterColon(folder+"/state"), m.afterColon(folder+"/phys_state")
	p.layer, _ = m.word(folder + "/link_layer")
	p.rate, _ = m.word(folder + "/rate")
	m.readGIDs(folder, &p, until)
	if p.netdev != "" && path.Base(p.netdev) == p.netdev {
		if mtu, err := m.number("/sys/class/net/" + p.netdev + "/mtu"); err == nil && mtu < 1<<30 {
			p.netMTU = int(mtu)
		}
	}
	return p
}

// readGIDs reads a port's table in order. It has hundreds of entries, a file each, most of them empty; those in
// use come first, mostly. Where files are slow, as in an emulated machine, it is not read to its end.
func (m *Machine) readGIDs(folder string, p *rdmaPort, until time.Time) {
	entries, _ := m.names(folder + "/gids")
	var indexes []int
	for _, entry := range entries {
		if index, err := strconv.Atoi(entry); err == nil {
			indexes = append(indexes, index)
		}
	}
	slices.Sort(indexes)
	for _, index := range indexes {
		if p.cut = time.Now().After(until); p.cut {
			return
		}
		entry := strconv.Itoa(index)
		text, err := m.read(folder + "/gids/" + entry)
		if err != nil {
			continue // such as an entry without a network interface
		}
		address, err := netip.ParseAddr(text)
		if err != nil || address.IsUnspecified() {
			continue
		}
		kind, _ := m.word(folder + "/gid_attrs/types/" + entry)
		p.gids = append(p.gids, gid{index, address.Unmap(), kind})
		if netdev, err := m.word(folder + "/gid_attrs/ndevs/" + entry); err == nil && p.netdev == "" {
			p.netdev = netdev
		}
	}
}

// afterColon reads "4: ACTIVE" as ACTIVE.
func (m *Machine) afterColon(file string) string {
	text, err := m.word(file)
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(text, ":")
	return strings.TrimSpace(after)
}

func (p rdmaPort) ethernet() bool { return p.layer == "Ethernet" }

func (p rdmaPort) infiniband() bool { return p.layer == "InfiniBand" }

func (p rdmaPort) active() bool { return p.state == "ACTIVE" }

// best is the GID that a link would take: RoCE v2 and not link-local on Ethernet, IPv4 before IPv6.
func (p rdmaPort) best() (gid, bool) {
	var best gid
	rank := 0
	if !p.ethernet() && !p.infiniband() {
		return best, false
	}
	for _, g := range p.gids {
		r := 1
		switch {
		case p.infiniband():
		case g.kind != "RoCE v2" || g.address.IsLinkLocalUnicast():
			continue
		case g.address.Is4():
			r = 2
		}
		if r > rank {
			best, rank = g, r
		}
	}
	return best, rank > 0
}

func (p rdmaPort) usable() bool {
	_, found := p.best()
	return found && p.active()
}

const verbsLibrary = "libibverbs.so.1"

func checkLibrary(_ context.Context, m *Machine) Result {
	const subject = "library"
	const remedy = "apt-get install libibverbs1 ibverbs-providers"
	names, err := m.rdmaNames()
	if err != nil {
		return unknown("rdma", subject, err)
	}
	missing, err := m.Libraries.Missing(verbsLibrary, "_ibv_query_gid_table")
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("it lacks %s, which came with rdma-core 32", strings.Join(missing, ", "))
	}
	switch {
	case err == nil:
		return ok("rdma", subject, "%s is there", verbsLibrary)
	case m.Config.Transport == "verbs":
		return failure("rdma", subject, remedy, "%s cannot be used, which --transport verbs needs: %s", verbsLibrary, oneLine(err))
	case len(names) > 0:
		return warning("rdma", subject, remedy, "%s cannot be used, so that RDMA devices lie idle: %s", verbsLibrary, oneLine(err))
	}
	return ok("rdma", subject, "%s is not there; not needed, this machine has no RDMA device", verbsLibrary)
}

// checkDevices describes each device.
func checkDevices(_ context.Context, m *Machine) []Result {
	const subject = "devices"
	devices, err := m.rdmaDevices()
	if err != nil {
		return []Result{unknown("rdma", subject, err)}
	}
	var results []Result
	used := m.Config.MayUseVerbs()
	for _, wanted := range m.Config.RDMADevice {
		if used && !slices.ContainsFunc(devices, func(d rdmaDevice) bool { return d.name == wanted }) {
			results = append(results, failure("rdma", wanted, "name one that is there, or leave --rdma-device out", "--rdma-device names it, and this machine has no such device"))
		}
	}
	if len(devices) == 0 {
		return append(results, m.noDevices())
	}
	for _, d := range devices {
		results = append(results, m.describe(d))
	}
	return results
}

func (m *Machine) noDevices() Result {
	const subject = "devices"
	cards, err := m.pciClass("0x15b3", "0x02")
	if err != nil {
		return unknown("rdma", subject, err)
	}
	found, remedy := "none", "plug in a card that has RDMA, or use --transport auto"
	if len(cards) > 0 {
		found = fmt.Sprintf("none, though a Mellanox network card is at %s", cards[0].address)
		remedy = "sudo modprobe mlx5_ib (cards before ConnectX-4: mlx4_ib)"
	}
	if m.Config.Transport == "verbs" {
		return failure("rdma", subject, remedy, "%s, but --transport verbs needs one", found)
	}
	if len(cards) > 0 {
		return warning("rdma", subject, remedy, "%s; links between machines go by tcp", found)
	}
	return ok("rdma", subject, "none; links between machines go by tcp")
}

func (m *Machine) describe(d rdmaDevice) Result {
	where := "no PCI device behind it (software)"
	if d.pci != nil {
		where = d.pci.String()
	}
	firmware := d.firmware
	if firmware == "" {
		firmware = "unknown"
	}
	found := fmt.Sprintf("%s, firmware %s, %s", where, firmware, count(len(d.ports), "port"))
	if d.file == "" {
		return warning("rdma", d.name, "sudo modprobe ib_uverbs", "%s; programs cannot use it, it has no device file", found)
	}
	f, err := m.FS.Open(hostfs.Within(d.file))
	if err != nil {
		return warning("rdma", d.name, "give this user the right to open it (docker: --device /dev/infiniband)", "%s; %v", found, hostfs.PathError(d.file, err))
	}
	_ = f.Close()
	return ok("rdma", d.name, "%s, %s", found, d.file)
}
