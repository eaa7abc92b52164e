package cluster

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// limit lowers a limit of this process until the test ends, or until what it returns is called.
func limit(t *testing.T, resource int, to uint64) (restore func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(resource, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: to, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	restore = func() { _ = unix.Setrlimit(resource, &was) }
	t.Cleanup(restore)
	return restore
}

// What etcd ends the process for, by exiting without a word or by a panic, is an error of its start.
func TestEtcdThatCannotStart(t *testing.T) {
	for _, tc := range []struct {
		name     string
		resource int
		to       uint64
		want     string
	}{
		{"few descriptors", unix.RLIMIT_NOFILE, 120, "cannot start the embedded etcd: file descriptor limit of etcd process is too low"},
		{"files may not grow", unix.RLIMIT_FSIZE, 1 << 20, "cannot start the embedded etcd: failed to create WAL: file too large"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			restore := limit(t, tc.resource, tc.to)
			e, err := StartEtcd(t.Context(), "127.0.0.1")
			restore()
			if err == nil {
				e.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q", err)
			}
			if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A folder that is not there, or has no room, is told before etcd runs.
func TestEtcdsFolderHasRoom(t *testing.T) {
	there, small := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", "/nonexistent")
	if _, err := StartEtcd(t.Context(), "127.0.0.1"); !errors.Is(err, os.ErrNotExist) || CheckFolder() == nil {
		t.Errorf("in a folder that is not there: %v", err)
	}
	t.Setenv("TMPDIR", there)
	if err := CheckFolder(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a full file system: cannot mount one: %v", err)
	}
	defer func() { _ = unix.Unmount(small, 0) }()
	t.Setenv("TMPDIR", small)
	_, err := StartEtcd(t.Context(), "127.0.0.1")
	want := "cannot start the embedded etcd: cannot write etcd's files to " + small + ": no space left: 1024 KiB are free, 16384 are needed"
	if err == nil || !strings.Contains(err.Error(), want) || CheckFolder() == nil {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// What ends etcd while it runs is told to who watches over it, and it can be closed all the same.
func TestEtcdThatCannotGoOn(t *testing.T) {
	e, err := StartEtcd(t.Context(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := EtcdClient([]string{e.Endpoint}, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	restore := limit(t, unix.RLIMIT_FSIZE, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _ = clientv3.NewKV(c).Put(ctx, "a", strings.Repeat("b", 1<<16))
	select {
	case err := <-e.Err():
		restore()
		if err == nil || !errors.Is(err, unix.EFBIG) {
			t.Errorf("it says %v", err)
		}
	case <-time.After(patience):
		restore()
		t.Error("nobody said that it ended")
	}
}

// What members that are still connected hold open does not keep the process from its end, nor a folder there.
func TestEtcdEndsWithClients(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	e, err := StartEtcd(t.Context(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := EtcdClient([]string{e.Endpoint}, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	c.Watch(t.Context(), "a")
	lease, err := c.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.KeepAlive(t.Context(), lease.ID); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	e.Close()
	if took := time.Since(begun); took > 3*closeLimit {
		t.Errorf("it took %s", took)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
