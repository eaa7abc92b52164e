package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
)

// gotMessageEvent has every field of an event of a streamed message.
type gotMessageEvent struct {
	Type    string      `json:"type"`
	Message *gotMessage `json:"message"`
	Index   *int        `json:"index"`
	Block   *gotBlock   `json:"content_block"`
	Delta   *struct {
		Type         string  `json:"type"`
		Text         *string `json:"text"`
		Thinking     *string `json:"thinking"`
		Signature    *string `json:"signature"`
		JSON         *string `json:"partial_json"`
		StopReason   *string `json:"stop_reason"`
		StopSequence *string `json:"stop_sequence"`
	} `json:"delta"`
	Usage     *gotMessageUsage `json:"usage"`
	Error     *gotMessageError `json:"error"`
	RequestID string           `json:"request_id"`
}

type gotMessageError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

func readMessageEvents(t testing.TB, all string) (events []gotMessageEvent) {
	t.Helper()
	for _, one := range namedEvents(t, all) {
		var e gotMessageEvent
		if strict(t, []byte(one.data), &e); one.name != e.Type {
			t.Fatalf("%q", one)
		}
		events = append(events, e)
	}
	return events
}

// messageEvents asks for a stream and reads it to its end.
func (a *api) messageEvents(body obj) []gotMessageEvent {
	a.t.Helper()
	all, err := io.ReadAll(a.open(messagesPath, body).body)
	if err != nil {
		a.t.Fatal(err)
	}
	return readMessageEvents(a.t, string(all))
}

// followMessage holds a stream to its protocol, and puts the message together as clients do. broke is the error that it ended with.
func followMessage(t rapid.TB, events []gotMessageEvent) (m gotMessage, broke *gotMessageError) {
	t.Helper()
	next := func(kind string) gotMessageEvent {
		t.Helper()
		if len(events) == 0 || events[0].Type != kind {
			t.Fatalf("%+v; want %s", events, kind)
		}
		e := events[0]
		events = events[1:]
		return e
	}
	start := next("message_start").Message
	if m = *start; m.Type != "message" || m.Role != "assistant" || m.Content == nil || len(m.Content) != 0 || m.StopReason != nil || m.StopSequence != nil || m.Usage.Output != 0 || m.Usage.Read != 0 {
		t.Fatalf("%+v", m)
	}
	next("ping")
	for events[0].Type == "content_block_start" {
		e := next("content_block_start")
		b := *e.Block
		here := func(e gotMessageEvent) {
			t.Helper()
			if e.Index == nil || *e.Index != len(m.Content) {
				t.Fatalf("%+v is not about block %d", e, len(m.Content))
			}
		}
		here(e)
		if orDefault(b.Text, "") != "" || orDefault(b.Thinking, "") != "" || orDefault(b.Signature, "") != "" || b.Type == "tool_use" && string(b.Input) != "{}" {
			t.Fatalf("a block begins with %+v", b)
		}
		input := ""
		for events[0].Type == "content_block_delta" {
			e := next("content_block_delta")
			here(e)
			d := e.Delta
			switch {
			case b.Type == "text" && d.Type == "text_delta" && *d.Text != "":
				*b.Text += *d.Text
			case b.Type == "thinking" && d.Type == "thinking_delta" && *d.Thinking != "" && *b.Signature == "":
				*b.Thinking += *d.Thinking
			case b.Type == "thinking" && d.Type == "signature_delta" && *d.Signature != "" && *b.Signature == "":
				*b.Signature = *d.Signature
			case b.Type == "tool_use" && d.Type == "input_json_delta" && *d.JSON != "":
				input += *d.JSON
			default:
				t.Fatalf("%+v in a block of type %s", d, b.Type)
			}
		}
		if events[0].Type == "error" {
			break
		}
		here(next("content_block_stop"))
		if b.Type == "tool_use" {
			b.Input = wantInput(t, input)
		}
		m.Content = append(m.Content, b)
	}
	if events[0].Type == "error" {
		e := next("error")
		if len(events) != 0 || !strings.HasPrefix(e.RequestID, "req_") {
			t.Fatalf("%+v and %+v behind it", e, events)
		}
		return m, e.Error
	}
	e := next("message_delta")
	m.StopReason, m.StopSequence, m.Usage = e.Delta.StopReason, e.Delta.StopSequence, *e.Usage
	if next("message_stop"); len(events) != 0 || m.Usage.Input+m.Usage.Read != start.Usage.Input {
		t.Fatalf("%+v, %+v", events, m.Usage)
	}
	return m, nil
}

// wantInput is what a whole answer has for arguments.
func wantInput(t rapid.TB, arguments string) json.RawMessage {
	t.Helper()
	var fields map[string]json.RawMessage
	if arguments == "" {
		return json.RawMessage("{}")
	}
	if json.Unmarshal([]byte(arguments), &fields) == nil {
		var b bytes.Buffer
		if err := json.Compact(&b, []byte(arguments)); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	return json.RawMessage(`{"INVALID_JSON":` + string(quoted(arguments)) + `}`)
}

// alikeMessage is a message without what two of the same differ in.
func alikeMessage(m gotMessage) gotMessage {
	m.ID, m.Content = "", slices.Clone(m.Content)
	for i := range m.Content {
		m.Content[i].ID = ""
	}
	return m
}

// bothMessages asks for a whole answer and for a stream, which must come to the same.
func bothMessages(t rapid.TB, a *api, body obj) gotMessage {
	t.Helper()
	m := a.message(body)
	got, broke := followMessage(t, a.messageEvents(body))
	delete(body, "stream")
	if broke != nil {
		t.Fatalf("%+v", broke)
	}
	if diff := cmp.Diff(alikeMessage(m), alikeMessage(got)); diff != "" {
		t.Fatal(diff)
	}
	return m
}

// Of any answer a stream comes to the whole, with every parser.
func TestAnyMessage(t *testing.T) {
	fragments := []string{
		"<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "f", "é", " ", "\n", "[", "]", "{", "}", "😀",
		`{"name": "f", "arguments": {"a": "x"}}`, `{"name": "g", "parameters": {}}`, `{"name": "f", "arguments": {"a": `, `"`, `\`, "<", "stop",
	}
	b := scripted()
	forms := []string{"hermes", "llama3_json", "mistral", "none"}
	apis := map[string]*api{}
	for _, form := range forms {
		apis[form] = serveWith(t, templated(t, "qwen3"), b, wide, func(c *Config) { c.ToolCallParser = form })
	}
	rapid.Check(t, func(rt *rapid.T) {
		events := says(t, strings.Join(rapid.SliceOfN(rapid.SampledFrom(fragments), 0, 12).Draw(rt, "fragments"), ""))
		if cut := rapid.IntRange(1, 2*len(events)).Draw(rt, "cut"); cut < len(events) {
			events = slices.Clone(events[:cut])
			events[cut-1].Finish = "length"
		}
		events[0].Cached = rapid.IntRange(0, 10).Draw(rt, "cached")
		b.setScript(scripted(events...).script)
		body := using(nil)
		if rapid.Bool().Draw(rt, "stops") {
			body["stop_sequences"] = []string{"stop"}
		}
		if rapid.Bool().Draw(rt, "hides") {
			body["thinking"] = obj{"type": "adaptive", "display": "omitted"}
		}
		m := bothMessages(rt, apis[rapid.SampledFrom(forms).Draw(rt, "form")], body)
		if len(m.Content) == 0 || m.Usage.Output > len(events) || m.Usage.Read != events[0].Cached {
			rt.Fatalf("%+v", m)
		}
		for i, block := range m.Content {
			if block.Type == "text" && *block.Text == "" && len(m.Content) > 1 || i > 0 && block.Type != "tool_use" && block.Type == m.Content[i-1].Type {
				rt.Fatalf("%q", m.words())
			}
		}
	})
}

// An answer that breaks off says so.
func TestMessageFails(t *testing.T) {
	b := scripted()
	a := serve(t, b)
	for _, f := range failures {
		kind := map[int]string{429: "rate_limit_error", 500: "api_error", 503: "overloaded_error"}[f.status]
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return nil, f.err })
		for _, stream := range []bool{false, true} {
			wantMessageError(t, a.post(messagesPath, saying("a", obj{"stream": stream}).String()), f.status, kind, f.err.Error())
		}
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) {
			return ended(engine.Event{Token: testTokenizer(t).Encode("a", false)[0], HasToken: true}, engine.Event{Finish: "error", Err: f.err}), nil
		})
		wantMessageError(t, a.post(messagesPath, saying("a", nil).String()), f.status, kind, f.err.Error())
		_, broke := followMessage(t, a.messageEvents(saying("a", nil)))
		if broke == nil || *broke != (gotMessageError{kind, f.err.Error()}) {
			t.Errorf("%+v, want %s", broke, kind)
		}
	}
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) {
		return panicStream{newFakeStream()}, nil
	})
	if _, broke := followMessage(t, a.messageEvents(saying("a", nil))); broke == nil || broke.Type != "api_error" {
		t.Errorf("%+v", broke)
	}
	a.idle()
	if got := a.counters()[`infinite_request_failures_total{code="429",path="/v1/messages"}`]; got != "8" {
		t.Errorf("%s failures of one kind counted", got)
	}
}

// A client that leaves frees its request.
func TestGoneFromMessage(t *testing.T) {
	for _, stream := range []bool{false, true} {
		s := newFakeStream()
		b := scripted()
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
		a := serve(t, b)
		if stream {
			open := a.open(messagesPath, saying("a", nil))
			s.ch <- engine.Event{Token: testTokenizer(t).Encode("a", false)[0], HasToken: true}
			for line := ""; !strings.Contains(line, "text_delta"); {
				var err error
				if line, err = open.body.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			open.close()
		} else {
			a.hangUp(messagesPath, saying("a", nil), s.waits)
		}
		within(t, "closing of the stream", s.closed)
		a.idle()
	}
}

// A stream to a client of HTTP/1.0 ends with the connection.
func TestMessageHTTP10(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello.")...))
	all, err := io.ReadAll(a.send10(messagesPath, saying("a", obj{"stream": true}).String()))
	if err != nil {
		t.Fatal(err)
	}
	head, body, ok := strings.Cut(string(all), "\r\n\r\n")
	if !ok || !strings.Contains(head, "Request-Id: req_") {
		t.Fatalf("%q", all)
	}
	if m, _ := followMessage(t, readMessageEvents(t, body)); m.words()[0] != "text;Hello." {
		t.Errorf("%+v", m)
	}
}

// Draining waits for a message, and cutting tells its client.
func TestShutdownCutsMessage(t *testing.T) {
	s := newFakeStream()
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
	a := serve(t, b)
	open := a.open(messagesPath, saying("a", nil))
	within(t, "it runs", s.waits)
	if err := <-a.shutdown(1); err == nil {
		t.Error("a shutdown that cut a request says nothing of it")
	}
	all, err := io.ReadAll(open.body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if _, broke := followMessage(t, readMessageEvents(t, string(all))); broke == nil || broke.Type != "overloaded_error" || !strings.Contains(broke.Message, "stopping") {
		t.Errorf("%s", all)
	}
}
