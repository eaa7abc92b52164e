package head

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/server"
)

// A head starts its own program as instances; in a test that is this binary, with --join as a variable.
func TestMain(m *testing.M) {
	if os.Getenv("INFINITE_JOIN") != "" {
		if err := runInstance(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runInstance() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := config.Load("", os.LookupEnv, nil)
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		return err
	}
	<-ctx.Done()
	n.Close(context.Background())
	return nil
}

func start(t *testing.T, change func(*config.Config)) *Head {
	t.Helper()
	cfg := config.Default()
	cfg.Port, cfg.ClusterPort, cfg.Threads, cfg.KVCacheMemory, cfg.DType = 0, 0, 1, 16<<20, "float32"
	change(&cfg)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	h, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// complete asks an API for a few tokens.
func complete(h *Head) error {
	body, err := json.Marshal(map[string]any{"prompt": []int{20, 30, 40}, "max_tokens": 5, "ignore_eos": true})
	if err != nil {
		return err
	}
	client := http.Client{Timeout: time.Minute}
	resp, err := client.Post(h.URL()+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("never saw: %s", what)
}

// sees says whether an API knows exactly these instances from their heartbeats, and who is the gManager.
func sees(h *Head, gmanager string, ids ...string) bool {
	v, err := h.router.Cluster(context.Background())
	if err != nil || v.GManager != gmanager || len(v.Instances) != len(ids) {
		return false
	}
	return !slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return !slices.Contains(ids, in.ID) })
}

// Two API processes, each with an instance, make one cluster over an external etcd; the one that is left
// goes on when the other ends.
func TestTwoHeadsOverAnExternalEtcd(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	etcd, err := cluster.StartEtcd(ctx, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	external := func(c *config.Config) { c.EtcdEndpoints = []string{etcd.Endpoint} }
	first := start(t, external)
	closed := false
	defer func() {
		if !closed {
			first.Close()
		}
	}()
	second := start(t, external)
	defer second.Close()
	for _, h := range []*Head{first, second} {
		eventually(t, "both instances", func() bool { return sees(h, first.ControlAddress(), "i0", "i1") })
		if err := complete(h); err != nil {
			t.Fatal(err)
		}
	}
	if first.Capacity() != second.Capacity() || first.Capacity() <= 0 {
		t.Errorf("capacities %d and %d", first.Capacity(), second.Capacity())
	}
	closed = true
	first.Close()
	eventually(t, "the second is the gManager of its own instance", func() bool { return sees(second, second.ControlAddress(), "i1") })
	if err := complete(second); err != nil {
		t.Fatal(err)
	}
}

// What the process cannot do without is reported when it ends.
func TestFailed(t *testing.T) {
	h := start(t, func(*config.Config) {})
	defer h.Close()
	select {
	case err := <-h.Failed():
		t.Fatalf("at once: %v", err)
	default:
	}
	_ = h.control.Close()
	select {
	case err := <-h.Failed():
		if err == nil {
			t.Fatal("no error")
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody said that the control plane ended")
	}
}

// An instance that cannot start ends the start of its head, which leaves nothing behind.
func TestInstanceThatCannotStart(t *testing.T) {
	cfg := config.Default()
	cfg.Port, cfg.ClusterPort, cfg.KVCacheMemory = 0, 0, 4096 // not one block
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if h, err := Start(ctx, cfg); err == nil {
		h.Close()
		t.Fatal("a head without a working instance serves")
	}
}
