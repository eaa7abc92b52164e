package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"
)

// respond answers POST /v1/responses: a chat under other names, which the server may remember.
func (s *Server) respond(ctx *fasthttp.RequestCtx) {
	var req responseRequest
	err := decode(ctx.PostBody(), &req)
	if err != nil {
		s.refuse(ctx, err)
		return
	}
	s.answerPlan(ctx, func(work context.Context) (*plan, error) {
		return s.planResponse(work, &req)
	})
}

// planResponse plans the chat that a request comes to. The client cannot name the request, as it can in a chat: by its
// name an answer is found in the store.
func (s *Server) planResponse(ctx context.Context, req *responseRequest) (*plan, error) {
	if err := req.refuseFields(); err != nil {
		return nil, err
	}
	r := &response{srv: s, store: orDefault(req.Store, true), previous: orDefault(req.Previous, "")}
	chat := chatRequest{common: req.common, prefix: "resp_", object: "response", TopLogprobs: req.TopLogprobs, ParallelToolCalls: req.ParallelToolCalls}
	chat.RequestID, chat.TemplateVars, chat.IncludeReasoning = "", req.TemplateVars, req.IncludeReasoning
	chat.MaxTokens, chat.maxTokensField = req.MaxOutputTokens, "max_output_tokens"
	for _, translate := range []func(*chatRequest) error{req.takeInclude, req.takeText, req.takeReasoning, req.takeTruncation, req.takeTools} {
		if err := translate(&chat); err != nil {
			return nil, err
		}
	}
	items, own, err := s.responseItems(req)
	if err != nil {
		return nil, err
	}
	for i := range own {
		r.input = append(r.input, storedItem{own[i].id, own[i].append(nil, nil)})
	}
	if chat.Messages, err = messagesOf(orDefault(req.Instructions, ""), items); err != nil {
		return nil, err
	}
	p, err := s.planChat(ctx, &chat, nil)
	if err != nil {
		return nil, req.inResponse(err)
	}
	r.p, r.offered, p.own = p, req.offered, r
	return p, r.echo(req, &chat)
}

// responseItems are all items of a request's conversation, and those that it brings itself.
func (s *Server) responseItems(req *responseRequest) (all, own []item, err error) {
	ids, left := map[string]bool{}, s.cfg.MaxBodySize
	if req.Previous != nil {
		stored, err := s.responses.chain(*req.Previous, s.cfg.MaxBodySize)
		if err != nil {
			return nil, nil, badRequest("previous_response_id", "%v.", err)
		}
		for _, one := range stored {
			it, err := readItem(one.json)
			if err != nil {
				return nil, nil, fmt.Errorf("cannot read a stored item: %w", err)
			}
			ids[one.id] = true
			left -= len(one.json)
			all = append(all, it)
		}
	}
	if isNull(orNull(req.Input)) && req.Previous == nil {
		return nil, nil, badRequest("input", "input is needed: a string, or a list of items.")
	}
	own, err = readInput(orNull(req.Input), s.responses, left)
	if err != nil {
		return nil, nil, err
	}
	// Ids are unique in what is listed: a client that goes through it asks for what comes after one.
	for i := range own {
		if !isName(own[i].id) || ids[own[i].id] {
			own[i].rename()
		}
		ids[own[i].id] = true
	}
	if len(all)+len(own) > maxItems {
		return nil, nil, badRequest("input", "the conversation has %d items, of at most %d.", len(all)+len(own), maxItems)
	}
	if all = append(all, own...); len(all) == 0 {
		return nil, nil, badRequest("input", "input must have at least one item.")
	}
	return all, own, nil
}

// chatTools are paths in messages about the tools of a chat.
var chatTools = regexp.MustCompile(`tools\[(\d+)\]\.function\.parameters`)

// inResponse is an error about the chat that a request was made to, in the request's own names.
func (r *responseRequest) inResponse(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	own := *e
	switch e.Param {
	case "messages":
		own.Param = "input"
	case "response_format":
		own.Param = "text.format"
		own.Message = strings.Replace(own.Message, "response_format", own.Param, 1) // the first word of it that could be it
	case "reasoning_effort":
		own.Param = "reasoning.effort"
		own.Message = strings.Replace(own.Message, "reasoning_effort", own.Param, 1)
	case "tools":
		own.Message = chatTools.ReplaceAllStringFunc(own.Message, func(path string) string {
			i, err := strconv.Atoi(chatTools.FindStringSubmatch(path)[1])
			if err != nil || i >= len(r.offered) {
				return path
			}
			return r.offered[i].at + ".parameters"
		})
	}
	return &own
}

// storedResponse answers what is about one response that is kept: GET and DELETE.
func (s *Server) storedResponse(ctx *fasthttp.RequestCtx) {
	id, _ := ctx.UserValue("id").(string)
	if ctx.IsDelete() {
		if !s.responses.remove(id) {
			writeError(ctx, noResponse(id))
			return
		}
		writeJSON(ctx, struct {
			ID      string `json:"id"`
			Object  string `json:"object"`
			Deleted bool   `json:"deleted"`
		}{id, "response", true})
		return
	}
	kept := s.responses.get(id)
	switch {
	case ctx.QueryArgs().GetBool("stream"):
		writeError(ctx, badRequest("stream", "a response that is stored cannot be streamed."))
	case kept == nil:
		writeError(ctx, noResponse(id))
	default:
		ctx.SetContentType("application/json")
		ctx.Response.SetBodyRaw(kept.body)
	}
}

func noResponse(id string) *Error {
	return &Error{http.StatusNotFound, "NotFoundError", "response_id", (&goneError{id}).Error() + "."}
}

// inputItems answers GET /v1/responses/{id}/input_items: what the conversation was in front of the answer.
func (s *Server) inputItems(ctx *fasthttp.RequestCtx) {
	id, _ := ctx.UserValue("id").(string)
	items, ok := s.responses.inputOf(id)
	if !ok {
		writeError(ctx, noResponse(id))
		return
	}
	args := ctx.QueryArgs()
	limit := 20
	if args.Has("limit") {
		n, err := args.GetUint("limit")
		if err != nil || n < 1 || n > 100 {
			writeError(ctx, badRequest("limit", "limit must be between 1 and 100."))
			return
		}
		limit = n
	}
	switch order := string(args.Peek("order")); order {
	case "", "desc":
		slices.Reverse(items)
	case "asc":
	default:
		writeError(ctx, badRequest("order", "order must be asc or desc, got %q.", order))
		return
	}
	if after := string(args.Peek("after")); after != "" {
		at := slices.IndexFunc(items, func(it storedItem) bool { return it.id == after })
		if at < 0 {
			writeError(ctx, badRequest("after", "there is no item %q among those of the response.", after))
			return
		}
		items = items[at+1:]
	}
	more := len(items) > limit
	items = items[:min(limit, len(items))]
	page := struct {
		Object  string            `json:"object"`
		Data    []json.RawMessage `json:"data"`
		FirstID *string           `json:"first_id"`
		LastID  *string           `json:"last_id"`
		HasMore bool              `json:"has_more"`
	}{Object: "list", Data: []json.RawMessage{}, HasMore: more}
	for i := range items {
		page.Data = append(page.Data, items[i].json)
		page.LastID = &items[i].id
	}
	if len(items) > 0 {
		page.FirstID = &items[0].id
	}
	writeJSON(ctx, page)
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}
