package node

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/infinite-llm/infinite/engine/config"
)

// FilesNeeded is how many descriptors a process must be allowed to start, an API process also for the instances that it
// starts. An instance that joins others, of which it knows only by then, needs more for its links, and clients of an API
// need more, too.
func FilesNeeded(cfg config.Config, others int) int {
	const (
		own      = 32
		each     = 4   // connections of an instance: to etcd, to the manager, for its requests
		ofEtcd   = 150 // that an embedded one keeps from its clients
		instance = 24  // 19 were seen
		link     = 16  // with one other instance over shm, as measured
	)
	if cfg.Join != "" {
		return instance + link*others
	}
	n := own + each*cfg.Instances
	if len(cfg.EtcdEndpoints) == 0 {
		n += ofEtcd
	}
	return max(n, instance+link*(cfg.Instances-1))
}

// CheckFiles looks at the soft limit, which Go has raised to the hard one by now.
func CheckFiles(cfg config.Config, others int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil
	}
	if need := uint64(FilesNeeded(cfg, others)); limit.Cur < need {
		return fmt.Errorf("cannot start: %d file descriptors are allowed, %d are needed (ulimit -n; systemd: LimitNOFILE=)", limit.Cur, need)
	}
	return nil
}
