package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// MoreWaiting is how many requests may wait beyond Config.Sched.MaxWaiting because others of the same call were taken.
const MoreWaiting = sched.MoreWaiting

// Request is one prompt to continue.
type Request struct {
	ID             string // for people: logs, /cluster
	Prompt         []int32
	Answer         []int32 // tokens generated before, with another home; they count as generated
	Handed         bool    // another home had it, and is lost: it is taken also when the queue is full
	Later          bool    // one of the same call was taken before it: so is this one, up to MoreWaiting
	MaxTokens      int     // tokens to generate; 0 only computes the prompt
	Sampling       batch.Sampling
	Bias           []batch.Bias
	StopTokens     []int32 // each ends the answer, and is its last token
	MinTokens      int     // none of StopTokens is sampled before
	IgnoreEOS      bool    // the engine's EOS tokens do not end the answer
	Logprobs       int     // -1 none, else alternatives per token, 0..20
	PromptLogprobs int     // the same for the prompt's tokens
	Priority       int     // of arrival.MinPriority .. MaxPriority; smaller goes first. In Arrival, once it has one
	Arrival        uint64  // order in the cluster, smaller is older (package arrival); 0: now
	CacheSalt      string  // requests share KV in the cache with those of the same salt alone
	Near           string  // another instance that may have KV of its beginning; "": none is known
	Guide          Guide   // the form that the answer is held to
	Limits         Limits  // what no token of it may break
	TellBegun      bool    // an event tells that it is about to be in its first step
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
	Cached    int            // with the first token, or the end without one: tokens of the prompt whose KV was there
	Queued    time.Duration  // with the same: how long it waited for its first step
	StopToken int32          // the stop token that ended the answer, else -1
	Err       error          // with "error" and "abort"
	Spans     []SpanInfo     // with "stop" and "length": where the KV lay, in the order of the text; the home's blocks have no name
	Begun     bool           // this event, without a token, comes before the request's first step, if it asked for that
}

// Error is a failure with a kind that the API knows: "queue_full", "no_room", "peer_lost", "unavailable".
type Error struct {
	kind string
	msg  string
}

func (e *Error) Error() string { return e.msg }

// Kind is the API's kind of error.
func (e *Error) Kind() string { return e.kind }

// maxLosses is how often a request is recomputed for a lost peer without a token between. One that is longer than
// the time between losses would never end; and what makes one peer fail may make the next one fail.
const maxLosses = 2

// PeerLostError says that an instance that held a part of a request's KV cache is gone, and that the request was
// recomputed often enough.
type PeerLostError struct {
	Instance string
	Request  string
}

func (e *PeerLostError) Error() string {
	return fmt.Sprintf("cannot go on with request %s: instance %s, which held a part of its KV cache, is lost, and it was recomputed %d times since its last token",
		e.Request, e.Instance, maxLosses)
}

// Kind is the API's kind of error.
func (e *PeerLostError) Kind() string { return "peer_lost" }

// ErrStopped says that the engine stops or has stopped.
var ErrStopped error = &Error{"unavailable", "cannot run the request: this instance is stopping"}

var errCancelled = errors.New("the request was cancelled")

// request is a Request under way. The loop owns it, but for what is atomic.
type request struct {
	*Request
	id        kvcache.RequestID
	tag       uint32  // of ID
	tokens    []int32 // prompt and answer
	known     atomic.Int64
	running   atomic.Bool
	ran       atomic.Bool    // since its first step
	inWave    atomic.Bool    // it has what its prompt takes here
	planned   atomic.Int64   // blocks that Place asked for and that are not placed yet
	plannedTo string         // where they go; guarded by Engine.mu
	prompt    []TokenLogprob // collected so far; delivered with the first token
	root      kvcache.Key    // of keys
	keys      []kvcache.Key  // of the tokens' full blocks
	begun     bool           // it was in a step once
	told      bool           // of its first step
	searched  int            // tokens that others were searched for since it waits
	cached    int            // tokens whose KV was there then
	queued    time.Duration  // until then
	masked    bool           // the slot keeps stop tokens from being sampled
	guided    *guided        // nil: any answer will do
	limits    *limits        // nil: any token will do
	drafting  *drafting      // nil: none were tried yet
	part      part           // in a wave
	assist    bool           // it is another instance's, of which a wave's legs are computed here
	losses    int            // times that KV of it was lost with a peer since its last token
	stream    *stream
	submitted time.Time
}

func (r *request) generated() int { return len(r.tokens) - len(r.Prompt) }

// promptRows is how many positions need a row for the log probability of the token after them.
func (r *request) promptRows() int {
	if r.PromptLogprobs < 0 || len(r.Answer) > 0 { // they came with the first token
		return 0
	}
	return len(r.Prompt) - 1
}

// check refuses what no step could run.
func (r *Request) check(maxModelLen int) error {
	switch {
	case len(r.Prompt) == 0:
		return errors.New("cannot run a request with an empty prompt")
	case r.MaxTokens < 0 || r.MinTokens < 0 || r.MinTokens > r.MaxTokens:
		return fmt.Errorf("cannot generate at least %d and at most %d tokens", r.MinTokens, r.MaxTokens)
	case r.Logprobs < -1 || r.Logprobs > batch.MaxTop || r.PromptLogprobs < -1 || r.PromptLogprobs > batch.MaxTop:
		return fmt.Errorf("cannot report %d and %d alternatives per token, the limit is %d", r.Logprobs, r.PromptLogprobs, batch.MaxTop)
	case len(r.Answer) > 0 && len(r.Answer) >= r.MaxTokens:
		return fmt.Errorf("cannot go on after %d of %d tokens", len(r.Answer), r.MaxTokens)
	case maxModelLen > 0 && len(r.Prompt)+len(r.Answer)+min(r.MaxTokens, 1) > maxModelLen:
		return fmt.Errorf("cannot run a prompt of %d tokens, the limit with one generated is %d", len(r.Prompt), maxModelLen)
	}
	return nil
}

// maskValue is added to the logits of tokens that must not be sampled; finite, as devices want it.
const maskValue = -1e9

// bias is what the request's slot is opened with: its own, and while fewer than MinTokens tokens were
// generated a mask over what would end the answer.
func (r *request) bias(mask bool) []batch.Bias {
	if !mask {
		return r.Bias
	}
	out := slices.Clone(r.Bias)
	for _, t := range r.StopTokens {
		out = append(out, batch.Bias{Token: t, Value: maskValue})
	}
	return out
}

// ends says how the answer ends after the token just generated, "" when it goes on.
func (r *request) ends(token int32, eos []int32, maxModelLen int) string {
	if slices.Contains(r.StopTokens, token) && r.generated() > r.MinTokens && (!r.IgnoreEOS || !slices.Contains(eos, token)) {
		return "stop"
	}
	if r.generated() >= r.MaxTokens || maxModelLen > 0 && len(r.tokens) >= maxModelLen {
		return "length"
	}
	return ""
}
