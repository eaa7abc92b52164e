package engine

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// idleDevice is done with a step at once, so that what is measured is all that a step costs in Go.
type idleDevice struct {
	st     *batch.Step
	steps  int       // after the prompts'
	begun  time.Time // the first of them
	latest time.Time
}

func (d *idleDevice) Step() *batch.Step { return d.st }

func (d *idleDevice) Submit() error {
	if d.latest = time.Now(); d.st.Head.NTokens > d.st.Head.NSeqs {
		d.begun = d.latest
	} else {
		d.steps++
	}
	for i := range d.st.Head.NSeqs {
		d.st.SeqOut[i] = batch.SeqOut{Status: batch.StatusOK, Peer: -1}
	}
	for i := range d.st.Head.NRows {
		d.st.RowOut[i].Token = 5
	}
	return nil
}

func (d *idleDevice) Wait(time.Duration) (bool, error) { return true, nil }

func (d *idleDevice) OpenSlot(uint32, batch.Sampling, []int32, int, []batch.Bias) error { return nil }

func (d *idleDevice) Err() error { return nil }

type noLender struct{}

func (noLender) Offload(sched.Offload)         {}
func (noLender) Return(sched.Return)           {}
func (noLender) Release([]kvcache.Ended)       {}
func (noLender) Search(sched.Search)           {}
func (noLender) FormWave(sched.Form, WaveText) {}
func (noLender) StartWave(kvcache.RequestID)   {}
func (noLender) EndWave(kvcache.RequestID)     {}
func (noLender) View() sched.View              { return sched.View{} }
func (noLender) PeerIndexLost(int)             {}
func (noLender) Starving(uint64)               {}

// BenchmarkStep is the Go part of a decode step: plan, fill, submit, wait, commit, and one event to each
// request's reader. An operation is a step of the whole batch, at a context that grows by a token in each.
func BenchmarkStep(b *testing.B) {
	for _, c := range []struct{ requests, context int }{{1, 1 << 10}, {8, 1 << 10}, {64, 1 << 10}, {1, 1 << 17}, {64, 1 << 11}, {1, 1 << 20}} {
		b.Run(fmt.Sprintf("requests=%d/context=%d", c.requests, c.context), func(b *testing.B) {
			blocks := c.requests * ((c.context+b.N)/blockSize + 2)
			kv, err := kvcache.New(blocks, blockSize)
			if err != nil {
				b.Fatal(err)
			}
			// One step takes all prompts.
			cfg := sched.Config{MaxNumSeqs: c.requests, MaxBatchedTokens: c.requests * c.context, MaxWaiting: c.requests}
			dev := &idleDevice{st: batch.NewStep(batch.Limits{
				MaxTokens: cfg.MaxBatchedTokens, MaxSeqs: c.requests, MaxRows: cfg.MaxBatchedTokens, MaxBlocks: blocks, MaxSpans: 1,
			})}
			e, err := New(Config{Sched: cfg, PrefixCaching: true}, dev, kv, noLender{})
			if err != nil {
				b.Fatal(err)
			}
			var streams []Stream
			for i := range c.requests {
				s, err := e.Submit(b.Context(), &Request{
					ID: fmt.Sprint(i), Prompt: make([]int32, c.context), MaxTokens: b.N + 1, Logprobs: -1, PromptLogprobs: -1, Sampling: sampling(1),
				})
				if err != nil {
					b.Fatal(err)
				}
				streams = append(streams, s)
			}
			ctx, stop := context.WithCancel(b.Context())
			ran := make(chan error, 1)
			go func() { ran <- e.Run(ctx) }()
			var all sync.WaitGroup
			for _, s := range streams {
				all.Go(func() { drain(b, s) })
			}
			all.Wait()
			stop()
			if err := <-ran; err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op") // it has the prompts in it
			b.ReportMetric(float64(dev.latest.Sub(dev.begun).Nanoseconds())/1e3/float64(dev.steps), "us/step")
		})
	}
}

// drain reads a stream to its end.
func drain(b *testing.B, s Stream) {
	for {
		ev, err := s.Next(b.Context())
		if err != nil {
			b.Error(err)
			return
		}
		if ev.Finish != "" {
			return
		}
	}
}
