package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

const (
	fakeVocab = 1000
	blockSize = 16
	patience  = 5 * time.Minute // only bounds a failing test
)

// quoted is how far back the simulated model mostly quotes from.
const quoted = 25

// next is the simulated model: the next token depends on every token before it, and on the seed. Most often it is what came
// quoted tokens before.
func next(seed uint64, history []int32) int32 {
	h := fnv.New64a()
	b := []byte{byte(seed), byte(seed >> 8)}
	for _, t := range history {
		b = append(b, byte(t), byte(t>>8))
	}
	_, _ = h.Write(b)
	x := h.Sum64()
	if n := len(history); n > quoted && x>>32%8 > 0 {
		return history[n-quoted]
	}
	return int32(x % fakeVocab)
}

// want is the answer to a prompt.
func want(seed uint64, prompt []int32, n int) []int32 {
	h := slices.Clone(prompt)
	for range n {
		h = append(h, next(seed, h))
	}
	return h[len(prompt):]
}

func prompt(seed, n int) []int32 {
	p := make([]int32, n)
	for i := range p {
		p[i] = int32((seed*7919 + i*31 + i*i) % fakeVocab)
	}
	return p
}

// cell is one token's KV in a pool.
type cell struct{ token, pos int32 }

// simCluster is several instances whose pools are arrays in one memory, under one lock.
type simCluster struct {
	t     *testing.T
	mu    sync.Mutex
	moved *sync.Cond // a wave has come further, or ended
	nodes []*simNode
	// Waves are on, or prefixes used where they lie, so that tables need not be in the order of the text.
	anyOrder bool
	wg       sync.WaitGroup
	stop     context.CancelFunc
	ran      sync.WaitGroup
}

// simNode is one instance: Device and Lender of its engine.
type simNode struct {
	c      *simCluster
	index  int
	kv     *kvcache.Manager
	eng    *Engine
	st     *batch.Step
	mem    []cell
	slots  map[uint32]*simSlot
	dead   bool          // its links answer no query any more
	gate   chan struct{} // when set, a step waits for it
	prompt bool          // steps with prompt tokens pass the gate, so that a request halts after its first token
	lost   []int
	refuse error
	status int32 // of requests' shares of steps; 0: as it goes
	over   error // the device is
	opens  int
	wrong  bool // its KV is not what it should be
	hungry uint64
	watch  func(*batch.Step) // sees each step
	waves  simWaves
	leaves bool
	unsure bool // returns from it fail now and then
	calls  int
}

type simSlot struct {
	seed   uint64
	tokens []int32
	bias   []batch.Bias
}

func newSim(t *testing.T, n, blocks int, cfg sched.Config) *simCluster {
	c := &simCluster{t: t}
	c.moved = sync.NewCond(&c.mu)
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	for i := range n {
		kv, err := kvcache.New(blocks, blockSize)
		if err != nil {
			t.Fatal(err)
		}
		nd := &simNode{
			c: c, index: i, kv: kv, mem: make([]cell, blocks*blockSize), slots: map[uint32]*simSlot{},
			st: batch.NewStep(batch.Limits{MaxTokens: cfg.MaxBatchedTokens, MaxSeqs: cfg.MaxNumSeqs, MaxRows: cfg.MaxBatchedTokens, MaxBlocks: blocks, MaxSpans: 64 * cfg.MaxNumSeqs, Vocab: fakeVocab}),
		}
		nd.eng, err = New(Config{Sched: cfg, EOS: []int32{7}, StallRefresh: time.Millisecond, PrefixCaching: true, Speculation: Speculation{4, 1, 3}}, nd, kv, nd)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, nd)
	}
	c.anyOrder = cfg.Waves.Parts > 1 || cfg.MinShared > 0
	for _, nd := range c.nodes {
		c.ran.Add(1)
		go func() {
			defer c.ran.Done()
			if err := nd.eng.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		}()
	}
	t.Cleanup(c.close)
	return c
}

func (c *simCluster) close() {
	c.stop()
	c.mu.Lock()
	for _, n := range c.nodes {
		n.gate = nil // a test that failed has not released it
		n.waves.failAll()
	}
	c.moved.Broadcast()
	c.mu.Unlock()
	c.ran.Wait()
	c.wg.Wait()
}

func (n *simNode) name() string { return fmt.Sprintf("n%d", n.index) }

// Step, Submit, Wait, OpenSlot: the device.
func (n *simNode) Step() *batch.Step { return n.st }

func (n *simNode) OpenSlot(slot uint32, s batch.Sampling, tokens []int32, nPrompt int, bias []batch.Bias) error {
	n.opens++
	n.slots[slot] = &simSlot{seed: s.Seed, tokens: slices.Clone(tokens), bias: bias}
	return nil
}

func (n *simNode) Err() error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.over
}

func (n *simNode) Wait(timeout time.Duration) (bool, error) {
	n.c.mu.Lock()
	gate := n.gate
	if n.prompt && slices.ContainsFunc(n.st.Seqs[:n.st.Head.NSeqs], func(q batch.Seq) bool { return q.NTokens > 1 }) {
		gate = nil
	}
	n.c.mu.Unlock()
	if gate == nil {
		return true, nil
	}
	select {
	case <-gate:
		return true, nil
	case <-time.After(timeout):
		return false, nil
	}
}

func (n *simNode) Submit() error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.refuse != nil {
		return n.refuse
	}
	if n.watch != nil {
		n.watch(n.st)
	}
	users := map[int32]int{}
	for _, q := range n.st.Seqs[:n.st.Head.NSeqs] {
		for _, b := range n.st.Blocks[q.BlockOff : q.BlockOff+q.NBlocks] {
			users[b]++
		}
	}
	slots := map[uint32]bool{}
	for i := range n.st.Head.NSeqs {
		q := &n.st.Seqs[i]
		if slots[q.Slot] {
			n.c.t.Errorf("slot %d twice in a step", q.Slot)
		}
		slots[q.Slot] = true
		n.write(q, users)
	}
	for i := range n.st.Head.NSeqs {
		q := &n.st.Seqs[i]
		if peer := n.awaitWave(q); peer >= 0 {
			n.st.SeqOut[i] = batch.SeqOut{Status: batch.StatusStale, Peer: int32(peer)}
			n.waves.fail(q.Wave)
			n.c.moved.Broadcast()
			continue
		}
		history, peer := n.history(q)
		n.st.SeqOut[i] = batch.SeqOut{Status: batch.StatusOK, Peer: -1}
		if peer >= 0 {
			n.st.SeqOut[i] = batch.SeqOut{Status: batch.StatusPeer, Peer: int32(peer)}
			n.waves.fail(q.Wave)
			n.c.moved.Broadcast()
			continue
		}
		if n.status != 0 {
			n.st.SeqOut[i] = batch.SeqOut{Status: n.status, Peer: -1}
			continue
		}
		n.answer(i, q, history)
	}
	return nil
}

// write puts the seq's tokens into its local blocks.
func (n *simNode) write(q *batch.Seq, users map[int32]int) {
	local := n.st.Blocks[q.BlockOff : q.BlockOff+q.NBlocks]
	for k := range q.NTokens {
		pos := q.Pos0 + k
		at := int(pos - q.LocalPos0)
		if b := local[at/blockSize]; users[b] != 1 {
			n.c.t.Errorf("block %d is written to, and is in the tables of %d requests", b, users[b])
		}
		n.mem[int(local[at/blockSize])*blockSize+at%blockSize] = cell{n.st.Tokens[q.TokenOff+k], int32(pos)}
	}
	if n.waves.reach(q.Wave, int(q.Pos0+q.NTokens-q.LocalPos0)) {
		n.c.moved.Broadcast()
	}
}

// history reads everything back through the table, whose order need not be that of the text.
func (n *simNode) history(q *batch.Seq) (out []int32, deadPeer int) {
	local := n.st.Blocks[q.BlockOff : q.BlockOff+q.NBlocks]
	cells := make([]cell, 0, q.Pos0+q.NTokens)
	for _, s := range n.st.Spans[q.SpanOff : q.SpanOff+q.NSpans] {
		p := n.c.nodes[s.Peer]
		if p.dead {
			return nil, p.index
		}
		if int(s.Pos0) != len(cells) {
			n.c.t.Errorf("a span begins at %d, the one before ends at %d", s.Pos0, len(cells))
		}
		blocks := p.hostedBlocks(n.name(), s.Handle, s.Generation)
		if int(s.NTokens) > len(blocks)*blockSize {
			n.c.t.Errorf("span %d.%d at %s has %d blocks, %d tokens are read", s.Handle, s.Generation, p.name(), len(blocks), s.NTokens)
			return nil, p.index
		}
		for k := range int(s.NTokens) {
			cells = append(cells, p.mem[int(blocks[k/blockSize])*blockSize+k%blockSize])
		}
	}
	if len(cells) != int(q.LocalPos0) {
		n.c.t.Errorf("spans end at %d, local blocks begin at %d", len(cells), q.LocalPos0)
	}
	for at := 0; len(cells) < int(q.Pos0+q.NTokens); at++ {
		cells = append(cells, n.mem[int(local[at/blockSize])*blockSize+at%blockSize])
	}
	if n.c.anyOrder {
		slices.SortFunc(cells, func(a, b cell) int { return int(a.pos - b.pos) })
	}
	for pos, c := range cells {
		if int(c.pos) != pos {
			n.c.t.Errorf("position %d reads KV of position %d", pos, c.pos)
		}
		out = append(out, c.token)
	}
	return out, -1
}

func (n *simNode) hostedBlocks(owner string, handle, generation uint32) []int32 {
	for _, h := range n.kv.HostedOf(owner) {
		if h.Handle == handle && h.Generation == generation {
			return h.Blocks
		}
	}
	return nil
}

func (n *simNode) answer(i uint32, q *batch.Seq, history []int32) {
	slot := n.slots[q.Slot]
	knows, holds := len(slot.tokens), true // holds: the row's token becomes a part of the text
	for k := range n.st.Head.NRows {
		row := n.st.Rows[k]
		if row.Seq != i {
			continue
		}
		at := int(q.Pos0) + int(row.Token-q.TokenOff) + 1
		out := &n.st.RowOut[k]
		*out = batch.RowOut{NTop: row.NTop, Rank: 1}
		if row.Target >= 0 {
			out.Token, out.Logprob = row.Target, -float32(at)
			continue
		}
		if !n.wrong && (at < knows || !slices.Equal(slot.tokens[:knows], history[:knows]) || at > knows && n.st.Rows[k-1].Token+1 != row.Token) {
			n.c.t.Errorf("slot %d knows %d tokens, the KV cache has other %d", q.Slot, knows, at)
		}
		holds = holds && (at == knows || slices.Equal(slot.tokens, history[:at]))
		out.Token, out.Logprob = next(slot.seed, history[:at]), -0.5
		for _, b := range slot.bias {
			if b.Token == out.Token && b.Value <= maskValue {
				out.Token = (out.Token + 1) % fakeVocab
			}
		}
		for row.Mask > 0 && n.st.Head.Flags&batch.FlagNoMasks == 0 {
			words := batch.MaskWords(fakeVocab)
			if mask := n.st.Masks[int(row.Mask-1)*words:]; mask[out.Token/32]>>(out.Token%32)&1 == 1 {
				break
			}
			out.Token = (out.Token + 1) % fakeVocab
		}
		if holds {
			slot.tokens = append(slot.tokens, out.Token)
		}
	}
}

// hold makes steps wait until release is called: those that only decode, or all.
func (n *simNode) hold(all bool) (release func()) {
	gate := make(chan struct{})
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.gate, n.prompt = gate, !all
	return func() {
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		n.gate = nil
		close(gate)
	}
}

// eventually polls until cond holds, which must last, or it may be over before it is looked at.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never saw: %s", what)
		}
	}
}

// settled waits until no move is in flight and every pool is empty.
func (c *simCluster) settled() {
	c.t.Helper()
	dirty := ""
	defer func() {
		if dirty != "" {
			c.t.Logf("blocks are left: %s", dirty)
		}
	}()
	eventually(c.t, "every pool is empty", func() bool {
		c.wg.Wait()
		dirty = ""
		for _, n := range c.nodes {
			if k := n.kv.Counts(); k.Free != k.Total || k.Lent != 0 {
				dirty = fmt.Sprintf("%s: %+v", n.name(), k)
			}
		}
		return dirty == ""
	})
}

func submit(t *testing.T, n *simNode, r Request) Stream {
	t.Helper()
	if r.Logprobs == 0 {
		r.Logprobs = -1
	}
	if r.PromptLogprobs == 0 {
		r.PromptLogprobs = -1
	}
	s, err := n.eng.Submit(t.Context(), &r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read collects a stream's tokens and its last event.
func read(t *testing.T, s Stream) (tokens []int32, events []Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		ev, err := s.Next(ctx)
		if errors.Is(err, io.EOF) {
			return tokens, events
		}
		if err != nil {
			t.Fatalf("next after %d tokens: %v", len(tokens), err)
		}
		events = append(events, ev)
		if ev.HasToken {
			tokens = append(tokens, ev.Token)
		}
	}
}

func last(events []Event) Event { return events[len(events)-1] }
