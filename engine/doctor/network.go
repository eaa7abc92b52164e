package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// checkInterfaces lists what could carry links to other machines.
func checkInterfaces(_ context.Context, m *Machine) []Result {
	list, err := m.Network.Interfaces()
	if err != nil {
		return []Result{warning("network", "interfaces", "run as a user who may list them", "unknown: %v", err)}
	}
	var results []Result
	for _, in := range list {
		if !in.Up || in.Loopback {
			continue
		}
		found := fmt.Sprintf("MTU %d", in.MTU)
		if addresses := in.routable(); len(addresses) > 0 {
			found += "; --cluster-host " + strings.Join(addresses, " or ") + " lets other machines join"
		} else {
			found += ", no address for other machines"
		}
		results = append(results, ok("network", in.Name, "%s", found))
	}
	if results == nil {
		return []Result{ok("network", "interfaces", "loopback alone: all instances are on this machine")}
	}
	return results
}

// routable are the addresses by which other machines may reach the interface.
func (in Interface) routable() []string {
	var out []string
	for _, a := range in.Addresses {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() {
			out = append(out, a.String())
		}
	}
	return out
}

// candidate is an address for --cluster-host, or words that stand for one.
func candidate(list []Interface) string {
	for _, in := range list {
		if addresses := in.routable(); in.Up && !in.Loopback && len(addresses) > 0 {
			return addresses[0]
		}
	}
	return "with an address of this machine"
}

func checkClusterHost(ctx context.Context, m *Machine) Result {
	const subject = "cluster-host"
	if m.ConfigErr != nil {
		return Result{}
	}
	host := m.Config.ClusterHost
	list, err := m.Network.Interfaces()
	if err != nil {
		return warning("network", subject, "run as a user who may list network interfaces", "unknown: %v", err)
	}
	use := "use --cluster-host " + candidate(list)
	addresses, err := m.resolve(ctx, host)
	if err != nil {
		return failure("network", subject, use, "%v", err)
	}
	address := addresses[0]
	switch {
	case address.IsUnspecified():
		return warning("network", subject, use, "%q means every address; other machines would be told to connect to it, and reach themselves", host)
	case address.IsLoopback() && m.joinsElsewhere(ctx):
		return failure("network", subject, use, "%s is loopback, where the cluster at %s cannot reach this instance", host, m.Config.Join)
	case address.IsLoopback():
		return ok("network", subject, "%s: all instances are on this machine", host)
	}
	for _, in := range list {
		for _, a := range in.Addresses {
			if a.WithZone("") == address.WithZone("") {
				return ok("network", subject, "%s, on %s with MTU %d", host, in.Name, in.MTU)
			}
		}
	}
	return failure("network", subject, use, "%s is no address of this machine", host)
}

// resolve returns at least one address.
func (m *Machine) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if host == "" {
		return []netip.Addr{netip.IPv6Unspecified()}, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	limited, done := context.WithTimeout(ctx, askLimit)
	defer done()
	addresses, err := m.Network.Lookup(limited, host)
	if err == nil && len(addresses) == 0 {
		err = errors.New("it has none")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find the address of %s: %w", host, err)
	}
	return addresses, nil
}

// joinsElsewhere tells whether --join leads to another machine, as far as its address says.
func (m *Machine) joinsElsewhere(ctx context.Context) bool {
	host, _, err := net.SplitHostPort(m.Config.Join)
	if err != nil {
		return false
	}
	addresses, err := m.resolve(ctx, host)
	return err == nil && !addresses[0].IsLoopback() && !addresses[0].IsUnspecified()
}

// checkListen tries the two ports of an API process. An instance that joins takes free ones.
func checkListen(ctx context.Context, m *Machine) []Result {
	if m.ConfigErr != nil || m.Config.Join != "" {
		return nil
	}
	c := m.Config
	results := []Result{m.listen(ctx, "port", "host", c.Host, c.Port)}
	if c.Port == c.ClusterPort && c.Port != 0 && c.Host == c.ClusterHost {
		return append(results, failure("network", "cluster-port", fmt.Sprintf("use --cluster-port %d", c.Port%65535+1), "%d is the API's port as well (--port)", c.Port))
	}
	return append(results, m.listen(ctx, "cluster-port", "cluster-host", c.ClusterHost, c.ClusterPort))
}

func (m *Machine) listen(ctx context.Context, flag, hostFlag, host string, port int) Result {
	address := net.JoinHostPort(host, strconv.Itoa(port))
	limited, done := context.WithTimeout(ctx, askLimit)
	defer done()
	err := m.Network.Listen(limited, address)
	switch {
	case err == nil && port == 0:
		return ok("network", flag, "%s: a free port will be taken", address)
	case err == nil:
		return ok("network", flag, "%s is free", address)
	case errors.Is(err, syscall.EADDRINUSE):
		return failure("network", flag, fmt.Sprintf("use another --%s, or end what listens there (ss -ltnp 'sport = :%d')", flag, port), "%s is taken", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return failure("network", flag, "use --"+hostFlag+" with an address of this machine", "%s is no address of this machine", host)
	case errors.Is(err, syscall.EACCES):
		return failure("network", flag, fmt.Sprintf("use a --%s from 1024 on, or sudo sysctl net.ipv4.ip_unprivileged_port_start=%d", flag, port),
			"%s: this user may not listen there", address)
	}
	return failure("network", flag, fmt.Sprintf("correct --%s and --%s", hostFlag, flag), "cannot listen on %s: %s", address, oneLine(err))
}
