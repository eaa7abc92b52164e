package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/engine/top"
)

// looked is one object that `infinite top --json` prints.
type looked struct {
	top.Figures
	Error string `json:"error"`
}

func (l *looked) read(t *testing.T, line []byte) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if *l = (looked{}); d.Decode(l) != nil {
		t.Fatalf("no figures: %s", line)
	}
}

// A request that lies on three instances is shown where it lies, as the server says, in a table and in JSON; rates are
// those of what was generated; and a server that goes away is one.
func TestTop(t *testing.T) {
	h := holdSteps(t, 1)
	t.Cleanup(h.release)
	p := serve(t, "--dtype", "float32", "--instances", "3", poolFlag(t, 40))
	p.linked(3)
	s := p.stream(body(prompt(1500, 1), 60))
	s.next()
	p.eventually("a request on three instances", func(v server.ClusterView) bool { return len(v.Requests) == 1 && len(v.Requests[0].Spans) >= 3 })
	want := p.checkJSON()
	p.checkTable()

	cmd := command("top", "--url", p.url, "--json", "--interval", "100ms")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var one looked
	lines := bufio.NewReader(pipe)
	until := func(what string, cond func(l *looked) bool) {
		t.Helper()
		for n := 0; ; n++ {
			line, err := lines.ReadBytes('\n')
			if err != nil || n > 2000 {
				t.Fatalf("never printed: %s (%v)", what, err)
			}
			if one.read(t, line); cond(&one) {
				return
			}
		}
	}
	until("the request", func(l *looked) bool { return len(l.Requests) == 1 })
	h.release()
	if a := s.rest(); a.status != 200 || a.usage.Completion != 60 {
		t.Fatalf("%+v", a)
	}
	until("tokens, steps and waiting for partials", func(l *looked) bool {
		for _, i := range l.Instances {
			if i.ID == want.Home && i.Steps.Value > 0 && i.StepTime.Value > 0 && i.RemoteWait.Value > 0 && i.RemoteWait.Value <= 1 {
				return l.Cluster.TokensOut.Value > 0
			}
		}
		return false
	})
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until("that the server is away", func(l *looked) bool { return strings.Contains(l.Error, "cannot reach the server") })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, lines)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

// still runs `infinite top --once` until the request's blocks lay the same before and after it.
func (p *process) still(args ...string) (out string, lies server.RequestPlacement) {
	p.t.Helper()
	look := func() (r server.RequestPlacement) {
		p.eventually("a request", func(v server.ClusterView) bool {
			if len(v.Requests) == 1 {
				r = v.Requests[0]
			}
			return len(v.Requests) == 1
		})
		return r
	}
	poll(p.t, "blocks that rest", func() bool {
		lies = look()
		cmd := command(append([]string{"top", "--url", p.url, "--once", "--interval", "100ms"}, args...)...)
		cmd.Env = append(cmd.Env, "COLUMNS=160")
		text, err := cmd.Output()
		if err != nil {
			p.t.Fatal(err)
		}
		out = string(text)
		return fmt.Sprint(look()) == fmt.Sprint(lies)
	})
	return out, lies
}

// checkJSON expects of `infinite top --once --json` what the server says.
func (p *process) checkJSON() server.RequestPlacement {
	p.t.Helper()
	out, want := p.still("--json")
	var one looked
	one.read(p.t, []byte(out))
	if len(one.Instances) != 3 || len(one.Requests) != 1 || one.Cluster.Running != 1 || one.Cluster.Pool.Lent == 0 || one.Cluster.Pool.Hosted == 0 {
		p.t.Fatalf("%s", out)
	}
	got := one.Requests[0]
	if got.ID != want.ID || got.Home != want.Home || got.Tokens != want.Tokens || len(got.Spans) != len(want.Spans) {
		p.t.Fatalf("%+v, want %+v", got, want)
	}
	for i, span := range got.Spans {
		if span.Instance != want.Spans[i].Instance || span.Blocks != want.Spans[i].Blocks {
			p.t.Errorf("span %d is %+v, want %+v", i, span, want.Spans[i])
		}
	}
	return want
}

// checkTable expects that the table of `infinite top --once` has each instance, and the request cut as it is.
func (p *process) checkTable() {
	p.t.Helper()
	text, want := p.still()
	if strings.Contains(text, "\x1b") || !strings.Contains(text, "3 instances   requests 1 running, 0 waiting") {
		p.t.Fatal(text)
	}
	letters := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^([A-C]) +(i\d) +\[(.*)\] +(\d+)% +40 `).FindAllStringSubmatch(text, -1) {
		letters[m[2]] = m[1]
	}
	var cuts []string
	for _, s := range want.Spans {
		cuts = append(cuts, letters[s.Instance]+" "+strconv.Itoa(s.Blocks))
	}
	row := regexp.MustCompile(`(?m)^cmpl-.* ` + want.Home + ` +` + strconv.Itoa(want.Tokens) + ` .*\[[A-C]+\] ` + strings.Join(cuts, ", ") + `$`)
	if len(letters) != 3 || !row.MatchString(text) {
		p.t.Errorf("letters %v, cuts %v:\n%s", letters, cuts, text)
	}
}

// fakeCluster is a server that answers all with this status and a small cluster.
func fakeCluster(t *testing.T, status int) (url string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, `{"gmanager":"g","block_size":16,"instances":[{"id":"i0","kv_blocks_total":7,"kv_blocks_free":3}],"error":{"message":"no"}}`)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestTopRefuses(t *testing.T) {
	refusing := fakeCluster(t, http.StatusUnauthorized)
	for want, args := range map[string][]string{
		"no (401 Unauthorized)":                                      {"--url", refusing},
		"cannot look at the cluster: no (401":                        {"--url", refusing, "--once"},
		"cannot reach the server":                                    {"--url", "http://127.0.0.1:1", "--once"},
		"http://127.0.0.1:1":                                         {"--url", "127.0.0.1:1", "--once"},
		"cannot use --interval 1ms":                                  {"--interval", "1ms"},
		`unknown command "now"`:                                      {"now"},
		"is not between 100ms and 1h0m0s":                            {"--interval", "2h"},
		"cannot use --url: it must be like HOST:PORT or http://HOST": {"--url", "http://user@host:1"},
	} {
		var log bytes.Buffer
		cmd := command(append([]string{"top"}, args...)...)
		cmd.Stderr = &log
		if _, err := cmd.Output(); err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log.String(), want) {
			t.Errorf("%v: %v: %s", args, err, log.String())
		}
	}
}

// On a terminal Ctrl-C and SIGTERM end it, with status 0, and leave the terminal as it was.
func TestTopOnTerminal(t *testing.T) {
	url := fakeCluster(t, http.StatusOK)
	for _, how := range []string{"Ctrl-C", "SIGTERM", "q"} {
		t.Run(how, func(t *testing.T) {
			keys, lines := pseudoTerminal(t)
			before, err := unix.IoctlGetTermios(int(lines.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cmd := command("top", "--url", url)
			cmd.Env = append(cmd.Env, "TERM=xterm", "NO_COLOR=")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = lines, lines, lines
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			drawn := reading(t, keys)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			poll(t, "the cluster", func() bool { return strings.Contains(drawn(), "4 of 7 blocks in use (57%)") })
			// The kernel tells it of a new size, since the terminal is its own.
			at := len(drawn())
			if err := unix.IoctlSetWinsize(int(lines.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 12, Row: 5}); err != nil {
				t.Fatal(err)
			}
			poll(t, "it in a small terminal", func() bool { return strings.Contains(drawn()[at:], "\x1b[1minfinite top\x1b[0m\r") })
			switch how {
			case "Ctrl-C":
				_, err = keys.WriteString("\x03")
			case "q":
				_, err = keys.WriteString("q")
			default:
				err = cmd.Process.Signal(syscall.SIGTERM)
			}
			if err == nil {
				err = cmd.Wait()
			}
			if err != nil {
				t.Errorf("%v: %q", err, drawn())
			}
			poll(t, "the end", func() bool { return strings.HasSuffix(drawn(), "\x1b[?1049l") })
			after, err := unix.IoctlGetTermios(int(lines.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal was %+v, now %+v: %v", before, after, err)
			}
		})
	}
}

// pseudoTerminal has an end for who types and looks, and one for the program.
func pseudoTerminal(t *testing.T) (keys, lines *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this machine has no pseudo-terminals: %v", err)
	}
	var n uint32
	if err = unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		n, err = unix.IoctlGetUint32(int(keys.Fd()), unix.TIOCGPTN)
	}
	if err == nil {
		lines, err = os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(lines.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 100, Row: 30})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = lines.Close() // the end of what reads from keys
		_ = keys.Close()
	})
	return keys, lines
}

// reading reads on until the test ends; drawn is what there was so far.
func reading(t *testing.T, from *os.File) (drawn func() string) {
	var mu sync.Mutex
	var all bytes.Buffer
	go func() { // until the program's end of the terminal is closed by all
		b := make([]byte, 1<<16)
		for {
			n, err := from.Read(b)
			mu.Lock()
			all.Write(b[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}
