package node

import (
	"net"
	"strings"
	"testing"
)

// A cluster on another machine whose etcd's addresses all mean this one is no cluster to join.
func TestReachable(t *testing.T) {
	ours := "127.0.0.1"
	if addresses, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() {
				ours = n.IP.String()
			}
		}
	}
	for _, tc := range []struct {
		join      string
		endpoints []string
		ok        bool
	}{
		{"192.0.2.7:8001", []string{"http://192.0.2.7:4001"}, true},
		{"192.0.2.7:8001", []string{"http://0.0.0.0:4001", "http://192.0.2.8:4001"}, true},
		{"192.0.2.7:8001", []string{"http://0.0.0.0:4001"}, false},
		{"192.0.2.7:8001", []string{"http://[::]:4001", "http://localhost:1"}, false},
		{"[2001:db8::1]:8001", []string{"http://127.0.0.1:4001"}, false},
		{"127.0.0.1:8001", []string{"http://127.0.0.1:4001"}, true},
		{"0.0.0.0:8001", []string{"http://0.0.0.0:4001"}, true},
		{net.JoinHostPort(ours, "8001"), []string{"http://0.0.0.0:4001"}, true},
	} {
		err := reachable(tc.join, tc.endpoints)
		if (err == nil) != tc.ok || err != nil && !strings.Contains(err.Error(), "its etcd is at "+tc.endpoints[0]) {
			t.Errorf("%s, %v: %v", tc.join, tc.endpoints, err)
		}
	}
}
