package cluster

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func startEtcd(t *testing.T) (*Etcd, *clientv3.Client) {
	t.Helper()
	ctx, done := context.WithTimeout(context.Background(), 30*time.Second)
	defer done()
	e, err := StartEtcd(ctx, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := EtcdClient([]string{e.Endpoint})
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

// eventually polls until cond holds; its limit only bounds a failing test.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
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
	doomed, err := EtcdClient([]string{e.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	lease, _, err := publish(ctx, ctx, doomed, memberPrefix("test")+"i0", `{"id":"i0","address":"x"}`)
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

func TestOneGManagerAtATime(t *testing.T) {
	_, c := startEtcd(t)
	var leader Leader
	follow, stop := context.WithCancel(context.Background())
	followed := make(chan struct{})
	go func() { defer close(followed); FollowLeader(follow, c, "test", &leader) }()
	run := func(address string) (*atomic.Bool, func()) {
		var leading atomic.Bool
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); Campaign(ctx, c, "test", address, &leading) }()
		return &leading, func() { cancel(); <-done }
	}
	first, end := run("a:1")
	eventually(t, "the first leads", first.Load)
	eventually(t, "its address", func() bool { return leader.Address() == "a:1" })
	second, endSecond := run("b:1")
	defer endSecond()
	if second.Load() {
		t.Fatal("two lead at once")
	}
	end()
	eventually(t, "the second leads", second.Load)
	eventually(t, "the new address", func() bool { return leader.Address() == "b:1" })
	stop()
	<-followed
}
