package rdma

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	helloVersion = 2
	// maxHello bounds what is read from a caller before it has proved anything, in bytes.
	maxHello   = 4 << 10
	nonceBytes = 32
	macBytes   = sha256.Size
	magic      = "INFLINK\x01"
)

var errMAC = errors.New("the cluster secret does not match")

// Identity is who opens or accepts links. Secret is shared by the whole cluster. Process is that of the
// caller's own Endpoint, so that the other end can tell a process from an earlier one of its instance.
type Identity struct {
	ClusterID string
	Instance  string
	Process   string
	Secret    string
}

// Lane is one of the two links from a debtor to a creditor.
type Lane string

const (
	LaneQuery Lane = "query" // queries out, partial results back
	LaneMove  Lane = "move"  // KV blocks out, acknowledgements back
	LaneRail  Lane = "rail"  // one more of these, on the rail that Shape names; verbs only
)

// Shape is a link's rings: Slots of SlotBytes each (2..64; a multiple of 64, at most 1 GiB). Peer is the
// caller's index of the other instance, for error records. Pair is the caller's number for two lanes that
// belong together; the other end is told, and may compare it with what it hears by other ways. Rail is the
// number of the rail that a LaneRail is to be on.
type Shape struct {
	Slots     uint32
	SlotBytes uint64
	Peer      int32
	Pair      uint64
	Rail      int
}

type hello struct {
	Version   int       `json:"version"`
	Cluster   string    `json:"cluster"`
	From      string    `json:"from"`
	Process   string    `json:"process"`
	To        string    `json:"to"`
	Lane      Lane      `json:"lane"`
	Provider  Transport `json:"provider"`
	Slots     uint32    `json:"slots"`
	SlotBytes uint64    `json:"slot_bytes"`
	Pair      uint64    `json:"pair"`
	Rail      int       `json:"rail,omitempty"` // of a verbs link: the dialer's rail
	Nonce     []byte    `json:"nonce"`
	Verbs     []byte    `json:"verbs,omitempty"` // of a verbs link: the dialer's queue pair
}

type reply struct {
	Error string `json:"error,omitempty"`
	// Unable: it is this transport that cannot be, for now; another one may.
	Unable bool   `json:"unable,omitempty"`
	Verbs  []byte `json:"verbs,omitempty"` // the acceptor's
}

// parseHello reads a hello and checks what can be checked without knowing who listens.
func parseHello(raw []byte) (hello, error) {
	var h hello
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return hello{}, fmt.Errorf("cannot read the hello: %w", err)
	}
	switch {
	case h.Version != helloVersion:
		return hello{}, fmt.Errorf("cannot speak version %d, only %d", h.Version, helloVersion)
	case h.From == "":
		return hello{}, errors.New("cannot accept a link from nobody")
	case h.Lane != LaneQuery && h.Lane != LaneMove && h.Lane != LaneRail || h.Lane == LaneRail && h.Provider != Verbs:
		return hello{}, fmt.Errorf("cannot accept lane %q over %q", h.Lane, h.Provider)
	case h.Rail < 0 || h.Rail >= maxVerbsPorts || h.Rail != 0 && h.Provider != Verbs:
		return hello{}, fmt.Errorf("cannot accept rail %d over %q", h.Rail, h.Provider)
	case h.Provider != SHM && h.Provider != TCP && h.Provider != Verbs:
		return hello{}, fmt.Errorf("cannot accept provider %q", h.Provider)
	case shmBytes(h.Slots, h.SlotBytes) == 0:
		return hello{}, fmt.Errorf("cannot accept %d slots of %d bytes", h.Slots, h.SlotBytes)
	case h.Provider == Verbs && len(h.Verbs) != verbsInfoSize || h.Provider != Verbs && h.Verbs != nil:
		return hello{}, fmt.Errorf("cannot accept a queue pair of %d bytes", len(h.Verbs))
	case len(h.Nonce) != nonceBytes:
		return hello{}, fmt.Errorf("cannot accept a nonce of %d bytes", len(h.Nonce))
	}
	return h, nil
}

func newNonce() []byte {
	n := make([]byte, nonceBytes)
	rand.Read(n) // never fails
	return n
}

// code signs the parts under a label that keeps the two directions apart.
func code(secret, label string, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, []byte(secret))
	for _, p := range append([][]byte{[]byte(label)}, parts...) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		m.Write(n[:])
		m.Write(p)
	}
	return m.Sum(nil)
}

func helloCode(secret string, nonce, hello []byte) []byte {
	return code(secret, "infinite link hello", nonce, hello)
}

func replyCode(secret string, nonce, hello, reply []byte) []byte {
	return code(secret, "infinite link reply", nonce, hello, reply)
}

func writeSigned(w io.Writer, body, mac []byte) error {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	_, err := w.Write(append(append(out, body...), mac...))
	return err
}

func readSigned(r io.Reader) (body, mac []byte, err error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, nil, err
	}
	length := binary.BigEndian.Uint32(n[:])
	if length > maxHello {
		return nil, nil, fmt.Errorf("cannot accept a message of %d bytes, more than %d", length, maxHello)
	}
	buf := make([]byte, int(length)+macBytes)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, nil, err
	}
	return buf[:length], buf[length:], nil
}

// greet is the dialer's half of the handshake. An error that wraps ErrRefused came from the peer; one that wraps
// ErrUnsupported did too, if the peer cannot use this transport.
func greet(rw io.ReadWriter, secret string, h hello) (r reply, err error) {
	start := make([]byte, len(magic)+nonceBytes)
	if _, err := io.ReadFull(rw, start); err != nil {
		return r, fmt.Errorf("cannot read the peer's greeting: %w", err)
	}
	if string(start[:len(magic)]) != magic {
		return r, fmt.Errorf("cannot understand the peer: %w", ErrRefused)
	}
	nonce := start[len(magic):]
	body, err := json.Marshal(h)
	if err != nil {
		return r, fmt.Errorf("cannot write the hello: %w", err)
	}
	if len(body) > maxHello {
		return r, fmt.Errorf("cannot send a hello of %d bytes, more than %d", len(body), maxHello)
	}
	if err := writeSigned(rw, body, helloCode(secret, nonce, body)); err != nil {
		return r, fmt.Errorf("cannot send the hello: %w", err)
	}
	answer, mac, err := readSigned(rw)
	if errors.Is(err, io.EOF) {
		return r, fmt.Errorf("cannot agree with the peer, does the cluster secret match? %w", ErrRefused)
	}
	if err != nil {
		return r, fmt.Errorf("cannot read the reply: %w", err)
	}
	if !hmac.Equal(mac, replyCode(secret, nonce, body, answer)) {
		return r, fmt.Errorf("cannot trust the peer, %w: %w", errMAC, ErrRefused)
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return r, fmt.Errorf("cannot read the reply: %w", err)
	}
	if r.Unable {
		return r, fmt.Errorf("at the peer: %s: %w", r.Error, ErrUnsupported)
	}
	if r.Error != "" {
		return r, fmt.Errorf("%w: %s", ErrRefused, r.Error)
	}
	return r, nil
}

// welcome is the acceptor's half. check decides on a hello whose sender has proved to know the secret;
// its error, or
// its own queue pair for a verbs link, goes to the dialer.
func welcome(rw io.ReadWriter, secret string, check func(hello) (verbs []byte, err error)) (hello, error) {
	nonce := newNonce()
	if _, err := rw.Write(append([]byte(magic), nonce...)); err != nil {
		return hello{}, fmt.Errorf("cannot greet: %w", err)
	}
	body, mac, err := readSigned(rw)
	if err != nil {
		return hello{}, fmt.Errorf("cannot read the hello: %w", err)
	}
	if !hmac.Equal(mac, helloCode(secret, nonce, body)) {
		return hello{}, errMAC
	}
	var r reply
	h, refusal := parseHello(body)
	if refusal == nil {
		r.Verbs, refusal = check(h)
	}
	if refusal != nil {
		r.Error, r.Unable = refusal.Error(), errors.Is(refusal, ErrNoVerbs)
		if len(r.Error) > 512 {
			r.Error = r.Error[:512]
		}
	}
	answer, err := json.Marshal(r)
	if err != nil {
		return hello{}, fmt.Errorf("cannot write the reply: %w", err)
	}
	if err := writeSigned(rw, answer, replyCode(secret, nonce, body, answer)); err != nil {
		return hello{}, errors.Join(refusal, fmt.Errorf("cannot reply: %w", err))
	}
	return h, refusal
}
