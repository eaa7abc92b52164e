package server

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
)

// Limits of a single request.
const (
	maxChoices     = 128
	maxPrompts     = 2048
	maxJobs        = engine.MoreWaiting // choices of all prompts
	maxStops       = 256
	maxStopBytes   = 1024
	maxStopsBytes  = 16 << 10 // of all stop strings: each piece of text is held against all of them
	maxBias        = 1024     // what a sampling slot holds
	maxTopLogprobs = batch.MaxTop
)

// sampling checks the shared fields and makes the engine's parameters of them; absent ones take the
// model's own defaults. They are held to their bounds as they were sent, not as what a float32 makes of them.
func (c *common) sampling(d Defaults) (batch.Sampling, []batch.Bias, error) {
	var s batch.Sampling
	s.TopK = int32(d.TopK)
	if c.TopK != nil {
		if *c.TopK < -1 || *c.TopK > math.MaxInt32 {
			return s, nil, badRequest("top_k", "top_k must be -1 or 0 (all tokens), or at least 1, got %d.", *c.TopK)
		}
		s.TopK = int32(max(0, *c.TopK))
	}
	// Where vLLM has no limit, ours is far out: where float32 ends, or the penalty's logits would.
	for _, r := range []struct {
		name      string
		sent      *number
		absent    float64
		into      *float32
		low, high float64
	}{
		{"temperature", c.Temperature, d.Temperature, &s.Temperature, 0, math.MaxFloat32},
		{"top_p", c.TopP, d.TopP, &s.TopP, 0, 1},
		{"min_p", c.MinP, 0, &s.MinP, 0, 1},
		{"repetition_penalty", c.RepetitionPenalty, d.RepetitionPenalty, &s.Repetition, .001, 1000},
		{"presence_penalty", c.PresencePenalty, 0, &s.Presence, -2, 2},
		{"frequency_penalty", c.FrequencyPenalty, 0, &s.Frequency, -2, 2},
	} {
		v := float64(orDefault(r.sent, number(r.absent)))
		switch {
		case r.name == "top_p" && !(v > 0):
			return s, nil, badRequest(r.name, "top_p must be above 0, got %g.", v)
		case !(v >= r.low): // also what is no number
			return s, nil, badRequest(r.name, "%s must be at least %g, got %g.", r.name, r.low, v)
		case v > r.high:
			return s, nil, badRequest(r.name, "%s must be at most %g, got %g.", r.name, r.high, v)
		}
		*r.into = float32(v)
	}
	if s.Temperature < 1e-5 {
		s.Temperature = 0
	}
	s.TopP = max(s.TopP, 0x1p-126)               // float32 would make 0 of a smaller one; the most likely token alone is left of either
	s.MinP = min(s.MinP, math.Nextafter32(1, 0)) // 1 keeps the most likely token alone, and so does this
	bias, err := c.bias(d.VocabSize)
	return s, bias, err
}

// bias makes the engine's list of logit_bias, which is clamped as vLLM does.
func (c *common) bias(vocab int) ([]batch.Bias, error) {
	if len(c.LogitBias) > maxBias {
		return nil, badRequest("logit_bias", "logit_bias may have at most %d entries, got %d.", maxBias, len(c.LogitBias))
	}
	out := make([]batch.Bias, 0, len(c.LogitBias))
	for key, v := range c.LogitBias {
		id, err := strconv.Atoi(key)
		if err != nil || id < 0 || id >= vocab || strconv.Itoa(id) != key { // 05 and 5 would be one token twice
			return nil, badRequest("logit_bias", "logit_bias has the key %q, which is no token id of this model (0 to %d).", key, vocab-1)
		}
		out = append(out, batch.Bias{Token: int32(id), Value: float32(min(100, max(-100, v)))})
	}
	slices.SortFunc(out, func(a, b batch.Bias) int { return int(a.Token - b.Token) })
	return out, nil
}

// check validates what sampling does not, and returns the number of choices. A request that only echoes
// its prompt may ask for no token.
func (c *common) check(d Defaults, echo bool) (n int, err error) {
	n = int(orDefault(c.N, 1))
	switch {
	case n < 1 || n > maxChoices:
		return 0, badRequest("n", "n must be between 1 and %d, got %d.", maxChoices, n)
	case c.BestOf != nil && int(*c.BestOf) != n:
		return 0, badRequest("best_of", "best_of other than n is not supported.")
	case c.StreamOptions != nil && !c.Stream:
		return 0, badRequest("stream_options", "stream_options can only be set when stream is true.")
	case c.MaxTokens != nil && *c.MaxTokens < 1 && !(echo && *c.MaxTokens == 0):
		return 0, badRequest(c.limitField(), "%s must be at least 1, got %d.", c.limitField(), *c.MaxTokens)
	case c.MinTokens < 0:
		return 0, badRequest("min_tokens", "min_tokens must be at least 0, got %d.", c.MinTokens)
	case c.MinTokens > 0 && len(c.LogitBias)+len(c.StopTokenIDs)+len(d.EOS) > maxBias:
		return 0, badRequest("logit_bias", "logit_bias and stop_token_ids may have at most %d entries with min_tokens.", maxBias-len(d.EOS))
	case c.TruncatePrompt != nil && *c.TruncatePrompt != -1 && *c.TruncatePrompt < 1:
		return 0, badRequest("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1, got %d.", *c.TruncatePrompt)
	case !slices.Contains([]string{"", "left", "right"}, c.TruncationSide):
		return 0, badRequest("truncation_side", "truncation_side must be left or right, got %q.", c.TruncationSide)
	}
	if err := c.checkPromptLogprobs(); err != nil {
		return 0, err
	}
	if err := c.checkStops(d.VocabSize); err != nil {
		return 0, err
	}
	return n, c.refuse()
}

func (c *common) checkPromptLogprobs() error {
	k := orDefault(c.PromptLogprobs, 0)
	switch {
	case k < 0 || k > maxTopLogprobs:
		return badRequest("prompt_logprobs", "prompt_logprobs must be between 0 and %d, got %d.", maxTopLogprobs, k)
	case c.PromptLogprobs != nil && c.Stream:
		return badRequest("prompt_logprobs", "prompt_logprobs are not available when stream is true.")
	}
	return nil
}

func (c *common) checkStops(vocab int) error {
	if len(c.Stop) > maxStops {
		return badRequest("stop", "stop may have at most %d strings, got %d.", maxStops, len(c.Stop))
	}
	sum := 0
	for _, s := range c.Stop {
		if s == "" || len(s) > maxStopBytes {
			return badRequest("stop", "stop strings must have between 1 and %d bytes.", maxStopBytes)
		}
		if sum += len(s); sum > maxStopsBytes {
			return badRequest("stop", "all stop strings together may have at most %d bytes.", maxStopsBytes)
		}
	}
	if len(c.StopTokenIDs) > maxBias {
		return badRequest("stop_token_ids", "stop_token_ids may have at most %d entries.", maxBias)
	}
	for _, id := range c.StopTokenIDs {
		if id < 0 || int(id) >= vocab {
			return badRequest("stop_token_ids", "stop_token_ids has %d, which is no token id of this model (0 to %d).", id, vocab-1)
		}
	}
	return nil
}

func orDefault[T any](p *T, d T) T {
	if p == nil {
		return d
	}
	return *p
}

// limitField is the body's name for MaxTokens.
func (c *common) limitField() string {
	if c.maxTokensField != "" {
		return c.maxTokensField
	}
	return "max_tokens"
}

// fit decides how many tokens a request may generate, def where the client does not say; a prompt that
// cannot fit is a 400 at field that says how many tokens would.
func (c *common) fit(field string, promptLen, def, limit int, what string) (int, error) {
	least, generates := 1, ", and at least one is generated"
	if c.MaxTokens != nil && *c.MaxTokens == 0 {
		least, generates = 0, ""
	}
	if promptLen > limit-least {
		return 0, badRequest(field, "%s. However, the prompt has %d tokens%s. Please shorten the prompt to at most %d tokens.", what, promptLen, generates, max(0, limit-least))
	}
	if c.MaxTokens == nil {
		return min(def, limit-promptLen), nil
	}
	// Not promptLen+MaxTokens > limit, which a client could make overflow.
	if int(*c.MaxTokens) > limit-promptLen {
		return 0, badRequest(c.limitField(), "%s. However, the prompt has %d tokens, and you requested %d in the completion. Please shorten the prompt, or request at most %d.", what, promptLen, *c.MaxTokens, limit-promptLen)
	}
	return int(*c.MaxTokens), nil
}

// checkLength refuses text that could not fit if it were all of the longest token, before it costs the time
// to encode it. Text that is cut afterwards may have any length.
func (s *Server) checkLength(c *common, field, text string) error {
	limit, what, err := s.room()
	if err != nil {
		return err
	}
	if least := len(text) / max(1, s.longest); least > limit && c.TruncatePrompt == nil {
		if least > s.cfg.MaxModelLen {
			limit = s.cfg.MaxModelLen // which it will never fit
		}
		return s.orLater(limit, badRequest(field, "%s. However, the prompt has at least %d tokens. Please shorten the prompt to at most %d tokens.", what, least, limit-1))
	}
	return nil
}

// truncate cuts a prompt to its last tokens, or its first, if the client wants that; -1 leaves the room of the answer that
// is asked for, def tokens where the client does not say. The tokens that were added in front of a text and behind it count
// and stay; as with HF's tokenizers a text is left whole where not even these would.
func (s *Server) truncate(c *common, tokens []int32, front, behind, def int) ([]int32, error) {
	if c.TruncatePrompt == nil {
		return tokens, nil
	}
	limit, what, err := s.room()
	if err != nil {
		return nil, err
	}
	keep := int(*c.TruncatePrompt)
	switch {
	case keep > s.cfg.MaxModelLen:
		return nil, badRequest("truncate_prompt_tokens", "truncate_prompt_tokens must be at most %d, got %d.", s.cfg.MaxModelLen, keep)
	case keep > limit && len(tokens) > limit: // a shorter prompt fits, whatever the cluster has lost
		return nil, s.orLater(limit, badRequest("truncate_prompt_tokens", "%s. However, truncate_prompt_tokens is %d, and the prompt has %d tokens; -1 keeps as many as fit.", what, keep, len(tokens)))
	case keep < 0:
		answer := orDefault(c.MaxTokens, max(integer(def), c.MinTokens))
		keep = max(1, limit-int(min(integer(limit), answer)))
	}
	own := tokens[front : len(tokens)-behind]
	keep -= front + behind
	switch {
	case keep < 0 || keep >= len(own):
		return tokens, nil
	case c.TruncationSide == "right":
		own = own[:keep]
	default:
		own = own[len(own)-keep:]
	}
	return slices.Concat(tokens[:front], own, tokens[len(tokens)-behind:]), nil
}

// orLater is an error about a request that is too long, unless that is for lack of instances that are about to come back:
// then its client may ask again.
func (s *Server) orLater(limit int, err error) error {
	var e *Error
	if k := s.cfg.Keeper; k == nil || k.Missing() == 0 || limit >= s.cfg.MaxModelLen || !errors.As(err, &e) {
		return err
	}
	return &Error{http.StatusServiceUnavailable, "ServiceUnavailableError", "", "An instance has died and is being started anew; until then: " + e.Message}
}

// room is how many tokens one request may have in all, and why not more.
func (s *Server) room() (limit int, what string, err error) {
	capacity := s.backend.Capacity()
	if capacity <= 0 {
		return 0, "", unavailable()
	}
	limit, what = s.cfg.MaxModelLen, "This model's maximum context length is %d tokens"
	if capacity < limit {
		limit, what = capacity, "The KV cache of the whole cluster holds at most %d tokens of one request"
	}
	return limit, fmt.Sprintf(what, limit), nil
}
