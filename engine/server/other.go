package server

import (
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine/tokenizer"
)

type modelCard struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	MaxModelLen int    `json:"max_model_len"`
}

func (s *Server) card(id string) modelCard {
	return modelCard{id, "model", s.created, "infinite", s.cfg.MaxModelLen}
}

func (s *Server) models(ctx *fasthttp.RequestCtx) {
	cards := make([]modelCard, len(s.cfg.ModelNames))
	for i, id := range s.cfg.ModelNames {
		cards[i] = s.card(id)
	}
	writeJSON(ctx, map[string]any{"object": "list", "data": cards})
}

func (s *Server) model(ctx *fasthttp.RequestCtx) {
	id, _ := ctx.UserValue("id").(string)
	if err := s.checkModel(id); err != nil {
		writeError(ctx, err)
		return
	}
	writeJSON(ctx, s.card(id))
}

// tokenize answers POST /tokenize: {prompt} or {messages} -> {count, max_model_len, tokens}.
func (s *Server) tokenize(ctx *fasthttp.RequestCtx) {
	var req struct {
		Model       string        `json:"model"`
		Prompt      *string       `json:"prompt"`
		Messages    []chatMessage `json:"messages"`
		AddSpecial  *bool         `json:"add_special_tokens"`
		AddPrompt   *bool         `json:"add_generation_prompt"`
		TokenString bool          `json:"return_token_strs"`
	}
	if err := decode(ctx.PostBody(), &req); err != nil {
		writeError(ctx, err)
		return
	}
	if err := s.checkModel(req.Model); err != nil {
		writeError(ctx, err)
		return
	}
	var tokens []int32
	switch {
	case req.Prompt != nil && req.Messages == nil:
		tokens = s.tok.Encode(*req.Prompt, orDefault(req.AddSpecial, true))
	case req.Messages != nil && req.Prompt == nil:
		messages := make([]tokenizer.Message, len(req.Messages))
		for i, m := range req.Messages {
			messages[i] = tokenizer.Message{Role: m.Role, Content: string(m.Content), Name: m.Name}
		}
		text, err := s.tok.ApplyChat(messages, orDefault(req.AddPrompt, true), nil)
		if err != nil {
			writeError(ctx, badRequest("messages", "cannot apply the chat template: %v", err))
			return
		}
		tokens = s.tok.Encode(text, orDefault(req.AddSpecial, false))
	default:
		writeError(ctx, badRequest("prompt", "either prompt or messages is needed."))
		return
	}
	if tokens == nil {
		tokens = []int32{}
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
		Model  string  `json:"model"`
		Tokens []int32 `json:"tokens"`
	}
	if err := decode(ctx.PostBody(), &req); err != nil {
		writeError(ctx, err)
		return
	}
	if err := s.checkModel(req.Model); err != nil {
		writeError(ctx, err)
		return
	}
	if req.Tokens == nil {
		writeError(ctx, badRequest("tokens", "tokens is needed."))
		return
	}
	for _, id := range req.Tokens {
		if id < 0 || int(id) >= s.cfg.Defaults.VocabSize {
			writeError(ctx, badRequest("tokens", "tokens has %d, which is no token id of this model (0 to %d).", id, s.cfg.Defaults.VocabSize-1))
			return
		}
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
	writeJSON(ctx, view)
}
