package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/infinite-llm/infinite/rdma"
)

// LeaseSeconds is the life of an instance's lease; an instance that is gone leaves the list within it.
const LeaseSeconds = 2

// Member is what an instance publishes under its lease.
type Member struct {
	ID          string        `json:"id"`
	Address     string        `json:"address"` // gRPC
	Endpoint    rdma.Endpoint `json:"endpoint"`
	BlocksTotal int           `json:"blocks_total"`
	Fingerprint string        `json:"fingerprint"`
	Session     string        `json:"session"` // changes when a process is started anew under an old id
}

func memberPrefix(clusterID string) string { return "/infinite/" + clusterID + "/instances/" }

// Registration keeps a member published until Close. When etcd loses the lease, because it was away for
// longer, the member is published anew.
type Registration struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Register publishes m and returns when etcd has it.
func Register(ctx context.Context, c *clientv3.Client, clusterID string, m Member) (*Registration, error) {
	value, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("cannot encode member %s: %w", m.ID, err)
	}
	key := memberPrefix(clusterID) + m.ID
	loop, cancel := context.WithCancel(context.Background())
	lease, alive, err := publish(ctx, loop, c, key, string(value))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cannot register instance %s: %w", m.ID, err)
	}
	r := &Registration{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for loop.Err() == nil {
			for range alive {
			}
			if loop.Err() != nil {
				break
			}
			slog.Warn("etcd lost this instance's lease; registering anew", "instance", m.ID)
			if lease, alive, err = publish(loop, loop, c, key, string(value)); err != nil {
				closed := make(chan *clientv3.LeaseKeepAliveResponse)
				close(closed)
				alive = closed
				sleep(loop, 500*time.Millisecond)
			}
		}
		bye, done := context.WithTimeout(context.Background(), time.Second)
		defer done()
		_, _ = c.Revoke(bye, lease)
	}()
	return r, nil
}

// publish puts the key under a new lease, which lives while alive does; ctx bounds the calls.
func publish(ctx, life context.Context, c *clientv3.Client, key, value string) (clientv3.LeaseID, <-chan *clientv3.LeaseKeepAliveResponse, error) {
	limited, done := context.WithTimeout(ctx, 5*time.Second)
	defer done()
	lease, err := c.Grant(limited, LeaseSeconds)
	if err != nil {
		return 0, nil, err
	}
	if _, err = c.Put(limited, key, value, clientv3.WithLease(lease.ID)); err != nil {
		return 0, nil, err
	}
	alive, err := c.KeepAlive(life, lease.ID)
	return lease.ID, alive, err
}

// Close takes the member off the list at once.
func (r *Registration) Close() {
	r.cancel()
	<-r.done
}

// Directory is the list of members, kept current by one watch. While etcd is away it keeps the last list.
type Directory struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	members map[string]Member
	changed chan struct{} // closed and replaced at every change
}

// Watch reads the list and follows it.
func Watch(ctx context.Context, c *clientv3.Client, clusterID string) (*Directory, error) {
	loop, cancel := context.WithCancel(context.Background())
	d := &Directory{cancel: cancel, done: make(chan struct{}), members: map[string]Member{}, changed: make(chan struct{})}
	limited, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	rev, err := d.load(limited, c, clusterID)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cannot read the members from etcd: %w", err)
	}
	go d.follow(loop, c, clusterID, rev)
	return d, nil
}

func (d *Directory) load(ctx context.Context, c *clientv3.Client, clusterID string) (int64, error) {
	got, err := c.Get(ctx, memberPrefix(clusterID), clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	members := map[string]Member{}
	for _, kv := range got.Kvs {
		if m, err := decodeMember(kv.Value); err == nil {
			members[m.ID] = m
		}
	}
	d.mu.Lock()
	d.members = members
	d.notify()
	d.mu.Unlock()
	return got.Header.Revision, nil
}

func (d *Directory) follow(ctx context.Context, c *clientv3.Client, clusterID string, rev int64) {
	defer close(d.done)
	prefix := memberPrefix(clusterID)
	for ctx.Err() == nil {
		watch, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for ev := range c.Watch(watch, prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1)) {
			if ev.Err() != nil {
				break
			}
			d.apply(ev.Events, prefix)
			rev = ev.Header.Revision
		}
		stop()
		sleep(ctx, 200*time.Millisecond)
		limited, done := context.WithTimeout(ctx, 2*time.Second)
		if r, err := d.load(limited, c, clusterID); err == nil {
			rev = r
		}
		done()
	}
}

func (d *Directory) apply(events []*clientv3.Event, prefix string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ev := range events {
		if ev.Type == clientv3.EventTypeDelete {
			delete(d.members, string(ev.Kv.Key)[len(prefix):])
		} else if m, err := decodeMember(ev.Kv.Value); err == nil {
			d.members[m.ID] = m
		} else {
			slog.Warn("cannot read a member from etcd", "key", string(ev.Kv.Key), "error", err)
		}
	}
	d.notify()
}

func (d *Directory) notify() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// Members returns the current list and a channel that is closed at its next change.
func (d *Directory) Members() (map[string]Member, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[string]Member, len(d.members))
	for id, m := range d.members {
		out[id] = m
	}
	return out, d.changed
}

// Close ends the watch.
func (d *Directory) Close() {
	d.cancel()
	<-d.done
}

func decodeMember(b []byte) (Member, error) {
	var m Member
	if err := json.Unmarshal(b, &m); err != nil {
		return m, err
	}
	if m.ID == "" || m.Address == "" {
		return m, errors.New("a member needs an id and an address")
	}
	return m, nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
