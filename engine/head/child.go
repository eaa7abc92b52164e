package head

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

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

// headEnv is the number of a descriptor in an instance's environment: of the pipe by which it tells the process that
// started it why it ends, so that one of the two says so.
const headEnv = "INFINITE_HEAD_FD"

// maxWhy bounds that: the least that a pipe holds.
const maxWhy = 4096

// IsChild says whether another process started this one as an instance.
func IsChild() bool { return os.Getenv(headEnv) != "" }

// TellHead says to the process that started this one as an instance why this one ends. False: nobody was told.
func TellHead(why error) bool {
	fd, err := strconv.Atoi(os.Getenv(headEnv))
	if err != nil || fd < 3 {
		return false
	}
	pipe := os.NewFile(uintptr(fd), "pipe")
	if pipe == nil {
		return false
	}
	defer func() { _ = pipe.Close() }()
	text := why.Error()
	_, err = pipe.WriteString(text[:min(len(text), maxWhy)])
	return err == nil
}

// startChild starts an instance at a place. It gets its settings as variables, since they may hold secrets. ended is called
// when it has ended.
func startChild(cfg config.Config, place node.Place, join, id string, ended func()) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	cfg.Join, cfg.InstanceID, cfg.Threads = join, id, node.Threads(cfg)
	cfg.Instances, cfg.Device = 1, place.String()
	if place.OnGPU() {
		cfg.GPUMemoryUtilization = place.Share
	}
	// Not by its path: what lies there by the time that an instance is started anew may be another version.
	c := &child{id: id, cmd: exec.Command("/proc/self/exe", "serve"), done: make(chan struct{})}
	c.cmd.Args[0] = self
	c.cmd.Env = slices.DeleteFunc(os.Environ(), config.Stray) // this process has warned of them
	for _, f := range config.Fields(&cfg) {
		c.cmd.Env = append(c.cmd.Env, f.Env()+"="+f.String())
	}
	why, pipe, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start instance %s: %w", id, err)
	}
	c.cmd.ExtraFiles = []*os.File{pipe} // from 3 on
	c.cmd.Env = append(c.cmd.Env, "INFINITE_CONFIG=", headEnv+"=3")
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	// Its own group, so that Ctrl-C reaches this process alone, which then drains; and a signal if this
	// process dies without doing so.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	word := make(chan string, 1)
	go func() { word <- lastWord(why) }()
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that starts the child, so that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		_ = pipe.Close()
		started <- err
		if err == nil {
			c.reap(why, word)
			ended()
		}
	}()
	if err = <-started; err != nil {
		_ = why.Close()
		return nil, fmt.Errorf("cannot start instance %s: %w", id, err)
	}
	slog.Info("started an instance", "instance", id, "pid", c.cmd.Process.Pid, "device", place.Name(), "why", place.Why)
	return c, nil
}

// lastWord reads from the start, and on to the end, so that whoever writes never waits.
func lastWord(why *os.File) string {
	text, _ := io.ReadAll(io.LimitReader(why, maxWhy))
	_, _ = io.Copy(io.Discard, why)
	return string(text)
}

func (c *child) reap(why *os.File, word <-chan string) {
	err := c.cmd.Wait()
	_ = why.SetReadDeadline(time.Now().Add(time.Second)) // something else may hold the other end
	if text := <-word; text != "" {
		err = errors.New(text)
	}
	_ = why.Close()
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	close(c.done)
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
		return errStopped
	}
	return c.err
}

// errStopped is an end with status 0, as of an instance that was told to end.
var errStopped = errors.New("it stopped")

// told says whether this process has told it to end.
func (c *child) told() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

func (c *child) terminate() {
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
}

// hurry makes it cut short what it still does for others after terminate. It is another signal: two of the same kind may
// arrive as one.
func (c *child) hurry() { _ = c.cmd.Process.Signal(syscall.SIGINT) }

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
