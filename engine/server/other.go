package server

import (
	"net/http"
	"net/url"

	"github.com/valyala/fasthttp"
)

type modelCard struct {
	ID          string  `json:"id"`
	Object      string  `json:"object"`
	Created     int64   `json:"created"`
	OwnedBy     string  `json:"owned_by"`
	Root        string  `json:"root"`
	Parent      *string `json:"parent"`
	MaxModelLen int     `json:"max_model_len"`
}

func (s *Server) card(id string) modelCard {
	return modelCard{id, "model", s.created, "infinite", s.cfg.ModelNames[0], nil, s.cfg.MaxModelLen}
}

func (s *Server) models(ctx *fasthttp.RequestCtx) {
	if speaksMessages(ctx) {
		s.messageModels(ctx)
		return
	}
	cards := make([]modelCard, len(s.cfg.ModelNames))
	for i, id := range s.cfg.ModelNames {
		cards[i] = s.card(id)
	}
	writeJSON(ctx, map[string]any{"object": "list", "data": cards})
}

func (s *Server) model(ctx *fasthttp.RequestCtx) {
	raw, _ := ctx.UserValue("id").(string)
	id, err := url.PathUnescape(raw)
	if err != nil || id == "" {
		id = raw
	}
	if err := s.checkModel(id); err != nil {
		writeError(ctx, err)
		return
	}
	if speaksMessages(ctx) {
		writeJSON(ctx, s.messageModel(id))
		return
	}
	writeJSON(ctx, s.card(id))
}

// tokenize answers POST /tokenize: {prompt} or {messages} -> {count, max_model_len, tokens}.
func (s *Server) tokenize(ctx *fasthttp.RequestCtx) {
	var req struct {
		conversation
		unsupported
		Model       string  `json:"model"`
		Prompt      *string `json:"prompt"`
		TokenString bool    `json:"return_token_strs"`
	}
	err := decode(ctx.PostBody(), &req)
	asked := req.takeTools()
	if err == nil {
		err = s.checkModel(req.Model)
	}
	if err == nil { // what a chat refuses would change the count too
		err = req.refuse()
	}
	tokens := []int32{}
	switch {
	case err != nil:
	case req.Prompt != nil && req.Messages == nil:
		tokens = append(tokens, s.tok.Encode(*req.Prompt, orDefault(req.AddSpecialTokens, true))...)
	case req.Messages != nil && req.Prompt == nil:
		var text string
		var tools toolPlan
		if tools, err = s.planTools(asked, true); err == nil {
			text, err = s.render(&req.conversation, tools.list)
		}
		if err == nil {
			tokens = append(tokens, s.tok.Encode(text, orDefault(req.AddSpecialTokens, false))...)
		}
	default:
		err = badRequest("prompt", "either prompt or messages is needed.")
	}
	if err != nil {
		writeError(ctx, err)
		return
	}
	out := map[string]any{"count": len(tokens), "max_model_len": s.cfg.MaxModelLen, "tokens": tokens}
	if req.TokenString {
		strs := make([]string, len(tokens))
		for i, t := range tokens {
			strs[i] = s.tok.TokenString(t)
		}
		out["token_strs"] = strs
	}
	writeJSON(ctx, out)
}

// detokenize answers POST /detokenize: {tokens} -> {prompt}.
func (s *Server) detokenize(ctx *fasthttp.RequestCtx) {
	var req struct {
		Model  string   `json:"model"`
		Tokens tokenIDs `json:"tokens"`
	}
	err := decode(ctx.PostBody(), &req)
	if err == nil {
		err = s.checkModel(req.Model)
	}
	if err == nil && req.Tokens == nil {
		err = badRequest("tokens", "tokens is needed.")
	}
	if err == nil {
		err = s.checkIDs("tokens", req.Tokens)
	}
	if err != nil {
		writeError(ctx, err)
		return
	}
	writeJSON(ctx, map[string]string{"prompt": s.tok.Decode(req.Tokens, false)})
}

// health is 200 while at least one instance serves.
func (s *Server) health(ctx *fasthttp.RequestCtx) {
	if s.backend.Capacity() <= 0 {
		writeError(ctx, unavailable())
		return
	}
	ctx.SetStatusCode(http.StatusOK)
}

func (s *Server) cluster(ctx *fasthttp.RequestCtx) {
	view, err := s.backend.Cluster(ctx)
	if err != nil {
		writeError(ctx, &Error{http.StatusServiceUnavailable, "ServiceUnavailableError", "", err.Error()})
		return
	}
	if k := s.cfg.Keeper; k != nil {
		view.Missing = k.Missing()
	}
	writeJSON(ctx, view)
}
