package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
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
	ends := func(what string, conn net.Conn, why codes.Code) {
		t.Helper()
		if _, err := io.Copy(io.Discard, conn); status.Code(err) != why {
			t.Errorf("%s: %v", what, err)
		}
		_ = conn.Close()
	}
	_ = open().Close()
	wrong := open()
	if _, err := wrong.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil { // a hello of 4 GiB
		t.Fatal(err)
	}
	ends("after a hello that is none", wrong, codes.OK)
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
	ends("after the peer's end", last, codes.Unavailable)
	eventually(t, "nothing is carried any more", func() bool { return !carried() })
}

// refusing says no to every set-up.
type refusing struct {
	pb.UnimplementedKVServer
	err error
}

func (r refusing) Connect(pb.KV_ConnectServer) error { return r.err }

// Why the call that would carry a set-up came to nothing is why the link did.
func TestConnectSaysWhyNot(t *testing.T) {
	serve := func(secret string, err error) string {
		l, lerr := net.Listen("tcp", "127.0.0.1:0")
		if lerr != nil {
			t.Fatal(lerr)
		}
		server := grpc.NewServer(ServerOptions(secret)...)
		pb.RegisterKVServer(server, refusing{err: err})
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		t.Cleanup(func() { server.Stop(); <-done })
		return l.Addr().String()
	}
	for _, c := range []struct{ name, address, want string }{
		{"wrong secret", serve("another", nil), "Unauthenticated desc = cannot accept the call: the cluster secret does not match"},
		{"too many", serve(testSecret, status.Error(codes.ResourceExhausted, "too many")), "ResourceExhausted desc = too many"},
		{"an end without a reason", serve(testSecret, nil), "cannot read the peer's greeting: EOF"},
		{"unreachable", "127.0.0.1:1", "Unavailable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := grpc.NewClient(c.address, DialOptions(testSecret)...)
			if err != nil {
				t.Fatal(err)
			}
			p := &peer{id: "b", index: 3, conn: conn, client: pb.NewKVClient(conn), member: Member{Address: c.address}}
			r := newView(t, p)
			defer r.Close()
			// What the dialer does first: it reads the greeting.
			link, err := r.via(p)(t.Context())
			if err == nil {
				_ = link.SetDeadline(time.Now().Add(patience))
				if _, err = io.ReadFull(link, make([]byte, 40)); err != nil {
					err = fmt.Errorf("cannot read the peer's greeting: %w", err)
				}
				_ = link.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// A peer that cannot be reached at all does not hold up who waits no longer.
func TestConnectIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // it answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := grpc.NewClient(l.Addr().String(), DialOptions(testSecret)...)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{id: "b", index: 3, conn: conn, client: pb.NewKVClient(conn), member: Member{Address: l.Addr().String()}}
	r := newView(t, p)
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = r.via(p)(ctx); status.Code(err) != codes.Canceled {
		t.Errorf("error is %v", err)
	}
}
