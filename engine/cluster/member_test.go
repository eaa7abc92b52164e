package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

func startEtcd(t *testing.T) (*Etcd, *clientv3.Client) {
	t.Helper()
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	e, err := StartEtcd(ctx, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := EtcdClient([]string{e.Endpoint}, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		e.Close()
	})
	return e, c
}

// eventually polls until cond holds, which must last, or it may be over before it is looked at.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("never saw: %s", what)
}

func has(d *Directory, id string) bool {
	m, _ := d.Members()
	_, ok := m[id]
	return ok
}

func TestMembersComeAndGo(t *testing.T) {
	_, c := startEtcd(t)
	ctx := context.Background()
	d, err := Watch(ctx, c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r0, err := Register(ctx, c, "test", Member{ID: "i0", Address: "127.0.0.1:1", BlocksTotal: 5})
	if err != nil {
		t.Fatal(err)
	}
	r1, err := Register(ctx, c, "test", Member{ID: "i1", Address: "127.0.0.1:2"})
	if err != nil {
		t.Fatal(err)
	}
	defer r1.Close()
	x, err := Register(ctx, c, "other", Member{ID: "x", Address: "127.0.0.1:3"})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	eventually(t, "both members", func() bool { return has(d, "i0") && has(d, "i1") })
	if has(d, "x") {
		t.Fatal("a member of another cluster is listed")
	}
	r0.Close()
	eventually(t, "i0 gone", func() bool { return !has(d, "i0") })
	if !has(d, "i1") {
		t.Fatal("i1 left too")
	}
}

// A process that is killed revokes nothing; its lease runs out.
func TestLeaseOfTheDeadRunsOut(t *testing.T) {
	e, c := startEtcd(t)
	ctx := context.Background()
	d, err := Watch(ctx, c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	doomed, err := EtcdClient([]string{e.Endpoint}, 0)
	if err != nil {
		t.Fatal(err)
	}
	killed := &Registration{etcd: doomed, key: memberPrefix("test") + "i0", value: `{"id":"i0","address":"x"}`}
	lease, _, err := killed.publish(ctx, ctx)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "i0", func() bool { return has(d, "i0") })
	if err = doomed.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "i0 gone", func() bool { return !has(d, "i0") })
	if got, err := c.TimeToLive(ctx, lease); err == nil && got.TTL > 0 {
		t.Fatalf("the lease still lives for %d s", got.TTL)
	}
}

// A lease that etcd lost is taken anew, so that an instance comes back without a restart.
func TestLostLeaseIsTakenAnew(t *testing.T) {
	_, c := startEtcd(t)
	ctx := context.Background()
	d, err := Watch(ctx, c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := Register(ctx, c, "test", Member{ID: "i0", Address: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eventually(t, "i0", func() bool { return has(d, "i0") })
	leases, err := c.Leases(ctx)
	if err != nil || len(leases.Leases) != 1 {
		t.Fatalf("leases %v, %v", leases, err)
	}
	if _, err = c.Revoke(ctx, leases.Leases[0].ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another lease", func() bool {
		l, err := c.Leases(ctx)
		return err == nil && len(l.Leases) == 1 && l.Leases[0].ID != leases.Leases[0].ID && has(d, "i0")
	})
}

// An id belongs to one process: a second one is refused, whether it comes by mistake or while the first
// has lost its lease and comes back.
func TestIDIsTaken(t *testing.T) {
	_, c := startEtcd(t)
	ctx := context.Background()
	d, err := Watch(ctx, c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	first, err := Register(ctx, c, "test", Member{ID: "i0", Address: "x", Session: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err = Register(ctx, c, "test", Member{ID: "i0", Address: "y", Session: "2"}); !errors.Is(err, ErrTaken) {
		t.Fatalf("a second i0: %v", err)
	}
	eventually(t, "i0", func() bool { return has(d, "i0") })
	if m, _ := d.Members(); m["i0"].Session != "1" {
		t.Fatalf("i0 is %+v", m["i0"])
	}
	// As if the first came back after its lease was lost, and its old key were still there.
	if _, _, err = first.publish(ctx, t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBadMembersAreLeftOut(t *testing.T) {
	_, c := startEtcd(t)
	ctx := context.Background()
	d, err := Watch(ctx, c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for id, value := range map[string]string{
		"a": `{"id":"b","address":"x"}`, "b": `{"id":"b"}`, "c": `{"id":"c","address":"x","blocks_total":-1}`,
		"d": `{"id":"d","address":"x","blocks_total":9000000000000000000}`, "e": `{`, "good": `{"id":"good","address":"x"}`,
	} {
		if _, err := c.Put(ctx, memberPrefix("test")+id, value); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the good one", func() bool { return has(d, "good") })
	again, err := Watch(ctx, c, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, list := range []*Directory{d, again} {
		eventually(t, "the good one alone", func() bool { m, _ := list.Members(); return len(m) == 1 })
	}
}

func TestJoinIsChecked(t *testing.T) {
	e, c := startEtcd(t)
	ctx := context.Background()
	m, err := NewManager(ctx, ManagerConfig{ClusterID: testID, Address: "a:1", Etcd: []string{e.Endpoint}, BlockSize: 4, Fingerprint: "f", DType: "float32", KVDType: "fp8_e4m3",
		MaxNumBatchedTokens: 512, MaxNumSeqs: 64, MaxModelLen: 100}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	join := func(change func(*pb.JoinRequest)) (string, codes.Code) {
		req := &pb.JoinRequest{Fingerprint: "f", Dtype: "float32", KvDtype: "fp8_e4m3", BlockSize: 4}
		change(req)
		reply, err := m.Join(ctx, req)
		if err == nil && reply.MaxModelLen != 100 {
			t.Errorf("a newcomer is told a limit of %d tokens", reply.MaxModelLen)
		}
		return reply.GetId(), status.Code(err)
	}
	for name, change := range map[string]func(*pb.JoinRequest){
		"model":      func(r *pb.JoinRequest) { r.Fingerprint = "g" },
		"dtype":      func(r *pb.JoinRequest) { r.Dtype = "bfloat16" },
		"KV dtype":   func(r *pb.JoinRequest) { r.KvDtype = "float32" },
		"quantised":  func(r *pb.JoinRequest) { r.Quantization = "int8" },
		"block size": func(r *pb.JoinRequest) { r.BlockSize = 1<<32 - 4 },
		"tokens":     func(r *pb.JoinRequest) { r.MaxNumBatchedTokens = 256 },
		"requests":   func(r *pb.JoinRequest) { r.MaxNumSeqs = 1<<32 - 64 },
		"length":     func(r *pb.JoinRequest) { r.MaxModelLen = 99 },
	} {
		if _, code := join(change); code != codes.FailedPrecondition {
			t.Errorf("%s: %v", name, code)
		}
	}
	register := func(id, fingerprint, kvDType string, length int) func() {
		r, err := Register(ctx, c, testID, Member{ID: id, Address: "x", Fingerprint: fingerprint, KVDType: kvDType, MaxModelLen: length})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, id, func() bool { return has(m.Directory(), id) })
		return r.Close
	}
	any := func(r *pb.JoinRequest) { r.MaxNumBatchedTokens, r.MaxNumSeqs, r.MaxModelLen = 512, 64, 101 }
	if id, code := join(any); id != "i0" || code != codes.OK {
		t.Errorf("the first: %s %v", id, code)
	}
	defer register("i1", "f", "fp8_e4m3", 100)() // somebody chose it
	if id, code := join(any); id != "i2" || code != codes.OK {
		t.Errorf("the next that is free: %s %v", id, code)
	}
	if _, code := join(func(r *pb.JoinRequest) { r.Id = "i1" }); code != codes.AlreadyExists {
		t.Errorf("one that is not: %v", code)
	}
	if id, code := join(func(r *pb.JoinRequest) { r.Id = "mine" }); id != "mine" || code != codes.OK {
		t.Errorf("a chosen one: %s %v", id, code)
	}
	gone := register("other", "f", "float32", 100)
	if _, code := join(any); code != codes.FailedPrecondition {
		t.Errorf("beside instances with another KV cache: %v", code)
	}
	gone()
	eventually(t, "it left", func() bool { return !has(m.Directory(), "other") })
	for _, length := range []int{99, 101} {
		gone = register("other", "f", "fp8_e4m3", length)
		if _, code := join(any); code != codes.FailedPrecondition {
			t.Errorf("beside instances with another limit, %d: %v", length, code)
		}
		gone()
		eventually(t, "it left", func() bool { return !has(m.Directory(), "other") })
	}
	gone = register("other", "f int8", "fp8_e4m3", 100)
	if _, err := m.Join(ctx, &pb.JoinRequest{Fingerprint: "f", Dtype: "float32", KvDtype: "fp8_e4m3", BlockSize: 4}); !strings.Contains(fmt.Sprint(err), "--quantization int8, this instance with none") {
		t.Errorf("beside instances with other weights: %v", err)
	}
	gone()
	eventually(t, "it left", func() bool { return !has(m.Directory(), "other") })
	defer register("other", "g", "fp8_e4m3", 100)()
	if _, code := join(any); code != codes.FailedPrecondition {
		t.Errorf("beside instances of another model: %v", code)
	}
}

func TestOneGManagerAtATime(t *testing.T) {
	_, c := startEtcd(t)
	var leader Leader
	follow, stop := context.WithCancel(context.Background())
	followed := make(chan struct{})
	go func() { defer close(followed); FollowLeader(follow, c, "test", &leader) }()
	run := func(address string) func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); Campaign(ctx, c, "test", address) }()
		return func() { cancel(); <-done }
	}
	end := run("a:1")
	eventually(t, "the first leads", func() bool { return leader.Address() == "a:1" })
	endSecond := run("b:1")
	defer endSecond()
	eventually(t, "the second waits", func() bool {
		got, err := c.Get(context.Background(), electionKey("test"), clientv3.WithPrefix())
		return err == nil && len(got.Kvs) == 2
	})
	if leader.Address() != "a:1" {
		t.Fatalf("%s leads", leader.Address())
	}
	end()
	eventually(t, "the second leads", func() bool { return leader.Address() == "b:1" })
	stop()
	<-followed
}

// A candidate whose lease is lost while it waits for its turn stands again.
func TestLostCandidateStandsAgain(t *testing.T) {
	_, c := startEtcd(t)
	var leader Leader
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	first, resign := context.WithCancel(ctx)
	wg.Go(func() { FollowLeader(ctx, c, "test", &leader) })
	wg.Go(func() { Campaign(first, c, "test", "a:1") })
	eventually(t, "the first leads", func() bool { return leader.Address() == "a:1" })
	wg.Go(func() { Campaign(ctx, c, "test", "b:1") })
	place := func() (lease clientv3.LeaseID) {
		got, err := c.Get(ctx, electionKey("test"), clientv3.WithLastCreate()...)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Kvs) == 1 && string(got.Kvs[0].Value) == "b:1" {
			lease = clientv3.LeaseID(got.Kvs[0].Lease)
		}
		return lease
	}
	eventually(t, "the second waits", func() bool { return place() != 0 })
	lost := place()
	if _, err := c.Revoke(ctx, lost); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second waits again", func() bool { return place() != 0 && place() != lost })
	resign()
	eventually(t, "the second leads", func() bool { return leader.Address() == "b:1" })
}
