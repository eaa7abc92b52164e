package cluster

import (
	"errors"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/rdma"
)

// Who is no member, or has the id of one without being it, is refused and not shown.
func TestHeartbeatsOfStrangersAreRefused(t *testing.T) {
	e, c := startEtcd(t)
	m, _ := startManager(t, []string{e.Endpoint})
	eventually(t, "it leads", m.leads)
	beat := func(id, session string) codes.Code {
		_, err := m.Heartbeat(t.Context(), &pb.HeartbeatRequest{Id: id, Session: session, Load: &pb.Load{}})
		return status.Code(err)
	}
	shown := func() int {
		s, err := m.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(s.Instances)
	}
	if code := beat("i1", "1"); code != codes.NotFound || shown() != 0 {
		t.Fatalf("before it is a member: %v, %d are shown", code, shown())
	}
	register := func(session string) func() {
		r, err := Register(t.Context(), c, testID, Member{ID: "i1", Address: "x", Session: session})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "i1", func() bool { l, _ := m.Directory().Members(); return l["i1"].Session == session })
		return r.Close
	}
	leave := register("1")
	if code := beat("i1", "1"); code != codes.OK || shown() != 1 {
		t.Fatalf("a member: %v, %d are shown", code, shown())
	}
	for _, session := range []string{"", "2"} {
		if code := beat("i1", session); code != codes.NotFound {
			t.Fatalf("another process than the member, %q: %v", session, code)
		}
	}
	leave()
	eventually(t, "nobody", func() bool { return !has(m.Directory(), "i1") && shown() == 0 })
	if code := beat("i1", "1"); code != codes.NotFound || shown() != 0 {
		t.Fatalf("one that left: %v, %d are shown", code, shown())
	}
	defer register("2")()
	if code := beat("i1", "1"); code != codes.NotFound || shown() != 0 {
		t.Fatalf("one whose id another has: %v, %d are shown", code, shown())
	}
}

// An instance knows that the gManager does not have it on its list, until it has.
func TestInstanceHearsThatItIsRefused(t *testing.T) {
	e, c := startEtcd(t)
	startManager(t, []string{e.Endpoint})
	a := startInstance(t, []string{e.Endpoint}, "a", 20, rdma.SHM)
	listed := func() bool {
		a.rman.mu.Lock()
		defer a.rman.mu.Unlock()
		return !a.rman.refused.Load() && !a.rman.viewAt.IsZero()
	}
	eventually(t, "it is listed", listed)
	key := memberPrefix(testID) + "a"
	was, err := c.Get(t.Context(), key)
	if err != nil || len(was.Kvs) != 1 {
		t.Fatal(was, err)
	}
	if _, err = c.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is refused", a.rman.Refused)
	if _, err = c.Put(t.Context(), key, string(was.Kvs[0].Value), clientv3.WithLease(clientv3.LeaseID(was.Kvs[0].Lease))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is listed again", listed)
}

// A member whose lease was lost and whose id another process has by then says so, and is published no more.
func TestLostIDIsReported(t *testing.T) {
	_, c := startEtcd(t)
	ctx := t.Context()
	r, err := Register(ctx, c, testID, Member{ID: "i0", Address: "x", Session: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	leases, err := c.Leases(ctx)
	if err != nil || len(leases.Leases) != 1 {
		t.Fatal(leases, err)
	}
	key, other := memberPrefix(testID)+"i0", `{"id":"i0","address":"y","session":"2"}`
	if _, err = c.Put(ctx, key, other); err != nil { // which ends the lease's hold on it
		t.Fatal(err)
	}
	if _, err = c.Revoke(ctx, leases.Leases[0].ID); err != nil {
		t.Fatal(err)
	}
	if err = <-r.Lost(); !errors.Is(err, ErrTaken) || !r.Away() {
		t.Fatalf("%v, away %v", err, r.Away())
	}
	if got, err := c.Get(ctx, key); err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != other {
		t.Fatal(got, err)
	}
}

// Where an embedded etcd was, another cluster's may be later. It gets no members and is not listened to.
func TestAnotherEtcdAtTheSameEndpoint(t *testing.T) {
	first, _ := startEtcd(t)
	second, direct := startEtcd(t)
	w := newWire(t, first.Endpoint)
	c, err := EtcdClient(w.endpoint(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	d, err := Watch(t.Context(), c, testID)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := Register(t.Context(), c, testID, Member{ID: "i0", Address: "x", Session: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eventually(t, "i0", func() bool { return has(d, "i0") })
	stranger, err := Register(t.Context(), direct, testID, Member{ID: "stranger", Address: "y"})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()

	w.lead(second.Endpoint)
	eventually(t, "the lease is lost", r.Away)
	if _, err = d.load(t.Context(), c, testID); err == nil {
		t.Fatal("the list was read from another etcd")
	}
	if _, _, err = r.publish(t.Context(), t.Context()); err == nil {
		t.Fatal("registered with another etcd")
	}
	if got, err := direct.Get(t.Context(), memberPrefix(testID), clientv3.WithPrefix()); err != nil || len(got.Kvs) != 1 {
		t.Fatal(got, err)
	}
	if has(d, "stranger") || !has(d, "i0") {
		t.Fatal("the list is another etcd's")
	}
	w.lead(first.Endpoint)
	eventually(t, "registered again where it was", func() bool { return !r.Away() && has(d, "i0") })
}
