package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	gpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// stream is either side of a Connect call.
type stream interface {
	Send(*pb.LinkBytes) error
	Recv() (*pb.LinkBytes, error)
}

// Connect takes the set-up of a verbs link from a caller that the secret let in. It lasts as long as the link:
// each side sees by it that the other one lives.
func (r *RManager) Connect(s pb.KV_ConnectServer) error {
	var near net.IP
	if p, ok := gpeer.FromContext(s.Context()); ok {
		near = hostOf(p.LocalAddr)
	}
	link, carrier, err := rdma.Pipe(near)
	if err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	if err = r.listener.Serve(s.Context(), link); err != nil {
		_ = carrier.Close()
		if errors.Is(err, rdma.ErrClosed) {
			return status.Error(codes.Unavailable, err.Error())
		}
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	carry(s, carrier, link.Fail)
	return nil
}

// via opens a Connect call to a peer. It outlives ctx, and ends with the connection.
func (r *RManager) via(p *peer) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		link, carrier, err := rdma.Pipe(routeTo(p.member.Address))
		if err != nil {
			return nil, err
		}
		life, end := context.WithCancel(context.WithoutCancel(r.ctx))
		giveUp := context.AfterFunc(ctx, end) // of waiting for a connection
		s, err := p.client.Connect(life)
		giveUp()
		if err != nil {
			end()
			_, _ = link.Close(), carrier.Close()
			return nil, err
		}
		r.carriers.Go(func() {
			defer end()
			carry(s, carrier, link.Fail)
		})
		return link, nil
	}
}

// carry moves bytes both ways until either end is over, and closes the connection; fail hears before that why the
// call ended, unless that was with a success. When it returns nothing is sent any more; the receiving half ends
// with the call.
func carry(s stream, conn net.Conn, fail func(error)) {
	over := make(chan struct{})
	end := sync.OnceFunc(func() { close(over) })
	go func() {
		defer end()
		for {
			m, err := s.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					fail(err)
				}
				return
			}
			if _, err = conn.Write(m.Data); err != nil {
				return
			}
		}
	}()
	var sender sync.WaitGroup
	sender.Go(func() {
		defer end()
		buf := make([]byte, 8<<10) // a whole hello
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if err = s.Send(&pb.LinkBytes{Data: append([]byte(nil), buf[:n]...)}); err != nil {
				return
			}
		}
	})
	<-over
	_ = conn.Close()
	sender.Wait()
}

func hostOf(a net.Addr) net.IP {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.IP
	}
	return nil
}

// routeTo is this host's address on the way to another one. Nothing is sent.
func routeTo(address string) net.IP {
	c, err := net.Dial("udp", address)
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }()
	if u, ok := c.LocalAddr().(*net.UDPAddr); ok {
		return u.IP
	}
	return nil
}
