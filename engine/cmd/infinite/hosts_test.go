package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/engine/trace"
)

// Three hosts, each with a kernel of its own and clocks that are hours apart: over tcp, and then over verbs. In short, what
// is most unlike what happens to processes of one host.
func TestHosts(t *testing.T) {
	m := startMachines(t, "", "+5h", "-7h")
	boots := map[string]bool{}
	for _, v := range m.all {
		boots[v.sh("cat /proc/sys/kernel/random/boot_id")] = true
		if now, hours := v.sh("date +%s"), v.clock; !clockIs(t, now, hours) {
			t.Errorf("guest %d has the time %s with %q", v.number, now, hours)
		}
	}
	if len(boots) != len(m.all) {
		t.Fatalf("the guests have the same boot: %v", boots)
	}
	want := map[int]answer{}
	single := serve(t, "--dtype", "float32", "--isa", "avx2", poolFlag(t, 100))
	for _, r := range [][2]int{{allPrompt, allAnswer}, {twoPrompt, twoAnswer}, {onePrompt, oneAnswer}} {
		want[r[0]] = single.complete(body(prompt(r[0], r[0]), r[1]))
	}
	t.Run("tcp", func(t *testing.T) { m.startHosts(t, false, want).overTCP(t) })
	if !t.Failed() {
		t.Run("verbs", func(t *testing.T) { m.startHosts(t, true, want).overVerbs(t) })
	}
}

// clockIs says whether a machine's time is ours and so many hours, give or take one.
func clockIs(t *testing.T, seconds, hours string) bool {
	t.Helper()
	var now int64
	ahead := 0
	if _, err := fmt.Sscan(seconds, &now); err != nil {
		t.Fatal(err)
	}
	if hours != "" {
		if _, err := fmt.Sscanf(hours, "%dh", &ahead); err != nil {
			t.Fatal(err)
		}
	}
	return time.Unix(now, 0).Sub(time.Now().Add(time.Duration(ahead)*time.Hour)).Abs() < time.Hour
}

func (c *hostCluster) overTCP(t *testing.T) {
	c.in(t, "transports", func(*testing.T) {
		c.transports("tcp", "^the peer is on another host; (at the peer: )?cannot use verbs: this host has no RDMA device$")
	})
	c.in(t, "exactness", func(*testing.T) { c.asBefore() })
	c.in(t, "tools", c.tools)
	c.in(t, "a home loses power in mid-decode", c.homeLosesPower)
	if !testing.Short() {
		c.in(t, "the head is cut off in mid-decode", c.headCutInDecode)
		c.in(t, "a creditor loses power in mid-decode", c.creditorLosesPower)
		c.in(t, "a home is cut off in mid-decode", func(*testing.T) { c.cutInDecode(1, homeSilent, 25*time.Second) })
		c.in(t, "a home is cut off for a moment", func(*testing.T) { c.cutInDecode(1, homeSilent, time.Second) })
		c.in(t, "the head is cut off while idle", func(*testing.T) { c.cutWhileIdle(0, 15*time.Second) })
		c.in(t, "a host without which there is no room", c.noRoom)
		c.in(t, "the head loses power", c.headLosesPower)
	}
	c.in(t, "the end", c.end)
}

func (c *hostCluster) overVerbs(t *testing.T) {
	c.in(t, "transports", func(*testing.T) {
		c.transports("verbs", "^the peer is on another host, and both have an RDMA port; rxe0")
	})
	c.in(t, "exactness", func(*testing.T) { c.asBefore() })
	c.in(t, "a creditor loses power in mid-decode", c.creditorLosesPower)
	if !testing.Short() {
		c.in(t, "a creditor is cut off in mid-decode", func(*testing.T) { c.cutInDecode(2, hostPeerTimeout, 15*time.Second) })
		c.in(t, "a host is cut off while idle", func(*testing.T) { c.cutWhileIdle(2, 15*time.Second) })
	}
	c.in(t, "the end", c.end)
}

// transports checks what every instance says of its links to the others, and why: never shm.
func (c *hostCluster) transports(transport, why string) {
	line := regexp.MustCompile(`msg="connected to a peer".* peer=(\w+) transport=(\w+) why="([^"]*)"`)
	because := regexp.MustCompile(why)
	for i, p := range c.programs {
		seen := map[string]bool{}
		for _, m := range line.FindAllStringSubmatch(p.logs(), -1) {
			seen[m[1]] = true
			if m[2] != transport || !because.MatchString(m[3]) {
				c.t.Errorf("%s reaches %s over %s: %s", hostNames[i], m[1], m[2], m[3])
			}
		}
		if len(seen) != len(c.all)-1 {
			c.t.Errorf("%s says how it reaches %v", hostNames[i], seen)
		}
	}
	c.api().eventually("the same of each, in the map", func(v server.ClusterView) bool {
		return !slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool {
			return len(in.Links) != 1 || in.Links[transport] != uint32(len(c.all)-1)
		})
	})
}

// tools are the program's others, each on a host that has a part of the cluster.
func (c *hostCluster) tools(t *testing.T) {
	joins := "--cluster-host " + c.all[1].address() + " --cluster-secret of-all-hosts --dtype float32 --join " + c.all[0].address() + ":8001"
	out, _, err := c.all[1].try("$infinite doctor " + joins)
	if err != nil || !regexp.MustCompile(`cluster-host +10\.77\.0\.2, on v0 with MTU 4200`).MatchString(out) {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if out = c.all[0].sh("$infinite top --once"); !regexp.MustCompile(`(?s)\bi0 .*\bj1 .*\bj2 `).MatchString(out) {
		t.Errorf("top:\n%s", out)
	}
	c.traced(t)
}

// traced traces a request at its home: of its messages to other hosts only this end can be seen.
func (c *hostCluster) traced(t *testing.T) {
	home, log, ended := c.all[1], &process{t: t}, make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = home.follow(context.Background(), "echo $$ >/tmp/trace.pid; exec $infinite trace --json --kernel=false --duration 0 >/tmp/trace.json", log)
	}()
	log.logged("msg=tracing")
	c.right(twoPrompt, twoAnswer)
	home.sh("kill -INT $(cat /tmp/trace.pid)")
	<-ended
	var r trace.Report
	if err := json.Unmarshal([]byte(home.sh("cat /tmp/trace.json")), &r); err != nil {
		t.Fatalf("%v\n%s", err, log.logs())
	}
	seen := false
	for _, l := range r.Lanes {
		seen = seen || l.Kind == trace.Query && l.Home.Process == "j1" && l.Messages > 0
		if l.Home.Process != "" && l.Home.Process != "j1" || l.Creditor.Process != "" && l.Creditor.Process != "j1" {
			t.Errorf("the trace has another host's process: %+v", l)
		}
	}
	if note := fmt.Sprint(r.Notes); !seen || !strings.Contains(note, "one end of some lanes was not traced (another host") {
		t.Errorf("the trace has %+v, %s", r.Lanes, note)
	}
}

// gone checks that an instance has left the list, and that the others serve.
func (c *hostCluster) gone(name string) {
	c.t.Helper()
	c.api().eventually(name+" is gone", func(v server.ClusterView) bool {
		return !slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.ID == name })
	})
	c.right(onePrompt, oneAnswer)
}

// restart switches a host on again, and starts its instance as before.
func (c *hostCluster) restart(i int) {
	c.t.Helper()
	c.all[i].start()
	c.all[i].waitBooted()
	c.rdma(i)
	c.programs[i] = c.startOn(i)
	c.whole()
}

func (c *hostCluster) creditorLosesPower(*testing.T) {
	done := c.decoding()
	c.all[2].losePower()
	lost := time.Now()
	c.all[1].release()
	c.within(done, lost, hostPeerTimeout)
	c.gone("j2")
	c.restart(2)
	c.asBefore()
}

func (c *hostCluster) homeLosesPower(*testing.T) {
	done := c.decoding()
	c.all[1].losePower()
	c.within(done, time.Now(), homeSilent)
	c.gone("j1")
	c.restart(1)
	c.asBefore()
}

// headLosesPower: what had joined it waits for one at the same address, and joins that.
func (c *hostCluster) headLosesPower(*testing.T) {
	c.all[0].losePower()
	c.restart(0)
	c.asBefore()
}

// cutInDecode cuts a host off, and brings it back after a while, be the answer there or not.
func (c *hostCluster) cutInDecode(i int, limit, whole time.Duration) {
	done := c.decoding()
	lost := c.network.Lost()
	c.all[i].cut(true)
	begun := time.Now()
	c.all[1].release()
	time.AfterFunc(whole, func() { c.all[i].cut(false) })
	c.within(done, begun, max(limit, whole))
	time.Sleep(time.Until(begun.Add(whole + time.Second)))
	if c.network.Lost() == lost {
		c.t.Error("the network lost nothing")
	}
	c.asBefore()
}

// headCutInDecode: the API's host has no room for what the others run. Either their tokens come after the cut, or the client
// is told.
func (c *hostCluster) headCutInDecode(t *testing.T) {
	const whole = 10 * time.Second
	done := c.decoding()
	c.all[0].cut(true)
	begun := time.Now()
	c.all[1].release()
	time.Sleep(whole)
	c.all[0].cut(false)
	select {
	case got := <-done:
		t.Logf("status %d after %s: %s", got.status, got.at.Sub(begun).Round(100*time.Millisecond), got.message)
		told := regexp.MustCompile("cannot go on with the request: the instance j1 that ran it is gone|cannot fit a request of")
		if got.status != http.StatusServiceUnavailable || !told.MatchString(got.message) {
			sameAnswer(t, c.want[twoPrompt], got.answer)
		}
	case <-time.After(time.Until(begun.Add(whole + homeSilent + slack))):
		t.Fatal("no answer")
	}
	c.asBefore()
}

func (c *hostCluster) cutWhileIdle(i int, whole time.Duration) {
	c.all[i].cut(true)
	if i > 0 {
		c.gone(hostNames[i])
	}
	time.Sleep(whole)
	c.all[i].cut(false)
	c.asBefore()
}

// noRoom: without a host that lost its power the others have no room for the request, which ends with an error that says so.
func (c *hostCluster) noRoom(t *testing.T) {
	c.all[1].hold(allPrompt + hostHold)
	done := c.ask(allPrompt, allAnswer)
	c.api().eventually("a request in decode on all", func(v server.ClusterView) bool {
		return slices.ContainsFunc(v.Requests, func(q server.RequestPlacement) bool { return q.Home == "j1" && q.Tokens >= allPrompt+hostHold })
	})
	c.all[2].losePower()
	lost := time.Now()
	c.all[1].release()
	select {
	case got := <-done:
		t.Logf("status %d after %s: %s", got.status, got.at.Sub(lost).Round(100*time.Millisecond), got.message)
		if got.status != http.StatusServiceUnavailable || !strings.Contains(got.message, "cannot fit a request of") {
			t.Errorf("status %d: %s", got.status, got.message)
		}
	case <-time.After(hostPeerTimeout + 30*time.Second + slack): // computed as far as there is room, and it waits for more
		t.Fatal("no answer")
	}
	c.gone("j2")
	c.restart(2)
	c.asBefore()
}

// end: what joined leaves in order, then the head.
func (c *hostCluster) end(t *testing.T) {
	for _, i := range []int{2, 1, 0} {
		if status := c.programs[i].stop(); status != 0 {
			t.Errorf("%s ended with status %d", hostNames[i], status)
		}
	}
}
