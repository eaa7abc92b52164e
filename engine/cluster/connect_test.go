package cluster

import (
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

// What carries a link's set-up brings bytes both ways, and each end of it is the other one's: when the link is
// closed, when the peer hangs up, when the peer is gone.
func TestConnect(t *testing.T) {
	_, nodes := startCluster(t, rdma.TCP, 20, 20)
	a, b := nodes[0].rman, nodes[1]
	open := func() net.Conn {
		t.Helper()
		conn, err := a.via(a.peerByID(b.id))(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if ip := conn.LocalAddr().(*net.TCPAddr).IP; !ip.IsLoopback() {
			t.Errorf("the local address is %s", ip)
		}
		greeting := make([]byte, 8)
		if _, err = io.ReadFull(conn, greeting); err != nil || string(greeting[:7]) != "INFLINK" {
			t.Fatalf("the peer's listener says %q, %v", greeting, err)
		}
		return conn
	}
	ends := func(what string, conn net.Conn) {
		t.Helper()
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		_ = conn.Close()
	}
	_ = open().Close()
	wrong := open()
	if _, err := wrong.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil { // a hello of 4 GiB
		t.Fatal(err)
	}
	ends("after a hello that is none", wrong)
	carried := func() bool {
		buf := make([]byte, 1<<22)
		return strings.Contains(string(buf[:runtime.Stack(buf, true)]), "cluster.carry")
	}
	eventually(t, "nothing is carried any more", func() bool { return !carried() })
	last := open()
	if !carried() {
		t.Error("what carries a set-up is not seen")
	}
	b.stop()
	ends("after the peer's end", last)
	eventually(t, "nothing is carried any more", func() bool { return !carried() })
}
