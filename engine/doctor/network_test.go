package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestInterfaces(t *testing.T) {
	network := func(change func(n *fakeNetwork)) func(m *Machine) {
		return func(m *Machine) {
			n := newNetwork()
			change(n)
			m.Network = n
		}
	}
	runTable(t, plain, checkInterfaces, []test{
		{name: "one up", level: OK, found: "MTU 1500; --cluster-host 10.0.0.5 lets other machines join"},
		{name: "two addresses", alter: network(func(n *fakeNetwork) {
			n.interfaces[1].Addresses = append(n.interfaces[1].Addresses, netip.MustParseAddr("2001:db8::5"))
		}), level: OK, found: "10.0.0.5 or 2001:db8::5"},
		{name: "link-local alone", alter: network(func(n *fakeNetwork) { n.interfaces[1].Addresses = n.interfaces[1].Addresses[:1] }), level: OK, found: "no address for other machines"},
		{name: "loopback alone", alter: network(func(n *fakeNetwork) { n.interfaces = n.interfaces[:1] }), level: OK, found: "loopback alone"},
		{name: "unknown", alter: network(func(n *fakeNetwork) { n.err = errors.New("EPERM") }), level: Warning, found: "unknown: EPERM", remedy: "user"},
	})
}

func TestClusterHost(t *testing.T) {
	host := func(name, join string) func(m *Machine) {
		return func(m *Machine) { m.Config.ClusterHost, m.Config.Join = name, join }
	}
	runTable(t, plain, one(checkClusterHost), []test{
		{name: "loopback", alter: host("127.0.0.1", ""), level: OK, found: "all instances are on this machine"},
		{name: "loopback by name", alter: host("localhost", "127.0.0.1:8001"), level: OK, found: "all instances are on this machine"},
		{name: "own address", alter: host("10.0.0.5", "10.0.0.6:8001"), level: OK, found: "10.0.0.5, on eth0 with MTU 1500"},
		{name: "own name", alter: host("here", ""), level: OK, found: "on eth0"},
		{name: "another's", alter: host("there", ""), level: Error, found: "no address of this machine", remedy: "use --cluster-host 10.0.0.5"},
		{name: "every address", alter: host("0.0.0.0", ""), level: Warning, found: "reach themselves", remedy: "use --cluster-host 10.0.0.5"},
		{name: "every address, empty", alter: host("", ""), level: Warning, found: "reach themselves"},
		{name: "loopback, joins elsewhere", alter: host("127.0.0.1", "there:8001"), level: Error, found: "cannot reach this instance", remedy: "use --cluster-host 10.0.0.5"},
		{name: "no such name", alter: host("nowhere", ""), level: Error, found: "cannot find the address of nowhere: no such host"},
		{name: "a name of nothing", alter: func(m *Machine) {
			n := newNetwork()
			n.hosts["void"] = ""
			m.Network, m.Config.ClusterHost = n, "void"
		}, level: Error, found: "it has none"},
		{name: "nothing to propose", alter: func(m *Machine) {
			n := newNetwork()
			n.interfaces = n.interfaces[:1]
			m.Network, m.Config.ClusterHost = n, "10.9.9.9"
		}, level: Error, remedy: "with an address of this machine"},
		{name: "unknown", alter: func(m *Machine) { m.Network = &fakeNetwork{err: errors.New("EPERM")} }, level: Warning, found: "unknown: EPERM"},
	})
}

func TestListen(t *testing.T) {
	says := func(err error) func(m *Machine) {
		return func(m *Machine) {
			n := newNetwork()
			n.listen = map[string]error{"127.0.0.1:8000": &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", err)}}
			m.Network = n
		}
	}
	runTable(t, plain, checkListen, []test{
		{name: "free", level: OK, found: "127.0.0.1:8000 is free"},
		{name: "the other", at: 1, level: OK, found: "127.0.0.1:8001 is free"},
		{name: "any", alter: func(m *Machine) { m.Config.Port = 0 }, level: OK, found: "a free port"},
		{name: "taken", alter: says(syscall.EADDRINUSE), level: Error, found: "is taken", remedy: "another --port, or end what listens there (ss -ltnp 'sport = :8000')"},
		{name: "not here", alter: says(syscall.EADDRNOTAVAIL), level: Error, found: "no address of this machine", remedy: "--host"},
		{name: "no right", alter: says(syscall.EACCES), level: Error, found: "may not listen", remedy: "ip_unprivileged_port_start=8000"},
		{name: "else", alter: says(syscall.EAFNOSUPPORT), level: Error, found: "cannot listen on 127.0.0.1:8000", remedy: "--host and --port"},
		{name: "the same", at: 1, alter: func(m *Machine) { m.Config.ClusterPort = 8000 }, level: Error, found: "8000 is the API's port", remedy: "--cluster-port 8001"},
	})
	if r := checkListen(t.Context(), machine(plain, func(m *Machine) { m.Config.Join = "h:1" })); r != nil {
		t.Errorf("one that joins: %v", r)
	}
}

// The machine's own network, where it is the same on all: loopback.
func TestRealNetwork(t *testing.T) {
	var n network
	list, err := n.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range list {
		if in.Loopback && in.Up && len(in.routable()) > 0 && strings.HasPrefix(in.routable()[0], "127.") {
			t.Errorf("%+v", in)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := n.Listen(t.Context(), address); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v", err)
	}
	if err := n.Dial(t.Context(), address); err != nil {
		t.Error(err)
	}
	_ = l.Close()
	if err := n.Listen(t.Context(), address); err != nil {
		t.Errorf("a free port: %v", err)
	}
	if err := n.Dial(t.Context(), address); err == nil {
		t.Error("something answers at a free port")
	}
	if a, err := n.Lookup(t.Context(), "127.0.0.1"); err != nil || fmt.Sprint(a) != "[127.0.0.1]" {
		t.Errorf("%v, %v", a, err)
	}
}

func TestRealSystem(t *testing.T) {
	if err := errors.Join(system{}.Memfd(), system{}.Eventfd(), system{}.AbstractSocket()); err != nil {
		t.Error(err)
	}
	var l libraries
	if missing, err := l.Missing("libc.so.6", "malloc", "no_such_function"); err != nil || len(missing) != 1 || missing[0] != "no_such_function" {
		t.Errorf("%v, %v", missing, err)
	}
	if _, err := l.Missing("libnosuchlibrary.so.1"); err == nil {
		t.Error("opened what is not there")
	}
}
