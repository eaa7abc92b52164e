package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// etcdLimit bounds one call to etcd.
	etcdLimit = 5 * time.Second
	// rereadEvery is when what is watched is read again, heard of or not: an etcd that began anew with fewer
	// revisions tells a watch nothing.
	rereadEvery = 10 * time.Second
	// closeLimit bounds the end of an embedded etcd: what it holds is worth nothing then, and it waits seconds for clients,
	// which every instance that joined still is. One that is broken may hold locks for ever, since the goroutine that had
	// them ended with something fatal.
	closeLimit = time.Second
	// againLimit bounds the end of one that did not start, whose folder the next try uses.
	againLimit = 10 * time.Second
)

// etcd writes its log to files of this size, of which there are always two: 64 MB each, if nobody says less, for a few
// members. It is set here because it is read whenever an etcd runs.
func init() { wal.SegmentSizeBytes = 4 << 20 }

// Etcd is an embedded single-member etcd. What it holds is membership, which ends with the processes,
// so it writes to a temporary folder and does not sync.
type Etcd struct {
	server   *embed.Etcd
	dir      *folder
	fatal    chan error // what it would have ended the process for
	errs     chan error
	ending   atomic.Bool
	broken   atomic.Bool
	Endpoint string // client URL
	ID       uint64 // its own, never that of another one which had this endpoint before or has it later
}

// fatalError is one that a second try with the same folder does not mend.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

// StartEtcd starts it on host with free ports and waits until it answers.
func StartEtcd(ctx context.Context, host string) (*Etcd, error) {
	dir, err := newFolder("")
	if err != nil {
		return nil, fmt.Errorf("cannot start the embedded etcd: %w", err)
	}
	e := &Etcd{dir: dir}
	// A free port can be taken by another process before etcd binds it; then the next one is tried.
	for attempt := 0; ; attempt++ {
		if err = e.start(ctx, host); err == nil {
			return e, nil
		}
		if attempt == 4 || ctx.Err() != nil || errors.As(err, &fatalError{}) {
			dir.remove()
			return nil, fmt.Errorf("cannot start the embedded etcd: %w", err)
		}
	}
}

func (e *Etcd) start(ctx context.Context, host string) error {
	client, err := freeURL(host)
	if err != nil {
		return err
	}
	peer, err := freeURL(host)
	if err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Name = "infinite"
	cfg.Dir = e.dir.path
	e.fatal, e.errs = make(chan error, 1), make(chan error, 1)
	e.ending.Store(false)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(etcdLogger(&e.ending, e.breaks))
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster, cfg.InitialClusterToken = cfg.InitialClusterFromName(cfg.Name), rand.Text()
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 50, 500
	cfg.QuotaBackendBytes = 64 << 20
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "1000"
	server, err := e.launch(cfg)
	if err != nil {
		return err
	}
	select {
	case <-server.Server.ReadyNotify():
		e.server, e.Endpoint, e.ID = server, client.String(), uint64(server.Server.Cluster().ID())
		go forward(server, e.fatal, e.errs)
		return nil
	case err = <-server.Err():
	case err = <-e.fatal:
		err = fatalError{err}
	case <-time.After(20 * time.Second):
		err = errors.New("not ready after 20 s")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	limit := againLimit
	if e.broken.Load() {
		limit = closeLimit
	}
	e.end(server, limit)
	return err
}

// launch is embed.StartEtcd in a goroutine of its own, which what is fatal ends.
func (e *Etcd) launch(cfg *embed.Config) (*embed.Etcd, error) {
	var server *embed.Etcd
	started := make(chan error, 1)
	go func() {
		var err error
		server, err = embed.StartEtcd(cfg)
		started <- err
	}()
	select {
	case err := <-started:
		return server, err
	case err := <-e.fatal:
		return nil, fatalError{err}
	}
}

func (e *Etcd) breaks(err error) {
	e.broken.Store(true)
	e.ending.Store(true) // its other parts would say the same again and again
	select {
	case e.fatal <- err:
	default: // the first counts
	}
}

// forward brings what ends a server to errs, until the server has been closed.
func forward(server *embed.Etcd, fatal <-chan error, errs chan<- error) {
	defer close(errs)
	for {
		var err error
		open := true
		select {
		case err, open = <-server.Err():
		case err = <-fatal:
		}
		if !open {
			return
		}
		select {
		case errs <- err:
		default: // the first counts
		}
	}
}

// Err delivers what ends it while it should run; it is closed by Close, or later where the server takes longer.
func (e *Etcd) Err() <-chan error { return e.errs }

// Close stops it. Close clients of this process first: the end takes its whole limit for open ones.
func (e *Etcd) Close() {
	e.end(e.server, closeLimit)
	e.dir.remove()
}

func (e *Etcd) end(server *embed.Etcd, limit time.Duration) {
	e.ending.Store(true)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		server.Close()
	}()
	select {
	case <-closed:
	case <-time.After(limit):
	}
}

// EtcdClient connects to a cluster's etcd. With an id it takes answers of no other etcd: when an embedded one has ended,
// another cluster's may come to listen at its port.
func EtcdClient(endpoints []string, id uint64) (*clientv3.Client, error) {
	options := []grpc.DialOption{reconnectSoon}
	if id != 0 {
		options = append(options, onlyFrom(id)...)
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		DialOptions: options,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot connect to etcd at %v: %w", endpoints, err)
	}
	return c, nil
}

// onlyFrom makes errors of what another etcd answers. Every call of ours asks before it writes.
func onlyFrom(id uint64) []grpc.DialOption {
	check := func(answer any) error {
		a, ok := answer.(interface {
			GetHeader() *etcdserverpb.ResponseHeader
		})
		if !ok || a.GetHeader() == nil || a.GetHeader().ClusterId == id {
			return nil
		}
		// A code that neither calls nor watches are tried again for.
		return status.Errorf(codes.FailedPrecondition, "cannot use this etcd: it is %x, not the %x that this process was led to", a.GetHeader().ClusterId, id)
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if err := next(ctx, method, req, reply, cc, opts...); err != nil {
				return err
			}
			return check(reply)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := next(ctx, desc, cc, method, opts...)
			if err != nil {
				return nil, err
			}
			return checkedStream{s, check}, nil
		}),
	}
}

type checkedStream struct {
	grpc.ClientStream
	check func(answer any) error
}

func (s checkedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return s.check(m)
}

func freeURL(host string) (*url.URL, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	return url.Parse("http://" + l.Addr().String())
}
