package doctor

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

// Ways to PCI devices of the box: a NIC and a GPU behind one switch, another of each at other places.
const (
	wayNIC0 = "pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:00.0/0000:19:00.0"
	wayGPU0 = "pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:01.0/0000:1a:00.0"
	wayNIC1 = "pci0000:16/0000:16:02.0/0000:1b:00.0"
	wayGPU1 = "pci0000:80/0000:80:01.0/0000:81:00.0"
)

func lastOf(way string) string { return way[strings.LastIndex(way, "/")+1:] }

// pciAt puts a device at the end of a way; vendor and class as /sys writes them.
func pciAt(way, vendor, class, node string) tree {
	folder := "/sys/devices/" + way
	return tree{
		folder + "/vendor": vendor + "\n", folder + "/class": class + "\n", folder + "/numa_node": node + "\n",
		pciFolder + lastOf(way): linkMark + "../../../devices/" + way,
	}
}

// rdmaAt puts an RDMA device with one port below folder, which is a PCI device's or one of software.
func rdmaAt(folder, name, netdev, mtu string, gids ...string) tree {
	own := "/sys/devices/" + folder + "/infiniband/" + name
	port := own + "/ports/1"
	t := tree{
		"/sys/class/infiniband/" + name: linkMark + "../../devices/" + folder + "/infiniband/" + name,
		own + "/fw_ver":                 "20.31.1014\n", own + "/node_guid": "b83f:d203:00aa:bbcc\n",
		port + "/state": "4: ACTIVE\n", port + "/phys_state": "5: LinkUp\n", port + "/link_layer": "Ethernet\n", port + "/rate": "100 Gb/sec (4X EDR)\n",
		"/sys/class/infiniband_verbs/uverbs_" + name + "/ibdev": name + "\n", "/dev/infiniband/uverbs_" + name: "",
		"/sys/class/net/" + netdev + "/mtu": mtu + "\n",
	}
	for i, g := range gids {
		kind, address, _ := strings.Cut(g, "=")
		n := string(rune('0' + i))
		t[port+"/gids/"+n], t[port+"/gid_attrs/types/"+n], t[port+"/gid_attrs/ndevs/"+n] = address+"\n", kind+"\n", netdev+"\n"
	}
	return t
}

const (
	linkLocal = "fe80:0000:0000:0000:0202:c9ff:fe00:0001"
	mapped    = "0000:0000:0000:0000:0000:ffff:0a00:0005"
	global    = "2001:0db8:0000:0000:0000:0000:0000:0001"
)

// box is a machine with two RDMA cards and two GPUs.
var box = plain.
	with(pciAt(wayNIC0, "0x15b3", "0x020700", "0")).with(pciAt(wayNIC1, "0x15b3", "0x020000", "0")).
	with(pciAt(wayGPU0, "0x10de", "0x030200", "0")).with(pciAt(wayGPU1, "0x10de", "0x030200", "1")).
	with(rdmaAt(wayNIC0, "mlx5_0", "ens1", "9000", "IB/RoCE v1="+linkLocal, "RoCE v2="+linkLocal, "RoCE v2="+global, "RoCE v2="+mapped)).
	with(rdmaAt(wayNIC1, "mlx5_1", "ens2", "4200", "RoCE v2="+global)).
	with(tree{
		"/sys/module/nvidia_peermem/refcnt": "0\n", "/sys/module/nvidia/version": "550.54.15\n",
		"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15\n",
	})

// port0 is the folder of mlx5_0's port.
const port0 = "/sys/devices/" + wayNIC0 + "/infiniband/mlx5_0/ports/1"

// soft is a machine with Soft-RoCE alone.
var soft = plain.with(rdmaAt("virtual", "rxe0", "v0", "1500", "RoCE v2="+linkLocal, "RoCE v2="+mapped)).
	with(tree{"/sys/devices/virtual/infiniband/rxe0/fw_ver": "\n", "/sys/devices/virtual/infiniband/rxe0/parent": "v0\n"})

func TestLibrary(t *testing.T) {
	gone := func(transport string) func(m *Machine) {
		return func(m *Machine) {
			m.Libraries, m.Config.Transport = &fakeLibraries{err: errors.New("libibverbs.so.1: cannot open shared object file")}, transport
		}
	}
	runTable(t, plain, one(checkLibrary), []test{
		{name: "there", level: OK, found: "libibverbs.so.1 is there"},
		{name: "not needed", alter: gone("auto"), level: OK, found: "not needed"},
		{name: "asked for", alter: gone("verbs"), level: Error, found: "cannot open shared object", remedy: "apt-get install libibverbs1"},
		{name: "devices idle", change: box, alter: gone("auto"), level: Warning, found: "lie idle", remedy: "apt-get install libibverbs1"},
		{name: "old", change: box, alter: func(m *Machine) { m.Libraries = &fakeLibraries{missing: []string{"_ibv_query_gid_table"}} }, level: Warning, found: "it lacks _ibv_query_gid_table"},
	})
}

func TestDevices(t *testing.T) {
	verbs := func(m *Machine) { m.Config.Transport = "verbs" }
	card := pciAt(wayNIC0, "0x15b3", "0x020000", "0")
	named := func(names ...string) func(m *Machine) { return func(m *Machine) { m.Config.RDMADevice = names } }
	runTable(t, plain, checkDevices, []test{
		{name: "none", level: OK, found: "none; links between machines go by tcp"},
		{name: "none, verbs", alter: verbs, level: Error, found: "--transport verbs needs one", remedy: "--transport auto"},
		{name: "a card without its module", change: card, level: Warning, found: "though a Mellanox network card is at 0000:19:00.0", remedy: "modprobe mlx5_ib"},
		{name: "likewise, verbs", change: card, alter: verbs, level: Error, remedy: "modprobe mlx5_ib"},
		{name: "card", change: box, level: OK, found: "PCI 0000:19:00.0, NUMA node 0, firmware 20.31.1014, 1 port, /dev/infiniband/uverbs_mlx5_0"},
		{name: "second card", change: box, at: 1, level: OK, found: "PCI 0000:1b:00.0"},
		{name: "software", change: soft, level: OK, found: "no PCI device behind it (software), firmware unknown, 1 port"},
		{name: "no class for programs", change: box.with(tree{"/sys/class/infiniband_verbs": gone}), level: Warning, found: "no device file", remedy: "modprobe ib_uverbs"},
		{name: "no file", change: box.with(tree{"/dev/infiniband": gone}), level: Warning, found: "cannot read /dev/infiniband/uverbs_mlx5_0", remedy: "--device /dev/infiniband"},
		{name: "named and there", change: box, alter: named("mlx5_1"), level: OK},
		{name: "named and not there", change: box, alter: named("mlx5_1", "mlx5_9"), level: Error, found: "no such device", remedy: "--rdma-device"},
		{name: "nor used", change: box, alter: func(m *Machine) { named("mlx5_9")(m); m.Config.Transport = "tcp" }, level: OK, found: "PCI 0000:19:00.0"},
		{name: "NUMA unknown", change: box.with(tree{"/sys/devices/" + wayNIC0 + "/numa_node": "-1\n"}), level: OK, found: "NUMA node unknown"},
		{name: "not a link", change: tree{"/sys/class/infiniband/odd/fw_ver": "1\n"}, level: Warning, found: "no PCI device behind it"},
	})
}

func TestPorts(t *testing.T) {
	at := func(file, text string) tree { return box.with(tree{port0 + "/" + file: text}) }
	ib := box.with(tree{port0 + "/link_layer": "InfiniBand\n", port0 + "/gids": gone, port0 + "/gid_attrs": gone}).
		with(tree{port0 + "/gids/0": "fe80:0000:0000:0000:b83f:d203:00aa:bbcc\n", port0 + "/gid_attrs/types/0": "IB/RoCE v1\n"})
	noGID := box.with(tree{port0 + "/gids": gone, port0 + "/gid_attrs": gone})
	withGIDs := func(gids ...string) tree { return noGID.with(rdmaAt(wayNIC0, "mlx5_0", "ens1", "9000", gids...)) }
	runTable(t, plain, checkPorts, []test{
		{name: "RoCE", change: box, alter: func(m *Machine) {
			m.Ports = func() ([]VerbsPort, error) { return []VerbsPort{{"mlx5_0", 1, 4096}}, nil }
		}, level: OK, found: "RoCE, ACTIVE, 100 Gb/sec (4X EDR), active MTU 4096, interface ens1 with MTU 9000, 4 GIDs (1 IB/RoCE v1, 3 RoCE v2), of which links take 3: 10.0.0.5"},
		{name: "MTU not told", change: box, alter: func(m *Machine) {
			m.Ports = func() ([]VerbsPort, error) { return nil, errors.New("no library") }
		}, level: OK, found: "active MTU unknown"},
		{name: "IPv6 alone", change: box, at: 1, level: OK, found: "links take 0: 2001:db8::1"},
		{name: "InfiniBand", change: ib, level: OK, found: "InfiniBand, ACTIVE, 100 Gb/sec (4X EDR), active MTU unknown, 1 GID (1 IB/RoCE v1), of which links take 0: fe80::b83f"},
		{name: "no subnet manager", change: ib.with(tree{port0 + "/state": "2: INIT\n"}), level: Warning, found: "no subnet manager", remedy: "opensm"},
		{name: "InfiniBand down", change: ib.with(tree{port0 + "/state": "1: DOWN\n", port0 + "/phys_state": "2: Polling\n"}), level: Warning, found: "not active (Polling)", remedy: "cable"},
		{name: "InfiniBand without GID", change: ib.with(tree{port0 + "/gids": gone}), level: Warning, found: "it has no GID", remedy: "opensm"},
		{name: "down", change: at("state", "1: DOWN\n").with(tree{port0 + "/phys_state": "3: Disabled\n"}), level: Warning, found: "it is not active (Disabled)", remedy: "ip link set ens1 up"},
		{name: "link-local alone", change: withGIDs("IB/RoCE v1="+mapped, "RoCE v2="+linkLocal), level: Warning, found: "all link-local", remedy: "ip addr add ADDRESS/PREFIX dev ens1"},
		{name: "v1 alone", change: withGIDs("IB/RoCE v1=" + mapped), level: Warning, found: "no RoCE v2 GID", remedy: "firmware with RoCE v2"},
		{name: "no GID", change: noGID, level: Warning, found: "it has no GID", remedy: "dev INTERFACE"},
		{name: "empty entries", change: withGIDs("RoCE v2=0000:0000:0000:0000:0000:0000:0000:0000"), level: Warning, found: "it has no GID"},
		{name: "small MTU", change: box.with(tree{"/sys/class/net/ens1/mtu": "1500\n"}), level: Warning, found: "interface ens1 with MTU 1500", remedy: "ip link set ens1 mtu 9000"},
		{name: "interface's MTU unknown", change: box.with(tree{"/sys/class/net/ens1": gone}), level: OK, found: "ens1 with MTU unknown"},
		{name: "interface's name leads away", change: box.with(tree{port0 + "/gid_attrs/ndevs/0": "../x"}), level: OK, found: "with MTU unknown"},
		{name: "index not there", change: box, alter: func(m *Machine) { m.Config.RDMAGIDIndex = 7 }, level: Warning, found: "no GID has index 7", remedy: "--rdma-gid-index -1"},
		{name: "malformed state", change: at("state", "ACTIVE"), level: Warning, found: "whether links can use it is unknown", remedy: "/sys"},
		{name: "malformed layer", change: at("link_layer", "Token Ring"), level: Warning, found: "Token Ring, ACTIVE, 100 Gb/sec (4X EDR), active MTU unknown, interface ens1 with MTU 9000, 4 GIDs (1 IB/RoCE v1, 3 RoCE v2); whether links"},
		{name: "malformed rate", change: at("rate", "\x00"), level: OK, found: "RoCE, ACTIVE, unknown"},
		{name: "malformed GID", change: withGIDs("RoCE v2=hello"), level: Warning, found: "it has no GID"},
		{name: "no files", change: box.with(tree{port0: gone}).with(tree{port0 + "/lid": "0x0"}), level: Warning, found: "unknown, unknown, unknown, active MTU unknown, no GID"},
		{name: "software", change: soft, level: Warning, found: "RoCE, ACTIVE, 100 Gb/sec (4X EDR), active MTU unknown, interface v0 with MTU 1500", remedy: "mtu 9000"},
	})
}

func TestUsablePorts(t *testing.T) {
	down := box.with(tree{port0 + "/state": "1: DOWN\n"})
	transport := func(name string, devices ...string) func(m *Machine) {
		return func(m *Machine) { m.Config.Transport, m.Config.RDMADevice = name, devices }
	}
	runTable(t, plain, checkPorts, []test{
		{name: "all", change: box, at: 2, level: OK, found: "2 of 2 ports can be used"},
		{name: "one", change: down, at: 2, alter: transport("verbs"), level: OK, found: "1 of 2 ports can be used"},
		{name: "not the named one, auto", change: down, at: 2, alter: transport("auto", "mlx5_0"), level: Warning, found: "0 of 2 ports can be used; links", remedy: "mend"},
		{name: "not the named one, verbs", change: down, at: 2, alter: transport("verbs", "mlx5_0"), level: Error, found: "--transport verbs needs one", remedy: "mend"},
		{name: "not the named one, tcp", change: down, at: 2, alter: transport("tcp", "mlx5_0"), level: OK, found: "0 of 2"},
		{name: "software", change: soft, at: 1, alter: transport("verbs"), level: OK, found: "1 of 1 port can be used"},
	})
	if r := checkPorts(t.Context(), machine(plain, nil)); r != nil {
		t.Errorf("without devices: %v", r)
	}
}

// Ports are in order of number, GIDs of index, also beyond nine.
func TestOrder(t *testing.T) {
	t10 := box.with(tree{
		port0[:len(port0)-1] + "10/state": "4: ACTIVE", port0[:len(port0)-1] + "2/state": "4: ACTIVE",
		port0 + "/gids/10": mapped, port0 + "/gid_attrs/types/10": "RoCE v2", port0 + "/gids/x": mapped,
	})
	devices, err := machine(t10, nil).rdmaDevices()
	if err != nil || len(devices) != 2 || len(devices[0].ports) != 3 {
		t.Fatalf("%+v, %v", devices, err)
	}
	for i, want := range []string{"1", "2", "10"} {
		if got := devices[0].ports[i]; got != want {
			t.Errorf("port %s, wanted %s", got, want)
		}
	}
	gids := machine(t10, nil).rdmaPort("mlx5_0", "1", time.Now().Add(time.Minute)).gids
	if len(gids) != 5 || gids[4].index != 10 {
		t.Errorf("%+v", gids)
	}
}

// A table that is not read to its end proves nothing.
func TestSlowTable(t *testing.T) {
	m := machine(box, nil)
	p := m.rdmaPort("mlx5_0", "1", time.Now().Add(-time.Second))
	r := m.port(p, 4096)
	if checkShape(t, r); !p.cut || p.usable() || r.Level != Warning || !strings.Contains(r.Found, "0 GIDs or more; its GIDs could not all be read in time") {
		t.Errorf("%s", r.Line(false))
	}
	p = m.rdmaPort("mlx5_0", "1", time.Now().Add(time.Minute))
	p.cut = true
	if r = m.port(p, 0); r.Level != OK || !strings.Contains(r.Found, "4 GIDs or more (1 IB/RoCE v1, 3 RoCE v2), of which links take 3") {
		t.Errorf("%s", r.Line(false))
	}
	m.Config.RDMAGIDIndex = 900 // may be there
	if r = m.port(p, 0); r.Level != OK {
		t.Errorf("%s", r.Line(false))
	}
	if r = m.usablePorts(0, 2, true); r.Level != Warning || !strings.Contains(r.Found, "0 of 2 ports can be used, as far as") {
		t.Errorf("%s", r.Line(false))
	}
	if r = m.usablePorts(1, 2, true); r.Level != OK {
		t.Errorf("%s", r.Line(false))
	}
}

func TestPairing(t *testing.T) {
	far := box.with(tree{pciFolder + lastOf(wayGPU0): gone})
	runTable(t, plain, checkPairing, []test{
		{name: "switch", change: box, level: OK, found: "the nearest GPU, 0000:1a:00.0, is behind the same PCIe bridge"},
		{name: "host bridge", change: box, at: 1, level: OK, found: "0000:1a:00.0, is at the same host bridge"},
		{name: "other node", change: far, level: Warning, found: "0000:81:00.0, is on another NUMA node (1, the device 0)", remedy: "--rdma-device"},
		{name: "same node", change: far.with(tree{"/sys/devices/" + wayGPU1 + "/numa_node": "0"}), level: OK, found: "on the same NUMA node"},
		{name: "node unknown", change: far.with(tree{"/sys/devices/" + wayGPU1 + "/numa_node": "-1"}), level: OK, found: "at an unknown distance"},
		{name: "software", change: soft.with(pciAt(wayGPU0, "0x10de", "0x030200", "0")), level: OK, found: "no PCI device behind it, so that no GPU is nearer"},
	})
	for name, m := range map[string]*Machine{"no GPU": machine(soft, nil), "nothing": machine(plain, nil)} {
		if r := checkPairing(t.Context(), m); r != nil {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// acs is a configuration space whose second extended capability is ACS with this control word.
func acs(control uint16) string {
	space := make([]byte, 4096)
	binary.LittleEndian.PutUint32(space[0x100:], 0x0001|1<<16|0x148<<20)
	binary.LittleEndian.PutUint32(space[0x148:], capACS|1<<16)
	binary.LittleEndian.PutUint16(space[0x148+acsControl:], control)
	return string(space)
}

// The bridges between the first card and the first GPU, and the box where they redirect nothing.
const down0, down1 = "0000:18:00.0", "0000:18:01.0"

var quiet = box.with(tree{pciFolder + down0 + "/config": acs(0x1), pciFolder + down1 + "/config": acs(0)})

func TestGPUDirect(t *testing.T) {
	dmabuf := quiet.with(tree{"/sys/module/nvidia_peermem": gone})
	circle := make([]byte, 4096)
	binary.LittleEndian.PutUint32(circle[0x100:], 2|1<<16|0x100<<20)
	runTable(t, plain, one(checkGPUDirect), []test{
		{name: "nothing", level: OK, found: "not needed"},
		{name: "software and GPU", change: soft.with(pciAt(wayGPU0, "0x10de", "0x030200", "0")), level: OK, found: "not needed"},
		{name: "peermem", change: quiet, level: OK, found: "by nvidia_peermem"},
		{name: "its elder", change: dmabuf.with(tree{"/sys/module/nv_peer_mem/version": "1"}), level: OK, found: "by nv_peer_mem"},
		{name: "dma-buf", change: dmabuf, level: OK, found: "by dma-buf"},
		{name: "old kernel", change: dmabuf.with(tree{"/proc/sys/kernel/osrelease": "5.10.0"}), level: Warning, found: "kernel 5.10.0 is older than 5.12", remedy: "modprobe nvidia-peermem"},
		{name: "kernel unknown", change: dmabuf.with(tree{"/proc/sys/kernel/osrelease": "?"}), level: Warning, found: "kernel's version is unknown"},
		{name: "closed modules", change: dmabuf.with(tree{"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module"}), level: Warning, found: "not the open ones"},
		{name: "no driver", change: dmabuf.with(tree{"/proc/driver/nvidia/version": gone}), level: Warning, found: "driver is not loaded"},
		{name: "old driver", change: dmabuf.with(tree{"/sys/module/nvidia/version": "510.1"}), level: Warning, found: "driver 510.1 is older than 515"},
		{name: "driver unknown", change: dmabuf.with(tree{"/sys/module/nvidia/version": "new"}), level: Warning, found: "driver's version is unknown"},
		{name: "old library", change: dmabuf, alter: func(m *Machine) { m.Libraries = &fakeLibraries{missing: []string{"ibv_reg_dmabuf_mr"}} }, level: Warning, found: "no ibv_reg_dmabuf_mr"},
		{name: "ACS", change: quiet.with(tree{pciFolder + down1 + "/config": acs(0x1d)}), level: Warning,
			found: "bridge 0000:18:01.0 sends what goes between 0000:19:00.0 and 0000:1a:00.0 over the root", remedy: "setpci -s 0000:18:01.0 ECAP_ACS+6.w=0"},
		{name: "ACS unknown", change: quiet.with(tree{pciFolder + down0 + "/config": string(make([]byte, 64))}), level: OK, found: "ACS unknown: cannot read " + pciFolder + down0 + "/config beyond 64 bytes, which needs root"},
		{name: "no ACS", change: quiet.with(tree{pciFolder + down0 + "/config": string(make([]byte, 4096))}), level: OK, found: "by nvidia_peermem"},
		{name: "capabilities in a circle", change: quiet.with(tree{pciFolder + down0 + "/config": string(circle)}), level: OK, found: "by nvidia_peermem"},
		{name: "capability at the end", change: quiet.with(tree{pciFolder + down0 + "/config": string(acs(0)[:0x14c])}), level: OK, found: "by nvidia_peermem"},
		{name: "IOMMU", change: quiet.with(tree{"/sys/devices/" + wayNIC1 + "/iommu_group/type": "DMA-FQ\n"}), level: Warning, found: "the IOMMU translates what 0000:1b:00.0 writes (DMA-FQ)", remedy: "iommu=pt"},
		{name: "IOMMU passes through", change: quiet.with(tree{"/sys/devices/" + wayNIC1 + "/iommu_group/type": "identity\n"}), level: OK, found: "by nvidia_peermem"},
	})
}

// The same on a real file system: links, and files in place of folders.
func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, quiet.fs()); err != nil {
		t.Fatal(err)
	}
	fake := machine(quiet, nil)
	real := machine(quiet, func(m *Machine) { m.FS = os.DirFS(dir) })
	for _, c := range Checks() {
		if c.Name != "rdma" && c.Name != "gpu" {
			continue
		}
		a, b := c.run(t.Context(), fake), c.run(t.Context(), real)
		if len(a) != len(b) {
			t.Fatalf("%s: %v and %v", c.Subject, a, b)
		}
		for i := range a {
			if a[i] != b[i] {
				t.Errorf("in memory %s\non disk    %s", a[i].Line(false), b[i].Line(false))
			}
		}
	}
	if _, err := real.names(port0 + "/state"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file listed as a folder: %v", err)
	}
}
