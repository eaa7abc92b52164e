package doctor

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// jumbo is the MTU that a network interface needs for the largest path MTU of RoCE, 4096 bytes and headers.
const jumbo = 4200

// checkPorts describes each port of each RDMA device, and then whether links can use any.
func checkPorts(_ context.Context, m *Machine) []Result {
	start := time.Now()
	devices, err := m.rdmaDevices()
	if err != nil {
		return []Result{unknown("rdma", "ports", err)}
	}
	if len(devices) == 0 {
		return nil
	}
	all := 0
	for _, d := range devices {
		all += len(d.ports)
	}
	mtus := m.activeMTUs()
	var results []Result
	good, cut := 0, false
	for _, d := range devices {
		allowed := len(m.Config.RDMADevice) == 0 || slices.Contains(m.Config.RDMADevice, d.name)
		for _, name := range d.ports {
			share := askLimit * time.Duration(len(results)+1) / time.Duration(all)
			p := m.rdmaPort(d.name, name, start.Add(share))
			results = append(results, m.port(p, mtus[d.name+"/"+p.name]))
			if allowed && p.usable() {
				good++
			}
			cut = cut || allowed && p.cut
		}
	}
	return append(results, m.usablePorts(good, all, cut))
}

func (m *Machine) usablePorts(good, all int, cut bool) Result {
	found := fmt.Sprintf("%d of %s can be used", good, count(all, "port"))
	const remedy = "mend what the lines of the devices and ports say"
	switch {
	case good > 0 || !m.Config.MayUseVerbs():
		return ok("rdma", "ports", "%s", found)
	case cut:
		return warning("rdma", "ports", slowTable, "%s, as far as their GIDs could be read in time", found)
	case m.Config.Transport == "verbs":
		return failure("rdma", "ports", remedy, "%s, but --transport verbs needs one", found)
	}
	return warning("rdma", "ports", remedy, "%s; links between machines go by tcp", found)
}

const slowTable = "look at all GIDs with ibv_devinfo -v"

// activeMTUs are the path MTUs that the library tells, by device/port. The kernel's files do not have them.
func (m *Machine) activeMTUs() map[string]int {
	out := map[string]int{}
	if m.Ports == nil {
		return out
	}
	ports, err := m.Ports()
	if err != nil {
		return out // the lines of the library and of each port say why
	}
	for _, p := range ports {
		out[p.Device+"/"+strconv.Itoa(p.Port)] = p.MTU
	}
	return out
}

func orUnknown(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}

func (m *Machine) port(p rdmaPort, mtu int) Result {
	subject := p.device + "/" + p.name
	words := []string{orUnknown(p.layer), orUnknown(p.state), orUnknown(p.rate)}
	if p.ethernet() {
		words[0] = "RoCE"
	}
	active := "active MTU unknown"
	if mtu > 0 {
		active = fmt.Sprintf("active MTU %d", mtu)
	}
	words = append(words, active)
	if p.netdev != "" {
		netMTU := "unknown"
		if p.netMTU > 0 {
			netMTU = strconv.Itoa(p.netMTU)
		}
		words = append(words, fmt.Sprintf("interface %s with MTU %s", p.netdev, netMTU))
	}
	words = append(words, p.gidText())
	found := strings.Join(words, ", ")
	problem, remedy := p.problem()
	if problem == "" && !p.cut {
		if at := m.Config.RDMAGIDIndex; at >= 0 && !slices.ContainsFunc(p.gids, func(g gid) bool { return g.index == at }) {
			problem, remedy = fmt.Sprintf("no GID has index %d, which --rdma-gid-index asks for", at), "use --rdma-gid-index -1"
		}
	}
	if problem != "" {
		return warning("rdma", subject, remedy, "%s; %s", found, problem)
	}
	return ok("rdma", subject, "%s", found)
}

// gidText names the GID that a link would take, and counts all by type.
func (p rdmaPort) gidText() string {
	if len(p.gids) == 0 && !p.cut {
		return "no GID"
	}
	kinds := map[string]int{}
	var order []string
	for _, g := range p.gids {
		kind := orUnknown(g.kind)
		if kinds[kind]++; kinds[kind] == 1 {
			order = append(order, kind)
		}
	}
	for i, kind := range order {
		order[i] = fmt.Sprintf("%d %s", kinds[kind], kind)
	}
	text := count(len(p.gids), "GID")
	if p.cut {
		text += " or more"
	}
	if len(order) > 0 {
		text += " (" + strings.Join(order, ", ") + ")"
	}
	if g, found := p.best(); found {
		text += fmt.Sprintf(", of which links take %d: %s", g.index, g.address)
	}
	return text
}

// problem is what keeps links from the port, or slows them, and the remedy; the worst first.
func (p rdmaPort) problem() (problem, remedy string) {
	netdev := p.netdev
	if netdev == "" {
		netdev = "INTERFACE"
	}
	v2 := func(g gid) bool { return g.kind == "RoCE v2" }
	_, good := p.best()
	switch {
	case p.state == "" || !p.ethernet() && !p.infiniband():
		return "whether links can use it is unknown", "run where /sys is mounted and readable"
	case p.infiniband() && (p.state == "INIT" || p.state == "ARMED"):
		return "no subnet manager has set it up", "start a subnet manager in this fabric: sudo systemctl start opensm"
	case !p.active() && p.ethernet():
		return "it is not active (" + orUnknown(p.physical) + ")", "sudo ip link set " + netdev + " up, and see to cable and switch"
	case !p.active():
		return "it is not active (" + orUnknown(p.physical) + ")", "see to cable and switch"
	case !good && p.cut:
		return "its GIDs could not all be read in time", slowTable
	case p.infiniband() && !good:
		return "it has no GID", "start a subnet manager in this fabric: sudo systemctl start opensm"
	case !good && slices.ContainsFunc(p.gids, v2):
		return "its RoCE v2 GIDs are all link-local, which links do not use", "sudo ip addr add ADDRESS/PREFIX dev " + netdev
	case !good && len(p.gids) > 0:
		return "it has no RoCE v2 GID", "use a card, driver and firmware with RoCE v2"
	case !good:
		return "it has no GID", "sudo ip addr add ADDRESS/PREFIX dev " + netdev
	case p.ethernet() && p.netMTU > 0 && p.netMTU < jumbo:
		return "too small for packets of 4096 bytes", "sudo ip link set " + netdev + " mtu 9000, on both ends and on the switches between"
	}
	return "", ""
}
