package live

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/infinite-llm/infinite/engine/top"
)

const (
	// The other screen, so that what was there comes back; no cursor; no line is continued in the next.
	enter = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leave = "\x1b[?7h\x1b[?25h\x1b[?1049l"

	home     = "\x1b[H"
	clearEnd = "\x1b[K" // of the line
	clearAll = "\x1b[J" // below

	keyWait = 200 // milliseconds until it is looked whether keys are still of interest
)

// Screen is a terminal that is drawn on; Close gives it back as it was.
type Screen struct {
	in, out *os.File
	colour  bool
	before  *unix.Termios // of in; nil if that is no terminal
	resized chan struct{}
	close   sync.Once
}

// IsTerminal says whether a screen can be had on out.
func IsTerminal(out *os.File) bool {
	return term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"
}

// pipeWidth is how wide text is where there is no terminal and no COLUMNS: wide enough for all of an instance in a row.
const pipeWidth = 180

// Columns is how wide text on out may be.
func Columns(out *os.File) int {
	if width, _, err := term.GetSize(int(out.Fd())); err == nil && width > 0 {
		return width
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	return pipeWidth
}

// OpenScreen takes the terminal over. What is typed on in does not show, q ends, and the signals of Ctrl-C stay.
func OpenScreen(in, out *os.File, colour bool) (*Screen, error) {
	s := &Screen{in: in, out: out, colour: colour, resized: make(chan struct{}, 1)}
	if term.IsTerminal(int(in.Fd())) {
		before, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
		if err != nil {
			return nil, fmt.Errorf("cannot read the terminal's state: %w", err)
		}
		quiet := *before
		quiet.Lflag &^= unix.ECHO | unix.ICANON
		quiet.Cc[unix.VMIN], quiet.Cc[unix.VTIME] = 1, 0
		quiet.Cc[unix.VSUSP] = 0 // a shell would find the other screen
		if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &quiet); err != nil {
			return nil, fmt.Errorf("cannot set the terminal's state: %w", err)
		}
		s.before = before
	}
	if _, err := out.WriteString(enter); err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot draw on the terminal: %w", err)
	}
	return s, nil
}

// Close restores the terminal; only the first call does anything.
func (s *Screen) Close() {
	s.close.Do(func() {
		_, _ = s.out.WriteString(leave)
		if s.before != nil {
			_ = unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETSF, s.before)
		}
	})
}

// watch tells of new sizes, and calls quit when q is typed. What it returns ends it.
func (s *Screen) watch(quit func()) (end func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGWINCH)
	over := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-signals:
				select {
				case s.resized <- struct{}{}:
				default: // one is not looked at yet
				}
			case <-over:
				return
			}
		}
	})
	if s.before != nil {
		all.Go(func() { s.keys(over, quit) })
	}
	return func() {
		signal.Stop(signals)
		close(over)
		all.Wait()
	}
}

// keys reads until over, or until the terminal is gone: its hang-up ends the program.
func (s *Screen) keys(over <-chan struct{}, quit func()) {
	key := make([]byte, 16)
	fds := []unix.PollFd{{Fd: int32(s.in.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, keyWait)
		select {
		case <-over:
			return
		default:
		}
		if n == 0 || err == unix.EINTR {
			continue
		}
		if n, err = unix.Read(int(fds[0].Fd), key); err != nil || n <= 0 {
			return
		}
		if bytes.ContainsAny(key[:n], "qQ") {
			quit()
			return
		}
	}
}

// draw replaces what is on the screen.
func (s *Screen) draw(v top.View, f *top.Figures) error {
	v.Colour = s.colour
	var err error
	if v.Width, v.Height, err = term.GetSize(int(s.out.Fd())); err != nil {
		return fmt.Errorf("cannot ask for the terminal's size: %w", err)
	}
	if v.Width <= 0 || v.Height <= 0 { // of some serial lines
		v.Width, v.Height = 80, 24
	}
	// Each line is cleared before it is written: afterwards its last character would go, if it is as wide as the screen.
	lines := strings.Split(strings.TrimSuffix(v.Text(f), "\n"), "\n")
	text := home + clearEnd + strings.Join(lines, "\r\n"+clearEnd)
	if len(lines) < v.Height {
		text += "\r\n" + clearAll
	}
	_, err = s.out.WriteString(text)
	return err
}
