package rdma

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Transport names how the bytes of a link travel.
type Transport string

const (
	Auto  Transport = "auto"  // the best that works
	SHM   Transport = "shm"   // shared memory, within one host
	Verbs Transport = "verbs" // RDMA: InfiniBand, RoCE v2
	TCP   Transport = "tcp"   // anything else
)

var (
	// ErrUnsupported: the wanted transport is unknown, not in this build, or cannot reach the peer.
	ErrUnsupported = errors.New("transport is not supported")
	// ErrRefused: the peer was reached and said no; another transport would not help.
	ErrRefused = errors.New("the peer refused the link")
	// ErrClosed: the listener is closed.
	ErrClosed = errors.New("listener is closed")
)

// Endpoint tells others how to reach an instance's Listener.
type Endpoint struct {
	Instance string `json:"instance"`
	Process  string `json:"process"` // differs for every Listener, also of one instance
	Host     string `json:"host"`    // HostID of its process
	TCPAddr  string `json:"tcp_addr"`
	UnixPath string `json:"unix_path"` // abstract, "@..."

	Verbs   string `json:"verbs,omitempty"`    // the RDMA ports on which it accepts links, in words
	NoVerbs string `json:"no_verbs,omitempty"` // why there is none
	Rails   int    `json:"rails,omitempty"`    // RDMA ports, up or down
}

// HostID tells whether two processes can share memory: the running kernel and the network namespace,
// since the descriptors are passed over an abstract unix socket, which belongs to a namespace. It is ""
// where the system does not tell.
func HostID() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	netns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + "/" + netns
}

// Select chooses the transport from local to remote, and says why. An error wraps ErrUnsupported.
func Select(local, remote Endpoint, want Transport) (Transport, string, error) {
	sameHost := local.Host != "" && local.Host == remote.Host
	localKernel, _, _ := strings.Cut(local.Host, "/")
	remoteKernel, _, _ := strings.Cut(remote.Host, "/")
	apart := "the peer is on another host"
	switch {
	case local.Host == "" || remote.Host == "":
		apart = "the host of one side is unknown"
	case sameHost && remote.UnixPath == "":
		apart = "the peer has no unix socket"
	case localKernel == remoteKernel:
		apart = "the peer is in another network namespace"
	}
	noVerbs := ""
	switch {
	case local.Verbs == "":
		noVerbs = orElse(local.NoVerbs, "this instance has no RDMA port")
	case remote.Verbs == "" && remote.Rails == 0: // what is down may be up again by now
		noVerbs = "at the peer: " + orElse(remote.NoVerbs, "it has no RDMA port")
	}
	switch want {
	case SHM:
		if !sameHost || remote.UnixPath == "" {
			return "", "", fmt.Errorf("cannot use shm to %s, %s: %w", remote.Instance, apart, ErrUnsupported)
		}
		return SHM, "asked for", nil
	case Verbs:
		if noVerbs != "" {
			return "", "", fmt.Errorf("cannot use verbs to %s, %s: %w", remote.Instance, noVerbs, ErrUnsupported)
		}
		return Verbs, "asked for", nil
	case TCP:
		return TCP, "asked for", nil
	case Auto, "":
		switch {
		case sameHost && remote.UnixPath != "":
			return SHM, "same host", nil
		case noVerbs == "":
			return Verbs, apart + ", and both have an RDMA port", nil
		}
		return TCP, apart + "; " + noVerbs, nil
	}
	return "", "", fmt.Errorf("cannot use transport %q, which is not one of auto, verbs, shm, tcp: %w", want, ErrUnsupported)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
