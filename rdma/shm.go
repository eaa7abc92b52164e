package rdma

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	shmSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	shmFiles = 3
)

// shmFDs are the descriptors of a shm link, in the order in which they are sent: the memory, then the
// eventfd the dialer sleeps on, then the acceptor's. -1 where not open.
type shmFDs [shmFiles]int

var noFDs = shmFDs{-1, -1, -1}

func (f shmFDs) close() {
	for _, fd := range f {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// newSHM makes the memory of a link and its eventfds. The memory's size is sealed: a process that maps
// memory which another can shrink dies by SIGBUS when it does.
func newSHM(slots uint32, slotBytes uint64) (shmFDs, error) {
	fds := shmFDs{-1, -1, -1}
	fail := func(what string, err error) (shmFDs, error) {
		fds.close()
		return shmFDs{-1, -1, -1}, fmt.Errorf("cannot %s: %w", what, err)
	}
	var err error
	if fds[0], err = unix.MemfdCreate("infinite-link", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		fds[0] = -1
		return fail("create shared memory", err)
	}
	if err = unix.Ftruncate(fds[0], int64(shmBytes(slots, slotBytes))); err != nil {
		return fail("size shared memory", err)
	}
	if _, err = unix.FcntlInt(uintptr(fds[0]), unix.F_ADD_SEALS, shmSeals|unix.F_SEAL_SEAL); err != nil {
		return fail("seal shared memory", err)
	}
	for i := 1; i < shmFiles; i++ {
		if fds[i], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			fds[i] = -1
			return fail("create an eventfd", err)
		}
	}
	return fds, nil
}

// checkSHM refuses descriptors that could harm the process that uses them.
func checkSHM(fds shmFDs, slots uint32, slotBytes uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return fmt.Errorf("cannot look at the shared memory: %w", err)
	}
	if want := shmBytes(slots, slotBytes); st.Size < 0 || uint64(st.Size) != want {
		return fmt.Errorf("cannot use shared memory of %d bytes, %d are needed", st.Size, want)
	}
	seals, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("cannot read the seals of the shared memory: %w", err)
	}
	if seals&shmSeals != shmSeals {
		return errors.New("cannot use shared memory whose size is not sealed")
	}
	for _, fd := range fds[1:] {
		// Anything else could block a write for ever.
		if kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || kind != "anon_inode:[eventfd]" {
			return errors.New("cannot use a descriptor that is not an eventfd")
		}
	}
	return nil
}

func sendSHM(conn *net.UnixConn, fds shmFDs) error {
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(fds[:]...), nil); err != nil {
		return fmt.Errorf("cannot pass the shared memory: %w", err)
	}
	return nil
}

func receiveSHM(conn *net.UnixConn) (shmFDs, error) {
	none := shmFDs{-1, -1, -1}
	oob := make([]byte, unix.CmsgSpace(shmFiles*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return none, fmt.Errorf("cannot receive the shared memory: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return none, fmt.Errorf("cannot receive the shared memory: %w", err)
	}
	var got []int
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			got = append(got, fds...)
		}
	}
	if n != 1 || len(got) != shmFiles {
		for _, fd := range got {
			unix.Close(fd)
		}
		return none, fmt.Errorf("cannot accept %d descriptors, %d are needed", len(got), shmFiles)
	}
	return shmFDs(got), nil
}
