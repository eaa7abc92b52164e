package rdma

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const childEnv = "INFINITE_TEST_LINK_CHILD"

// In a child process the test binary dials the endpoint it is given, sends one message per lane, and then
// stands still until it is killed.
func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		runChild(spec)
		return
	}
	goleak.VerifyTestMain(m)
}

var (
	shape  = Shape{Slots: 4, SlotBytes: 64 << 10, Peer: 5, Pair: 1<<63 + 7}
	server = Identity{ClusterID: "c", Instance: "b", Secret: "secret"}
	client = Identity{ClusterID: "c", Instance: "a", Process: "p1", Secret: "secret"}
)

// transports are those that work here: on a host with an RDMA port, or in the guest with Soft-RoCE, verbs too.
func transports() []Transport {
	out := []Transport{SHM, TCP}
	if ports, _ := describeVerbs(VerbsConfig{}); ports != "" {
		out = append(out, Verbs)
	}
	return out
}

// devices are the ends of verbs links: two devices where there are two, so that packets cross a wire.
func devices() (dialer, acceptor VerbsConfig) {
	ports, _ := VerbsPorts(VerbsConfig{}, nil) // none on most machines
	if len(ports) > 0 {
		dialer.Devices, acceptor.Devices = []string{ports[len(ports)-1].Device}, []string{ports[0].Device}
	}
	return dialer, acceptor
}

func choice(want Transport) Choice {
	dialer, _ := devices()
	return Choice{Transport: want, Verbs: dialer}
}

func runChild(spec string) {
	var remote Endpoint
	transport, rest, _ := strings.Cut(spec, " ")
	if err := json.Unmarshal([]byte(rest), &remote); err != nil {
		panic(err)
	}
	link, _, err := Dial(context.Background(), client, remote, LaneQuery, shape, choice(Transport(transport)))
	if err != nil {
		panic(err)
	}
	if err := link.send(context.Background(), 3, func(b []byte) { copy(b, "hey") }); err != nil {
		panic(err)
	}
	fmt.Println("sent")
	io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(link)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// listen starts a listener and checks at the end that every link found an owner.
func listen(t *testing.T) *Listener {
	t.Helper()
	before := OpenLinks()
	_, acceptor := devices()
	l, err := Listen(ListenConfig{Identity: server, Verbs: acceptor})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		if n := OpenLinks(); n != before {
			t.Errorf("%d links are open, %d were before", n, before)
		}
	})
	return l
}

func connect(t *testing.T, l *Listener, lane Lane, want Transport) (*Link, Info, Accepted) {
	t.Helper()
	link, info, err := Dial(testContext(t), client, l.Endpoint(), lane, shape, choice(want))
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { link.Close(); a.Link.Close() })
	return link, info, a
}

func exchange(t *testing.T, from, to *Link, text string) {
	t.Helper()
	if err := from.send(testContext(t), uint64(len(text)), func(b []byte) { copy(b, text) }); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := to.receive(testContext(t), func(b []byte) { got = string(b) }); err != nil {
		t.Fatal(err)
	}
	if got != text {
		t.Fatalf("got %d bytes %.20q, want %d bytes", len(got), got, len(text))
	}
}

func TestLinksExchangeMessages(t *testing.T) {
	for _, want := range append(transports(), Auto) {
		t.Run(string(want), func(t *testing.T) {
			l := listen(t)
			c, info, a := connect(t, l, LaneMove, want)
			if a.From != "a" || a.Process != "p1" || a.Lane != LaneMove || a.Pair != shape.Pair || a.Info.Transport != info.Transport {
				t.Errorf("accepted %+v, dialed %+v", a, info)
			}
			if want != Auto && info.Transport != want {
				t.Errorf("transport is %s", info.Transport)
			}
			if want == Auto && HostID() != "" && info.Transport != SHM {
				t.Errorf("auto chose %s: %s", info.Transport, info.Reason)
			}
			if info.LatencyP50 <= 0 || info.BandwidthBytesPerSec <= 0 || info.Reason == "" {
				t.Errorf("info is %+v", info)
			}
			t.Logf("%s, %s: %v, %.2f GB/s", info.Transport, info.Reason, info.LatencyP50, info.BandwidthBytesPerSec/1e9)
			for i := range 50 {
				exchange(t, c, a.Link, fmt.Sprint("question ", i))
				exchange(t, a.Link, c, strings.Repeat("x", i*1000))
			}
		})
	}
}

func TestCloseShowsAtThePeer(t *testing.T) {
	for _, want := range transports() {
		l := listen(t)
		c, _, a := connect(t, l, LaneQuery, want)
		a.Link.Close()
		err := c.receive(testContext(t), func([]byte) {})
		var e *Error
		if !errors.As(err, &e) || !e.PeerGone() || e.Peer != 5 {
			t.Errorf("%s: error is %v", want, err)
		}
		if c.Err() == nil {
			t.Errorf("%s: the link still counts as alive", want)
		}
		if a.Link.Err() != nil || !errors.Is(a.Link.wait(0), net.ErrClosed) {
			t.Errorf("%s: a closed link can still be used", want)
		}
	}
}

// The kernel closes what a killed process had open; nothing else tells.
func TestKilledProcessShows(t *testing.T) {
	for _, want := range transports() {
		l := listen(t)
		remote, _ := json.Marshal(l.Endpoint())
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+string(want)+" "+string(remote))
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Link.receive(testContext(t), func(b []byte) {
			if string(b) != "hey" {
				t.Errorf("got %q", b)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "sent\n" {
			t.Fatal(line, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		err = a.Link.receive(testContext(t), func([]byte) { t.Error("a message of the dead") })
		var e *Error
		if !errors.As(err, &e) || !e.PeerGone() {
			t.Errorf("%s: error is %v", want, err)
		}
		a.Link.Close()
		stdin.Close()
		if cmd.Wait() == nil {
			t.Error("the child was not killed")
		}
	}
}

func TestTakeGivesTheHandleAway(t *testing.T) {
	l := listen(t)
	c, _, _ := connect(t, l, LaneQuery, TCP)
	before := OpenLinks()
	handle := c.Take()
	if handle == nil || OpenLinks() != before-1 {
		t.Fatal("the link was not given away")
	}
	if c.Take() != nil {
		t.Error("the link was given away twice")
	}
	c.Close() // of no effect
	closeHandle(handle)
}

func TestForgottenLinkIsClosed(t *testing.T) {
	l := listen(t)
	before := OpenLinks()
	func() {
		link, _, err := Dial(testContext(t), client, l.Endpoint(), LaneQuery, shape, Choice{Transport: TCP})
		if err != nil {
			t.Fatal(err)
		}
		runtime.KeepAlive(link)
	}()
	a, err := l.Accept(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		runtime.GC()
		if OpenLinks() == before+1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	err = a.Link.receive(testContext(t), func([]byte) {})
	var e *Error
	if !errors.As(err, &e) || !e.PeerGone() {
		t.Errorf("error is %v", err)
	}
	a.Link.Close()
}

func TestSharedMemoryIsChecked(t *testing.T) {
	good, err := newSHM(shape.Slots, shape.SlotBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer good.close()
	if err := checkSHM(good, shape.Slots, shape.SlotBytes); err != nil {
		t.Error(err)
	}
	if err := unix.Ftruncate(good[0], 0); err == nil {
		t.Error("the memory could be cut off")
	}
	if checkSHM(good, shape.Slots+1, 2*shape.SlotBytes) == nil {
		t.Error("memory of the wrong size was accepted")
	}
	if checkSHM(shmFDs{good[0], good[0], good[2]}, shape.Slots, shape.SlotBytes) == nil {
		t.Error("a file was accepted for an eventfd")
	}
	loose, err := unix.MemfdCreate("loose", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(loose)
	if err := unix.Ftruncate(loose, int64(shmBytes(shape.Slots, shape.SlotBytes))); err != nil {
		t.Fatal(err)
	}
	if checkSHM(shmFDs{loose, good[1], good[2]}, shape.Slots, shape.SlotBytes) == nil {
		t.Error("memory that can shrink was accepted")
	}
}

func TestDevices(t *testing.T) {
	devices, err := Devices()
	if err != nil {
		t.Fatal(err)
	}
	ports, _ := VerbsPorts(VerbsConfig{}, nil)
	for _, p := range ports {
		if !slices.Contains(devices, p.Device) {
			t.Errorf("the kernel has %v, the RDMA library %s", devices, p.Device)
		}
	}
}
