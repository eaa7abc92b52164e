package cluster

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// ManagerConfig describes the manager side of an API process.
type ManagerConfig struct {
	ClusterID    string
	Address      string // its own gRPC address, under which it stands for gManager
	Secret       string
	Etcd         []string
	EtcdID       uint64 // 0 of an external one
	BlockSize    int
	Fingerprint  string
	DType        string
	KVDType      string
	Quantization string // of the weights
	// Limits of a step, which bound the messages between instances.
	MaxNumBatchedTokens, MaxNumSeqs int
	MaxModelLen                     int // longest prompt plus answer that its API takes
	// Rebalance is how often moves of KV blocks are planned while it is the gManager; 0: never.
	Rebalance time.Duration
}

// Manager serves Join and FindEtcd, and Heartbeat and State while it is the elected gManager. Its own State reads the
// map here or asks the elected one.
//
// It stays the gManager while etcd is away, even when its lease must have run out: instances send their
// heartbeats to the last one elected, and no other can be elected then.
type Manager struct {
	pb.UnimplementedManagerServer
	cfg    ManagerConfig
	etcd   *clientv3.Client
	dir    *Directory
	g      *GManager
	moves  *rebalancer
	leader Leader
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	conn   *grpc.ClientConn // to the gManager at connTo
	connTo string
}

// NewManager starts the campaign and the watches.
func NewManager(ctx context.Context, cfg ManagerConfig, etcd *clientv3.Client) (*Manager, error) {
	dir, err := Watch(ctx, etcd, cfg.ClusterID)
	if err != nil {
		return nil, err
	}
	loop, cancel := context.WithCancel(context.Background())
	m := &Manager{cfg: cfg, etcd: etcd, dir: dir, g: NewGManager(cfg.BlockSize), cancel: cancel}
	m.moves = newRebalancer(m.g, cfg.Secret, cfg.Rebalance)
	if cfg.Rebalance > 0 {
		m.wg.Go(func() { m.moves.run(loop, m.leads) })
	}
	m.wg.Go(func() { Campaign(loop, etcd, cfg.ClusterID, cfg.Address) })
	m.wg.Go(func() { FollowLeader(loop, etcd, cfg.ClusterID, &m.leader) })
	m.wg.Go(func() { m.forgetLeavers(loop) })
	return m, nil
}

// Close resigns and ends the watches.
func (m *Manager) Close() {
	m.cancel()
	m.wg.Wait()
	m.dir.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		_ = m.conn.Close()
	}
}

// leads says whether this process is the gManager, as far as it knows.
func (m *Manager) leads() bool { return m.leader.Address() == m.cfg.Address }

// Directory of the cluster's members.
func (m *Manager) Directory() *Directory { return m.dir }

func (m *Manager) forgetLeavers(ctx context.Context) {
	known := map[string]Member{}
	for {
		members, changed := m.dir.Members()
		for id, was := range known {
			if now, ok := members[id]; !ok || now.Session != was.Session {
				m.g.Forget(id)
			}
		}
		known = members
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// checkBeside says why a newcomer cannot be in a cluster with a member.
func (m *Manager) checkBeside(other Member, req *pb.JoinRequest) error {
	refuse := func(format string, args ...any) error {
		return status.Errorf(codes.FailedPrecondition, "cannot join: instance %s "+format, append([]any{other.ID}, args...)...)
	}
	theirs, theirWay, _ := strings.Cut(other.Fingerprint, " ") // behind the blank is how weights are rounded
	yours, yourWay, _ := strings.Cut(req.Fingerprint, " ")
	switch {
	case theirs != yours:
		return refuse("serves another model (fingerprint %.12s, yours %.12s)", theirs, yours)
	case theirWay != yourWay:
		return refuse("runs with --quantization %s, this instance with %s", cmp.Or(theirWay, "none"), cmp.Or(yourWay, "none"))
	case other.KVDType != req.KvDtype:
		return refuse("keeps its KV cache in %s, this instance in %s; see --kv-cache-dtype", other.KVDType, req.KvDtype)
	case other.MaxModelLen != m.cfg.MaxModelLen:
		return refuse("runs with --max-model-len %d, this part of the cluster with %d", other.MaxModelLen, m.cfg.MaxModelLen)
	}
	return nil
}

// Join checks that the newcomer serves the same model by the same settings and gives it an id that nobody has.
func (m *Manager) Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinReply, error) {
	switch {
	case req.Quantization != m.cfg.Quantization:
		return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster runs with --quantization %s, this instance with %s", m.cfg.Quantization, req.Quantization)
	case req.Fingerprint != m.cfg.Fingerprint:
		return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster serves another model (fingerprint %.12s, yours %.12s)", m.cfg.Fingerprint, req.Fingerprint)
	case req.Dtype != m.cfg.DType:
		return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster runs with --dtype %s, this instance with %s", m.cfg.DType, req.Dtype)
	case req.KvDtype != m.cfg.KVDType:
		return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster keeps its KV cache in %s, this instance in %s; see --kv-cache-dtype", m.cfg.KVDType, req.KvDtype)
	case req.BlockSize != 0 && int(req.BlockSize) != m.cfg.BlockSize:
		return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster runs with --block-size %d, this instance with %d", m.cfg.BlockSize, req.BlockSize)
	}
	for _, limit := range []struct {
		flag          string
		yours, theirs int
	}{{"max-num-batched-tokens", int(req.MaxNumBatchedTokens), m.cfg.MaxNumBatchedTokens}, {"max-num-seqs", int(req.MaxNumSeqs), m.cfg.MaxNumSeqs}} {
		if limit.yours != 0 && limit.yours != limit.theirs {
			return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster runs with --%s %d, this instance with %d", limit.flag, limit.theirs, limit.yours)
		}
	}
	if req.MaxModelLen != 0 && int(req.MaxModelLen) < m.cfg.MaxModelLen {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot join: the cluster runs with --max-model-len %d, this instance with %d; it would cut answers short",
			m.cfg.MaxModelLen, req.MaxModelLen)
	}
	members, _ := m.dir.Members()
	for _, other := range members {
		// Another API process may have brought it, over the same etcd.
		if err := m.checkBeside(other, req); err != nil {
			return nil, err
		}
	}
	id := req.Id
	if id == "" {
		var err error
		if id, err = m.NewID(ctx); err != nil {
			return nil, status.Errorf(codes.Unavailable, "cannot give out an id: %v", err)
		}
	} else if members[id].ID != "" {
		return nil, status.Errorf(codes.AlreadyExists, "cannot join as %s: that instance is a member", id)
	}
	return &pb.JoinReply{Id: id, Etcd: m.whereEtcdIs(), BlockSize: uint32(m.cfg.BlockSize), MaxModelLen: uint32(m.cfg.MaxModelLen)}, nil
}

func (m *Manager) whereEtcdIs() *pb.Etcd {
	return &pb.Etcd{ClusterId: m.cfg.ClusterID, Endpoints: m.cfg.Etcd, Id: m.cfg.EtcdID}
}

// FindEtcd is answered whether etcd is there or not.
func (m *Manager) FindEtcd(context.Context, *pb.FindEtcdRequest) (*pb.Etcd, error) {
	return m.whereEtcdIs(), nil
}

// NewID counts in etcd, so that no two API processes give out the same id.
func (m *Manager) NewID(ctx context.Context) (string, error) {
	key := "/infinite/" + m.cfg.ClusterID + "/next-id"
	limited, done := context.WithTimeout(ctx, 5*time.Second)
	defer done()
	for {
		got, err := m.etcd.Get(limited, key)
		if err != nil {
			return "", err
		}
		n, rev := 0, int64(0)
		if len(got.Kvs) == 1 {
			rev = got.Kvs[0].ModRevision
			if n, err = strconv.Atoi(string(got.Kvs[0].Value)); err != nil {
				return "", fmt.Errorf("cannot read %s: %w", key, err)
			}
		}
		put, err := m.etcd.Txn(limited).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).
			Then(clientv3.OpPut(key, strconv.Itoa(n+1))).Commit()
		if err != nil {
			return "", err
		}
		id := "i" + strconv.Itoa(n)
		if members, _ := m.dir.Members(); put.Succeeded && members[id].ID == "" {
			return id, nil
		}
	}
}

// Heartbeat is answered by the elected process only, and to members only: what another one reports would be shown beside
// them, or instead of the one that has its id, though no request goes there.
func (m *Manager) Heartbeat(_ context.Context, req *pb.HeartbeatRequest) (*pb.HeartbeatReply, error) {
	if !m.leads() {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot take a heartbeat: this is not the gManager, %q is", m.leader.Address())
	}
	members, _ := m.dir.Members()
	sender, ok := members[req.Id]
	if !ok || sender.Session != req.Session {
		return nil, status.Errorf(codes.NotFound, "cannot take a heartbeat: this process is not the cluster's member %q", req.Id)
	}
	reply, err := m.g.Heartbeat(req, sender.Address, time.Now())
	if err == nil {
		m.moves.heard(req.Load)
	}
	return reply, err
}

// State answers over gRPC, for API processes that are not elected.
func (m *Manager) State(_ context.Context, req *pb.StateRequest) (*pb.ClusterState, error) {
	if !m.leads() {
		return nil, status.Error(codes.FailedPrecondition, "cannot answer: this is not the gManager")
	}
	return m.g.State(time.Now(), req.InstancesOnly), nil
}

// Cluster is the placement map, from here or from the elected process.
func (m *Manager) Cluster(ctx context.Context) (*pb.ClusterState, error) { return m.state(ctx, false) }

// Loads are the instances of the placement map, and the newest clock of their requests' arrivals.
func (m *Manager) Loads(ctx context.Context) ([]*pb.InstanceState, uint64, error) {
	s, err := m.state(ctx, true)
	return s.GetInstances(), s.GetNewestClock(), err
}

func (m *Manager) state(ctx context.Context, instancesOnly bool) (*pb.ClusterState, error) {
	if m.leads() {
		s := m.g.State(time.Now(), instancesOnly)
		s.Gmanager = m.cfg.Address
		return s, nil
	}
	address := m.leader.Address()
	if address == "" {
		return nil, status.Error(codes.Unavailable, "cannot read the cluster's state: no gManager is elected")
	}
	conn, err := m.dial(address)
	if err != nil {
		return nil, err
	}
	limited, done := context.WithTimeout(ctx, time.Second)
	defer done()
	s, err := pb.NewManagerClient(conn).State(limited, &pb.StateRequest{InstancesOnly: instancesOnly})
	if err != nil {
		return nil, fmt.Errorf("cannot read the cluster's state from the gManager at %s: %w", address, err)
	}
	s.Gmanager = address
	return s, nil
}

// dial returns the connection to the gManager; one to an earlier one is closed.
func (m *Manager) dial(address string) (*grpc.ClientConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.connTo == address {
		return m.conn, nil
	}
	c, err := grpc.NewClient(address, DialOptions(m.cfg.Secret)...)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	if m.conn != nil {
		_ = m.conn.Close()
	}
	m.conn, m.connTo = c, address
	return c, nil
}
