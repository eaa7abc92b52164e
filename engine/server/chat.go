package server

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// chat answers POST /v1/chat/completions.
func (s *Server) chat(ctx *fasthttp.RequestCtx) {
	var req chatRequest
	err := decode(ctx.PostBody(), &req)
	if err != nil {
		s.refuse(ctx, err)
		return
	}
	s.answerPlan(ctx, func(work context.Context) (*plan, error) {
		return s.planChat(work, &req, ctx.Request.Header.Peek("X-Request-Id"))
	})
}

func (s *Server) planChat(ctx context.Context, req *chatRequest, id []byte) (*plan, error) {
	if req.MaxCompletionTokens != nil { // the newer name wins
		req.MaxTokens, req.maxTokensField = req.MaxCompletionTokens, "max_completion_tokens"
	}
	asked := req.takeTools()
	n, err := s.checkCommon(ctx, &req.common, false)
	if err != nil {
		return nil, err
	}
	top := int(orDefault(req.TopLogprobs, 0))
	switch {
	case top < 0 || top > maxTopLogprobs:
		return nil, badRequest("top_logprobs", "top_logprobs must be between 0 and %d, got %d.", maxTopLogprobs, top)
	case top > 0 && !req.Logprobs:
		return nil, badRequest("top_logprobs", "when using top_logprobs, logprobs must be set to true.")
	case req.Echo:
		return nil, badRequest("echo", "echo is not supported in a chat.")
	}
	tools, err := s.planTools(asked, orDefault(req.ParallelToolCalls, true))
	if err == nil && tools.schema != nil {
		err = s.guideTools(ctx, &req.common, &tools)
	}
	if err != nil {
		return nil, err
	}
	text, err := s.render(&req.conversation, tools.list)
	if err == nil {
		err = s.checkLength(&req.common, "messages", text)
	}
	if err != nil {
		return nil, err
	}
	tokens := s.tok.Encode(text, orDefault(req.AddSpecialTokens, false)) // the template brings them along
	if len(tokens) == 0 {
		return nil, badRequest("messages", "the messages make an empty prompt.")
	}
	if tokens, err = s.truncate(&req.common, tokens, 0, 0, max(1, req.most)); err != nil { // what fits is answered
		return nil, err
	}
	if req.object == "" {
		req.prefix, req.object = "chatcmpl-", "chat.completion"
	}
	p := s.newPlan(&req.common, req.prefix, req.object, id)
	p.answer.chat, p.logprobs = true, req.Logprobs
	base := engine.Request{Prompt: tokens, Logprobs: -1, PromptLogprobs: p.promptLogprobs}
	if req.Logprobs {
		base.Logprobs = top
	}
	thoughts := s.planThoughts(req, text)
	if err := s.limitThoughts(req, thoughts); err != nil {
		return nil, err
	}
	most := 1 << 30
	if req.most > 0 {
		most = min(req.most, most)
	}
	if err := s.addJobs(p, &req.common, base, n, most); err != nil {
		return nil, err
	}
	for _, j := range p.jobs {
		j.thoughts, j.calls = thoughts.reader(), tools.reader()
	}
	return p, nil
}

// render makes one text of messages, and of tools if there are any, with the model's chat template.
func (s *Server) render(c *conversation, tools json.RawMessage) (string, error) {
	if len(c.Messages) == 0 {
		return "", badRequest("messages", "messages must have at least one message.")
	}
	if !s.tok.HasChatTemplate() {
		return "", badRequest("", "this model has no chat template; use /v1/completions.")
	}
	messages, err := c.list()
	if err != nil {
		return "", err
	}
	if !s.tools.calls && slices.ContainsFunc(messages, func(m tokenizer.Message) bool { return m.ToolCalls != nil }) {
		return "", badRequest("messages", "there are messages with tool_calls, which this model's chat template does not show.")
	}
	if c.ContinueFinal && orDefault(c.AddGenerationPrompt, false) {
		return "", badRequest("continue_final_message", "continue_final_message and add_generation_prompt cannot both be true.")
	}
	vars, err := c.templateVars()
	if err != nil {
		return "", err
	}
	if tools != nil {
		vars = maps.Clone(vars)
		if vars == nil {
			vars = map[string]any{}
		}
		vars["tools"] = tools
	}
	mark := ""
	if c.ContinueFinal {
		// The last message ends with a mark, where the text is cut: its words may be in what the template puts behind it.
		last := &messages[len(messages)-1]
		if mark = newID(); strings.TrimSpace(last.Content) == "" {
			return "", errNothingToContinue
		}
		last.Content += mark
	}
	text, err := s.tok.ApplyChat(messages, !c.ContinueFinal && orDefault(c.AddGenerationPrompt, true), vars)
	if err != nil {
		return "", badRequest("messages", "cannot apply the chat template: %v", err)
	}
	if at := strings.LastIndex(text, mark); c.ContinueFinal && at >= 0 {
		return text[:at], nil
	} else if c.ContinueFinal {
		return "", errNothingToContinue
	}
	return text, nil
}

var errNothingToContinue = badRequest("continue_final_message", "continue_final_message needs a last message that the chat template shows.")

// list checks the messages and makes the template's of them. An assistant's may go without content, which is then empty, as
// in vLLM: agents send back what they got, such as a call of tools, a refusal, or an answer that ended before its first word.
func (c *conversation) list() ([]tokenizer.Message, error) {
	messages := make([]tokenizer.Message, len(c.Messages))
	for i, m := range c.Messages {
		called := !isUnset(m.ToolCalls)
		switch {
		case m.Role == "":
			return nil, badRequest("messages", "message %d has no role.", i)
		case !isUnset(m.FunctionCall):
			return nil, badRequest("messages", "message %d has a function_call, which is not supported; tool_calls are.", i)
		case called && m.Role != "assistant":
			return nil, badRequest("messages", "message %d has tool_calls, but its role is not assistant.", i)
		case !isUnset(m.Audio):
			return nil, badRequest("messages", "message %d has audio, which is not supported.", i)
		case m.Content == nil && m.Role != "assistant":
			return nil, badRequest("messages", "message %d has no content.", i)
		}
		messages[i] = tokenizer.Message{Role: m.Role, Content: string(orDefault(m.Content, "")), Name: m.Name, ToolCallID: m.ToolCallID}
		if called {
			if err := checkCalls(i, m.ToolCalls); err != nil {
				return nil, err
			}
			messages[i].ToolCalls = m.ToolCalls
		}
		if m.Role == "assistant" {
			messages[i].Reasoning = orDefault(m.Reasoning, orDefault(m.ReasoningContent, ""))
		}
	}
	return messages, nil
}

// templateVars are the variables that a client has for the template. As in vLLM reasoning_effort is one of them,
// and says whether to think at all where the client does not.
func (c *conversation) templateVars() (map[string]any, error) {
	efforts := []string{"none", "minimal", "low", "medium", "high", "xhigh", "max"}
	switch {
	case c.ReasoningEffort == "":
		return c.TemplateVars, nil
	case !slices.Contains(efforts, c.ReasoningEffort):
		return nil, badRequest("reasoning_effort", "reasoning_effort must be one of %s, got %q.", strings.Join(efforts, ", "), c.ReasoningEffort)
	}
	vars := map[string]any{"enable_thinking": c.ReasoningEffort != "none"}
	maps.Copy(vars, c.TemplateVars)
	vars["reasoning_effort"] = c.ReasoningEffort
	return vars, nil
}
