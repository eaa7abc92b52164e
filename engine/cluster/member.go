package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/infinite-llm/infinite/rdma"
)

const (
	// LeaseSeconds is the life of an instance's lease; an instance that is gone leaves the list within it.
	LeaseSeconds = 2
	// sayEvery is how often the log repeats what lasts.
	sayEvery = 10 * time.Second
)

// Member is what an instance publishes under its lease.
type Member struct {
	ID          string        `json:"id"`
	Address     string        `json:"address"` // gRPC
	Endpoint    rdma.Endpoint `json:"endpoint"`
	BlocksTotal int           `json:"blocks_total"`
	Fingerprint string        `json:"fingerprint"`
	KVDType     string        `json:"kv_dtype"`
	Device      string        `json:"device"` // for reading
	MaxModelLen int           `json:"max_model_len"`
	MemoryOnly  bool          `json:"memory_only,omitempty"` // it runs no requests
	Session     string        `json:"session"`               // changes when a process is started anew under an old id
}

func memberPrefix(clusterID string) string { return "/infinite/" + clusterID + "/instances/" }

// ErrTaken says that another process is a member under the id.
var ErrTaken = errors.New("another process has this id")

// Registration keeps a member published until Close. When etcd loses the lease, because it was away for
// longer, the member is published anew, unless another process has its id by then.
type Registration struct {
	etcd   *clientv3.Client
	key    string
	value  string
	away   atomic.Bool
	lost   chan error
	cancel context.CancelFunc
	done   chan struct{}
}

// Register publishes m and returns when etcd has it. It fails with ErrTaken when the id is a member's.
func Register(ctx context.Context, c *clientv3.Client, clusterID string, m Member) (*Registration, error) {
	value, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("cannot encode member %s: %w", m.ID, err)
	}
	loop, cancel := context.WithCancel(context.Background())
	r := &Registration{etcd: c, key: memberPrefix(clusterID) + m.ID, value: string(value),
		lost: make(chan error, 1), cancel: cancel, done: make(chan struct{})}
	lease, alive, err := r.publish(ctx, loop)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cannot register instance %s with etcd at %s: %w", m.ID, strings.Join(c.Endpoints(), ", "), err)
	}
	go r.keep(loop, lease, alive)
	return r, nil
}

// keep publishes the member anew whenever its lease is lost, until ctx ends; then it takes it off the list.
func (r *Registration) keep(ctx context.Context, lease clientv3.LeaseID, alive <-chan *clientv3.LeaseKeepAliveResponse) {
	defer close(r.done)
	for {
		for range alive {
		}
		if ctx.Err() != nil {
			break
		}
		slog.Warn("etcd lost this instance's lease; registering anew", "key", r.key)
		r.away.Store(true)
		var err error
		if lease, alive, err = r.anew(ctx); err != nil {
			r.lost <- err
			break
		}
		slog.Info("registered anew", "key", r.key)
		r.away.Store(false)
	}
	bye, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	_, _ = r.etcd.Revoke(bye, lease)
}

// anew publishes the member as soon as etcd takes it. It gives up when ctx ends, and with ErrTaken.
func (r *Registration) anew(ctx context.Context) (clientv3.LeaseID, <-chan *clientv3.LeaseKeepAliveResponse, error) {
	var said time.Time
	for {
		lease, alive, err := r.publish(ctx, ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrTaken) {
			return lease, alive, err
		}
		if time.Since(said) > sayEvery {
			said = time.Now()
			slog.Warn("cannot register anew; trying on", "key", r.key, "error", err)
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

// Away says that etcd has lost the lease and does not have the member again yet.
func (r *Registration) Away() bool { return r.away.Load() }

// Lost delivers what ended the registration before Close: ErrTaken.
func (r *Registration) Lost() <-chan error { return r.lost }

// publish puts the key under a new lease, which lives while alive does; ctx bounds the calls. The key may
// be there already as ours, under a lease that is about to run out.
func (r *Registration) publish(ctx, life context.Context) (clientv3.LeaseID, <-chan *clientv3.LeaseKeepAliveResponse, error) {
	limited, done := context.WithTimeout(ctx, etcdLimit)
	defer done()
	lease, err := r.etcd.Grant(limited, LeaseSeconds)
	if err != nil {
		return 0, nil, err
	}
	put := clientv3.OpPut(r.key, r.value, clientv3.WithLease(lease.ID))
	got, err := r.etcd.Txn(limited).If(clientv3.Compare(clientv3.CreateRevision(r.key), "=", 0)).Then(put).
		Else(clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value(r.key), "=", r.value)}, []clientv3.Op{put}, nil)).Commit()
	if err == nil && !got.Succeeded && !got.Responses[0].GetResponseTxn().Succeeded {
		_, _ = r.etcd.Revoke(limited, lease.ID)
		err = ErrTaken
	}
	if err != nil {
		return 0, nil, err
	}
	alive, err := r.etcd.KeepAlive(life, lease.ID)
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
	rev, err := d.load(ctx, c, clusterID)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cannot read the members from etcd at %s: %w", strings.Join(c.Endpoints(), ", "), err)
	}
	go d.follow(loop, c, clusterID, rev)
	return d, nil
}

// load reads the whole list and returns its revision.
func (d *Directory) load(ctx context.Context, c *clientv3.Client, clusterID string) (int64, error) {
	limited, done := context.WithTimeout(ctx, etcdLimit)
	defer done()
	prefix := memberPrefix(clusterID)
	got, err := c.Get(limited, prefix, clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	members := map[string]Member{}
	for _, kv := range got.Kvs {
		m, err := decodeMember(string(kv.Key)[len(prefix):], kv.Value)
		if err != nil {
			slog.Warn("cannot read a member from etcd", "key", string(kv.Key), "error", err)
			continue
		}
		members[m.ID] = m
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !maps.Equal(d.members, members) {
		d.members = members
		d.notify()
	}
	return got.Header.Revision, nil
}

// follow applies what is heard after revision rev, and reads the list again when the watch ends.
func (d *Directory) follow(ctx context.Context, c *clientv3.Client, clusterID string, rev int64) {
	defer close(d.done)
	prefix := memberPrefix(clusterID)
	for ctx.Err() == nil {
		watch, stop := context.WithTimeout(clientv3.WithRequireLeader(ctx), rereadEvery)
		for ev := range c.Watch(watch, prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1)) {
			if ev.Err() != nil {
				break
			}
			d.apply(ev.Events, prefix)
			rev = ev.Header.Revision
		}
		failed := watch.Err() == nil
		stop()
		if failed {
			sleep(ctx, 200*time.Millisecond)
		}
		if r, err := d.load(ctx, c, clusterID); err == nil {
			rev = r
		}
	}
}

func (d *Directory) apply(events []*clientv3.Event, prefix string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ev := range events {
		id := string(ev.Kv.Key)[len(prefix):]
		if ev.Type == clientv3.EventTypeDelete {
			delete(d.members, id)
		} else if m, err := decodeMember(id, ev.Kv.Value); err == nil {
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
	return maps.Clone(d.members), d.changed
}

// Close ends the watch.
func (d *Directory) Close() {
	d.cancel()
	<-d.done
}

// maxBlocks is the largest pool that a member may claim, in blocks; sums over members stay small.
const maxBlocks = 1 << 30

func decodeMember(id string, b []byte) (Member, error) {
	var m Member
	if err := json.Unmarshal(b, &m); err != nil {
		return m, err
	}
	if m.ID != id || m.ID == "" || m.Address == "" || m.BlocksTotal < 0 || m.BlocksTotal > maxBlocks {
		return m, fmt.Errorf("cannot use member %q at %q with %d blocks", m.ID, m.Address, m.BlocksTotal)
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
