package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	folderName = "infinite-etcd-"
	// lockName is of a file in a folder that its process holds a lock on, by flock: nobody has to let go of that.
	lockName = "lock"
	// folderRoom is what etcd must have at least: two files of its log from the start, a third when it turns to the next
	// one, and what is in it.
	folderRoom = 16 << 20
)

// folder is where an embedded etcd writes.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes one in parent, and removes those that killed processes have left there.
func newFolder(parent string) (*folder, error) {
	removeLeft(parent)
	return makeFolder(parent)
}

// CheckFolder says why an embedded etcd could not write its files here.
func CheckFolder() error {
	f, err := makeFolder("")
	if err == nil {
		f.remove()
	}
	return err
}

func makeFolder(parent string) (*folder, error) {
	path, err := os.MkdirTemp(parent, folderName)
	if err != nil {
		return nil, fmt.Errorf("cannot make etcd's folder: %w", err)
	}
	f := &folder{path: path}
	if err = f.hold(); err != nil {
		f.remove()
		return nil, fmt.Errorf("cannot lock etcd's folder: %w", err)
	}
	if err = checkRoom(path); err != nil {
		f.remove()
		return nil, err
	}
	return f, nil
}

// checkRoom says at once what etcd would say as a panic. A file system that does not tell its room has enough.
func checkRoom(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Blocks == 0 {
		return nil
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < folderRoom {
		return fmt.Errorf("cannot write etcd's files to %s: no space left: %d KiB are free, %d are needed (TMPDIR names another folder)", filepath.Dir(path), free>>10, folderRoom>>10)
	}
	return nil
}

// hold gives the file its name once it is locked, so that nobody finds it without its lock.
func (f *folder) hold() (err error) {
	unnamed := filepath.Join(f.path, lockName+".new")
	if f.lock, err = os.OpenFile(unnamed, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err = unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return os.Rename(unnamed, filepath.Join(f.path, lockName))
}

func (f *folder) remove() {
	// An etcd whose end took too long may make a file there meanwhile.
	for try := 0; os.RemoveAll(f.path) != nil && try < 3; try++ {
		time.Sleep(10 * time.Millisecond)
	}
	if f.lock != nil {
		_ = f.lock.Close()
	}
}

// removeLeft removes this user's folders whose lock nobody holds. One without a lock is left alone: it may be about to get
// one, or be of a program that makes none.
func removeLeft(parent string) {
	if parent == "" {
		parent = os.TempDir()
	}
	paths, err := filepath.Glob(filepath.Join(parent, folderName+"*"))
	if err != nil {
		return // of a pattern that parent breaks
	}
	for _, path := range paths {
		if info, err := os.Lstat(path); err != nil || !info.IsDir() || !mine(info) {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if err = os.RemoveAll(path); err == nil {
				slog.Info("removed what a killed process left", "folder", path)
			}
		}
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			slog.Warn("cannot remove what a killed process left", "folder", path, "error", err)
		}
		_ = lock.Close()
	}
}

func mine(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}
