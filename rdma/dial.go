package rdma

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// dialLimit bounds one attempt to connect and shake hands.
const dialLimit = 5 * time.Second

// Choice is what the dialer wants of a link.
type Choice struct {
	Transport Transport
	Verbs     VerbsConfig
	// Via, if not nil, is how a verbs link is set up: a connection to what the other side gives to
	// Listener.Serve. Without it that is a TCP connection.
	Via func(context.Context) (net.Conn, error)
}

// Dial opens the client end of a lane from local to remote and measures it. With Auto a link that cannot
// be had the best way is opened over TCP, and Info says what was wrong. The error wraps ErrRefused if the
// peer said no, and ErrUnsupported if what is wanted cannot be.
func Dial(ctx context.Context, local Identity, remote Endpoint, lane Lane, shape Shape, want Choice) (*Link, Info, error) {
	if shmBytes(shape.Slots, shape.SlotBytes) == 0 {
		return nil, Info{}, fmt.Errorf("cannot open a link of %d slots of %d bytes", shape.Slots, shape.SlotBytes)
	}
	transport, reason, err := best(local.Instance, remote, want)
	if err != nil {
		return nil, Info{}, err
	}
	d := dialer{local: local, remote: remote, lane: lane, shape: shape, verbs: want.Verbs, via: want.Via}
	info := Info{Transport: transport, Reason: reason}
	auto := want.Transport == Auto || want.Transport == ""
	// With ports on both sides it is only for now that they cannot be used.
	info.FellBack = auto && transport == TCP && remote.Rails > 0 && Rails(want.Verbs) > 0
	link, err := d.dial(ctx, &info)
	if err != nil && auto && transport != TCP && !errors.Is(err, ErrRefused) && ctx.Err() == nil {
		info = Info{Transport: TCP, Reason: fmt.Sprintf("%s failed: %v", transport, err), FellBack: true}
		link, err = d.dial(ctx, &info)
	}
	if err != nil {
		return nil, Info{}, fmt.Errorf("cannot open a %s link to %s: %w", info.Transport, remote.Instance, err)
	}
	return link, info, nil
}

// Best is the transport that Dial tries first, "" where there is none.
func Best(remote Endpoint, want Choice) Transport {
	transport, _, err := best("", remote, want)
	if err != nil {
		return ""
	}
	return transport
}

func best(instance string, remote Endpoint, want Choice) (Transport, string, error) {
	self := Endpoint{Instance: instance, Host: HostID()}
	if want.Transport != SHM && want.Transport != TCP {
		self.Verbs, self.NoVerbs = describeVerbs(want.Verbs)
	}
	return Select(self, remote, want.Transport)
}

// dialer is one lane to be opened.
type dialer struct {
	local  Identity
	remote Endpoint
	lane   Lane
	shape  Shape
	verbs  VerbsConfig
	via    func(context.Context) (net.Conn, error)
}

func (d *dialer) dial(ctx context.Context, info *Info) (*Link, error) {
	limited, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := d.connect(limited, info.Transport)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(limited, func() { conn.SetDeadline(time.Unix(1, 0)) })
	link, err := d.callOver(conn, info)
	stop()
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	if err := link.probe(ctx, d.shape.SlotBytes, info); err != nil {
		link.Close()
		return nil, err
	}
	return link, nil
}

func (d *dialer) connect(ctx context.Context, transport Transport) (net.Conn, error) {
	var nd net.Dialer
	switch {
	case transport == SHM:
		return nd.DialContext(ctx, "unix", d.remote.UnixPath)
	case transport == Verbs && d.via != nil:
		return d.via(ctx)
	}
	return nd.DialContext(ctx, "tcp", d.remote.TCPAddr)
}

// callOver shakes hands and opens the link over conn.
func (d *dialer) callOver(conn net.Conn, info *Info) (*Link, error) {
	h := hello{
		Version: helloVersion, Cluster: d.local.ClusterID, From: d.local.Instance, Process: d.local.Process, To: d.remote.Instance, Lane: d.lane,
		Provider: info.Transport, Slots: d.shape.Slots, SlotBytes: d.shape.SlotBytes, Pair: d.shape.Pair, Nonce: newNonce(),
	}
	switch info.Transport {
	case SHM:
		return d.callSHM(conn, h)
	case Verbs:
		return d.callVerbs(conn, h, info)
	}
	if _, err := greet(conn, d.local.Secret, h); err != nil {
		return nil, err
	}
	return openLink(conn, TCP, true, d.shape, noFDs)
}

// callSHM makes the memory of a shm link and passes it.
func (d *dialer) callSHM(conn net.Conn, h hello) (*Link, error) {
	fds, err := newSHM(d.shape.Slots, d.shape.SlotBytes)
	if err != nil {
		return nil, err
	}
	if _, err = greet(conn, d.local.Secret, h); err == nil {
		err = sendSHM(conn.(*net.UnixConn), fds)
	}
	if err != nil {
		fds.close()
		return nil, err
	}
	return openLink(conn, SHM, true, d.shape, fds)
}

// callVerbs exchanges queue pairs. Both ends can receive before either sends, and both can send before
// either opens its link; the connection then only shows that the other lives.
func (d *dialer) callVerbs(conn net.Conn, h hello, info *Info) (*Link, error) {
	w := wanted{domain: d.local.ClusterID, local: d.local.Instance, remote: d.remote.Instance, shape: d.shape, rail: -1}
	if d.lane == LaneRail {
		w.rail, w.strict = d.shape.Rail, true
	}
	end, port, err := newVerbsEnd(d.verbs, localIP(conn), w)
	if err != nil {
		return nil, err
	}
	defer end.close()
	info.Reason += "; " + port.describe()
	info.Rail, info.Device = port.Rail, port.Device
	h.Verbs, h.Rail = end.info(), port.Rail
	r, err := greet(conn, d.local.Secret, h)
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{func() error { return end.receive(r.Verbs) }, end.send} {
		if err := step(); err != nil {
			return nil, err
		}
		if err := inStep(conn); err != nil {
			return nil, err
		}
	}
	return openVerbsLink(conn, true, d.shape, end)
}

// inStep tells the other end that this one has taken a step, and waits for it to say the same.
func inStep(conn net.Conn) error {
	if _, err := conn.Write([]byte{1}); err != nil {
		return fmt.Errorf("cannot set up the queue pair: %w", err)
	}
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return fmt.Errorf("cannot set up the queue pair: the peer gave up: %w", err)
	}
	if b[0] != 1 {
		return errors.New("cannot set up the queue pair: the peer broke the protocol")
	}
	return nil
}

func localIP(conn net.Conn) net.IP {
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		return a.IP
	}
	return nil
}
