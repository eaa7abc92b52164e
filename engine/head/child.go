package head

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/node"
)

// child is an instance that this process started: the same binary with --join.
type child struct {
	id   string
	cmd  *exec.Cmd
	done chan struct{}

	mu       sync.Mutex
	err      error
	stopping bool
}

// startChild starts an instance at a place. It gets its settings as variables, since they may hold secrets.
func startChild(cfg config.Config, place node.Place, join, id string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	cfg.Join, cfg.InstanceID, cfg.Threads = join, id, node.Threads(cfg)
	cfg.Instances, cfg.Device = 1, place.String()
	if place.OnGPU() {
		cfg.GPUMemoryUtilization = place.Share
	}
	c := &child{id: id, cmd: exec.Command(self, "serve"), done: make(chan struct{})}
	c.cmd.Env = slices.DeleteFunc(os.Environ(), config.Stray) // this process has warned of them
	for _, f := range config.Fields(&cfg) {
		c.cmd.Env = append(c.cmd.Env, f.Env()+"="+f.String())
	}
	c.cmd.Env = append(c.cmd.Env, "INFINITE_CONFIG=")
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	// Its own group, so that Ctrl-C reaches this process alone, which then drains; and a signal if this
	// process dies without doing so.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that starts the child, so that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.reap()
		}
	}()
	if err = <-started; err != nil {
		return nil, fmt.Errorf("cannot start instance %s: %w", id, err)
	}
	slog.Info("started an instance", "instance", id, "pid", c.cmd.Process.Pid, "device", place.Name(), "why", place.Why)
	return c, nil
}

func (c *child) reap() {
	err := c.cmd.Wait()
	c.mu.Lock()
	c.err = err
	stopping := c.stopping
	c.mu.Unlock()
	close(c.done)
	switch {
	case stopping:
	case err == nil:
		slog.Info("an instance has stopped; the others go on", "instance", c.id)
	default:
		slog.Error("an instance ended; the others go on", "instance", c.id, "status", c.cmd.ProcessState.String())
	}
}

// ended is nil while the instance runs.
func (c *child) ended() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return errors.New("it ended")
	}
	return c.err
}

func (c *child) terminate() {
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
}

// wait returns when the instance has ended; when ctx ends first it is killed.
func (c *child) wait(ctx context.Context) {
	select {
	case <-c.done:
	case <-ctx.Done():
		slog.Warn("an instance did not stop in time; killing it", "instance", c.id)
		_ = c.cmd.Process.Kill()
		<-c.done
	}
}
