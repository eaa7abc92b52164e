package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// messages answers POST /v1/messages: a chat as Anthropic's clients write it.
func (s *Server) messages(ctx *fasthttp.RequestCtx) {
	var req messageRequest
	err := decode(ctx.PostBody(), &req)
	if err != nil {
		s.refuse(ctx, err)
		return
	}
	s.answerPlan(ctx, func(work context.Context) (*plan, error) {
		p, err := s.planMessage(work, &req, ctx.Request.Header.Peek("X-Request-Id"))
		if err == nil {
			ctx.Response.Header.Set("Request-Id", "req_"+strings.TrimPrefix(p.answer.id, "msg_"))
		}
		return p, err
	})
}

// planMessage plans the chat that a request comes to. max_tokens must be given, whatever the room, so it is only the most that
// an answer has: what there is no room for ends it.
func (s *Server) planMessage(ctx context.Context, req *messageRequest, id []byte) (*plan, error) {
	switch {
	case req.MaxTokens == nil:
		return nil, badRequest("max_tokens", "max_tokens is needed.")
	case *req.MaxTokens < 1:
		return nil, badRequest("max_tokens", "max_tokens must be at least 1, got %d.", *req.MaxTokens)
	}
	req.lateSystem = s.lateSystem
	chat, err := req.chat()
	if err != nil {
		return nil, err
	}
	chat.most = int(*req.MaxTokens)
	p, err := s.planChat(ctx, chat, id)
	if err != nil {
		return nil, s.inMessage(req, err)
	}
	p.own = &messageAnswer{srv: s, p: p, most: chat.most, hide: req.hideThoughts}
	return p, nil
}

// countTokens answers POST /v1/messages/count_tokens: how many tokens the prompt of such a request has.
func (s *Server) countTokens(ctx *fasthttp.RequestCtx) {
	var req messageRequest
	n := 0
	err := decode(ctx.PostBody(), &req)
	if err == nil {
		n, err = s.countMessage(&req)
	}
	if err != nil {
		writeError(ctx, s.inMessage(&req, err))
		return
	}
	writeJSON(ctx, map[string]int{"input_tokens": n})
}

func (s *Server) countMessage(req *messageRequest) (int, error) {
	if err := s.checkModel(req.Model); err != nil {
		return 0, err
	}
	req.lateSystem = s.lateSystem
	chat, err := req.chat()
	if err != nil {
		return 0, err
	}
	asked := chat.takeTools()
	if err = chat.refuse(); err != nil { // what would be refused would have no tokens
		return 0, err
	}
	tools, err := s.planTools(asked, orDefault(chat.ParallelToolCalls, true))
	if err != nil {
		return 0, err
	}
	text, err := s.render(&chat.conversation, tools.list)
	if err != nil {
		return 0, err
	}
	return len(s.tok.Encode(text, false)), nil
}

// probeSystem renders a conversation to see whether the template shows what a system says in the middle of it.
func probeSystem(tok *tokenizer.Tokenizer) bool {
	const said = "probe_system"
	user, system := tokenizer.Message{Role: "user", Content: "a"}, tokenizer.Message{Role: "system", Content: said}
	text, err := tok.ApplyChat([]tokenizer.Message{user, {Role: "assistant", Content: "a"}, user, system}, true, nil)
	return err == nil && strings.Contains(text, said)
}

// messageTools are paths in messages of errors about the tools of a chat.
var messageTools = regexp.MustCompile(`(tools\[\d+\])\.function\.parameters`)

// promptLength is in errors about a prompt that is too long.
var promptLength = regexp.MustCompile(`the prompt has (?:at least )?(\d+) tokens`)

// inMessage is an error about the chat that a request was made to, in the request's own names.
func (s *Server) inMessage(req *messageRequest, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	own := *e
	rename := func(from, to string) { own.Message = strings.Replace(own.Message, from, to, 1) }
	switch e.Param {
	case "stop":
		rename("stop", "stop_sequences")
	case "response_format":
		rename("response_format", req.formField) // the first word of it that could be it
	case "continue_final_message":
		own.Message = "cannot go on from the last message: the chat template does not show it."
	case "tools":
		own.Message = messageTools.ReplaceAllString(own.Message, "$1.input_schema")
		rename("its function", "it")
	case "messages":
		rename("messages with tool_calls", "messages with a tool_use")
		// Agents that make a long conversation shorter look for these words, and read the figures.
		long := promptLength.FindStringSubmatch(own.Message)
		if limit, what, broken := s.room(); broken == nil && long != nil && strings.HasPrefix(own.Message, what) {
			own.Message = fmt.Sprintf("prompt is too long: %s tokens > %d maximum. %s", long[1], limit-1, own.Message)
		}
	}
	return &own
}

// speaksMessages says whether a request's client knows Anthropic's shapes. Of the paths that both APIs have the header tells,
// which OpenAI's clients do not send.
func speaksMessages(ctx *fasthttp.RequestCtx) bool {
	p := path(ctx)
	if p == modelsPath || strings.HasPrefix(p, modelsPath+"/") {
		return len(ctx.Request.Header.Peek("Anthropic-Version")) > 0
	}
	return p == messagesPath || strings.HasPrefix(p, messagesPath+"/")
}

// messageType is Anthropic's word for an error. The status is the other APIs' too: with the SDKs 429 and all from 500 on are tried
// again, be it their 529 or not.
func (e *Error) messageType() string {
	switch e.Status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusRequestTimeout:
		return "timeout_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	}
	if e.Status < http.StatusInternalServerError {
		return "invalid_request_error"
	}
	return "api_error"
}

// messageBody is the JSON of the error in Anthropic's shape.
func (e *Error) messageBody(requestID string) []byte {
	b := appendString([]byte(`{"type":"error","error":{"type":`), e.messageType())
	b = appendString(append(b, `,"message":`...), e.Message)
	if e.Param == threadField {
		b = append(b, `,"details":{"error_code":"thread_unsupported_request","unsupported":["thread"]}`...)
	}
	return append(appendString(append(b, `},"request_id":`...), requestID), '}')
}

// modelInfo is a model in Anthropic's shape.
type modelInfo struct {
	Type      string `json:"type"`
	ID        string `json:"id"`
	Name      string `json:"display_name"`
	Created   string `json:"created_at"`
	Lifecycle string `json:"lifecycle"`
	MaxInput  int    `json:"max_input_tokens"`
	MaxTokens int    `json:"max_tokens"`
}

func (s *Server) messageModel(id string) modelInfo {
	return modelInfo{"model", id, id, time.Unix(s.created, 0).UTC().Format(time.RFC3339), "active", s.cfg.MaxModelLen, s.cfg.MaxModelLen}
}

// messageModels lists a page of the models.
func (s *Server) messageModels(ctx *fasthttp.RequestCtx) {
	args := ctx.QueryArgs()
	limit := 20
	if args.Has("limit") {
		n, err := args.GetUint("limit")
		if err != nil || n < 1 || n > 1000 {
			writeError(ctx, badRequest("limit", "limit must be between 1 and 1000."))
			return
		}
		limit = n
	}
	ids := s.cfg.ModelNames
	page := struct {
		Data    []modelInfo `json:"data"`
		HasMore bool        `json:"has_more"`
		FirstID *string     `json:"first_id"`
		LastID  *string     `json:"last_id"`
	}{Data: []modelInfo{}}
	before := string(args.Peek("before_id"))
	for _, cursor := range []string{string(args.Peek("after_id")), before} {
		if cursor != "" && !slices.Contains(ids, cursor) {
			writeError(ctx, badRequest("", "there is no model %q to list from.", cursor))
			return
		}
	}
	if after := slices.Index(ids, string(args.Peek("after_id"))); after >= 0 {
		ids = ids[after+1:]
	}
	if at := slices.Index(ids, before); before != "" && at >= 0 { // those just in front of it
		ids = ids[:at]
		page.HasMore = len(ids) > limit
		ids = ids[max(0, len(ids)-limit):]
	}
	page.HasMore = page.HasMore || len(ids) > limit
	for _, id := range ids[:min(limit, len(ids))] {
		page.Data = append(page.Data, s.messageModel(id))
	}
	if n := len(page.Data); n > 0 {
		page.FirstID, page.LastID = &page.Data[0].ID, &page.Data[n-1].ID
	}
	writeJSON(ctx, page)
}
