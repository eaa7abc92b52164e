package live

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/infinite-llm/infinite/engine/top"
)

// terminal is a pseudo-terminal, and what was drawn on it.
type terminal struct {
	t           *testing.T
	keys, lines *os.File // the two ends: of who looks at it, and of the program
	mu          sync.Mutex
	drawn       strings.Builder
	ended       chan struct{}
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	// Not in the way of the runtime's poller, which would make the read below end with the other end's close.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this machine has no pseudo-terminals: %v", err)
	}
	var n uint32
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	}
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, keys: os.NewFile(uintptr(fd), "keys"), ended: make(chan struct{})}
	if x.lines, err = os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	x.resize(80, 24)
	go func() {
		defer close(x.ended)
		b := make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n <= 0 {
				return
			}
			x.mu.Lock()
			x.drawn.Write(b[:n])
			x.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = x.lines.Close() // the reader's end
		<-x.ended
		_ = x.keys.Close()
	})
	return x
}

func (x *terminal) resize(width, height int) {
	x.t.Helper()
	if err := unix.IoctlSetWinsize(int(x.keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) text() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.drawn.String()
}

// wait waits until what was drawn is such.
func (x *terminal) wait(what string, cond func(string) bool) {
	x.t.Helper()
	for end := time.Now().Add(patience); !cond(x.text()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("never saw %s in %q", what, x.text())
		}
	}
}

func (x *terminal) state() unix.Termios {
	x.t.Helper()
	s, err := unix.IoctlGetTermios(int(x.lines.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return *s
}

// restored expects that nothing is left of the screen.
func (x *terminal) restored(before unix.Termios) {
	x.t.Helper()
	x.wait("the end", func(s string) bool { return strings.HasSuffix(s, leave) })
	if after := x.state(); after != before {
		x.t.Errorf("the terminal was %+v, now %+v", before, after)
	}
	if s := x.text(); strings.Count(s, enter) != 1 || strings.Count(s, leave) != 1 {
		x.t.Errorf("screens are entered %d and left %d times", strings.Count(s, enter), strings.Count(s, leave))
	}
}

// run draws on the terminal until ctx ends.
func (x *terminal) run(ctx context.Context, answer script, interval time.Duration) (ended chan error) {
	x.t.Helper()
	s, err := OpenScreen(x.lines, x.lines, false)
	if err != nil {
		x.t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() {
		err := Run(ctx, &scripted{answer: answer}, Options{Screen: s, Interval: interval, Source: "SERVER"})
		s.Close()
		ended <- err
	}()
	return ended
}

func always(n int) (top.Sample, error) { return sample(n), nil }

// What is drawn fits the terminal, also once it is another, without a new sample; q ends it and is not shown, and the
// terminal is as it was.
func TestScreen(t *testing.T) {
	x := newTerminal(t)
	before := x.state()
	ended := x.run(t.Context(), always, time.Hour)
	x.wait("the cluster", func(s string) bool { return strings.Contains(s, "no requests") })
	if now := x.state(); now.Lflag&(unix.ECHO|unix.ICANON) != 0 || now.Lflag&unix.ISIG == 0 {
		t.Errorf("flags %x", now.Lflag)
	}
	first := len(x.text())
	x.resize(20, 3)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // the kernel tells those alone whose terminal it is
		t.Fatal(err)
	}
	x.wait("it anew", func(s string) bool { return strings.Count(s[first:], clearEnd) == 3 })
	for line := range strings.SplitSeq(x.text()[first+len(home):], "\r\n") {
		if n := len([]rune(strings.TrimRight(strings.TrimPrefix(line, clearEnd), "\r"))); n > 20 || n < 10 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if _, err := x.keys.WriteString("xq"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	x.restored(before)
	if s := x.text()[first:]; strings.Contains(s, "x") {
		t.Errorf("what was typed shows: %q", s)
	}
}

func TestScreenIsRestored(t *testing.T) {
	t.Run("at the end of the context", func(t *testing.T) {
		x := newTerminal(t)
		before := x.state()
		ctx, cancel := context.WithCancel(t.Context())
		ended := x.run(ctx, always, time.Millisecond)
		x.wait("it several times", func(s string) bool { return strings.Count(s, home) > 3 })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		x.restored(before)
	})
	t.Run("after a panic", func(t *testing.T) {
		x := newTerminal(t)
		before := x.state()
		s, err := OpenScreen(x.lines, x.lines, true)
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			defer s.Close()
			_ = Run(t.Context(), &scripted{answer: func(n int) (top.Sample, error) {
				if n == 2 {
					panic("wrong")
				}
				return sample(n), nil
			}}, Options{Screen: s, Interval: time.Millisecond})
		}()
		x.restored(before)
		if !strings.Contains(x.text(), "\x1b[1minfinite top\x1b[0m") {
			t.Error("no colours")
		}
	})
}
