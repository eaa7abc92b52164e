package rdma

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// needVerbs skips a test where there is no RDMA port.
func needVerbs(t *testing.T) {
	t.Helper()
	if _, why := describeVerbs(VerbsConfig{}); why != "" {
		t.Skip(why)
	}
}

// elsewhere is the listener's endpoint as it would be on another host.
func elsewhere(l *Listener) Endpoint {
	e := l.Endpoint()
	e.Host, e.UnixPath = "another kernel/another namespace", ""
	return e
}

// noPort names a device that no host has.
var noPort = VerbsConfig{Devices: []string{"none"}}

// Without a port, or without the library, the other transports work as ever, and who wants verbs hears why not.
func TestWithoutPort(t *testing.T) {
	_, err := VerbsPorts(noPort, nil)
	if !errors.Is(err, ErrNoVerbs) {
		t.Fatalf("error is %v", err)
	}
	why := err.Error()
	t.Log(why)
	if !strings.Contains(why, "libibverbs") && !strings.Contains(why, "no RDMA device") {
		t.Errorf("reason is %q", why)
	}
	l, err := Listen(ListenConfig{Identity: server, Verbs: noPort})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if e := l.Endpoint(); e.Verbs != "" || e.NoVerbs != why {
		t.Errorf("endpoint is %+v", e)
	}
	if _, _, err = Dial(testContext(t), client, l.Endpoint(), LaneQuery, shape, Choice{Transport: Verbs, Verbs: noPort}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), why) {
		t.Errorf("error is %v", err)
	}
	for want, to := range map[Transport]Endpoint{SHM: l.Endpoint(), TCP: elsewhere(l)} {
		link, info, err := Dial(testContext(t), client, to, LaneQuery, shape, Choice{Transport: Auto, Verbs: noPort})
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, link, a.Link, "by other ways")
		if info.Transport != want || info.FellBack || want == TCP && !strings.Contains(info.Reason, why) {
			t.Errorf("%s: %+v", want, info)
		}
		link.Close()
		a.Link.Close()
	}
}

// A peer whose port is gone says so: who asked for verbs hears it, auto takes another way and tells.
func TestVerbsRefusal(t *testing.T) {
	needVerbs(t)
	l, err := Listen(ListenConfig{Identity: server, Verbs: noPort})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stale := elsewhere(l)
	stale.Verbs, stale.NoVerbs = "a port", ""
	const says = "at the peer: cannot use verbs: this host has no RDMA device named none"
	_, _, err = Dial(testContext(t), client, stale, LaneQuery, shape, choice(Verbs))
	if !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), says) {
		t.Errorf("error is %v", err)
	}
	link, info, err := Dial(testContext(t), client, stale, LaneQuery, shape, choice(Auto))
	if err != nil || info.Transport != TCP || !info.FellBack || !strings.Contains(info.Reason, says) {
		t.Fatalf("%+v, %v", info, err)
	}
	link.Close()
}

// objects is what the kernel has of all processes: domains, queues, queue pairs, regions.
func objects(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; rdma resource show").Output()
	if err != nil || !strings.Contains(string(out), "qp ") {
		if os.Getenv("GUEST") != "" {
			t.Fatalf("%v: %s", err, out)
		}
		return ""
	}
	return string(out)
}

// Queue pairs of a caller whose own is none, or who hangs up amid the set-up, are gone when it is.
func TestVerbsHalfLinksLeaveNothing(t *testing.T) {
	needVerbs(t)
	l := listen(t)
	_, acceptor := devices()
	before := objects(t)
	for i := range 20 {
		conn, err := net.Dial("tcp", l.Endpoint().TCPAddr)
		if err != nil {
			t.Fatal(err)
		}
		end, _, err := newVerbsEnd(acceptor, nil, wanted{domain: "c", local: "a", remote: "b", shape: shape})
		if err != nil {
			t.Fatal(err)
		}
		h := hello{Version: helloVersion, Cluster: "c", From: "a", To: "b", Lane: LaneQuery, Provider: Verbs,
			Slots: shape.Slots, SlotBytes: shape.SlotBytes, Nonce: newNonce(), Verbs: end.info()}
		if i%2 == 0 {
			h.Verbs = make([]byte, verbsInfoSize) // no queue pair has number 0
		}
		if _, err = greet(conn, "secret", h); err != nil {
			t.Fatal(err)
		}
		if i == 0 && before != "" && objects(t) == before {
			t.Error("the kernel's count does not show a queue pair that is there")
		}
		conn.Close()
		end.close()
	}
	for range 3 {
		link, _, a := connect(t, l, LaneQuery, Verbs)
		exchange(t, link, a.Link, "in spite of them")
		link.Close()
		a.Link.Close()
	}
	l.Close()
	if after := objects(t); after != before {
		t.Errorf("the kernel had\n%s and has\n%s", before, after)
	}
}

// guest runs a function of the guest's library; elsewhere the network is not ours to break.
func guest(t *testing.T, call string) {
	t.Helper()
	if os.Getenv("GUEST_LIB") == "" {
		t.Skip("not in the guest")
	}
	if out, err := exec.Command("sh", "-c", `. "$GUEST_LIB"; `+call).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", call, err, out)
	}
}

// auto gives way to TCP when the network carries no RDMA packets, or a port is down, says why, and is back at verbs
// with the next link once they are as they were.
func TestVerbsFallsBack(t *testing.T) {
	needVerbs(t)
	l := listen(t)
	dial := func() (Info, error) {
		t.Helper()
		link, info, err := Dial(testContext(t), client, elsewhere(l), LaneQuery, shape, choice(Auto))
		if err != nil {
			return info, err
		}
		defer link.Close()
		a, err := l.Accept(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Link.Close()
		exchange(t, link, a.Link, "one way or another")
		t.Logf("%s: %s", info.Transport, info.Reason)
		return info, nil
	}
	overVerbs := func() {
		t.Helper()
		if info, err := dial(); err != nil || info.Transport != Verbs || info.FellBack || !strings.Contains(info.Reason, "RoCE v2, GID 10.77.0.") {
			t.Fatalf("%+v, %v", info, err)
		}
	}
	guest(t, "guest_loss 0")
	overVerbs()
	guest(t, "guest_loss 100%")
	info, err := dial()
	guest(t, "guest_loss 0")
	if err != nil || info.Transport != TCP || !info.FellBack || !strings.HasPrefix(info.Reason, "verbs failed: ") {
		t.Errorf("%+v, %v", info, err)
	}
	overVerbs()
	guest(t, "guest_down v1")
	info, err = dial()
	guest(t, "guest_up v1; sleep 1") // GIDs come a little after the address
	if err != nil || info.Transport != TCP || !info.FellBack || !strings.Contains(info.Reason, "port 1 of rxe1 is down") {
		t.Errorf("%+v, %v", info, err)
	}
	overVerbs()
}
