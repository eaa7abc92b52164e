package server

import (
	"encoding/json"
	"slices"
	"strings"
)

// unsupported holds fields that would change the answer and that this server cannot honour. Ignoring them
// as if they were unknown would be a wrong answer that looks like a right one. Fields of OpenAI and vLLM that
// no answer depends on (user, store, metadata, service_tier, prediction, stream_interval and the
// like), or none here (length_penalty without beams, parallel_tool_calls without tools), are left out.
type unsupported struct {
	BestOf              *integer        `json:"best_of"`
	Tools               json.RawMessage `json:"tools"`
	ToolChoice          json.RawMessage `json:"tool_choice"`
	Functions           json.RawMessage `json:"functions"`
	FunctionCall        json.RawMessage `json:"function_call"`
	Modalities          json.RawMessage `json:"modalities"`
	Verbosity           json.RawMessage `json:"verbosity"`
	WebSearchOptions    json.RawMessage `json:"web_search_options"`
	Audio               json.RawMessage `json:"audio"`
	Suffix              json.RawMessage `json:"suffix"`
	UseBeamSearch       json.RawMessage `json:"use_beam_search"`
	StructuralTag       json.RawMessage `json:"structural_tag"`
	GuidedWhitespace    json.RawMessage `json:"guided_whitespace_pattern"`
	LogitsProcessors    json.RawMessage `json:"logits_processors"`
	LogprobTokenIDs     json.RawMessage `json:"logprob_token_ids"`
	RepetitionDetection json.RawMessage `json:"repetition_detection"`
	Watermarking        json.RawMessage `json:"watermarking"`
	PromptEmbeds        json.RawMessage `json:"prompt_embeds"`
	ChatTemplate        json.RawMessage `json:"chat_template"`
	Documents           json.RawMessage `json:"documents"`
	ReturnPromptText    json.RawMessage `json:"return_prompt_text"`
	KVTransferParams    json.RawMessage `json:"kv_transfer_params"`
	ECTransferParams    json.RawMessage `json:"ec_transfer_params"`
	VLLMXArgs           json.RawMessage `json:"vllm_xargs"`
}

func (u *unsupported) refuse() error {
	for _, f := range []struct {
		name string
		raw  json.RawMessage
	}{
		{"functions", u.Functions}, {"audio", u.Audio}, {"suffix", u.Suffix}, {"use_beam_search", u.UseBeamSearch},
		{"structural_tag", u.StructuralTag}, {"guided_whitespace_pattern", u.GuidedWhitespace},
		{"logits_processors", u.LogitsProcessors}, {"logprob_token_ids", u.LogprobTokenIDs},
		{"repetition_detection", u.RepetitionDetection}, {"watermarking", u.Watermarking}, {"prompt_embeds", u.PromptEmbeds}, {"chat_template", u.ChatTemplate},
		{"documents", u.Documents}, {"return_prompt_text", u.ReturnPromptText}, {"kv_transfer_params", u.KVTransferParams},
		{"ec_transfer_params", u.ECTransferParams}, {"vllm_xargs", u.VLLMXArgs},
	} {
		if !isUnset(f.raw) {
			return badRequest(f.name, "%s is not supported.", f.name)
		}
	}
	return u.refuseValues()
}

// refuseValues refuses fields of which some values ask for nothing that this server does not do anyway.
func (u *unsupported) refuseValues() error {
	// Without a choice the tools are an offer that an answer need not take, but the model would have seen them.
	choice := unquote(u.ToolChoice)
	if !isUnset(u.Tools) && choice != "none" {
		return badRequest("tools", "tools are not supported.")
	}
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		fine []string
	}{
		{"tool_choice", u.ToolChoice, []string{"none", "auto"}}, {"function_call", u.FunctionCall, []string{"none", "auto"}},
		{"verbosity", u.Verbosity, []string{"medium"}},
	} {
		if !isUnset(f.raw) && !slices.Contains(f.fine, unquote(f.raw)) {
			return badRequest(f.name, "%s other than %s is not supported.", f.name, strings.Join(f.fine, " and "))
		}
	}
	var modalities []string
	if !isUnset(u.Modalities) && (json.Unmarshal(u.Modalities, &modalities) != nil || !slices.Equal(modalities, []string{"text"})) {
		return badRequest("modalities", "modalities other than text are not supported.")
	}
	switch {
	case len(u.WebSearchOptions) > 0 && !isNull(u.WebSearchOptions): // an empty object asks for a search
		return badRequest("web_search_options", "web_search_options are not supported.")
	}
	return nil
}

// isUnset tells whether a field is absent or has a value that asks for nothing.
func isUnset(raw json.RawMessage) bool {
	if len(raw) > 64 {
		return false
	}
	return slices.Contains([]string{"", "null", "false", `""`, "[]", "{}"}, strings.Join(strings.Fields(string(raw)), ""))
}
