// Package server is the OpenAI API, and Anthropic's: HTTP in, tokens to a Backend, text out.
//
//	server.go           routes, start and stop
//	cors.go             pages of other origins
//	key.go              who has the API key
//	body.go             bodies as clients write them
//	decode.go           JSON -> body, by the keys' exact names
//	request.go          their checks and defaults
//	guide.go            forms that answers are held to
//	unsupported.go      fields that are refused
//	completions.go      /v1/completions: body -> plan -> jobs -> answer
//	chat.go             /v1/chat/completions: messages -> prompt, then the same way
//	tools.go            the tools of a chat, and what its template does with them
//	thoughts.go         what a model thinks before it answers
//	toolanswer.go       calls of tools in answers
//	toolguide.go        calls that a client demands
//	toolpath.go         where the client wrote what is wrong with their schema
//	responses.go        /v1/responses: a request -> a chat, and what is stored of its answer
//	responsesbody.go    its fields, and those of a chat that they are
//	responsestools.go   its tools
//	responsesitems.go   its items, as they are sent, listed and stored
//	responsesturns.go   items -> messages
//	responsesanswer.go  deltas -> items -> an answer as one JSON object
//	responsesevents.go  an answer as server-sent events
//	responsesstore.go   answers that can be asked for again, and gone on from
//	messages.go         /v1/messages, Anthropic's API: a request -> a chat; how many tokens one has; models
//	messagesbody.go     its fields, and those of a chat that they are
//	messagesturns.go    its messages and their blocks -> those of a chat
//	messagesanswer.go   deltas -> blocks -> an answer as one JSON object
//	messagesevents.go   an answer as server-sent events
//	generate.go         one choice: events -> text, stop strings
//	whole.go            an answer as one JSON object
//	stream.go           an answer as server-sent events
//	format.go           OpenAI's shapes
//	place.go            where in a text its tokens begin
//	watch.go            clients that go away
//	stall.go            clients that do not read, or are still sending
//	metrics.go          counters and gauges
//	dashboard.go        a page that shows the cluster; its files are in dashboard/
//	other.go            models, tokenize, health, cluster
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// Backend runs requests somewhere in the cluster.
type Backend interface {
	// Submit queues a request; it returns when an instance has taken it, or why none did.
	Submit(ctx context.Context, req *engine.Request) (engine.Stream, error)
	// Capacity is how many tokens of KV one request could have in an empty cluster.
	Capacity() int
	// Cluster is the placement map.
	Cluster(ctx context.Context) (*ClusterView, error)
}

// ClusterView is the JSON of GET /cluster.
type ClusterView struct {
	BlockSize int                `json:"block_size"`
	GManager  string             `json:"gmanager"`
	Rehomed   uint64             `json:"rehomed"`           // requests of this API process that another instance went on with
	Missing   int                `json:"instances_missing"` // of this API process: they died, and are not back yet
	Instances []InstanceView     `json:"instances"`
	Requests  []RequestPlacement `json:"requests"`
}

// InstanceView is one instance's pool and load.
type InstanceView struct {
	ID                string            `json:"id"`
	Device            string            `json:"device"`
	MemoryOnly        bool              `json:"memory_only,omitempty"` // it runs no requests
	KVCacheDType      string            `json:"kv_cache_dtype"`
	Links             map[string]uint32 `json:"links,omitempty"` // peers that it may borrow from, by transport
	KVBlocksTotal     int               `json:"kv_blocks_total"`
	KVBlocksFree      int               `json:"kv_blocks_free"`
	KVBlocksCached    int               `json:"kv_blocks_cached"` // a part of KVBlocksFree: with KV that requests may begin with
	KVBlocksHosted    int               `json:"kv_blocks_hosted"` // blocks of others in this pool
	KVBlocksLent      int               `json:"kv_blocks_lent"`   // blocks of its requests that lie with others
	KVBlocksShared    int               `json:"kv_blocks_shared"` // uses of blocks here by requests of others, where they lie
	Running           int               `json:"running"`
	Waiting           int               `json:"waiting"`
	TokensPerSecond   float64           `json:"tokens_per_second"`
	Preemptions       uint64            `json:"preemptions"`
	Recoveries        uint64            `json:"recoveries"`               // requests computed anew, for KV that was lost with a peer
	PrefixQueries     uint64            `json:"prefix_queries"`           // tokens of requests that began
	PrefixHits        uint64            `json:"prefix_hits"`              // those of them whose KV was in the cache
	PlannedMoves      uint64            `json:"planned_moves"`            // moves that the gManager planned, and that it took
	PlannedBlocks     uint64            `json:"planned_blocks"`           // KV blocks placed by them
	ReturnedBlocks    uint64            `json:"returned_blocks"`          // KV blocks that came back from instances that were about to leave
	SharedQueries     uint64            `json:"shared_queries"`           // a part of PrefixQueries: tokens that others were searched for
	SharedHits        uint64            `json:"shared_hits"`              // a part of PrefixHits: tokens whose KV is used at others, where it lies
	Drafts            uint64            `json:"drafts"`                   // steps of a request that had tokens guessed ahead
	DraftTokens       uint64            `json:"draft_tokens"`             // these tokens
	AcceptedTokens    uint64            `json:"accepted_tokens"`          // those of them that were right
	Waves             uint64            `json:"parallel_prefills"`        // prompts of requests here that several instances computed
	Assists           uint64            `json:"parallel_prefill_assists"` // those of others that this instance computed a part of
	Steps             uint64            `json:"steps"`
	HalvedSteps       uint64            `json:"halved_steps"` // a part of Steps: computed in halves of their rows
	StepSeconds       float64           `json:"step_seconds"`
	RemoteWaitSeconds float64           `json:"remote_wait_seconds"` // a part of StepSeconds: for creditors' answers
	RemoteQueries     uint64            `json:"remote_queries"`      // messages to creditors
	RemoteQueryBytes  uint64            `json:"remote_query_bytes"`
	RemoteAnswers     uint64            `json:"remote_answers"` // messages to debtors
	RemoteAnswerBytes uint64            `json:"remote_answer_bytes"`
	AnswerBatches     uint64            `json:"answer_batches"`  // calls of the device that computed answers
	KVBlocksMoved     uint64            `json:"kv_blocks_moved"` // to creditors
	KVBytesMoved      uint64            `json:"kv_bytes_moved"`
	RefusedMessages   uint64            `json:"refused_messages"`     // of peers: malformed, stale or out of bounds
	StepModel         *StepModel        `json:"step_model,omitempty"` // what plans reckon with; none until enough was measured
	MemoryTotal       uint64            `json:"memory_total_bytes"`
	MemoryUsed        uint64            `json:"memory_used_bytes"`
}

// StepModel is how long an instance's steps take, in seconds: Base, and so much for each token and for each token of KV
// that it reads itself. Remote is what asking creditors takes beside their work, 0 until it was measured.
type StepModel struct {
	Base       float64 `json:"base_seconds"`
	PerToken   float64 `json:"per_token_seconds"`
	PerKVToken float64 `json:"per_kv_token_seconds"`
	Remote     float64 `json:"remote_seconds"`
}

// RequestPlacement is where one request's KV lies, in order of position.
type RequestPlacement struct {
	ID     string     `json:"id"`
	Home   string     `json:"home"`
	Tokens int        `json:"tokens"`
	Spans  []SpanView `json:"spans"`
}

// SpanView is a run of a request's blocks on one instance.
type SpanView struct {
	Instance string `json:"instance"`
	Blocks   int    `json:"blocks"`
}

// Keeper starts instances in the place of those that died.
type Keeper interface {
	Restarts() int64 // so far
	Missing() int    // instances that have died and are not back yet
}

// Config of the API.
type Config struct {
	ModelNames  []string // the first is the one that answers carry
	APIKey      string   // "" for none
	MaxBodySize int      // bytes
	MaxModelLen int      // tokens
	MaxRequests int      // that instances known beforehand run or let wait
	Keeper      Keeper   // nil: nobody starts instances in the place of those that died
	Seed        uint64
	Defaults    Defaults
	Priorities  bool // requests may have any but 0
	// ToolCallParser is the form in which calls of tools are looked for in answers: a toolcall.Form, "none", or
	// "auto" (also "") for the one that the chat template writes.
	ToolCallParser string
	// ReasoningParser is the form of thoughts before answers: a reasoning.Form, "none", or "auto" (also "") for the one
	// that the chat template speaks of.
	ReasoningParser string
}

// leastConnections may be open at once. There are twice as many as clients could make use of, where those are more: one over
// the limit is told 503 whatever it asks, as is a probe that finds out whether this process is alive.
const leastConnections = 16384

// Server is a running API.
type Server struct {
	cfg        Config
	tok        *tokenizer.Tokenizer
	backend    Backend
	tools      toolSupport
	thinking   thinking
	lateSystem bool // the chat template shows what a system says in the middle of a conversation
	metrics    *Metrics
	http       *fasthttp.Server
	watcher    *watcher
	grammars   *grammar.Cache[struct{}]
	responses  *responseStore
	longest    int             // bytes of the longest token
	ctx        context.Context // of all requests
	cancel     context.CancelCauseFunc
	requests   atomic.Uint64
	created    int64
	listener   net.Listener
	done       chan error
	stopped    atomic.Bool

	mu   sync.Mutex
	busy map[net.Conn]struct{} // connections with a request that is not answered to its last byte
}

// New makes a server; Serve starts it.
func New(cfg Config, tok *tokenizer.Tokenizer, backend Backend) (*Server, error) {
	if len(cfg.ModelNames) == 0 || cfg.MaxBodySize <= 0 || cfg.MaxModelLen <= 0 || cfg.Defaults.VocabSize <= 0 {
		return nil, errors.New("cannot make a server without model name, body limit, length limit and vocabulary")
	}
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, tok: tok, backend: backend, watcher: w, grammars: newGrammars(), responses: newResponseStore(maxResponses, maxResponseBytes), created: time.Now().Unix(), done: make(chan error, 1), busy: map[net.Conn]struct{}{}}
	s.metrics = newMetrics(backend, cfg)
	s.tools = probeTools(tok, cfg.ToolCallParser)
	s.thinking = probeThinking(tok, cfg.ReasoningParser)
	s.lateSystem = probeSystem(tok)
	for id := range int32(tok.VocabSize()) {
		s.longest = max(s.longest, len(tok.TokenBytes(id)))
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.http = &fasthttp.Server{
		Handler: s.routes(), ErrorHandler: s.protocolError, ConnState: s.connState, Name: "infinite",
		HeaderReceived: s.headerReceived, MaxRequestBodySize: cfg.MaxBodySize, ReadTimeout: 60 * time.Second, IdleTimeout: 120 * time.Second,
		ReadBufferSize: 16 << 10, // the limit of a header; tokens and cookies of gateways take more than 4 KiB
		// A write timeout would cut long streams; a client that does not read is noticed by stallConn, one that
		// hangs up by the watcher.
		NoDefaultContentType: true, CloseOnShutdown: true, Concurrency: max(leastConnections, 2*cfg.MaxRequests), Logger: quiet{},
		// No request here is a form, whose parts fasthttp would otherwise take apart, the large ones into files.
		DisablePreParseMultipartForm: true,
	}
	return s, nil
}

// Serve answers on l until Shutdown.
func (s *Server) Serve(l net.Listener) {
	s.listener = l
	go func() { s.done <- s.http.Serve(stallListener{l, stallLimit}) }()
}

// Shutdown stops taking requests and waits for those that run, until ctx ends; then it cuts them.
// Only the first call does anything.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.stopped.Swap(true) {
		return nil
	}
	err := s.http.ShutdownWithContext(ctx)
	if s.listener != nil {
		_ = s.listener.Close() // fasthttp does not know it if Serve has not come that far
	}
	s.cancel(&Error{http.StatusServiceUnavailable, "ServiceUnavailableError", "", "The server is stopping."})
	if err != nil {
		err = fmt.Errorf("cannot finish all requests: %w", err)
	}
	last := time.Now().Add(2 * time.Second)
	select {
	case e := <-s.done:
		err = errors.Join(err, e)
	case <-time.After(time.Until(last)):
	}
	// Those that were cut still tell their clients so.
	for s.anyBusy() && time.Now().Before(last) {
		time.Sleep(5 * time.Millisecond)
	}
	s.watcher.close()
	return err
}

func (s *Server) connState(c net.Conn, state fasthttp.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == fasthttp.StateActive {
		s.busy[c] = struct{}{}
	} else {
		delete(s.busy, c)
	}
}

func (s *Server) anyBusy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.busy) > 0
}

const (
	completionsPath = "/v1/completions"
	chatPath        = "/v1/chat/completions"
	responsesPath   = "/v1/responses"
	messagesPath    = "/v1/messages"
	modelsPath      = "/v1/models"
)

func (s *Server) routes() fasthttp.RequestHandler {
	r := router.New()
	r.RedirectTrailingSlash, r.RedirectFixedPath = false, false
	get := func(path string, h fasthttp.RequestHandler) {
		r.GET(path, h)
		r.HEAD(path, h) // what load balancers probe with
	}
	r.POST(completionsPath, s.completions)
	r.POST(chatPath, s.chat)
	r.POST(responsesPath, s.respond)
	get(responsesPath+"/{id}", s.storedResponse)
	r.DELETE(responsesPath+"/{id}", s.storedResponse)
	get(responsesPath+"/{id}/input_items", s.inputItems)
	r.POST(messagesPath, s.messages)
	r.POST(messagesPath+"/count_tokens", s.countTokens)
	get(modelsPath, s.models)
	get(modelsPath+"/{id:*}", s.model) // names have slashes
	r.POST("/tokenize", s.tokenize)
	r.POST("/detokenize", s.detokenize)
	get("/cluster", s.cluster)
	get("/health", s.health)
	get("/metrics", s.metrics.handler())
	for path, file := range dashboard {
		get(path, file.serve)
	}
	r.NotFound = func(ctx *fasthttp.RequestCtx) {
		writeError(ctx, &Error{http.StatusNotFound, "NotFoundError", "", fmt.Sprintf("There is no %s.", path(ctx))})
	}
	r.MethodNotAllowed = func(ctx *fasthttp.RequestCtx) {
		allow := string(ctx.Response.Header.Peek("Allow"))
		writeError(ctx, &Error{http.StatusMethodNotAllowed, "BadRequestError", "", fmt.Sprintf("%s does not take %s.", path(ctx), ctx.Method())})
		ctx.Response.Header.Set("Allow", allow)
	}
	r.PanicHandler = func(ctx *fasthttp.RequestCtx, v any) {
		slog.Error("a handler panicked", "path", path(ctx), "panic", v)
		s.refuse(ctx, errors.New("cannot answer: internal error"))
	}
	return allowOrigins(s.authorize(r.Handler))
}

// path is the request's path as the router sees it: as it was sent, not what its dots and slashes come to.
func path(ctx *fasthttp.RequestCtx) string { return string(ctx.URI().PathOriginal()) }

// protocolError answers what is not an HTTP request, and bodies that are too large.
func (s *Server) protocolError(ctx *fasthttp.RequestCtx, err error) {
	e := s.protocolAnswer(err)
	if len(ctx.Request.Header.RawHeaders()) == 0 { // fasthttp forgets what it read of a header that it refuses
		s.metrics.failed("unknown", e)
		writeError(ctx, e)
	} else {
		s.refuse(ctx, e)
	}
	allowOrigin(&ctx.Response.Header)
	ctx.SetConnectionClose()
	linger(ctx)
}

func (s *Server) protocolAnswer(err error) *Error {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return &Error{http.StatusRequestEntityTooLarge, "BadRequestError", "", fmt.Sprintf("The request body is larger than %d bytes.", s.cfg.MaxBodySize)}
	case errors.As(err, &small):
		return &Error{http.StatusRequestHeaderFieldsTooLarge, "BadRequestError", "", "The request header is too large."}
	case errors.As(err, &netErr) && netErr.Timeout():
		return &Error{http.StatusRequestTimeout, "BadRequestError", "", "The request did not arrive in time."}
	}
	what, _, _ := strings.Cut(err.Error(), ": buffer size=") // the request's own bytes follow
	return badRequest("", "cannot read the request: %s", what)
}

func newID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	return hex.EncodeToString(b[:])
}

type quiet struct{}

func (quiet) Printf(format string, args ...any) {
	slog.Debug("http", "message", fmt.Sprintf(format, args...))
}
