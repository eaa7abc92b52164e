package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine/batch"
)

// Limits of a single request.
const (
	maxChoices     = 128
	maxPrompts     = 128
	maxStops       = 16
	maxStopBytes   = 1024
	maxBias        = 1024
	maxTopLogprobs = batch.MaxTop
)

// common holds the fields that both completion endpoints share, with vLLM's extensions.
type common struct {
	Model             string             `json:"model"`
	MaxTokens         *int               `json:"max_tokens"`
	maxTokensField    string             // what the client calls max_tokens, where that is another name
	MinTokens         int                `json:"min_tokens"`
	Temperature       *float64           `json:"temperature"`
	TopP              *float64           `json:"top_p"`
	TopK              *int               `json:"top_k"`
	MinP              *float64           `json:"min_p"`
	RepetitionPenalty *float64           `json:"repetition_penalty"`
	PresencePenalty   *float64           `json:"presence_penalty"`
	FrequencyPenalty  *float64           `json:"frequency_penalty"`
	LogitBias         map[string]float64 `json:"logit_bias"`
	Seed              *int64             `json:"seed"`
	N                 *int               `json:"n"`
	Stop              stops              `json:"stop"`
	StopTokenIDs      []int32            `json:"stop_token_ids"`
	IncludeStop       bool               `json:"include_stop_str_in_output"`
	IgnoreEOS         bool               `json:"ignore_eos"`
	SkipSpecial       *bool              `json:"skip_special_tokens"`
	Stream            bool               `json:"stream"`
	StreamOptions     *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	BestOf         *int            `json:"best_of"`
	Suffix         *string         `json:"suffix"`
	ResponseFormat json.RawMessage `json:"response_format"`
	Tools          json.RawMessage `json:"tools"`
}

// completionRequest is the body of POST /v1/completions.
type completionRequest struct {
	common
	Prompt           prompts `json:"prompt"`
	Logprobs         *int    `json:"logprobs"`
	Echo             bool    `json:"echo"`
	AddSpecialTokens *bool   `json:"add_special_tokens"`
}

// chatRequest is the body of POST /v1/chat/completions.
type chatRequest struct {
	common
	Messages            []chatMessage  `json:"messages"`
	MaxCompletionTokens *int           `json:"max_completion_tokens"`
	Logprobs            bool           `json:"logprobs"`
	TopLogprobs         *int           `json:"top_logprobs"`
	AddGenerationPrompt *bool          `json:"add_generation_prompt"`
	TemplateVars        map[string]any `json:"chat_template_kwargs"`
}

type chatMessage struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
	Name    string  `json:"name"`
}

// content is a string, null, or a list of text parts.
type content string

func (c *content) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	var text string
	if json.Unmarshal(b, &text) == nil {
		*c = content(text)
		return nil
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return badRequest("messages", "cannot read a message's content: it is neither a string nor a list of parts")
	}
	for _, p := range parts {
		if p.Type != "text" {
			return badRequest("messages", "cannot use a content part of type %q: this model reads text only", p.Type)
		}
		*c += content(p.Text)
	}
	return nil
}

// stops is a string or a list of strings.
type stops []string

func (s *stops) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	var one string
	if json.Unmarshal(b, &one) == nil {
		*s = stops{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return badRequest("stop", "cannot read stop: it is neither a string nor a list of strings")
	}
	*s = many
	return nil
}

// prompt is one prompt, as text or as token ids.
type prompt struct {
	text   string
	tokens []int32
	isText bool
}

// prompts is a string, a list of strings, a list of token ids, or a list of lists of token ids.
type prompts []prompt

func (p *prompts) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil && !bytes.Equal(b, []byte("null")) {
		*p = prompts{{text: text, isText: true}}
		return nil
	}
	var texts []string
	if json.Unmarshal(b, &texts) == nil {
		for _, t := range texts {
			*p = append(*p, prompt{text: t, isText: true})
		}
		return nil
	}
	var ids []int32
	if json.Unmarshal(b, &ids) == nil {
		*p = prompts{{tokens: ids}}
		return nil
	}
	var lists [][]int32
	if err := json.Unmarshal(b, &lists); err != nil {
		return badRequest("prompt", "cannot read prompt: it must be a string, a list of strings, a list of token ids, or a list of such lists")
	}
	for _, l := range lists {
		*p = append(*p, prompt{tokens: l})
	}
	return nil
}

// decode reads a request body; what does not fit becomes a 400 that names the field.
func decode(body []byte, into any) error {
	if !utf8.Valid(body) {
		return badRequest("", "cannot read the body: it is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	err := d.Decode(into)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		return badRequest("", "cannot read the body: there is more after the JSON object")
	}
	var typed *json.UnmarshalTypeError
	var mine *Error
	switch {
	case errors.As(err, &mine):
		return mine
	case errors.As(err, &typed):
		// The path goes through the embedded struct, which is no field of the body.
		field := strings.TrimPrefix(typed.Field, "common.")
		return badRequest(field, "cannot use a %s for %s: a value of type %s is needed", typed.Value, orBody(field), typed.Type)
	}
	return badRequest("", "cannot read the body as JSON: %v", err)
}

func orBody(field string) string {
	if field == "" {
		return "the body"
	}
	return field
}

// sampling checks the shared fields and makes the engine's parameters of them; absent ones take the
// model's own defaults.
func (c *common) sampling(d Defaults) (batch.Sampling, []batch.Bias, error) {
	s := batch.Sampling{
		Temperature: float32(orDefault(c.Temperature, d.Temperature)), TopP: float32(orDefault(c.TopP, d.TopP)),
		MinP: float32(orDefault(c.MinP, 0)), Repetition: float32(orDefault(c.RepetitionPenalty, d.RepetitionPenalty)),
		Presence: float32(orDefault(c.PresencePenalty, 0)), Frequency: float32(orDefault(c.FrequencyPenalty, 0)),
		TopK: int32(d.TopK),
	}
	if c.TopK != nil {
		if *c.TopK < -1 || *c.TopK > math.MaxInt32 {
			return s, nil, badRequest("top_k", "top_k must be -1 or 0 (all tokens), or at least 1, got %d.", *c.TopK)
		}
		s.TopK = int32(max(0, *c.TopK))
	}
	for _, r := range []struct {
		name      string
		v         float32
		low, high float64
		openLow   bool
		openHigh  bool
	}{
		{"temperature", s.Temperature, 0, 2, false, false}, {"top_p", s.TopP, 0, 1, true, false},
		{"min_p", s.MinP, 0, 1, false, true}, {"repetition_penalty", s.Repetition, 0, 10, true, false},
		{"presence_penalty", s.Presence, -2, 2, false, false}, {"frequency_penalty", s.Frequency, -2, 2, false, false},
	} {
		v := float64(r.v)
		if !(v >= r.low && v <= r.high) || r.openLow && v == r.low || r.openHigh && v == r.high {
			return s, nil, badRequest(r.name, "%s must be in %s%g, %g%s, got %g.", r.name, bracket(r.openLow, "(", "["), r.low, r.high, bracket(r.openHigh, ")", "]"), r.v)
		}
	}
	if s.Temperature < 1e-5 {
		s.Temperature = 0
	}
	bias, err := c.bias(d.VocabSize)
	return s, bias, err
}

func bracket(open bool, yes, no string) string {
	if open {
		return yes
	}
	return no
}

func (c *common) bias(vocab int) ([]batch.Bias, error) {
	if len(c.LogitBias) > maxBias {
		return nil, badRequest("logit_bias", "logit_bias may have at most %d entries, got %d.", maxBias, len(c.LogitBias))
	}
	out := make([]batch.Bias, 0, len(c.LogitBias))
	for key, v := range c.LogitBias {
		id, err := strconv.Atoi(key)
		if err != nil || id < 0 || id >= vocab {
			return nil, badRequest("logit_bias", "logit_bias has the key %q, which is no token id of this model (0 to %d).", key, vocab-1)
		}
		if !(v >= -100 && v <= 100) {
			return nil, badRequest("logit_bias", "logit_bias values must be in [-100, 100], got %g.", v)
		}
		out = append(out, batch.Bias{Token: int32(id), Value: float32(v)})
	}
	slices.SortFunc(out, func(a, b batch.Bias) int { return int(a.Token - b.Token) })
	return out, nil
}

// check validates what sampling does not, and returns the number of choices.
func (c *common) check(d Defaults) (n int, err error) {
	n = 1
	if c.N != nil {
		n = *c.N
	}
	switch {
	case n < 1 || n > maxChoices:
		return 0, badRequest("n", "n must be between 1 and %d, got %d.", maxChoices, n)
	case c.BestOf != nil && *c.BestOf != n:
		return 0, badRequest("best_of", "best_of other than n is not supported.")
	case c.Suffix != nil && *c.Suffix != "":
		return 0, badRequest("suffix", "suffix is not supported.")
	case len(c.Tools) > 0 && string(c.Tools) != "null" && string(c.Tools) != "[]":
		return 0, badRequest("tools", "tools are not supported.")
	case c.StreamOptions != nil && !c.Stream:
		return 0, badRequest("stream_options", "stream_options can only be set when stream is true.")
	case len(c.Stop) > maxStops:
		return 0, badRequest("stop", "stop may have at most %d strings, got %d.", maxStops, len(c.Stop))
	case c.MaxTokens != nil && *c.MaxTokens < 1:
		return 0, badRequest(c.limitField(), "%s must be at least 1, got %d.", c.limitField(), *c.MaxTokens)
	case c.MinTokens < 0:
		return 0, badRequest("min_tokens", "min_tokens must be at least 0, got %d.", c.MinTokens)
	case len(c.StopTokenIDs) > maxBias:
		return 0, badRequest("stop_token_ids", "stop_token_ids may have at most %d entries.", maxBias)
	}
	for _, s := range c.Stop {
		if s == "" || len(s) > maxStopBytes {
			return 0, badRequest("stop", "stop strings must have between 1 and %d bytes.", maxStopBytes)
		}
	}
	for _, id := range c.StopTokenIDs {
		if id < 0 || int(id) >= d.VocabSize {
			return 0, badRequest("stop_token_ids", "stop_token_ids has %d, which is no token id of this model (0 to %d).", id, d.VocabSize-1)
		}
	}
	if f := string(c.ResponseFormat); f != "" && f != "null" {
		var format struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(c.ResponseFormat, &format) != nil || format.Type != "text" {
			return 0, badRequest("response_format", "response_format other than text is not supported.")
		}
	}
	return n, nil
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
func (c *common) fit(field string, promptLen, def, maxModelLen, capacity int) (int, error) {
	limit, what := maxModelLen, "This model's maximum context length is %d tokens"
	if capacity < limit {
		limit, what = capacity, "The KV cache of the whole cluster holds at most %d tokens of one request"
	}
	what = fmt.Sprintf(what, limit)
	if promptLen >= limit {
		return 0, badRequest(field, "%s. However, the prompt has %d tokens, and at least one is generated. Please shorten the prompt to at most %d tokens.", what, promptLen, max(0, limit-1))
	}
	if c.MaxTokens == nil {
		return min(def, limit-promptLen), nil
	}
	// Not promptLen+MaxTokens > limit, which a client could make overflow.
	if *c.MaxTokens > limit-promptLen {
		return 0, badRequest(c.limitField(), "%s. However, the prompt has %d tokens, and you requested %d in the completion. Please shorten the prompt, or request at most %d.", what, promptLen, *c.MaxTokens, limit-promptLen)
	}
	return *c.MaxTokens, nil
}
