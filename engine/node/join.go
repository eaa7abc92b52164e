package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/model"
)

// joinLimit bounds the wait for a cluster that is about to start.
const joinLimit = 10 * time.Second

// ErrAway says that the cluster could not be reached, so that the same may work later. A cluster that refuses the
// instance is not away.
var ErrAway = errors.New("the cluster is away")

// away makes err an ErrAway that reads as before.
type away struct{ error }

func (away) Is(target error) bool { return target == ErrAway }
func (a away) Unwrap() error      { return a.error }

func join(ctx context.Context, cfg config.Config, m *model.Model, dtype, kvDType string) (*pb.JoinReply, error) {
	conn, err := grpc.NewClient(cfg.Join, cluster.DialOptions(cfg.ClusterSecret)...)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the cluster at %s: %w", cfg.Join, err)
	}
	defer func() { _ = conn.Close() }()
	limited, done := context.WithTimeout(ctx, joinLimit)
	defer done()
	reply, err := askToJoin(limited, pb.NewManagerClient(conn), cfg.Join, joinRequest(cfg, m, dtype, kvDType))
	if err == nil {
		err = reachable(cfg.Join, reply.Etcd.GetEndpoints())
	}
	if err != nil {
		return nil, fmt.Errorf("cannot join the cluster at %s: %w", cfg.Join, err)
	}
	return reply, nil
}

// reachable says what is wrong with a cluster elsewhere all of whose etcd's addresses mean this machine.
func reachable(joined string, endpoints []string) error {
	host, _, err := net.SplitHostPort(joined)
	if err != nil || isHere(host) {
		return nil
	}
	for _, e := range endpoints {
		if u, err := url.Parse(e); err != nil || !meansSelf(u.Hostname()) {
			return nil
		}
	}
	if len(endpoints) == 0 {
		return nil
	}
	return fmt.Errorf("its etcd is at %s, which is not there for other machines; start it with a --cluster-host, or --etcd-endpoints, that they can reach", strings.Join(endpoints, ", "))
}

// meansSelf says whether an address means whatever machine uses it.
func meansSelf(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip.IsLoopback() || ip.IsUnspecified()
}

// isHere says whether a host is this machine, as far as can be known.
func isHere(host string) bool {
	ips, err := net.LookupIP(host)
	if err != nil || meansSelf(host) {
		return true
	}
	ours, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(ips, func(ip net.IP) bool {
		return meansSelf(ip.String()) || slices.ContainsFunc(ours, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.Equal(ip)
		})
	})
}

func joinRequest(cfg config.Config, m *model.Model, dtype, kvDType string) *pb.JoinRequest {
	return &pb.JoinRequest{
		Fingerprint: Fingerprint(cfg, m), Dtype: dtype, KvDtype: kvDType, BlockSize: uint32(cfg.BlockSize), Id: cfg.InstanceID,
		Quantization: cfg.Quantization, MaxNumBatchedTokens: uint32(cfg.MaxNumBatchedTokens), MaxNumSeqs: uint32(cfg.MaxNumSeqs), MaxModelLen: uint32(cfg.MaxModelLen),
	}
}

// CheckJoin asks the cluster at cfg.Join whether it would take this instance in, once, and leaves nothing there: where the
// settings name no id it asks for one that nobody has, since the cluster would count the next free one as given out. refused:
// a cluster answered that it would not.
func CheckJoin(ctx context.Context, cfg config.Config) (refused bool, err error) {
	m, err := OpenModel(cfg)
	if err != nil {
		return false, err
	}
	defer func() { _ = m.Close() }()
	settled, err := Settle(cfg, m.Config)
	if err != nil {
		return false, err
	}
	cfg.MaxModelLen = settled.MaxModelLen
	if cfg.InstanceID == "" {
		cfg.InstanceID = "asks-" + rand.Text()
	}
	conn, err := grpc.NewClient(cfg.Join, cluster.DialOptions(cfg.ClusterSecret)...)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	if _, err = pb.NewManagerClient(conn).Join(ctx, joinRequest(cfg, m, settled.DType, KVDType(cfg.KVCacheDType, settled.DType))); err == nil {
		return false, nil
	}
	code := status.Code(err)
	refused = code == codes.FailedPrecondition || code == codes.AlreadyExists || cluster.WrongSecret(err)
	return refused, plain(err)
}

// askToJoin asks until ctx ends, for the cluster may be about to start. It says so, and at the end why that did not help.
func askToJoin(ctx context.Context, api pb.ManagerClient, address string, req *pb.JoinRequest) (*pb.JoinReply, error) {
	var last error
	for {
		reply, err := api.Join(ctx, req)
		switch code := status.Code(err); {
		case code == codes.OK:
			return reply, nil
		case code != codes.Unavailable && code != codes.DeadlineExceeded:
			return nil, plain(err)
		case last == nil:
			slog.Warn("cannot join the cluster yet; trying on", "address", address, "limit", joinLimit, "error", plain(err))
			last = err
		case code == codes.Unavailable: // the end of the time says nothing
			last = err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, away{plain(last)}
		}
	}
}

// plain is what an error of gRPC says, without gRPC's words.
func plain(err error) error {
	text := status.Convert(err).Message()
	if inner, ok := strings.CutPrefix(text, `connection error: desc = "`); ok {
		text = strings.TrimPrefix(strings.TrimSuffix(inner, `"`), "transport: Error while dialing: ")
	}
	return errors.New(strings.TrimPrefix(text, "cannot join: "))
}

// moved says whether the API process that the instance joined through belongs to another cluster now: one that knows
// nothing of this instance, however long that waits.
func moved(ctx context.Context, api pb.ManagerClient, joined *pb.Etcd) (bool, error) {
	limited, done := context.WithTimeout(ctx, time.Second)
	defer done()
	now, err := api.FindEtcd(limited, &pb.FindEtcdRequest{})
	if err != nil {
		return false, err
	}
	return !proto.Equal(now, joined), nil
}
