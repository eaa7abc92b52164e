package head

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/infinite-llm/infinite/engine/config"
)

// FilesNeeded is how many descriptors a process must be allowed to start. Clients of its API need more.
func FilesNeeded(cfg config.Config) int {
	const (
		own    = 32
		each   = 4   // connections of an instance: to etcd, to the manager, for its requests
		ofEtcd = 150 // that an embedded one keeps from its clients
	)
	n := own
	if cfg.Join == "" {
		n += each * cfg.Instances
		if len(cfg.EtcdEndpoints) == 0 {
			n += ofEtcd
		}
	}
	return n
}

// checkFiles looks at the soft limit, which Go has raised to the hard one by now.
func checkFiles(cfg config.Config) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil
	}
	if need := uint64(FilesNeeded(cfg)); limit.Cur < need {
		return fmt.Errorf("cannot start: %d file descriptors are allowed, %d are needed (ulimit -n; systemd: LimitNOFILE=)", limit.Cur, need)
	}
	return nil
}
