package sched

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// script drives one scheduler; the rest of the cluster is the view that a command gives.
type script struct {
	s     *Scheduler
	kv    *kvcache.Manager
	plan  *Plan
	moved int                           // spans opened elsewhere
	texts map[kvcache.RequestID][]int32 // of requests that share blocks: their prompts, letters as tokens
}

// TestScripts runs testdata/*.txt; -rewrite writes what comes out.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) != ".txt" {
			return // rapid keeps what made a property fail in testdata/rapid
		}
		c := &script{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out := c.run(t, d)
			if strings.TrimSpace(out) == "" {
				out = "ok\n"
			}
			return out
		})
	})
}

func scan[T any](t *testing.T, d *datadriven.TestData, key string, def T) T {
	if d.HasArg(key) {
		d.ScanArgs(t, key, &def)
	}
	return def
}

func (c *script) run(t *testing.T, d *datadriven.TestData) string {
	id := kvcache.RequestID(scan(t, d, "id", uint64(0)))
	fail := func(err error) string {
		if err != nil {
			return err.Error() + "\n"
		}
		return ""
	}
	switch d.Cmd {
	case "new":
		var err error
		if c.kv, err = kvcache.New(scan(t, d, "blocks", 0), scan(t, d, "size", 4)); err != nil {
			return fail(err)
		}
		c.s, err = New(Config{
			MaxNumSeqs: scan(t, d, "seqs", 4), MaxBatchedTokens: scan(t, d, "tokens", 16), MaxRows: scan(t, d, "rows", 0),
			MaxWaiting: scan(t, d, "waiting", 8), MaxModelLen: scan(t, d, "len", 0), Patience: scan(t, d, "patience", 3), MinShared: scan(t, d, "shared", 0),
			Waves: Waves{Parts: scan(t, d, "parts", 0), MinTokens: scan(t, d, "wave", 0)},
		}, c.kv)
		c.texts = map[kvcache.RequestID][]int32{}
		return fail(err)
	case "add":
		text := []rune(scan(t, d, "text", ""))
		c.texts[id] = text
		return fail(c.s.Add(Request{ID: id, Arrival: scan(t, d, "arrival", uint64(id)), Tokens: scan(t, d, "tokens", max(1, len(text))),
			Rows: scan(t, d, "rows", 0), Handed: d.HasArg("handed"), Later: d.HasArg("later"), Keys: c.keys(id), Near: scan(t, d, "near", "")}))
	case "step":
		var b strings.Builder
		for range scan(t, d, "n", 1) {
			b.WriteString(c.step(t, d))
		}
		return b.String()
	case "place":
		return fail(c.s.Place(id, scan(t, d, "to", ""), scan(t, d, "blocks", 0)))
	case "planned":
		return fmt.Sprintf("%d blocks to be placed, %d placed in all\n", c.s.Planned(id), c.s.Placed())
	case "moved":
		return fail(c.settle(id, scan(t, d, "blocks", 0)))
	case "returned":
		return c.returned(id, scan(t, d, "from", "peer"), scan(t, d, "blocks", 0)) + c.counts()
	case "begin": // a move
		c.moved++
		_, err := c.kv.BeginMove(id, kvcache.Span{Instance: "peer", Handle: uint32(c.moved), Generation: 1}, scan(t, d, "blocks", 1))
		return fail(err)
	case "abort": // it
		spans, err := c.kv.AbortMove(id)
		c.s.Moved(id, false)
		return fail(err) + fmt.Sprintf("release %d spans\n", len(spans)) + c.counts()
	case "found": // the outcome of a search
		return fmt.Sprintf("release %d spans\n", len(c.s.Found(id, c.found(t, d))))
	case "lost":
		return fmt.Sprintf("release %d spans\n", len(c.s.Lost(scan(t, d, "at", ""))))
	case "formed", "started", "assist":
		return c.wave(t, d, id)
	case "share": // blocks here with another instance
		h, _, err := c.kv.Share("other", 0, kvcache.AppendKeys(nil, kvcache.RootKey(""), []rune(scan(t, d, "text", "")), c.kv.BlockSize()))
		return fmt.Sprintf("%d blocks %v\n", len(h.Blocks), err)
	case "remove":
		spans, ok := c.s.Remove(id)
		return fmt.Sprintf("release %d spans, %v\n", len(spans), ok) + c.counts()
	case "restart":
		spans, ok := c.s.Restart(id)
		return fmt.Sprintf("release %d spans, %v\n", len(spans), ok) + c.counts()
	case "host":
		h, err := c.kv.Host("other", 0, scan(t, d, "blocks", 1))
		return fmt.Sprintf("%d blocks %v\n", len(h.Blocks), err)
	case "counts":
		return c.counts()
	}
	t.Fatalf("%s: no command %s", d.Pos, d.Cmd)
	return ""
}

// found is so many spans of so many blocks, one behind the other from the block at first on, or every step-th block alone.
func (c *script) found(t *testing.T, d *datadriven.TestData) (found []kvcache.Found) {
	at, step := scan(t, d, "first", 0), scan(t, d, "step", 1)
	for i := range scan(t, d, "spans", 1) {
		c.moved++
		f := kvcache.Found{Span: kvcache.Span{Instance: fmt.Sprint("peer", i), Handle: uint32(c.moved), Generation: 1, Shared: true}}
		for f.Blocks < scan(t, d, "blocks", 0) {
			f.Has = append(f.Has, int32(at))
			f.Blocks++
			at += step
		}
		found = append(found, f)
	}
	if scan(t, d, "blocks", 0) == 0 {
		return nil
	}
	return found
}

func (c *script) keys(id kvcache.RequestID) []kvcache.Key {
	return kvcache.AppendKeys(nil, kvcache.RootKey(""), c.texts[id], c.kv.BlockSize())
}

// step plans a step, prints it and commits it.
func (c *script) step(t *testing.T, d *datadriven.TestData) string {
	c.plan = c.s.Schedule(View{
		PeersFree: scan(t, d, "peers", 0), OldestArrival: scan(t, d, "oldest", uint64(0)), OthersRunning: scan(t, d, "others", 0),
		Starving: scan(t, d, "starving", uint64(0)), Blocks: scan(t, d, "cluster", 0),
		Helpers: scan(t, d, "helpers", 0), Leaving: strings.Fields(strings.ReplaceAll(scan(t, d, "leaving", ""), ",", " ")),
	})
	var b strings.Builder
	for _, i := range c.plan.Items {
		fmt.Fprintf(&b, "request %d slot %d: %d+%d", i.Request, i.Slot, i.Start, i.N)
		if i.First && i.Start > 0 {
			b.WriteString(" first")
		}
		gain := 0
		if i.Last {
			b.WriteString(" sampled")
			gain = 1
			if want := scan(t, d, "drafts", 0); want > 0 {
				got := c.s.Draft(i.Request, want)
				gain += min(got, scan(t, d, "right", 0))
				fmt.Fprintf(&b, " with %d drafts, %d right", got, gain-1)
			}
		}
		b.WriteString("\n")
		if err := c.s.Commit(i.Request, gain); err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
		c.s.Name(i.Request, c.keys(i.Request))
	}
	for _, o := range c.plan.Offloads {
		fmt.Fprintf(&b, "offload %d blocks of request %d", o.Blocks, o.Request)
		if o.To != "" {
			fmt.Fprintf(&b, " to %s", o.To)
		}
		b.WriteString("\n")
	}
	for _, x := range c.plan.Returns {
		fmt.Fprintf(&b, "return %d blocks of request %d from %s\n", x.Blocks, x.Request, x.From)
	}
	for _, q := range c.plan.Searches {
		fmt.Fprintf(&b, "search for %d blocks of request %d near %q\n", len(q.Keys), q.Request, q.Near)
	}
	for _, f := range c.plan.Forms {
		fmt.Fprintf(&b, "a wave for request %d: %d of %d tokens are there, legs of %d, %d parts\n", f.Request, f.Base, f.Tokens, f.Chunk, f.Parts)
	}
	for _, p := range c.plan.Preempted {
		fmt.Fprintf(&b, "preempted %d: %s\n", p.Request, p.Reason)
	}
	for _, f := range c.plan.Failed {
		fmt.Fprintf(&b, "failed %d: %v, no room %v\n", f.Request, f.Err, errors.Is(f.Err, ErrNoRoom))
	}
	if c.plan.Stalled > 0 {
		fmt.Fprintf(&b, "stalled %d\n", c.plan.Stalled)
	}
	if c.plan.Starving > 0 {
		fmt.Fprintf(&b, "starving %d\n", c.plan.Starving)
	}
	if len(c.plan.Release) > 0 {
		fmt.Fprintf(&b, "release %d spans\n", len(c.plan.Release))
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

// settle ends an offload: blocks were placed, 0 for a refusal.
func (c *script) settle(id kvcache.RequestID, blocks int) error {
	if blocks == 0 {
		c.s.Moved(id, false)
		return nil
	}
	c.moved++
	if _, err := c.kv.BeginMove(id, kvcache.Span{Instance: "peer", Handle: uint32(c.moved), Generation: 1}, blocks); err != nil {
		return err
	}
	_, err := c.kv.CommitMove(id, blocks)
	c.s.Moved(id, err == nil)
	return err
}

// returned ends a return: blocks came back, 0 for none.
func (c *script) returned(id kvcache.RequestID, from string, blocks int) string {
	if blocks == 0 {
		c.s.Returned(id, false)
		return ""
	}
	r, err := c.kv.BeginReturn(id, from, 0, blocks)
	if err == nil {
		err = c.kv.Unhost(from, r.Into.Handle, r.Into.Generation, nil)
	}
	var ended []kvcache.Ended
	if err == nil {
		ended, err = c.kv.EndReturn(id, true)
	}
	c.s.Returned(id, err == nil)
	if err != nil {
		return err.Error() + "\n"
	}
	return fmt.Sprintf("%d blocks, release %d spans\n", len(r.Into.Blocks), len(ended))
}

func (c *script) counts() string {
	running, waiting := c.s.Counts()
	k := c.kv.Counts()
	return fmt.Sprintf("running %d waiting %d; free %d owned %d hosted %d lent %d hostable %d\n", running, waiting, k.Free, k.Owned, k.Hosted, k.Lent, c.kv.Hostable())
}
