package rdma

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	helloLimit    = 2 * time.Second // for a whole handshake
	maxHandshakes = 64              // at once
	acceptQueue   = 16              // links that nobody has asked for yet
	queueLimit    = 10 * time.Second
)

var errNotAdmitted = errors.New("cannot admit the caller")

// ListenConfig says who listens, and where. Only Identity is needed.
type ListenConfig struct {
	Identity
	// Host is the address to listen on, "" for the loopback; the port is chosen by the system.
	Host string
	// Advertise is the host that Endpoint names, for a Host of all addresses. "" is Host.
	Advertise string
	// MaxSlotBytes refuses links with larger slots. 0: the data plane's own limit, 1 GiB.
	MaxSlotBytes uint64
	// Verbs says which RDMA ports may be used.
	Verbs VerbsConfig
}

// Accepted is the server end of a link that another instance opened.
type Accepted struct {
	From string
	// Process is the caller's Identity.Process.
	Process string
	Lane    Lane
	Pair    uint64 // of the caller's Shape
	Rail    int    // of a verbs link, the caller's number
	Link    *Link
	Info    Info // transport and reason; the client's end measures
}

// Listener accepts links from the instances of its cluster.
type Listener struct {
	config ListenConfig // Process is made by Listen
	admit  atomic.Pointer[func(from, process string) error]
	tcp    net.Listener
	unix   net.Listener
	links  chan Accepted
	slots  chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	// closing orders Serve with Close: a wait group does not grow while it is waited for.
	closing sync.Mutex
}

// Listen starts to accept links.
func Listen(config ListenConfig) (*Listener, error) {
	if config.Instance == "" {
		return nil, errors.New("cannot listen for links without an instance name")
	}
	if config.Host == "" {
		config.Host = "127.0.0.1"
	}
	tcp, err := net.Listen("tcp", net.JoinHostPort(config.Host, "0"))
	if err != nil {
		return nil, fmt.Errorf("cannot listen for links: %w", err)
	}
	config.Process = rand.Text()
	unix, err := net.Listen("unix", "@infinite-"+config.Process)
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("cannot listen for links: %w", err)
	}
	l := &Listener{
		config: config, tcp: tcp, unix: unix,
		links: make(chan Accepted, acceptQueue), slots: make(chan struct{}, maxHandshakes),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(func() { l.run(tcp) })
	l.wg.Go(func() { l.run(unix) })
	return l, nil
}

// Endpoint is what others need to Dial this listener.
func (l *Listener) Endpoint() Endpoint {
	address := l.tcp.Addr().String()
	if _, port, err := net.SplitHostPort(address); err == nil && l.config.Advertise != "" {
		address = net.JoinHostPort(l.config.Advertise, port)
	}
	e := Endpoint{Instance: l.config.Instance, Process: l.config.Process, Host: HostID(), TCPAddr: address, UnixPath: l.unix.Addr().String()}
	e.Verbs, e.NoVerbs = describeVerbs(l.config.Verbs)
	e.Rails = Rails(l.config.Verbs)
	return e
}

// Process is the Endpoint's.
func (l *Listener) Process() string { return l.config.Process }

// Admit makes f decide on every caller that knows the secret. Its error goes to the caller, whose Dial then
// fails; a link that is accepted and closed looks to its caller like a peer that died.
func (l *Listener) Admit(f func(from, process string) error) { l.admit.Store(&f) }

// Serve shakes hands over a connection that came by another way, as verbs links' do, and takes it. While too many
// others do so it waits, until ctx ends.
func (l *Listener) Serve(ctx context.Context, conn net.Conn) error {
	select {
	case <-l.ctx.Done():
		conn.Close()
		return ErrClosed
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		conn.Close()
		return fmt.Errorf("cannot accept a link, too many are being set up: %w", context.Cause(ctx))
	}
	l.closing.Lock()
	defer l.closing.Unlock()
	if l.ctx.Err() != nil { // Close waits for no more
		conn.Close()
		<-l.slots
		return ErrClosed
	}
	l.wg.Go(func() { l.serve(conn) })
	return nil
}

// Accept returns the next link, ErrClosed after Close.
func (l *Listener) Accept(ctx context.Context) (Accepted, error) {
	select {
	case <-l.ctx.Done():
		return Accepted{}, ErrClosed
	default:
	}
	select {
	case a := <-l.links:
		return a, nil
	case <-l.ctx.Done():
		return Accepted{}, ErrClosed
	case <-ctx.Done():
		return Accepted{}, ctx.Err()
	}
}

// Close stops listening and closes the links that nobody accepted.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.closing.Lock()
		l.cancel()
		l.closing.Unlock()
		l.tcp.Close()
		l.unix.Close()
		l.wg.Wait()
		for {
			select {
			case a := <-l.links:
				a.Link.Close()
			default:
				return
			}
		}
	})
	return nil
}

// run accepts connections; each shakes hands on its own, so that a slow one holds up nobody.
func (l *Listener) run(from net.Listener) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		conn, err := from.Accept()
		if err != nil {
			<-l.slots
			if l.ctx.Err() != nil {
				return
			}
			slog.Warn("cannot accept a connection", "error", err)
			select { // out of descriptors, most likely
			case <-time.After(50 * time.Millisecond):
			case <-l.ctx.Done():
				return
			}
			continue
		}
		l.wg.Go(func() { l.serve(conn) })
	}
}

// serve turns a connection into a link, or closes it.
func (l *Listener) serve(conn net.Conn) {
	release := sync.OnceFunc(func() { <-l.slots })
	defer release()
	a, err := l.handshake(conn)
	if err == nil {
		if err = a.Link.echo(l.ctx); err != nil {
			a.Link.Close()
		}
	}
	if err != nil {
		if level := slog.LevelWarn; l.ctx.Err() == nil {
			if errors.Is(err, errNotAdmitted) {
				level = slog.LevelDebug // whoever decides on admission says so where it matters
			}
			slog.Log(l.ctx, level, "cannot accept a link", "remote", conn.RemoteAddr().String(), "from", a.From, "error", err)
		}
		return
	}
	release()
	timer := time.NewTimer(queueLimit)
	defer timer.Stop()
	select {
	case l.links <- a:
	case <-l.ctx.Done():
		a.Link.Close()
	case <-timer.C:
		slog.Warn("cannot keep a link that nobody accepts", "from", a.From)
		a.Link.Close()
	}
}

func (l *Listener) handshake(conn net.Conn) (Accepted, error) {
	conn.SetDeadline(time.Now().Add(helloLimit))
	stop := context.AfterFunc(l.ctx, func() { conn.Close() })
	defer stop()
	unixConn, isUnix := conn.(*net.UnixConn)
	var end *verbsEnd
	var port VerbsPort
	defer func() { end.close() }()
	h, err := welcome(conn, l.config.Secret, func(h hello) ([]byte, error) {
		if err := l.check(h, isUnix); err != nil || h.Provider != Verbs {
			return nil, err
		}
		var err error
		shape := Shape{Slots: h.Slots, SlotBytes: h.SlotBytes, Peer: -1}
		w := wanted{domain: h.Cluster, local: h.To, remote: h.From, shape: shape, rail: h.Rail, strict: h.Lane == LaneRail}
		if end, port, err = newVerbsEnd(l.config.Verbs, localIP(conn), w); err != nil {
			return nil, err
		}
		return end.info(), nil
	})
	a := Accepted{
		From: h.From, Process: h.Process, Lane: h.Lane, Pair: h.Pair, Rail: h.Rail,
		Info: Info{Transport: h.Provider, Reason: "chosen by the peer", Device: port.Device},
	}
	if err == nil {
		a.Link, err = l.open(conn, unixConn, h, end)
	}
	if err != nil {
		conn.Close()
	}
	return a, err
}

// open makes the link that the caller and this end have agreed on.
func (l *Listener) open(conn net.Conn, unixConn *net.UnixConn, h hello, end *verbsEnd) (*Link, error) {
	shape := Shape{Slots: h.Slots, SlotBytes: h.SlotBytes, Peer: -1}
	switch h.Provider {
	case SHM:
		fds, err := receiveSHM(unixConn)
		if err != nil {
			return nil, err
		}
		if err = checkSHM(fds, h.Slots, h.SlotBytes); err != nil {
			fds.close()
			return nil, err
		}
		return openLink(conn, SHM, false, shape, fds)
	case Verbs:
		for _, step := range []func() error{func() error { return end.receive(h.Verbs) }, end.send} {
			if err := step(); err != nil {
				return nil, err
			}
			if err := inStep(conn); err != nil {
				return nil, err
			}
		}
		return openVerbsLink(conn, false, shape, end)
	}
	return openLink(conn, TCP, false, shape, noFDs)
}

// check decides on a caller that knows the secret.
func (l *Listener) check(h hello, isUnix bool) error {
	switch {
	case h.Cluster != l.config.ClusterID:
		return fmt.Errorf("cannot accept a link of cluster %q, this is %q", h.Cluster, l.config.ClusterID)
	case h.To != l.config.Instance:
		return fmt.Errorf("cannot accept a link to %q, this is %q", h.To, l.config.Instance)
	case (h.Provider == SHM) != isUnix:
		return fmt.Errorf("cannot open a %s link over this connection", h.Provider)
	case l.config.MaxSlotBytes > 0 && h.SlotBytes > l.config.MaxSlotBytes:
		return fmt.Errorf("cannot accept slots of %d bytes, more than %d", h.SlotBytes, l.config.MaxSlotBytes)
	}
	if admit := l.admit.Load(); admit != nil {
		if err := (*admit)(h.From, h.Process); err != nil {
			return fmt.Errorf("%w: %w", errNotAdmitted, err)
		}
	}
	return nil
}
