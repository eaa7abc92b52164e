package rdma

// #include <stdlib.h>
// #include "infinite/verbs.h"
import "C"

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unsafe"
)

// VerbsConfig says which RDMA ports links may use, and how. The zero value leaves all to the package.
type VerbsConfig struct {
	Devices      []string // names; empty: every device with an active port
	Prefer       []string // of these, those that are better, as the nearest to a GPU are; the others serve while none works
	GIDIndex     int      // of the port's table, counted from 1; 0: the GID is chosen by address
	TrafficClass int      // of the IP header (RoCE) or the GRH, 0..255
	MTU          int      // largest path MTU in bytes: 256, 512, 1024, 2048 or 4096; 0: the port's
}

// VerbsPort is a port that links can use now, with the GID by which it is known.
type VerbsPort struct {
	Device   string
	Port     int
	GID      netip.Addr // an IPv4 address is unmapped
	MTU      int        // active path MTU, bytes
	Mbps     int        // 0: unknown
	Ethernet bool       // RoCE; else InfiniBand
	Rail     int        // its number among the ports that the config allows, up or down
	raw      [16]byte
}

const (
	maxVerbsPorts = 64
	maxVerbsGIDs  = 1024
	verbsInfoSize = int(unsafe.Sizeof(C.inf_verbs_info{}))
)

// ErrNoVerbs says why no verbs link can be had here, with the remedy where there is one.
var ErrNoVerbs = errors.New("cannot use verbs")

func noVerbs(cerr *C.inf_err) error {
	return fmt.Errorf("%w: %s", ErrNoVerbs, C.GoString(&cerr.message[0]))
}

func cName(s string) (out [C.INF_VERBS_NAME]C.char) {
	for i := 0; i < len(s) && i < len(out)-1; i++ {
		out[i] = C.char(s[i])
	}
	return out
}

// VerbsPorts lists the active ports with a GID that links can use, in the kernel's order. near, if not
// nil, is the address of the network that they should be on: ports that have it come first, with it. The
// error wraps ErrNoVerbs; without a usable port it says what is wrong with those that are there.
func VerbsPorts(config VerbsConfig, near net.IP) ([]VerbsPort, error) {
	ports, err := allowedPorts(config)
	if err != nil {
		return nil, err
	}
	var found, first []VerbsPort
	var why []string
	for rail := range ports {
		p := &ports[rail]
		name := C.GoString(&p.device[0])
		if p.active == 0 {
			why = append(why, fmt.Sprintf("port %d of %s is down", p.port, name))
			continue
		}
		port, onNear, err := choosePort(p, name, config, near)
		port.Rail = rail
		if err != nil {
			why = append(why, err.Error())
		} else if onNear {
			first = append(first, port)
		} else {
			found = append(found, port)
		}
	}
	if found = append(first, found...); len(found) > 0 {
		return found, nil
	}
	if len(why) == 0 {
		why = []string{"this host has no RDMA device"}
		if len(config.Devices) > 0 {
			why = []string{"this host has no RDMA device named " + strings.Join(config.Devices, " or ")}
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoVerbs, strings.Join(why, "; "))
}

// choosePort takes the port's GID: that of the index, else that of near, else the first RoCE v2 one that
// is not link-local, IPv4 before IPv6.
func choosePort(p *C.inf_verbs_port, name string, config VerbsConfig, near net.IP) (out VerbsPort, onNear bool, err error) {
	out = VerbsPort{Device: name, Port: int(p.port), MTU: int(p.mtu), Mbps: int(p.speed), Ethernet: p.link_layer == C.INF_VERBS_ETHERNET}
	gids := make([]C.inf_verbs_gid, maxVerbsGIDs)
	var n C.uint32_t
	var cerr C.inf_err
	cname := cName(name)
	if C.inf_verbs_gids(&cname[0], p.port, &gids[0], maxVerbsGIDs, &n, &cerr) < 0 {
		return out, false, errors.New(C.GoString(&cerr.message[0]))
	}
	best := 0
	for i := range min(int(n), maxVerbsGIDs) {
		g := &gids[i]
		raw := *(*[16]byte)(unsafe.Pointer(&g.bytes))
		addr := netip.AddrFrom16(raw).Unmap()
		rank := 0
		switch {
		case config.GIDIndex > 0:
			if int(g.index) == config.GIDIndex-1 {
				rank = 5
			}
		case out.Ethernet && (g._type != C.INF_VERBS_GID_ROCE_V2 || g.is_link != 0):
		case near != nil && addr == toAddr(near):
			rank = 4
		case addr.Is4():
			rank = 3
		default:
			rank = 2
		}
		if rank > best {
			best, out.raw, out.GID, onNear = rank, raw, addr, rank == 4
		}
	}
	if best == 0 {
		return out, false, fmt.Errorf("port %d of %s has no RoCE v2 GID that is not link-local; give its interface an address", p.port, name)
	}
	return out, onNear, nil
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// Rails is how many ports the config allows here, up or down. The n-th of one host and the n-th of another
// are taken to be on one network: a rail.
func Rails(config VerbsConfig) int {
	ports, _ := allowedPorts(config)
	return len(ports)
}

// RailNumbers are the rails of the devices that are preferred, else all of them.
func RailNumbers(config VerbsConfig) []int {
	ports, _ := allowedPorts(config)
	devices := make([]string, len(ports))
	for i := range ports {
		devices[i] = C.GoString(&ports[i].device[0])
	}
	return railNumbers(devices, config.Prefer)
}

func railNumbers(devices, prefer []string) []int {
	var all, preferred []int
	for i, name := range devices {
		all = append(all, i)
		if slices.Contains(prefer, name) {
			preferred = append(preferred, i)
		}
	}
	if len(preferred) > 0 {
		return preferred
	}
	return all
}

// allowedPorts has the port of each rail.
func allowedPorts(config VerbsConfig) ([]C.inf_verbs_port, error) {
	var cerr C.inf_err
	if C.inf_verbs_available(&cerr) < 0 {
		return nil, noVerbs(&cerr)
	}
	ports := make([]C.inf_verbs_port, maxVerbsPorts)
	var n C.uint32_t
	if C.inf_verbs_ports(&ports[0], maxVerbsPorts, &n, &cerr) < 0 {
		return nil, noVerbs(&cerr)
	}
	return slices.DeleteFunc(ports[:min(int(n), maxVerbsPorts)], func(p C.inf_verbs_port) bool {
		return len(config.Devices) > 0 && !slices.Contains(config.Devices, C.GoString(&p.device[0]))
	}), nil
}

// onRail picks the port of that number. A lane that may be on any is on that of the two instances if the
// number's port is not there, on a preferred device if one can be used.
func onRail(ports []VerbsPort, prefer []string, number int, strict bool, a, b string) (VerbsPort, error) {
	var preferred []VerbsPort
	for _, p := range ports {
		if p.Rail == number {
			return p, nil
		}
		if slices.Contains(prefer, p.Device) {
			preferred = append(preferred, p)
		}
	}
	if strict {
		return VerbsPort{}, fmt.Errorf("%w: rail %d is down here", ErrNoVerbs, number)
	}
	if len(preferred) > 0 {
		ports = preferred
	}
	return rail(ports, a, b), nil
}

// rail picks the port for a pair of instances, so that different peers travel on different rails.
func rail(ports []VerbsPort, a, b string) VerbsPort {
	if a > b {
		a, b = b, a
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(a + "\x00" + b))
	return ports[h.Sum32()%uint32(len(ports))]
}

// verbsEnd is one end of a verbs link under way: its queue pair and what the peer must know of it.
type verbsEnd struct {
	handle *C.inf_verbs_endpoint // nil once opened as a link or closed
	local  C.inf_verbs_info
	mtu    int
}

// wanted is a lane that needs a queue pair.
type wanted struct {
	domain, local, remote string
	shape                 Shape
	rail                  int  // its number, -1: that of the two instances
	strict                bool // no other one does
}

// newVerbsEnd makes a queue pair and its rings on the lane's rail.
func newVerbsEnd(config VerbsConfig, near net.IP, w wanted) (*verbsEnd, VerbsPort, error) {
	ports, err := VerbsPorts(config, near)
	if err != nil {
		return nil, VerbsPort{}, err
	}
	shape := w.shape
	port, err := onRail(ports, config.Prefer, w.rail, w.strict, w.local, w.remote)
	if err != nil {
		return nil, port, err
	}
	var cerr C.inf_err
	if C.inf_verbs_memlock(C.inf_verbs_endpoint_bytes(C.uint32_t(shape.Slots), C.uint64_t(shape.SlotBytes)), &cerr) < 0 {
		return nil, port, noVerbs(&cerr)
	}
	name, cdomain := cName(port.Device), C.CString(w.domain)
	defer C.free(unsafe.Pointer(cdomain))
	var device *C.inf_verbs_device
	if C.inf_verbs_device_open(&name[0], cdomain, &device, &cerr) < 0 {
		return nil, port, noVerbs(&cerr)
	}
	defer C.inf_verbs_device_close(device) // the endpoint counts as a user of its own
	cc := C.inf_verbs_config{
		port: C.uint32_t(port.Port), slots: C.uint32_t(shape.Slots), slot_bytes: C.uint64_t(shape.SlotBytes), peer: C.int32_t(shape.Peer),
		traffic_class: C.uint32_t(config.TrafficClass),
	}
	*(*[16]byte)(unsafe.Pointer(&cc.gid)) = port.raw
	e := &verbsEnd{mtu: config.MTU}
	if C.inf_verbs_endpoint_create(device, &cc, &e.handle, &e.local, &cerr) < 0 {
		return nil, port, noVerbs(&cerr)
	}
	if e.mtu > 0 && C.uint32_t(e.mtu) < e.local.mtu {
		e.local.mtu = C.uint32_t(e.mtu)
	}
	return e, port, nil
}

// info is what travels to the peer.
func (e *verbsEnd) info() []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&e.local)), verbsInfoSize)...)
}

// receive makes the queue pair ready to receive from the peer with this info.
func (e *verbsEnd) receive(info []byte) error {
	if len(info) != verbsInfoSize {
		return fmt.Errorf("cannot use a peer's queue pair of %d bytes, %d are needed", len(info), verbsInfoSize)
	}
	remote := *(*C.inf_verbs_info)(unsafe.Pointer(&info[0]))
	if e.local.mtu < remote.mtu {
		remote.mtu = e.local.mtu
	}
	var cerr C.inf_err
	if C.inf_verbs_endpoint_to_rtr(e.handle, &remote, &cerr) < 0 {
		return goError(&cerr)
	}
	return nil
}

// send makes it ready to send. Both ends must be ready to receive.
func (e *verbsEnd) send() error {
	var cerr C.inf_err
	if C.inf_verbs_endpoint_to_rts(e.handle, &cerr) < 0 {
		return goError(&cerr)
	}
	return nil
}

func (e *verbsEnd) close() {
	if e != nil && e.handle != nil {
		C.inf_verbs_endpoint_destroy(e.handle)
		e.handle = nil
	}
}

// describe names a port in a link's reason.
func (p VerbsPort) describe() string {
	kind := "InfiniBand"
	if p.Ethernet {
		kind = "RoCE v2"
	}
	gid := p.GID.String()
	if !p.Ethernet {
		gid = hex.EncodeToString(p.raw[:])
	}
	return fmt.Sprintf("%s port %d, %s, GID %s, MTU %d", p.Device, p.Port, kind, gid, p.MTU)
}

// describeVerbs names the usable ports, or says why there is none.
func describeVerbs(config VerbsConfig) (ports, why string) {
	found, err := VerbsPorts(config, nil)
	if err != nil {
		return "", err.Error()
	}
	var words []string
	for _, p := range found {
		words = append(words, p.describe())
	}
	return strings.Join(words, "; "), ""
}
