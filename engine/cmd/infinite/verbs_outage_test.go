package main

import (
	"context"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
)

const (
	heldTokens  = 300 // more than two of the three instances hold: then the third one has blocks too
	aloneTokens = 20  // of an answer that one instance holds, with the prompt
)

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

// creditorInDecode waits until the request decodes, with spans at an instance that joined, and names that.
func (c *verbsCluster) creditorInDecode() (creditor string) {
	c.t.Helper()
	c.eventually("spans at a creditor, in decode", func(v server.ClusterView) bool {
		for _, q := range v.Requests {
			for _, s := range q.Spans[:max(0, len(q.Spans)-1)] {
				if q.Tokens >= heldTokens && c.joined[s.Instance] != nil {
					creditor = s.Instance
				}
			}
		}
		return creditor != ""
	})
	return creditor
}

// outage is something that happens to a creditor while it holds a part of a request in decode, and what mends it.
type outage struct {
	name         string
	begin, after func(creditor string)
	long         bool // not in short
}

// A creditor whose network or process fails in mid-decode: the request is computed anew and has the right tokens if the
// creditor is back soon, else it ends, since the others have no room for it; afterwards all is as before, and as fast.
func TestVerbsOutages(t *testing.T) {
	r := references(t)[0]
	h := holdSteps(t, heldTokens)
	defer h.release()
	h.release()
	c := startVerbs(t, r.flags(t, exactBlocks/3)...)
	right, usual := c.timed(r)
	_, again := c.timed(r)
	usual = min(usual, again)
	for _, o := range []outage{
		{"the port goes down and comes back", c.network("guest_down DEV"), func(creditor string) {
			c.backsOff(creditor)
			c.network("guest_up DEV")(creditor)
		}, false},
		{"the address goes and comes back", c.network("guest_addr_del DEV"), c.network("guest_addr_add DEV"), true},
		{"the port flaps", c.network("guest_flap DEV 0.2; guest_flap DEV 0.5; guest_flap DEV 0.1"), c.network("sleep 1; guest_flap DEV 0.3; guest_flap DEV 1"), true},
		// Its successor has the same id, and other queue pairs and keys.
		{"the process is killed and started anew", c.kill, func(creditor string) {
			c.withoutOne(r)
			c.start(creditor)
		}, false},
	} {
		if o.long && testing.Short() {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			c.t = t
			h.from(heldTokens)
			c.suffer(o, r, h, right)
			c.asBefore(r, right, usual)
		})
	}
}

// timed asks for the answer that needs every block, and checks it. share is its time as a multiple of that of an
// answer which one instance gives alone, just after: other programs on this machine slow both down.
func (c *verbsCluster) timed(r *reference) (a answer, share float64) {
	c.t.Helper()
	begun := time.Now()
	a = c.complete(r.request(exactTokens - len(r.Prompt)))
	took := time.Since(begun)
	r.checkReference(c.t, a)
	begun = time.Now()
	if alone := c.complete(r.request(aloneTokens)); alone.status != http.StatusOK {
		c.t.Fatalf("status %d: %s", alone.status, alone.message)
	}
	share = float64(took) / float64(time.Since(begun))
	c.t.Logf("answered in %s, %.1f times what one instance takes alone for a shorter one", took.Round(time.Millisecond), share)
	c.eventually("all blocks free", idle)
	return a, share
}

// network does something to the creditor's device, by the guest's functions.
func (c *verbsCluster) network(call string) func(creditor string) {
	return func(creditor string) {
		c.t.Helper()
		guest(c.t, strings.ReplaceAll(call, "DEV", strings.Replace(c.devices[creditor], "rxe", "v", 1)))
	}
}

func (c *verbsCluster) kill(creditor string) {
	c.t.Helper()
	if err := c.joined[creditor].Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
}

// withoutOne waits until an instance that is gone has left, and sees that the others serve.
func (c *verbsCluster) withoutOne(r *reference) {
	c.t.Helper()
	c.eventually("two instances", func(v server.ClusterView) bool { return len(v.Instances) == 2 })
	short := c.complete(r.request(aloneTokens))
	for i, want := range r.Greedy[:aloneTokens] {
		if lp := r.Top[i].Logprobs[0]; short.status != http.StatusOK || math.Abs(short.lps[i]-lp) > 1e-4*max(1, math.Abs(lp)) {
			c.t.Fatalf("without one: status %d, token %d at %g, want %d at %g", short.status, i, short.lps[i], want, lp)
		}
	}
}

func (c *verbsCluster) suffer(o outage, r *reference, h *hold, right answer) {
	t := c.t
	t.Helper()
	done := c.ask(r)
	creditor := c.creditorInDecode()
	o.begin(creditor)
	begun := time.Now()
	h.release()
	got := <-done
	took := got.at.Sub(begun)
	t.Logf("creditor %s: status %d after %s: %s", creditor, got.status, took.Round(time.Millisecond), got.message)
	switch {
	case got.status == http.StatusOK:
		sameAnswer(t, right, got.answer)
	case got.status != http.StatusServiceUnavailable || !strings.Contains(got.message, "cannot fit a request of"):
		t.Errorf("the request got %d %q", got.status, got.message)
	case took > verbsPeerTimeout+30*time.Second: // to compute it as far as there is room, and to wait for more
		t.Errorf("the error took %s", took)
	}
	o.after(creditor)
}

// backsOff waits until the others wait long between their attempts to reach a creditor that is out, each time longer.
func (c *verbsCluster) backsOff(creditor string) {
	c.t.Helper()
	attempt := regexp.MustCompile(`msg="cannot connect to a peer".* peer=` + creditor + ` retry_in=(\S+)`)
	for id, log := range c.logOf {
		if id == creditor {
			continue
		}
		var waits []time.Duration
		poll(c.t, "waits of a second and more", func() bool {
			since := log.logs()
			since = since[strings.LastIndex(since, `msg="lost a peer"`):]
			waits = nil
			for _, m := range attempt.FindAllStringSubmatch(since, -1) {
				d, err := time.ParseDuration(m[1])
				if err != nil {
					c.t.Fatal(err)
				}
				waits = append(waits, d)
			}
			return len(waits) > 0 && waits[len(waits)-1] >= time.Second
		})
		c.t.Logf("%s tried to reach %s again after %v", id, creditor, waits)
		if !slices.IsSorted(waits) || len(waits) > 8 {
			c.t.Errorf("attempts of %s: %v", id, waits)
		}
	}
}

// asBefore waits until all are connected, and finds the right answer about as soon as usual: the best of some tries,
// since this machine may be busy.
func (c *verbsCluster) asBefore(r *reference, right answer, usual float64) {
	t := c.t
	t.Helper()
	repaired := time.Now()
	c.eventually("each connected to each", func(v server.ClusterView) bool { return len(v.Instances) == 3 && c.connected() && idle(v) })
	t.Logf("connected after %s", time.Since(repaired).Round(time.Millisecond))
	best := math.Inf(1)
	for range 5 {
		again, share := c.timed(r)
		sameAnswer(t, right, again)
		if best = min(best, share); best < 3*usual {
			return
		}
	}
	t.Errorf("a request takes %.1f times what it should, before it was %.1f", best, usual)
}
