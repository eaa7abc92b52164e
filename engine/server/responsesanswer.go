package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/infinite-llm/infinite/engine"
)

// response is the answer of one request, while it is made and when it is done. Its items come out of deltas one after the
// other, for a whole answer as for a stream, so both have the same.
type response struct {
	srv           *Server
	p             *plan
	store         bool
	previous      string
	input         []storedItem
	offered       []responseTool
	before, after []byte // what the object repeats of the request, before its output and after it
	last          []byte // and behind the usage
	done          []storedItem
	open          *item // nil: the next text begins one
	grown         []byte
	tokens        []engine.TokenLogprob // of the open message, or of the next
	tally         tally
	finish        string
	spans         []engine.SpanInfo
	listen        listener // nil: nobody
}

// listener is told of an answer's items while they are made.
type listener interface {
	opened(it *item) error
	grew(it *item, text string, tokens []engine.TokenLogprob) error
	closed(it *item, encoded []byte) error
}

func (r *response) whole(ctx context.Context) ([]byte, error) {
	if err := r.srv.parts(ctx, r.p, r.add); err != nil {
		return nil, err
	}
	return r.end(), nil
}

// add takes a delta that has one thing: thoughts, a text, or a part of a call.
func (r *response) add(d delta) error {
	r.tally.add(d, true)
	if d.finish != "" {
		r.finish, r.spans = d.finish, d.spans
	}
	if d.thinking > 0 { // so were those before them
		r.tokens, d.tokens = nil, nil
	}
	if d.reasoning != "" {
		if err := r.begin(item{kind: reasoningItem, parts: []part{{kind: "reasoning_text"}}}); err != nil {
			return err
		}
	}
	if d.text != "" {
		if err := r.begin(item{kind: messageItem, role: "assistant", parts: []part{{kind: "output_text"}}}); err != nil {
			return err
		}
	}
	if err := r.grow(d.reasoning+d.text, d.tokens); err != nil {
		return err
	}
	for _, c := range d.calls {
		if c.id != "" {
			if err := r.begin(r.called(c.id, c.name)); err != nil {
				return err
			}
		}
		if err := r.grow(c.args, nil); err != nil {
			return err
		}
	}
	if d.finish == "" {
		return nil
	}
	return r.finishItems()
}

// finishItems ends the last item. An answer without any is an empty text.
func (r *response) finishItems() error {
	if r.open == nil && len(r.done) == 0 {
		if err := r.begin(item{kind: messageItem, role: "assistant", parts: []part{{kind: "output_text"}}}); err != nil {
			return err
		}
	}
	if r.open != nil && r.open.kind == messageItem { // tokens of its end have no text
		tokens := r.tokens
		r.tokens = nil
		if err := r.told("", tokens); err != nil {
			return err
		}
	}
	status := "completed"
	if r.finish == "length" {
		status = "incomplete"
	}
	return r.close(status)
}

// begin makes it the open item. A text goes on with the one that is open.
func (r *response) begin(it item) error {
	if r.open != nil && r.open.kind == it.kind && it.kind != callItem {
		return nil
	}
	if err := r.close("completed"); err != nil {
		return err
	}
	if it.kind != messageItem {
		r.tokens = nil
	}
	it.status = "in_progress"
	it.rename()
	r.open = &it
	if r.listen == nil {
		return nil
	}
	return r.listen.opened(r.open)
}

// grow adds to the open item. Log probabilities are those of messages. Tokens without text, and those behind thoughts, wait
// for the next text of one, or for its end; if a call comes instead they were its beginning, and go nowhere as its own do.
func (r *response) grow(text string, tokens []engine.TokenLogprob) error {
	if r.open == nil || r.open.kind == reasoningItem || r.open.kind == messageItem && text == "" {
		r.tokens = append(r.tokens, tokens...)
		tokens = nil
	}
	if r.open == nil {
		return nil
	}
	if r.open.kind == messageItem && text != "" {
		tokens = append(r.tokens, tokens...)
		r.tokens = nil
	} else {
		tokens = nil
	}
	return r.told(text, tokens)
}

// told adds to the open item, and tells who listens.
func (r *response) told(text string, tokens []engine.TokenLogprob) error {
	r.grown = append(r.grown, text...)
	if r.open.kind == messageItem {
		r.open.parts[0].tokens = append(r.open.parts[0].tokens, tokens...)
	}
	if r.listen == nil || text == "" && len(tokens) == 0 {
		return nil
	}
	return r.listen.grew(r.open, text, tokens)
}

// close ends the open item, if there is one.
func (r *response) close(status string) error {
	it := r.open
	if it == nil {
		return nil
	}
	it.status = status
	if it.kind == callItem {
		it.arguments = string(r.grown)
	} else {
		it.parts[0].text = string(r.grown)
	}
	r.open, r.grown = nil, r.grown[:0]
	encoded := it.append(nil, &r.p.answer)
	r.done = append(r.done, storedItem{it.id, encoded})
	if r.listen == nil {
		return nil
	}
	return r.listen.closed(it, encoded)
}

// end is the finished answer, which is stored if the client wants that: before it is sent, since the client may go on from
// it at once.
func (r *response) end() []byte {
	status := "completed"
	if r.finish == "length" {
		status = "incomplete"
	}
	b, output := r.append(nil, status, nil)
	if r.store {
		r.srv.responses.add(&keptResponse{id: r.p.answer.id, previous: r.previous, body: b, input: r.input, output: output})
	}
	return b
}

// append writes the object. output are the finished items, where they lie in it.
func (r *response) append(b []byte, status string, failed *Error) (_ []byte, output []storedItem) {
	b = appendString(append(b, `{"id":`...), r.p.answer.id)
	b = append(b, `,"object":"response","created_at":`...)
	b = appendInt(b, int(r.p.answer.created))
	b = appendString(append(b, `,"status":`...), status)
	b = append(b, `,"background":false,"completed_at":`...)
	if status == "completed" {
		b = appendInt(b, int(time.Now().Unix()))
	} else {
		b = append(b, `null`...)
	}
	b = append(b, `,"error":`...)
	if failed == nil {
		b = append(b, `null`...)
	} else {
		b = appendString(append(b, `{"code":`...), failed.responseCode())
		b = append(appendString(append(b, `,"message":`...), failed.Message), '}')
	}
	b = append(b, `,"incomplete_details":`...)
	if status == "incomplete" {
		b = append(b, `{"reason":"max_output_tokens"}`...)
	} else {
		b = append(b, `null`...)
	}
	b = append(append(b, r.before...), `,"output":[`...)
	at := len(b)
	for i, it := range r.done {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, it.json...)
	}
	end := len(b)
	b = append(append(b, ']'), r.after...)
	b = append(b, `,"usage":`...)
	if status == "in_progress" {
		b = append(b, `null`...)
	} else {
		b = r.appendUsage(b)
	}
	b = append(appendPlacement(append(b, r.last...), r.spans), '}')
	for _, it := range r.done {
		if at < end {
			output = append(output, storedItem{it.id, b[at : at+len(it.json) : at+len(it.json)]})
		}
		at += len(it.json) + 1
	}
	return b, output
}

// appendUsage: what is written to the cache costs nothing here, and is not counted.
func (r *response) appendUsage(b []byte) []byte {
	b = appendInt(append(b, `{"input_tokens":`...), r.p.promptTokens)
	b = appendInt(append(b, `,"input_tokens_details":{"cached_tokens":`...), r.tally.cached)
	b = appendInt(append(b, `,"cache_write_tokens":0},"output_tokens":`...), r.tally.completion)
	b = appendInt(append(b, `,"output_tokens_details":{"reasoning_tokens":`...), r.tally.reasoning)
	b = appendInt(append(b, `},"total_tokens":`...), r.p.promptTokens+r.tally.completion)
	return append(b, '}')
}

// responseCode is OpenAI's word for a failure.
func (e *Error) responseCode() string {
	switch {
	case e.Status == http.StatusTooManyRequests:
		return "rate_limit_exceeded"
	case e.Status < http.StatusInternalServerError:
		return "invalid_prompt"
	}
	return "server_error"
}

// echo writes what the object repeats of the request, with what holds where it says nothing.
func (r *response) echo(req *responseRequest, chat *chatRequest) error {
	d := r.srv.cfg.Defaults
	b := appendOptional([]byte(`,"instructions":`), req.Instructions)
	b = appendOptionalInt(append(b, `,"max_output_tokens":`...), req.MaxOutputTokens)
	b = append(b, `,"max_tool_calls":null,"model":`...)
	r.before = appendString(b, r.p.answer.model)

	b = fmt.Appendf(nil, `,"parallel_tool_calls":%t,"previous_response_id":`, orDefault(req.ParallelToolCalls, true))
	b = appendOptional(b, req.Previous)
	b = appendOptional(append(b, `,"prompt_cache_key":`...), req.PromptCacheKey)
	asked := orDefault(req.Reasoning, askedReasoning{})
	if asked.Summary == nil {
		asked.Summary = asked.GenerateSummary
	}
	b = appendOptional(append(b, `,"reasoning":{"effort":`...), asked.Effort)
	b = appendOptional(append(b, `,"summary":`...), asked.Summary)
	b = appendOptional(append(b, `},"safety_identifier":`...), req.SafetyIdentifier)
	b = fmt.Appendf(b, `,"service_tier":"default","store":%t,"temperature":`, r.store)
	b, err := appendJSON(b, orDefault(req.Temperature, number(d.Temperature)))
	if err != nil {
		return err
	}
	if b, err = req.Text.append(append(b, `,"text":`...)); err != nil {
		return err
	}
	b = append(append(b, `,"tool_choice":`...), req.echoedChoice...)
	b = append(append(b, `,"tools":`...), req.echoedTools...)
	b = appendInt(append(b, `,"top_logprobs":`...), int(orDefault(req.TopLogprobs, 0)))
	if b, err = appendJSON(append(b, `,"top_p":`...), orDefault(req.TopP, number(d.TopP))); err != nil {
		return err
	}
	r.after = appendString(append(b, `,"truncation":`...), orDefault(req.Truncation, "disabled"))

	b = appendOptional([]byte(`,"user":`), req.User)
	metadata := req.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	r.last, err = appendJSON(append(b, `,"metadata":`...), metadata)
	return err
}

// append writes what was asked of the text.
func (t *responseText) append(b []byte) (_ []byte, err error) {
	asked := orDefault(t, responseText{})
	format := orDefault(asked.Format, responseFormat{Type: "text"})
	b = appendString(append(b, `{"format":{"type":`...), format.Type)
	if format.Type == "json_schema" {
		b = appendOptional(append(b, `,"description":`...), format.Description)
		b = appendString(append(b, `,"name":`...), format.Name)
		if b, err = appendCompact(append(b, `,"schema":`...), format.Schema); err != nil {
			return nil, err
		}
		b = fmt.Appendf(b, `,"strict":%t`, orDefault(format.Strict, true)) // as every answer is held to its form
	}
	b = appendString(append(b, `},"verbosity":`...), orDefault(asked.Verbosity, "medium"))
	return append(b, '}'), nil
}

func appendOptionalInt(b []byte, n *integer) []byte {
	if n == nil {
		return append(b, `null`...)
	}
	return appendInt(b, int(*n))
}

func appendJSON(b []byte, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("cannot repeat a part of the request: %w", err)
	}
	return append(b, text...), nil
}
