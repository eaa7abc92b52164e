package cluster

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// folderEnv makes this binary a process that holds a folder in the named one until it is killed.
const folderEnv = "INFINITE_TEST_FOLDER"

func TestMain(m *testing.M) {
	if parent := os.Getenv(folderEnv); parent != "" {
		f, err := newFolder(parent)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(f.path)
		time.Sleep(patience)
		f.remove()
		return
	}
	os.Exit(m.Run())
}

// What a killed process left goes when the next one starts, and nothing else.
func TestFoldersOfTheKilledAreRemoved(t *testing.T) {
	parent := t.TempDir()
	there := func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	hold := func() (path string, kill func()) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), folderEnv+"="+parent)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		t.Cleanup(kill)
		line := bufio.NewScanner(out)
		line.Scan()
		if !there(line.Text()) {
			t.Fatal(line.Text(), line.Err())
		}
		return line.Text(), kill
	}
	doomed, kill := hold()
	held, _ := hold()
	unlocked, other := filepath.Join(parent, folderName+"1"), filepath.Join(parent, "other")
	for _, path := range []string{unlocked, other} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(other, lockName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, filepath.Join(parent, folderName+"2")); err != nil {
		t.Fatal(err)
	}
	first, err := newFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	if !there(doomed) || !there(held) || !there(unlocked) || !there(other) {
		t.Fatal("a folder of a running process is gone")
	}
	kill()
	second, err := newFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	if there(doomed) {
		t.Error("what a killed process left stays")
	}
	for _, path := range []string{held, unlocked, filepath.Join(other, lockName), first.path, second.path} {
		if !there(path) {
			t.Errorf("%s is gone", path)
		}
	}
	first.remove()
	second.remove()
	if there(first.path) || there(second.path) {
		t.Error("folders stay after their end")
	}
}

// Membership of a few instances takes a few megabytes.
func TestEtcdIsSmall(t *testing.T) {
	e, _ := startEtcd(t)
	size := int64(0)
	err := filepath.WalkDir(e.dir.path, func(path string, d fs.DirEntry, err error) error {
		if info, ierr := d.Info(); err == nil && ierr == nil {
			size += info.Size()
		}
		return nil
	})
	if err != nil || size > 32<<20 {
		t.Fatalf("%d bytes, %v", size, err)
	}
	t.Logf("%d bytes", size)
}
