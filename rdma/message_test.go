package rdma

import (
	"bytes"
	"errors"
	"net"
	"testing"
)

func TestSendAndReceive(t *testing.T) {
	for _, want := range []Transport{SHM, TCP} {
		c, _, a := connect(t, listen(t), LaneQuery, want)
		for _, n := range []int{0, 1, int(shape.SlotBytes)} {
			message := bytes.Repeat([]byte{byte(n), 7}, n)[:n]
			if err := c.Send(testContext(t), message); err != nil {
				t.Fatal(err)
			}
			if got, err := a.Link.Receive(testContext(t)); err != nil || !bytes.Equal(got, message) {
				t.Errorf("%s: got %d bytes of %d: %v", want, len(got), n, err)
			}
		}
		if err := c.Send(testContext(t), make([]byte, shape.SlotBytes+1)); err == nil || c.Err() != nil {
			t.Errorf("%s: a message larger than a slot: %v, %v", want, err, c.Err())
		}
		c.Close()
		if err := c.Send(testContext(t), nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: a closed link: %v", want, err)
		}
	}
}
