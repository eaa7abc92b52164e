package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var small = sched.Config{MaxNumSeqs: 8, MaxBatchedTokens: 64, MaxWaiting: 64, MaxModelLen: 1 << 20}

func sampling(seed uint64) batch.Sampling {
	return batch.Sampling{TopP: 1, Repetition: 1, Seed: seed}
}

func checkAnswer(t *testing.T, s Stream, seed uint64, p []int32, n int) {
	t.Helper()
	got, events := read(t, s)
	if len(events) == 0 || last(events).Finish != "length" || !slices.Equal(got, want(seed, p, n)) {
		t.Fatalf("prompt of %d: got %d of %d tokens, last event %+v, equal %v", len(p), len(got), n, last(events), slices.Equal(got, want(seed, p, n)))
	}
}

func TestManyRequestsOnOneInstance(t *testing.T) {
	c := newSim(t, 1, 100, small)
	var streams []Stream
	for i := range 20 {
		streams = append(streams, submit(t, c.nodes[0], Request{ID: fmt.Sprint(i), Prompt: prompt(i, 1+i*13), MaxTokens: 1 + i*3, Sampling: sampling(uint64(i))}))
	}
	for i, s := range streams {
		checkAnswer(t, s, uint64(i), prompt(i, 1+i*13), 1+i*3)
	}
	c.settled()
	st := c.nodes[0].eng.Stats()
	if st.Finished != 20 || st.FirstTokens != 20 || st.PromptTokens < 20 || st.TTFT <= 0 || st.StepTime <= 0 {
		t.Errorf("stats: %+v", st)
	}
}

// One request fills nearly all blocks of a cluster of small pools.
func TestOneRequestFillsTheCluster(t *testing.T) {
	for _, n := range []int{1, 2, 8} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newSim(t, n, 40, sched.Config{MaxNumSeqs: 4, MaxBatchedTokens: 256, MaxWaiting: 4})
			tokens := n*40*blockSize - 1 // all but the last token's KV, which is never written
			p := prompt(3, tokens-100)
			s := submit(t, c.nodes[0], Request{ID: "long", Prompt: p, MaxTokens: 101, Sampling: sampling(5)})
			checkAnswer(t, s, 5, p, 101)
			c.settled()
			if st := c.nodes[0].eng.Stats(); st.Preemptions != 0 || n > 1 && st.OffloadedBlocks < uint64((n-1)*39) {
				t.Errorf("stats: %+v", st)
			}
		})
	}
}

// More than the cluster holds at once, from all sides: preempted, recomputed, and every answer right.
func TestOversubscribedCluster(t *testing.T) {
	c := newSim(t, 3, 24, small)
	rng := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	for i := range 45 {
		p := prompt(i, 1+rng.IntN(300))
		n := 1 + rng.IntN(150)
		s := submit(t, c.nodes[rng.IntN(3)], Request{ID: fmt.Sprint(i), Prompt: p, MaxTokens: n, Sampling: sampling(uint64(i))})
		if i%9 == 4 {
			for range 3 {
				_, _ = s.Next(t.Context())
			}
			s.Close()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			got, events := read(t, s)
			if len(events) == 0 || last(events).Finish != "length" || !slices.Equal(got, want(uint64(i), p, n)) {
				t.Errorf("request %d: %d of %d tokens, %+v", i, len(got), n, events)
			}
		}()
	}
	wg.Wait()
	c.settled()
	var sum Stats
	for _, n := range c.nodes {
		st := n.eng.Stats()
		sum.Preemptions += st.Preemptions
		sum.OffloadedBlocks += st.OffloadedBlocks
	}
	if sum.OffloadedBlocks == 0 {
		t.Error("no block was offloaded: the cluster was not short of room")
	}
	t.Logf("%d preemptions, %d blocks offloaded", sum.Preemptions, sum.OffloadedBlocks)
}

// Requests that outgrow the room they were admitted with are preempted, and end with the same answer.
func TestPreemptedAnswersAreTheSame(t *testing.T) {
	c := newSim(t, 1, 20, small)
	release := c.nodes[0].hold(true) // until all of them are there
	var streams []Stream
	for i := range 6 {
		streams = append(streams, submit(t, c.nodes[0], Request{ID: fmt.Sprint(i), Prompt: prompt(i, 20), MaxTokens: 150, Sampling: sampling(uint64(i))}))
	}
	release()
	for i, s := range streams {
		checkAnswer(t, s, uint64(i), prompt(i, 20), 150)
	}
	c.settled()
	if st := c.nodes[0].eng.Stats(); st.Preemptions == 0 {
		t.Errorf("nothing was preempted: %+v", st)
	}
}

func TestStopsAndLogprobs(t *testing.T) {
	c := newSim(t, 1, 64, small)
	p := prompt(1, 150)
	full := want(9, p, 40)
	t.Run("stop token", func(t *testing.T) {
		got, events := read(t, submit(t, c.nodes[0], Request{ID: "a", Prompt: p, MaxTokens: 40, Sampling: sampling(9), StopTokens: []int32{full[11]}, Logprobs: 3, PromptLogprobs: 2}))
		at := slices.Index(full, full[11])
		if !slices.Equal(got, full[:at+1]) || last(events).Finish != "stop" || last(events).StopToken != full[11] {
			t.Fatalf("got %d tokens, %+v", len(got), last(events))
		}
		if len(events[0].Prompt) != 149 || events[0].Logprob == nil || len(events[0].Logprob.Top) != 3 || events[0].StopToken != -1 {
			t.Fatalf("first event: %d prompt tokens, %+v", len(events[0].Prompt), events[0].Logprob)
		}
		for i, lp := range events[0].Prompt {
			if lp.Token != p[i+1] || lp.Logprob != -float32(i+1) || len(lp.Top) != 2 {
				t.Fatalf("prompt token %d: %+v", i+1, lp)
			}
		}
	})
	t.Run("min tokens", func(t *testing.T) {
		got, events := read(t, submit(t, c.nodes[0], Request{ID: "b", Prompt: p, MaxTokens: 40, MinTokens: 5, Sampling: sampling(9), StopTokens: full[:5]}))
		if len(got) < 6 || got[0] != (full[0]+1)%fakeVocab {
			t.Fatalf("got %v, %+v", got, last(events))
		}
	})
	t.Run("ignore eos", func(t *testing.T) {
		r := &request{Request: &Request{MaxTokens: 9, StopTokens: []int32{7, 8}, IgnoreEOS: true}, tokens: []int32{7}}
		if r.ends(7, []int32{7}, 0) != "" || r.ends(8, []int32{7}, 0) != "stop" || r.ends(9, nil, 1) != "length" {
			t.Fatal("an ignored EOS ended the answer, or a stop token did not")
		}
	})
	t.Run("prompt only", func(t *testing.T) {
		got, events := read(t, submit(t, c.nodes[0], Request{ID: "c", Prompt: p, PromptLogprobs: 1}))
		if len(got) != 0 || len(events) != 1 || events[0].Finish != "length" || len(events[0].Prompt) != 149 {
			t.Fatalf("%+v", events)
		}
	})
	c.settled()
}

func TestCancelInEveryState(t *testing.T) {
	c := newSim(t, 1, 40, sched.Config{MaxNumSeqs: 1, MaxBatchedTokens: 32, MaxWaiting: 2})
	n := c.nodes[0]
	release := n.hold(true)
	running := submit(t, n, Request{ID: "running", Prompt: prompt(1, 100), MaxTokens: 300, Sampling: sampling(1)})
	n.gate <- struct{}{} // it is in a step, and now in the next
	waiting := submit(t, n, Request{ID: "waiting", Prompt: prompt(2, 10), MaxTokens: 5, Sampling: sampling(2)})
	third := submit(t, n, Request{ID: "third", Prompt: prompt(3, 10), MaxTokens: 5, Sampling: sampling(3)})
	var full *sched.QueueFullError
	if _, err := n.eng.Submit(t.Context(), &Request{Prompt: prompt(4, 3), MaxTokens: 1, Logprobs: -1, PromptLogprobs: -1}); !errors.As(err, &full) || full.Kind() != "queue_full" {
		t.Fatalf("the queue is full, got %v", err)
	}
	waiting.Close()
	running.Close()
	running.Close()
	release()
	checkAnswer(t, third, 3, prompt(3, 10), 5)
	if _, events := read(t, running); len(events) != 0 {
		t.Errorf("a closed stream has %+v", events)
	}
	c.settled()
	if st := n.eng.Stats(); st.Cancelled != 2 || st.Finished != 1 {
		t.Errorf("%+v", st)
	}
}

// A request tells how long it waited for its first step.
func TestQueued(t *testing.T) {
	const wait = 20 * time.Millisecond
	c := newSim(t, 1, 40, sched.Config{MaxNumSeqs: 1, MaxBatchedTokens: 32, MaxWaiting: 2})
	n := c.nodes[0]
	release := n.hold(true)
	first := submit(t, n, Request{ID: "first", Prompt: prompt(1, 20), MaxTokens: 5, Sampling: sampling(1)})
	n.gate <- struct{}{} // it runs
	begun := time.Now()
	second := submit(t, n, Request{ID: "second", Prompt: prompt(2, 20), MaxTokens: 5, Sampling: sampling(2)})
	time.Sleep(wait)
	release()
	_, events := read(t, second)
	if q := events[0].Queued; q < wait || q > time.Since(begun) || events[1].Queued != 0 {
		t.Errorf("it waited %s", q)
	}
	checkAnswer(t, first, 1, prompt(1, 20), 5)
	c.settled()
}

// A request that outgrows the whole cluster ends with ErrNoRoom, and what comes after it runs.
func TestNoRoomInTheCluster(t *testing.T) {
	cfg := small
	cfg.Patience = 20
	c := newSim(t, 2, 10, cfg)
	s := submit(t, c.nodes[0], Request{ID: "a", Prompt: prompt(1, 300), MaxTokens: 1000, Sampling: sampling(1)})
	got, events := read(t, s)
	if !errors.Is(last(events).Err, sched.ErrNoRoom) || !slices.Equal(got, want(1, prompt(1, 300), len(got))) || len(got) < 20 {
		t.Fatalf("%d tokens, %+v", len(got), last(events))
	}
	s = submit(t, c.nodes[0], Request{ID: "b", Prompt: prompt(2, 100), MaxTokens: 10, Sampling: sampling(2)})
	checkAnswer(t, s, 2, prompt(2, 100), 10)
	c.settled()
}

// A request that waits for room for long makes the cluster keep room for it, until it has it.
func TestStarvingIsTold(t *testing.T) {
	cfg := small
	cfg.Patience = 3
	c := newSim(t, 1, 10, cfg)
	n := c.nodes[0]
	h, err := n.kv.Host("elsewhere", 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	s := submit(t, n, Request{ID: "a", Prompt: prompt(1, 60), MaxTokens: 40, Sampling: sampling(1), Arrival: 42})
	told := func(want uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("starving is %d", want), func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return n.hungry == want
		})
	}
	told(42)
	if err := n.kv.Unhost("elsewhere", h.Handle, h.Generation, nil); err != nil {
		t.Fatal(err)
	}
	checkAnswer(t, s, 1, prompt(1, 60), 40)
	told(0)
}

func TestRefusedAndEndlessSteps(t *testing.T) {
	c := newSim(t, 1, 10, small)
	n := c.nodes[0]
	c.mu.Lock()
	n.refuse = errors.New("bad input")
	c.mu.Unlock()
	_, events := read(t, submit(t, n, Request{ID: "a", Prompt: prompt(1, 30), MaxTokens: 10}))
	if !errors.Is(last(events).Err, n.refuse) {
		t.Fatalf("%+v", last(events))
	}
	c.settled()

	d := newSim(t, 1, 10, small)
	other := d.nodes[0]
	other.gate = make(chan struct{})
	e, err := New(Config{Sched: small, StepTimeout: time.Millisecond}, other, other.kv, other)
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Submit(t.Context(), &Request{Prompt: prompt(1, 3), MaxTokens: 3, Logprobs: -1, PromptLogprobs: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); err == nil {
		t.Fatal("a step without end did not end the loop")
	}
	if _, events := read(t, s); last(events).Finish != "error" {
		t.Fatalf("%+v", events)
	}
	// The device may still write where the request's blocks were.
	if other.kv.Hostable() != 0 {
		t.Fatal("an instance without a working device lends blocks")
	}
}

// An instance without a request of its own ends too when its device fails.
func TestIdleDeviceFails(t *testing.T) {
	c := newSim(t, 1, 10, small)
	n := c.nodes[0]
	e, err := New(Config{Sched: small, IdleCheck: time.Millisecond}, n, n.kv, n)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- e.Run(t.Context()) }()
	over := errors.New("no device any more")
	c.mu.Lock()
	n.over = over
	c.mu.Unlock()
	if err := <-ran; !errors.Is(err, over) {
		t.Fatalf("got %v", err)
	}
	if n.kv.Hostable() != 0 {
		t.Fatal("an instance without a working device lends blocks")
	}
	c.mu.Lock()
	n.over = nil // for the sim's own loop
	c.mu.Unlock()
}

// A move counts before a loss when it was reported before it: what came after a peer was back is not lost
// with what was there before.
func TestMovesAndLossesInOrder(t *testing.T) {
	for _, lostFirst := range []bool{true, false} {
		c := newSim(t, 2, 20, small)
		n := c.nodes[0]
		e, err := New(Config{Sched: small}, n, n.kv, n) // its steps are taken here, one by one
		if err != nil {
			t.Fatal(err)
		}
		s, err := e.Submit(t.Context(), &Request{ID: "a", Prompt: prompt(1, 60), MaxTokens: 9, Logprobs: -1, PromptLogprobs: -1})
		if err != nil {
			t.Fatal(err)
		}
		e.takeInbox()
		if plan := e.sched.Schedule(n.View()); !e.fill(plan) {
			t.Fatalf("%+v", plan)
		}
		if err := e.step(); err != nil {
			t.Fatal(err)
		}
		h, err := c.nodes[1].kv.Host("n0", 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		span := kvcache.Span{Instance: "n1", Peer: 1, Handle: h.Handle, Generation: h.Generation}
		if _, err := n.kv.BeginMove(1, span, 2); err != nil {
			t.Fatal(err)
		}
		span.Blocks = 2
		if lostFirst {
			e.PeerLost("n1")
		}
		e.Moved(MoveResult{Request: 1, Span: span, Began: true})
		if !lostFirst {
			e.PeerLost("n1")
		}
		e.takeInbox()
		if whole := e.Stats().Recoveries == 0; whole != lostFirst {
			t.Errorf("lost first %v, whole %v", lostFirst, whole)
		}
		s.Close()
		e.takeInbox()
		c.settled()
	}
}

// A step that has room for less than the scheduler thinks is given up, and the request with it that did not fit; what
// it left in the step is no other one's.
func TestStepIsSmallerThanPlanned(t *testing.T) {
	c := newSim(t, 1, 100, small)
	n := c.nodes[0]
	n.st.Rows = n.st.Rows[:2] // before there is a step
	n.eng.cfg.Speculation = Speculation{}
	gate := make(chan struct{})
	c.mu.Lock()
	n.gate = gate
	c.mu.Unlock()
	first := submit(t, n, Request{ID: "first", Prompt: prompt(1, 9), MaxTokens: 1, Sampling: sampling(1)})
	long := submit(t, n, Request{ID: "long", Prompt: prompt(2, 30), MaxTokens: 5, PromptLogprobs: 1, Sampling: sampling(2)})
	last := submit(t, n, Request{ID: "last", Prompt: prompt(3, 200), MaxTokens: 5, Sampling: sampling(3)})
	c.mu.Lock()
	n.gate = nil
	c.mu.Unlock()
	close(gate)
	checkAnswer(t, first, 1, prompt(1, 9), 1)
	if _, events := read(t, long); len(events) == 0 || events[len(events)-1].Err == nil {
		t.Errorf("what does not fit ended with %+v", events)
	}
	checkAnswer(t, last, 3, prompt(3, 200), 5)
	c.settled()
}
