package main

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

// heldTokens is more than two of the three instances hold: at it the third one has blocks too.
const heldTokens = 300

// asked is an answer and the time at which it came.
type asked struct {
	answer
	at time.Time
}

// ask sends the request that needs every block, and does not wait for the answer.
func (c *verbsCluster) ask(r *reference) <-chan asked {
	done := make(chan asked, 1)
	go func() {
		a, err := c.post(context.Background(), "/v1/completions", r.request(exactTokens-len(r.Prompt)))
		if err != nil {
			c.t.Error(err)
		}
		done <- asked{a, time.Now()}
	}()
	return done
}

// creditorInDecode waits until the request decodes, with spans at an instance that will do, and names that.
func (c *verbsCluster) creditorInDecode(r *reference, will func(id string) bool) (creditor string) {
	c.t.Helper()
	c.eventually("spans at a creditor, in decode", func(v server.ClusterView) bool {
		for _, q := range v.Requests {
			for _, s := range q.Spans[:max(0, len(q.Spans)-1)] {
				if q.Tokens >= heldTokens && will(s.Instance) {
					creditor = s.Instance
				}
			}
		}
		return creditor != ""
	})
	return creditor
}

// outage is something that happens to a creditor's network while it holds a part of a request in decode.
type outage struct {
	name          string
	begin, repair string        // the guest's functions; DEV is the creditor's
	lasts         time.Duration // after the answer, before the repair
}

// A creditor whose network fails in mid-decode: the request ends within the deadline, with the right tokens or an
// error that names the creditor; afterwards all is as before, and as fast.
func TestVerbsOutages(t *testing.T) {
	r := references(t)[0]
	h := holdSteps(t, heldTokens)
	defer h.release()
	h.release()
	c := startVerbs(t, r.flags(t, exactBlocks/3)...)
	begun := time.Now()
	right := c.complete(r.request(exactTokens - len(r.Prompt)))
	usual := time.Since(begun)
	r.checkReference(t, right)
	c.eventually("all blocks free", idle)
	for _, o := range []outage{
		{"the port goes down and comes back", "guest_down DEV", "guest_up DEV", 4 * time.Second},
		{"the address goes and comes back", "guest_addr_del DEV", "guest_addr_add DEV", 0},
		{"the port flaps", "guest_flap DEV 0.2; guest_flap DEV 0.5; guest_flap DEV 0.1", "sleep 1; guest_flap DEV 0.3; guest_flap DEV 1", 0},
	} {
		t.Run(o.name, func(t *testing.T) {
			c.t = t
			c.suffer(o, r, h, right)
			c.asBefore(r, right, usual)
		})
	}
}

func (c *verbsCluster) suffer(o outage, r *reference, h *hold, right answer) {
	t := c.t
	t.Helper()
	h.from(heldTokens)
	done := c.ask(r)
	creditor := c.creditorInDecode(r, func(string) bool { return true })
	dev := strings.Replace(c.devices[creditor], "rxe", "v", 1)
	before := map[string]int{}
	for id, log := range c.logOf {
		before[id] = len(log.logs())
	}
	guest(t, strings.ReplaceAll(o.begin, "DEV", dev))
	broken := time.Now()
	h.release()
	got := <-done
	took := got.at.Sub(broken)
	t.Logf("creditor %s: status %d after %s: %s", creditor, got.status, took.Round(time.Millisecond), got.message)
	switch {
	case got.status == http.StatusOK:
		sameAnswer(t, right, got.answer)
	case got.status != http.StatusInternalServerError || !strings.Contains(got.message, creditor):
		t.Errorf("the request got %d %q", got.status, got.message)
	case took > verbsPeerTimeout+5*time.Second:
		t.Errorf("the error took %s", took)
	}
	time.Sleep(o.lasts)
	if o.lasts > 0 {
		c.backsOff(creditor, before, o.lasts)
	}
	guest(t, strings.ReplaceAll(o.repair, "DEV", dev))
}

// backsOff looks at the attempts to reach a creditor that is out for so long: each waits longer than the one before.
func (c *verbsCluster) backsOff(creditor string, before map[string]int, lasts time.Duration) {
	c.t.Helper()
	attempt := regexp.MustCompile(`msg="cannot connect to a peer".* peer=` + creditor + ` retry_in=(\S+)`)
	for id, log := range c.logOf {
		if id == creditor {
			continue
		}
		var waits []time.Duration
		for _, m := range attempt.FindAllStringSubmatch(log.logs()[before[id]:], -1) {
			d, err := time.ParseDuration(m[1])
			if err != nil {
				c.t.Fatal(err)
			}
			if n := len(waits); n > 0 && d < waits[n-1] {
				c.t.Errorf("%s waits %s for %s, after %v", id, d, creditor, waits)
			}
			waits = append(waits, d)
		}
		c.t.Logf("%s tried to reach %s again after %v", id, creditor, waits)
		if len(waits) < 2 || waits[len(waits)-1] < 4*waits[0] || len(waits) > 8 {
			c.t.Errorf("attempts of %s in %s: %v", id, lasts, waits)
		}
	}
}

// asBefore waits until all are connected, and finds the right answer about as soon as usual. The best of some
// tries: this machine may be busy.
func (c *verbsCluster) asBefore(r *reference, right answer, usual time.Duration) {
	t := c.t
	t.Helper()
	repaired := time.Now()
	c.eventually("each connected to each", func(v server.ClusterView) bool { return c.connected() && idle(v) })
	t.Logf("connected after %s", time.Since(repaired).Round(time.Millisecond))
	for try := 1; ; try++ {
		begun := time.Now()
		sameAnswer(t, right, c.complete(r.request(len(right.tokens))))
		took := time.Since(begun)
		t.Logf("answered in %s, %s before", took.Round(time.Millisecond), usual.Round(time.Millisecond))
		c.eventually("all blocks free", idle)
		if took < 2*usual {
			return
		}
		if try == 3 {
			t.Fatalf("a request takes %s, %s before", took, usual)
		}
	}
}
