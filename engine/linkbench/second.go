package linkbench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Ready is what the listening command prints before the address.
const Ready = "infinite linkbench --connect "

const secondLimit = 10 * time.Second // for a second process to start, and to end

// Second is a second process of this program, which answers.
type Second struct {
	Address string
	cmd     *exec.Cmd
	ended   chan error
}

// StartSecond starts this program with these arguments and variables, which make it listen.
func StartSecond(ctx context.Context, args, env []string) (*Second, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	s := &Second{cmd: exec.Command(self, args...), ended: make(chan error, 1)}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stderr = os.Stderr
	// Its own group, so that Ctrl-C reaches this process alone; it dies with this one.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer func() { _ = out.Close() }()
	s.cmd.Stdout = in
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that starts the process, so that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		_ = in.Close()
		if started <- err; err == nil {
			s.ended <- s.cmd.Wait()
		}
	}()
	if err = <-started; err != nil {
		return nil, fmt.Errorf("cannot start a second process: %w", err)
	}
	_ = out.SetReadDeadline(time.Now().Add(secondLimit))
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	_, address, ok := strings.Cut(strings.TrimSpace(line), Ready)
	if err != nil || !ok {
		_ = s.End(true)
		return nil, errors.Join(errors.New("cannot start a second process: it did not say where it listens"), ctx.Err())
	}
	s.Address = address
	return s, nil
}

// End waits for the process, which ends by itself once its client has all; kill does not wait for that.
func (s *Second) End(kill bool) error {
	if kill {
		_ = s.cmd.Process.Kill()
		<-s.ended
		return nil
	}
	select {
	case err := <-s.ended:
		if err != nil {
			return fmt.Errorf("cannot vouch for the figures, the second process failed: %w", err)
		}
		return nil
	case <-time.After(secondLimit):
		_ = s.cmd.Process.Kill()
		<-s.ended
		return errors.New("cannot vouch for the figures, the second process did not end")
	}
}
