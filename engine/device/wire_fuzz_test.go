package device

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/rdma"
)

// The numbers of csrc/dist/wire.h, little endian.
const (
	wireMagic = 0x31464e49
	wireQuery = 1 // answered by 2
	wireMove  = 3 // answered by 4
	wireHead  = 64
)

// The debtors of the device under test, by their peer indexes there.
const (
	honestPeer = 1
	liarPeer   = 7
)

// liar is a debtor that sends what a fuzzer thinks of, and an honest one that must not notice.
type liar struct {
	device   *Device
	listener *rdma.Listener
	lanes    [2]*rdma.Link // query, move: the liar's ends
	honest   *request
	want     batch.RowOut // the honest request's next token, computed without the device
	gen      uint32       // of the span that takes moves
	told     int
}

const (
	querySpan = 2 // hosted for the liar: three blocks of which two are filled
	moveSpan  = 1 // hosted for the liar: four blocks, none filled before a message
)

func newLiar(f *testing.F) *liar {
	f.Helper()
	m, err := model.Open("../model/testdata/llama")
	if err != nil {
		f.Fatal(err)
	}
	defer m.Close()
	c := testConfig()
	c.NumBlocks, c.MaxTokens, c.MaxStepSpans, c.Threads = 32, 32, 4, 1
	l := &liar{}
	var home *Device
	for _, d := range []**Device{&l.device, &home} {
		if *d, err = LoadModel(m, c, nil); err != nil {
			f.Fatal(err)
		}
		f.Cleanup((*d).Close)
	}
	if l.listener, err = rdma.Listen(rdma.ListenConfig{Identity: identity("device")}); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.listener.Close() })
	l.connect(f)
	f.Cleanup(func() { l.lanes[0].Close(); l.lanes[1].Close() })
	if err := l.device.SpanSet(liarPeer, querySpan, 1, []int32{20, 9, 21}); err != nil {
		f.Fatal(err)
	}
	// What the fuzzer begins with is what an honest debtor sends: its status is 0.
	l.accepted(f, 1, moveMessage(l.device, querySpan, 1, 0, 2), wireHead+24)
	l.accepted(f, 0, queryMessage(l.device, querySpan, 1, 4, 8), wireHead)
	l.lend(f, home)
	return l
}

func (l *liar) accepted(f *testing.F, lane int, message []byte, statusAt int) {
	f.Helper()
	if err := l.lanes[lane].Send(f.Context(), message); err != nil {
		f.Fatal(err)
	}
	answer, err := l.lanes[lane].Receive(f.Context())
	if err != nil || binary.LittleEndian.Uint32(answer[statusAt:]) != 0 {
		f.Fatalf("a valid message was answered with %x: %v", answer[:min(len(answer), 128)], err)
	}
}

func identity(instance string) rdma.Identity {
	return rdma.Identity{ClusterID: "c", Instance: instance, Secret: "secret"}
}

// dial opens both lanes to the device under test and serves their other ends there.
func (l *liar) dial(t testing.TB, from string, peer uint32) (lanes [2]*rdma.Link) {
	t.Helper()
	c := l.device.Config()
	var served [2]*rdma.Link
	for i, lane := range []rdma.Lane{rdma.LaneQuery, rdma.LaneMove} {
		shape := rdma.Shape{Slots: uint32(QuerySlots), SlotBytes: []uint64{QuerySlotBytes(c), MoveSlotBytes(c)}[i], Peer: int32(peer)}
		link, _, err := rdma.Dial(t.Context(), identity(from), l.listener.Endpoint(), lane, shape, rdma.Choice{Transport: rdma.SHM})
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.listener.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lanes[i], served[i] = link, accepted.Link
	}
	if err := l.device.PeerServe(peer, served[0].Take(), served[1].Take()); err != nil {
		t.Fatal(err)
	}
	return lanes
}

func (l *liar) connect(t testing.TB) { l.lanes = l.dial(t, "liar", liarPeer) }

// lend computes a token at home alone, moves the text's first blocks to the device, and checks that the
// answer is the same.
func (l *liar) lend(f *testing.F, home *Device) {
	f.Helper()
	tokens := make([]int32, 24)
	for i := range tokens {
		tokens[i] = int32(3 + 7*i%200)
	}
	if err := home.OpenSlot(0, greedy, tokens, len(tokens), nil); err != nil {
		f.Fatal(err)
	}
	t := &testing.T{} // a failure panics: there is no test yet
	l.honest = &request{t: t, d: home, tokens: tokens, local: []int32{5, 3, 11, 8, 1, 2}}
	l.honest.feed(len(tokens) - 1)
	l.want = l.honest.feed(1, batch.Row{Target: -1})[0]
	link := l.dial(f, "honest", honestPeer)
	if err := home.PeerAttach(2, link[0].Take(), link[1].Take()); err != nil {
		f.Fatal(err)
	}
	if err := l.device.SpanSet(honestPeer, 0, 1, []int32{17, 4, 25}); err != nil {
		f.Fatal(err)
	}
	if err := home.MovePost(2, 0, 1, 0, l.honest.local[:3], 1); err != nil {
		f.Fatal(err)
	}
	if done, ok, err := home.MoveWait(testWait); err != nil || !ok || done.Err != nil {
		f.Fatal(done, ok, err)
	}
	l.honest.local, l.honest.pos = l.honest.local[3:], 3*blockSize
	l.honest.spans = []batch.Span{{Peer: 2, Handle: 0, Generation: 1, NTokens: 3 * blockSize}}
}

// checkHonest computes the honest request's token again, over its span at the device.
func (l *liar) checkHonest(t *testing.T) {
	t.Helper()
	l.honest.t = t
	l.honest.done = len(l.honest.tokens) - 1
	got := l.honest.feed(1, batch.Row{Target: -1})[0]
	if got.Token != l.want.Token || !near(got.Logprob, float64(l.want.Logprob)) {
		t.Fatalf("an honest peer got token %d (%g), want %d (%g)", got.Token, got.Logprob, l.want.Token, l.want.Logprob)
	}
}

// tell sends the message: it is answered, or it ends the liar's links and is counted.
func (l *liar) tell(t *testing.T, lane int, kind uint32, message []byte) {
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	before := l.device.Stats().RefusedMessages
	if err := l.lanes[lane].Send(ctx, message); err != nil {
		t.Fatal(err)
	}
	answer, err := l.lanes[lane].Receive(ctx)
	var gone *rdma.Error
	switch {
	case err == nil:
		le := binary.LittleEndian
		if len(answer) < wireHead || le.Uint32(answer[4:]) != kind+1 || le.Uint64(answer[32:]) != uint64(len(answer)) {
			t.Fatalf("%x was answered with %d bytes: %x", message, len(answer), answer[:min(len(answer), wireHead)])
		}
	case errors.As(err, &gone) && gone.PeerGone():
		if err := l.device.PeerStatus(liarPeer); !errors.Is(err, ErrProtocol) {
			t.Fatalf("%x: the peer is %v", message, err)
		}
		if n := l.device.Stats().RefusedMessages; n != before+1 {
			t.Fatalf("%x: %d messages were refused, %d before", message, n, before)
		}
		if err := l.device.PeerDetach(liarPeer); err != nil {
			t.Fatal(err)
		}
		l.lanes[0].Close()
		l.lanes[1].Close()
		l.connect(t)
	default:
		t.Fatal(err)
	}
	if l.told++; l.told%16 == 0 {
		l.checkHonest(t)
	}
}

// fit cuts the fuzzer's bytes to the lane's slot; repaired, they begin like a message of that kind and size.
func fit(data []byte, room uint64, kind uint32, repair bool) []byte {
	message := append(make([]byte, 0, room), data[:min(uint64(len(data)), room)]...)
	if repair && len(message) >= wireHead {
		le := binary.LittleEndian
		le.PutUint32(message, wireMagic)
		le.PutUint32(message[4:], kind)
		le.PutUint64(message[32:], uint64(len(message)))
	}
	return message
}

func pad(b []byte) []byte { return append(b, make([]byte, (64-len(b)%64)%64)...) }

func finish(message []byte, kind uint32) []byte {
	return fit(message, uint64(len(message)), kind, true)
}

// queryMessage asks for one row per group over tokens of the span, which each group names once.
func queryMessage(d *Device, handle, gen uint32, tokens ...uint32) []byte {
	le, n := binary.LittleEndian, uint32(len(tokens))
	b := make([]byte, wireHead)
	for i, v := range []uint32{n, n, n} { // groups, entries, rows
		le.PutUint32(b[20+4*i:], v)
	}
	for i, v := range tokens {
		for _, field := range []uint32{uint32(i), 1, v, uint32(i), 1, 0, 0, 0} {
			b = le.AppendUint32(b, field)
		}
	}
	for _, v := range tokens {
		for _, field := range []uint32{handle, gen, 0, v} {
			b = le.AppendUint32(b, field)
		}
	}
	b = pad(b)
	for i := range int(n) * d.Config().Heads * d.Config().HeadDim {
		b = le.AppendUint32(b, math.Float32bits(float32(i%7)-3))
	}
	return finish(b, wireQuery)
}

func moveMessage(d *Device, handle, gen, first, n uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, wireHead)
	for _, field := range []uint32{handle, gen, first, n, 9, 0, 0, 0} { // the ticket is 9
		b = le.AppendUint32(b, field)
	}
	return finish(append(pad(b), make([]byte, uint64(n)*BlockBytes(d.Config()))...), wireMove)
}

// Any bytes on the query lane.
func FuzzQueryMessage(f *testing.F) {
	l := newLiar(f)
	room := QuerySlotBytes(l.device.Config())
	valid := queryMessage(l.device, querySpan, 1, 8)
	for _, seed := range [][]byte{
		valid, queryMessage(l.device, querySpan, 1, 4, 8), queryMessage(l.device, querySpan, 1, 12), queryMessage(l.device, 0, 1, 4),
		queryMessage(l.device, querySpan, 2, 4), moveMessage(l.device, moveSpan, 1, 0, 1), valid[:wireHead], valid[:len(valid)-1], {},
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, repair bool) {
		l.tell(t, 0, wireQuery, fit(data, room, wireQuery, repair))
	})
}

// Any bytes on the move lane. Generation 1 in them stands for that of the span, which is new each time.
func FuzzMoveMessage(f *testing.F) {
	l := newLiar(f)
	room := MoveSlotBytes(l.device.Config())
	valid := moveMessage(l.device, moveSpan, 1, 0, 2)
	for _, seed := range [][]byte{
		valid, moveMessage(l.device, moveSpan, 1, 0, 4), moveMessage(l.device, moveSpan, 1, 0, 5), moveMessage(l.device, moveSpan, 1, 1, 1),
		moveMessage(l.device, moveSpan, 7, 0, 1), moveMessage(l.device, 0, 1, 0, 1), valid[:wireHead], valid[:len(valid)-1], {},
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, repair bool) {
		if l.gen > 0 {
			if err := l.device.SpanClose(moveSpan, l.gen); err != nil {
				t.Fatal(err)
			}
		}
		l.gen++
		if err := l.device.SpanSet(liarPeer, moveSpan, l.gen, []int32{30, 6, 29, 12}); err != nil {
			t.Fatal(err)
		}
		message := fit(data, room, wireMove, repair)
		le := binary.LittleEndian
		if len(message) >= wireHead+8 && le.Uint32(message[wireHead+4:]) == 1 {
			le.PutUint32(message[wireHead+4:], l.gen)
		}
		l.tell(t, 1, wireMove, message)
	})
}
