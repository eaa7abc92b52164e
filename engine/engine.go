// Package engine is the step loop of an instance: requests in, token streams out.
//
//	engine.go   the API: Engine, Submit, Drain, Requests
//	request.go  what a request is, and its checks
//	loop.go     the loop: inbox -> plan -> step -> commit -> events
//	step.go     filling a step, reading its output
//	stream.go   a request's events
//	device.go   what the loop needs of others
package engine

import (
	"context"
	"errors"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Config of an engine.
type Config struct {
	Sched        sched.Config
	EOS          []int32       // tokens that IgnoreEOS takes out of a request's StopTokens
	PeerTimeout  time.Duration // longest wait for one remote partial; default 10 s
	StepTimeout  time.Duration // longest step; default 10 min. A longer one ends the loop.
	StallRefresh time.Duration // how often the view is read while every request waits for room; default 20 ms
	StepFlags    uint32        // batch.Flag*
}

// Request is one prompt to continue.
type Request struct {
	ID             string // for people: logs, /cluster
	Prompt         []int32
	MaxTokens      int // tokens to generate; 0 only computes the prompt
	Sampling       batch.Sampling
	Bias           []batch.Bias
	StopTokens     []int32 // each ends the answer, and is its last token
	MinTokens      int     // none of StopTokens is sampled before
	IgnoreEOS      bool    // the engine's EOS tokens do not end the answer
	Logprobs       int     // -1 none, else alternatives per token, 0..20
	PromptLogprobs int     // the same for the prompt's tokens
	Arrival        uint64  // order in the cluster, smaller is older; 0: now
}

// Alt is an alternative to a token.
type Alt struct {
	Token   int32
	Logprob float32
}

// TokenLogprob is a token's log probability, base e, in the model's own distribution.
type TokenLogprob struct {
	Token   int32
	Logprob float32
	Rank    int32 // 1 is the most likely token
	Top     []Alt
}

// Event is a token, the end, or both.
type Event struct {
	Token     int32
	HasToken  bool
	Logprob   *TokenLogprob
	Prompt    []TokenLogprob // of prompt positions 1 and on, with the first token
	Finish    string         // "" while it goes on, "stop", "length", "error", "abort"
	StopToken int32          // the stop token that ended the answer, else -1
	Err       error          // with "error" and "abort"
}

// Stream is a request's events.
type Stream interface {
	// Next waits for the next event; io.EOF follows the finishing event. ctx ends the wait, not the request.
	Next(ctx context.Context) (Event, error)
	// Close cancels the request if it goes on.
	Close()
}

// Device runs steps.
type Device interface {
	Step() *batch.Step
	Submit() error
	// Wait returns true when the step is over, false after the timeout.
	Wait(timeout time.Duration) (bool, error)
	OpenSlot(slot uint32, s batch.Sampling, tokens []int32, nPrompt int, bias []batch.Bias) error
}

// Lender places blocks with other instances. None of its methods may wait for the engine.
type Lender interface {
	Offload(o sched.Offload)      // asynchronous; the outcome comes by Engine.Moved
	Release(spans []kvcache.Span) // asynchronous
	View() sched.View             // of the rest of the cluster, now
	PeerIndexLost(peer int)       // a step saw this peer fail
}

// MoveResult is the outcome of an Offload.
type MoveResult struct {
	Request kvcache.RequestID
	Span    kvcache.Span // where Span.Blocks blocks lie now, without Err
	Began   bool         // blocks were marked by kvcache's BeginMove; always so without Err
	Err     error
}

// SpanInfo is a run of blocks on another instance.
type SpanInfo struct {
	Instance string
	Blocks   int
}

// RequestInfo is where a request stands.
type RequestInfo struct {
	ID      string
	Request kvcache.RequestID
	Arrival uint64
	Tokens  int        // known tokens: prompt and answer
	Spans   []SpanInfo // oldest blocks first
	Local   int        // blocks after the spans
	Running bool
}

// Stats are counters since the start, and the queues' lengths now.
type Stats struct {
	Running, Waiting, Stalled                          int
	Steps, PromptTokens, GeneratedTokens               uint64
	Requests, Finished, Failed, Cancelled, Preemptions uint64
	Offloads, OffloadedBlocks, RefusedOffloads         uint64
	StepTime                                           time.Duration // sum over steps
	TTFT                                               time.Duration // sum over first tokens
	FirstTokens                                        uint64
	TokensPerSecond                                    float64 // generated, over about the last second
}

// Error is a failure with a kind that the API knows: "queue_full", "no_room", "peer_lost", "unavailable".
type Error struct {
	kind string
	msg  string
}

func (e *Error) Error() string { return e.msg }

// Kind is the API's kind of error.
func (e *Error) Kind() string { return e.kind }

// PeerLostError says that an instance that held a part of a request's KV cache is gone.
type PeerLostError struct {
	Instance string
	Request  string
}

func (e *PeerLostError) Error() string {
	return "cannot go on with request " + e.Request + ": instance " + e.Instance + ", which held a part of its KV cache, is lost"
}

// Kind is the API's kind of error.
func (e *PeerLostError) Kind() string { return "peer_lost" }

// ErrStopped says that the engine stops or has stopped.
var ErrStopped error = &Error{"unavailable", "cannot run the request: this instance is stopping"}

var errCancelled = errors.New("the request was cancelled")
