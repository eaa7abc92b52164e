package engine

import (
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Device runs steps.
type Device interface {
	Step() *batch.Step
	Submit() error
	// Wait returns true when the step is over, false after the timeout.
	Wait(timeout time.Duration) (bool, error)
	OpenSlot(slot uint32, s batch.Sampling, tokens []int32, nPrompt int, bias []batch.Bias) error
	// Err says why the device is over, though no step has shown it; nil while it is well.
	Err() error
}

// Lender is the rest of the cluster. None of its methods may wait for the engine.
type Lender interface {
	Blocks
	Waves
	View() sched.View       // of the rest of the cluster, now
	PeerIndexLost(peer int) // a step saw this peer fail
	// Starving says that the request of this arrival has long waited for room here, 0: none does.
	Starving(arrival uint64)
}

// Blocks has blocks of requests with other instances. Its methods do not wait for those.
type Blocks interface {
	Offload(o sched.Offload)       // to o.To alone where that is given; the outcome comes by Engine.Moved
	Return(r sched.Return)         // the outcome comes by Engine.Moved
	Search(s sched.Search)         // the outcome comes by Engine.Found
	Release(spans []kvcache.Ended) // gives back
}

// MoveResult is the outcome of an Offload or, with Back, of a Return.
type MoveResult struct {
	Request kvcache.RequestID
	Span    kvcache.Span // where Span.Blocks blocks of an Offload lie now, without Err
	Back    bool
	Began   bool // blocks were marked by kvcache's BeginMove or BeginReturn; always so without Err
	Err     error
}
