package head

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/server"
)

// A head starts its own program as instances; in a test that is this binary, with --join as a variable.
func TestMain(m *testing.M) {
	if os.Getenv("INFINITE_JOIN") != "" {
		if err := runInstance(); err != nil && !TellHead(err) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		} else if err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// brokenEnv makes instances that do not start.
const brokenEnv = "INFINITE_TEST_BROKEN"

// floodEnv makes instances that tell their head more than a pipe holds.
const floodEnv = "INFINITE_TEST_FLOOD"

func runInstance() error {
	if os.Getenv(floodEnv) != "" {
		_, _ = os.NewFile(3, "pipe").WriteString("cannot start: " + strings.Repeat("x", 1<<20))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if text := os.Getenv(brokenEnv); text != "" {
		return errors.New(text)
	}
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
	h, err := Start(ctx, context.Background(), cfg)
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

// Settings that no instance could start with are refused before there is any.
func TestSettingsThatCannotBeUsed(t *testing.T) {
	for want, change := range map[string]func(*config.Config){
		"cannot use --kv-cache-memory 4KiB":      func(c *config.Config) { c.KVCacheMemory = 4096 }, // not one block
		"cannot use --transport verbs":           func(c *config.Config) { c.Transport, c.RDMADevice = "verbs", []string{"none"} },
		"cannot use --tensor-parallel-size 3":    func(c *config.Config) { c.TensorParallelSize = 3 },
		"cannot use --dtype float16 on the CPU":  func(c *config.Config) { c.DType = "float16" },
		"cannot use --max-model-len 268435456: ": func(c *config.Config) { c.MaxModelLen = 1 << 28 },
	} {
		cfg := config.Default()
		cfg.Port, cfg.ClusterPort, cfg.Device = 0, 0, "cpu"
		change(&cfg)
		h, err := Start(t.Context(), t.Context(), cfg)
		if err == nil {
			h.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// An instance that cannot start ends the start of its head, which leaves nothing behind, and says why in its stead.
func TestInstanceThatCannotStart(t *testing.T) {
	t.Setenv(brokenEnv, "cannot start the device: it is broken")
	cfg := config.Default()
	cfg.Port, cfg.ClusterPort, cfg.Instances = 0, 0, 2
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	h, err := Start(ctx, context.Background(), cfg)
	if err == nil {
		h.Close()
		t.Fatal("a head without a working instance serves")
	}
	if !regexp.MustCompile(`^cannot start instance i[01]: cannot start the device: it is broken$`).MatchString(err.Error()) {
		t.Errorf("it says %q", err)
	}
}

// An instance that says too much before it ends does not wait for its head, which waits for its end.
func TestInstanceThatSaysTooMuch(t *testing.T) {
	t.Setenv(floodEnv, "1")
	cfg := config.Default()
	cfg.Port, cfg.ClusterPort = 0, 0
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	h, err := Start(ctx, context.Background(), cfg)
	if err == nil {
		h.Close()
	}
	if err == nil || !strings.HasPrefix(err.Error(), "cannot start instance i0: cannot start: xxx") || len(err.Error()) > 2*maxWhy {
		t.Errorf("it says %.100q", fmt.Sprint(err))
	}
}

func TestFilesNeeded(t *testing.T) {
	cfg := config.Default()
	cfg.Port, cfg.ClusterPort = 0, 0
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	h, err := Start(t.Context(), context.Background(), cfg)
	if err == nil {
		h.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "cannot start: 100 file descriptors are allowed, 186 are needed") {
		t.Errorf("it says %v", err)
	}
}
