package rdma

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	here := Endpoint{Instance: "a", Host: "k1/net:[1]", UnixPath: "@a", NoVerbs: "no RDMA here"}
	namespace := Endpoint{Instance: "b", Host: "k1/net:[2]", UnixPath: "@b"}
	away := Endpoint{Instance: "c", Host: "k2/net:[1]", UnixPath: "@c"}
	with := func(e Endpoint) Endpoint { e.Verbs, e.NoVerbs = "a port", ""; return e }
	cases := []struct {
		name          string
		local, remote Endpoint
		want          Transport
		got           Transport
		reason        string
	}{
		{"same host", here, here, Auto, SHM, "same host"},
		{"same host with verbs", with(here), with(here), Auto, SHM, "same host"},
		{"default", here, here, "", SHM, "same host"},
		{"other host", here, away, Auto, TCP, "the peer is on another host; no RDMA here"},
		{"other host with verbs", with(here), with(away), Auto, Verbs, "the peer is on another host, and both have an RDMA port"},
		{"verbs here alone", with(here), away, Auto, TCP, "the peer is on another host; at the peer: it has no RDMA port"},
		{"verbs there alone", here, with(away), Auto, TCP, "the peer is on another host; no RDMA here"},
		{"other namespace", here, namespace, Auto, TCP, "the peer is in another network namespace; no RDMA here"},
		{"unknown host", here, Endpoint{UnixPath: "@d"}, Auto, TCP, "the host of one side is unknown; no RDMA here"},
		{"no socket", here, Endpoint{Host: here.Host}, Auto, TCP, "the peer has no unix socket; no RDMA here"},
		{"asked for tcp", with(here), with(away), TCP, TCP, "asked for"},
		{"asked for shm", here, here, SHM, SHM, "asked for"},
		{"asked for verbs", with(here), with(here), Verbs, Verbs, "asked for"},
		{"shm cannot be", here, away, SHM, "", ""},
		{"verbs cannot be", here, with(away), Verbs, "", ""},
		{"verbs cannot be there", with(here), away, Verbs, "", ""},
		{"unknown", here, here, "pigeon", "", ""},
	}
	for _, c := range cases {
		got, reason, err := Select(c.local, c.remote, c.want)
		if got != c.got || reason != c.reason || (err != nil) != (c.got == "") {
			t.Errorf("%s: got %q, %q, %v", c.name, got, reason, err)
		}
		if err != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: error is %v", c.name, err)
		}
	}
}

func TestHandshakeRefusals(t *testing.T) {
	change := func(f func(*Identity, *Endpoint)) func(*Identity, *Endpoint) { return f }
	cases := map[string]struct {
		change func(*Identity, *Endpoint)
		says   string
	}{
		"secret":   {change(func(i *Identity, _ *Endpoint) { i.Secret = "other" }), "secret"},
		"cluster":  {change(func(i *Identity, _ *Endpoint) { i.ClusterID = "other" }), `cluster "other"`},
		"nobody":   {change(func(i *Identity, _ *Endpoint) { i.Instance = "" }), "nobody"},
		"instance": {change(func(_ *Identity, e *Endpoint) { e.Instance = "z" }), `a link to "z"`},
	}
	for name, c := range cases {
		for _, want := range []Transport{SHM, TCP} {
			l := listen(t)
			identity, endpoint := client, l.Endpoint()
			c.change(&identity, &endpoint)
			_, _, err := Dial(testContext(t), identity, endpoint, LaneQuery, shape, Choice{Transport: want})
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s over %s: error is %v", name, want, err)
			}
		}
	}
}

func TestAdmit(t *testing.T) {
	l, other := listen(t), listen(t)
	if l.Endpoint().Process == "" || l.Endpoint().Process == other.Endpoint().Process {
		t.Errorf("processes %q and %q", l.Endpoint().Process, other.Endpoint().Process)
	}
	l.Admit(func(from, process string) error {
		if process == "p1" {
			return fmt.Errorf("%s is not wanted here", from)
		}
		return nil
	})
	for _, want := range []Transport{SHM, TCP} {
		if _, _, err := Dial(testContext(t), client, l.Endpoint(), LaneQuery, shape, Choice{Transport: want}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "a is not wanted here") {
			t.Errorf("%s: %v", want, err)
		}
	}
	fresh := client
	fresh.Process = "p2"
	link, _, err := Dial(testContext(t), fresh, l.Endpoint(), LaneQuery, shape, Choice{Transport: Auto})
	if err != nil {
		t.Fatal(err)
	}
	link.Close()
	a, err := l.Accept(testContext(t))
	if err != nil || a.Process != "p2" {
		t.Fatalf("%+v %v", a, err)
	}
	a.Link.Close()
}

// The dialer must not trust a listener that does not know the secret.
func TestImpostor(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	done := make(chan error, 1)
	go func() {
		defer b.Close()
		b.Write(append([]byte(magic), newNonce()...))
		if _, _, err := readSigned(b); err != nil {
			done <- err
			return
		}
		done <- writeSigned(b, []byte("{}"), make([]byte, macBytes))
	}()
	_, err := greet(a, "secret", hello{Version: helloVersion, Nonce: newNonce()})
	if !errors.Is(err, errMAC) {
		t.Errorf("error is %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Neither a caller that says too much nor those that say nothing keep others out.
func TestStrangersBlockNobody(t *testing.T) {
	l := listen(t)
	endpoint := l.Endpoint()
	for range 20 {
		conn, err := net.Dial("tcp", endpoint.TCPAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	loud, err := net.Dial("tcp", endpoint.TCPAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer loud.Close()
	if _, err := loud.Write([]byte{0, 0, 0x10, 1}); err != nil { // one byte over the limit
		t.Fatal(err)
	}
	greeting, err := io.ReadAll(loud) // until the listener hangs up
	if len(greeting) != len(magic)+nonceBytes {
		t.Errorf("got %d bytes, %v", len(greeting), err)
	}
	c, _, a := connect(t, l, LaneQuery, TCP)
	exchange(t, c, a.Link, "in spite of them")
	slow, err := net.Dial("unix", endpoint.UnixPath)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if rest, err := io.ReadAll(slow); len(rest) != len(magic)+nonceBytes || err != nil {
		t.Errorf("a silent caller got %d bytes, %v", len(rest), err)
	}
}

// A caller that knows the secret but passes no memory gets no link.
func TestNoMemoryNoLink(t *testing.T) {
	l := listen(t)
	conn, err := net.Dial("unix", l.Endpoint().UnixPath)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := hello{Version: helloVersion, Cluster: "c", From: "a", To: "b", Lane: LaneQuery, Provider: SHM,
		Slots: 2, SlotBytes: 64, Nonce: newNonce()}
	if _, err := greet(conn, "secret", h); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err) // a reset says the same
	}
	if n := len(l.links); n != 0 {
		t.Errorf("%d links were accepted", n)
	}
}

func TestAcceptEnds(t *testing.T) {
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	endpoint := l.Endpoint()
	// A link that nobody accepts is closed with the listener.
	link, _, err := Dial(testContext(t), client, endpoint, LaneQuery, shape, Choice{Transport: TCP})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := link.receive(testContext(t), func([]byte) {}); err == nil {
		t.Error("the link outlived its listener")
	}
	link.Close()
	if _, err := l.Accept(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("error is %v", err)
	}
	if _, _, err := Dial(testContext(t), client, endpoint, LaneQuery, shape, Choice{Transport: Auto}); err == nil {
		t.Error("a closed listener accepted a link")
	}
}

func TestDialRefusesWrongShapes(t *testing.T) {
	for _, s := range []Shape{{}, {Slots: 1, SlotBytes: 64}, {Slots: 2, SlotBytes: 65}, {Slots: 2, SlotBytes: 1 << 31}} {
		if _, _, err := Dial(testContext(t), client, Endpoint{}, LaneQuery, s, Choice{Transport: Auto}); err == nil {
			t.Errorf("%+v was accepted", s)
		}
	}
}

func FuzzHello(f *testing.F) {
	good, err := json.Marshal(hello{Version: helloVersion, Cluster: "c", From: "a", To: "b", Lane: LaneMove,
		Provider: TCP, Slots: 4, SlotBytes: 4096, Nonce: newNonce()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"slots":4294967295,"slot_bytes":18446744073709551615}`))
	f.Add([]byte(`{`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := parseHello(raw)
		if err != nil {
			return
		}
		if shmBytes(h.Slots, h.SlotBytes) < 2*uint64(h.Slots)*h.SlotBytes || h.Slots < 2 || h.From == "" {
			t.Errorf("accepted %+v", h)
		}
		again, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseHello(again); err != nil {
			t.Errorf("cannot read back %s: %v", again, err)
		}
	})
}

func FuzzWelcome(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		rw := struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(raw)), io.Discard}
		if _, err := welcome(rw, "secret", func(hello) ([]byte, error) { return nil, nil }); err == nil {
			t.Error("a caller without the secret was welcome")
		}
	})
}

// A rail is one more lane of verbs links, and has a number.
func TestHelloRails(t *testing.T) {
	good := hello{Version: helloVersion, From: "a", Lane: LaneMove, Provider: TCP, Slots: 2, SlotBytes: 64, Nonce: newNonce()}
	verbs := good
	verbs.Lane, verbs.Provider, verbs.Rail, verbs.Verbs = LaneRail, Verbs, 3, make([]byte, verbsInfoSize)
	for name, c := range map[string]struct {
		change func(*hello)
		says   string
	}{
		"":                {func(*hello) {}, ""},
		"over tcp":        {func(h *hello) { h.Provider, h.Verbs, h.Rail = TCP, nil, 0 }, `lane "rail" over "tcp"`},
		"number":          {func(h *hello) { h.Rail = maxVerbsPorts }, "rail 64"},
		"negative":        {func(h *hello) { h.Rail = -1 }, "rail -1"},
		"tcp with a rail": {func(h *hello) { *h = good; h.Rail = 1 }, `rail 1 over "tcp"`},
	} {
		h := verbs
		c.change(&h)
		raw, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseHello(raw)
		if c.says == "" && (err != nil || got.Rail != 3) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: rail %d, %v", name, got.Rail, err)
		}
	}
}
