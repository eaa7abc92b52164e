package rdma

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// dialLimit bounds one attempt to connect and shake hands.
const dialLimit = 5 * time.Second

// Dial opens the client end of a lane from local to remote and measures it. With Auto a shared memory
// link that cannot be had is replaced by TCP. The error wraps ErrRefused if the peer said no, and
// ErrUnsupported if want cannot be.
func Dial(ctx context.Context, local Identity, remote Endpoint, lane Lane, shape Shape, want Transport) (*Link, Info, error) {
	if shmBytes(shape.Slots, shape.SlotBytes) == 0 {
		return nil, Info{}, fmt.Errorf("cannot open a link of %d slots of %d bytes", shape.Slots, shape.SlotBytes)
	}
	transport, reason, err := Select(Endpoint{Instance: local.Instance, Host: HostID()}, remote, want)
	if err != nil {
		return nil, Info{}, err
	}
	info := Info{Transport: transport, Reason: reason}
	link, err := dialOne(ctx, local, remote, lane, shape, &info)
	if err != nil && transport == SHM && want != SHM && !errors.Is(err, ErrRefused) && ctx.Err() == nil {
		info = Info{Transport: TCP, Reason: fmt.Sprintf("shm failed: %v", err)}
		link, err = dialOne(ctx, local, remote, lane, shape, &info)
	}
	if err != nil {
		return nil, Info{}, fmt.Errorf("cannot open a %s link to %s: %w", info.Transport, remote.Instance, err)
	}
	return link, info, nil
}

func dialOne(ctx context.Context, local Identity, remote Endpoint, lane Lane, shape Shape, info *Info) (*Link, error) {
	limited, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	network, address := "tcp", remote.TCPAddr
	if info.Transport == SHM {
		network, address = "unix", remote.UnixPath
	}
	var d net.Dialer
	conn, err := d.DialContext(limited, network, address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(limited, func() { conn.SetDeadline(time.Unix(1, 0)) })
	fds, err := callOver(conn, local, remote, lane, shape, info.Transport)
	stop()
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	link, err := openLink(conn, info.Transport, true, shape, fds)
	if err != nil {
		return nil, err
	}
	if err := link.probe(ctx, shape.SlotBytes, info); err != nil {
		link.Close()
		return nil, err
	}
	return link, nil
}

// callOver shakes hands and, for shm, makes and passes the memory.
func callOver(conn net.Conn, local Identity, remote Endpoint, lane Lane, shape Shape, transport Transport) (shmFDs, error) {
	none := shmFDs{-1, -1, -1}
	fds := none
	unixConn, isUnix := conn.(*net.UnixConn)
	if isUnix {
		var err error
		if fds, err = newSHM(shape.Slots, shape.SlotBytes); err != nil {
			return none, err
		}
	}
	err := greet(conn, local.Secret, hello{
		Version: helloVersion, Cluster: local.ClusterID, From: local.Instance, Process: local.Process, To: remote.Instance, Lane: lane,
		Provider: transport, Slots: shape.Slots, SlotBytes: shape.SlotBytes, Pair: shape.Pair, Nonce: newNonce(),
	})
	if err == nil && isUnix {
		err = sendSHM(unixConn, fds)
	}
	if err != nil {
		fds.close()
		return none, err
	}
	return fds, nil
}
