package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/grammar"
)

// gotEvent has every field of an event of a response.
type gotEvent struct {
	Type     string         `json:"type"`
	Number   *int           `json:"sequence_number"`
	Response *gotResponse   `json:"response"`
	Output   *int           `json:"output_index"`
	Content  *int           `json:"content_index"`
	ItemID   string         `json:"item_id"`
	Item     *gotItem       `json:"item"`
	Part     *gotPart       `json:"part"`
	Delta    *string        `json:"delta"`
	Text     *string        `json:"text"`
	Args     *string        `json:"arguments"`
	Logprobs []tokenLogprob `json:"logprobs"`
	Code     *string        `json:"code"`
	Message  *string        `json:"message"`
	Param    *string        `json:"param"`
}

// events asks for a stream and reads it to its end.
func (a *api) events(body obj) []gotEvent {
	a.t.Helper()
	s := a.open(responsesPath, body)
	all, err := io.ReadAll(s.body)
	if err != nil {
		a.t.Fatal(err)
	}
	return readEvents(a.t, string(all))
}

func readEvents(t testing.TB, all string) (events []gotEvent) {
	t.Helper()
	for i, one := range namedEvents(t, all) {
		var e gotEvent
		strict(t, []byte(one.data), &e)
		if one.name != e.Type || e.Number == nil || *e.Number != i {
			t.Fatalf("event %d: %q", i, one)
		}
		events = append(events, e)
	}
	return events
}

type namedEvent struct{ name, data string }

// namedEvents are those of a stream in which each has a name and a line of data, and nothing else.
func namedEvents(t testing.TB, all string) (events []namedEvent) {
	t.Helper()
	if !strings.HasSuffix(all, "\n\n") {
		t.Fatalf("torn: %q", all)
	}
	for _, one := range strings.Split(strings.TrimSuffix(all, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(one, "\n")
		name, isName := strings.CutPrefix(name, "event: ")
		data, isData := strings.CutPrefix(data, "data: ")
		if !ok || !isName || !isData || strings.Contains(data, "\n") {
			t.Fatalf("no event: %q", one)
		}
		events = append(events, namedEvent{name, data})
	}
	return events
}

// follow holds a stream to its protocol, and returns its last response, of which the deltas must be the output.
func follow(t rapid.TB, events []gotEvent) *gotResponse {
	t.Helper()
	n := len(events)
	if n < 3 || events[0].Type != "response.created" || events[1].Type != "response.in_progress" {
		t.Fatalf("%d events", n)
	}
	first, last := events[0].Response, events[n-1].Response
	if first.Status != "in_progress" || len(first.Output) != 0 || first.Usage != nil || first.Completed != nil || last.ID != first.ID || events[n-1].Type != "response."+last.Status {
		t.Fatalf("%+v\n%+v", first, events[n-1])
	}
	var done []gotItem
	events = events[2 : n-1]
	next := func(kind string) gotEvent {
		t.Helper()
		if len(events) == 0 || events[0].Type != kind {
			t.Fatalf("%+v; want %s", events, kind)
		}
		e := events[0]
		events = events[1:]
		return e
	}
	for len(events) > 0 {
		added := next("response.output_item.added")
		it := added.Item
		if *added.Output != len(done) || it.Type != "reasoning" && it.Status != "in_progress" || len(it.Content) != 0 || orDefault(it.Arguments, "") != "" {
			t.Fatalf("%+v %+v", added, it)
		}
		isCall := it.Type == "function_call"
		here := func(e gotEvent) {
			t.Helper()
			if e.ItemID != it.ID || *e.Output != len(done) || isCall != (e.Content == nil) || !isCall && *e.Content != 0 {
				t.Fatalf("%+v is not about %+v", e, it)
			}
		}
		kind := map[string]string{"message": "response.output_text", "function_call": "response.function_call_arguments", "reasoning": "response.reasoning_text"}[it.Type]
		if !isCall {
			e := next("response.content_part.added")
			if here(e); *e.Part.Text != "" {
				t.Fatalf("%+v", e)
			}
		}
		var text string
		var logprobs []tokenLogprob
		for events[0].Type == kind+".delta" {
			e := next(kind + ".delta")
			here(e)
			if *e.Delta == "" && len(e.Logprobs) == 0 {
				t.Fatalf("an empty delta: %+v", e)
			}
			text += *e.Delta
			logprobs = append(logprobs, e.Logprobs...)
		}
		e := next(kind + ".done")
		if here(e); isCall && *e.Args != text || !isCall && *e.Text != text || !cmp.Equal(slices.Concat(e.Logprobs), logprobs) {
			t.Fatalf("%+v, want %q %v", e, text, logprobs)
		}
		if !isCall {
			e = next("response.content_part.done")
			if here(e); *e.Part.Text != text {
				t.Fatalf("%+v, want %q", e, text)
			}
		}
		e = next("response.output_item.done")
		if e.Item.ID != it.ID || *e.Output != len(done) || isCall && *e.Item.Arguments != text || !isCall && *e.Item.Content[0].Text != text || e.Item.CallID != it.CallID || e.Item.Name != it.Name {
			t.Fatalf("%+v, want %q", e, text)
		}
		done = append(done, *e.Item)
	}
	if last.Status != "failed" {
		if diff := cmp.Diff(last.Output, done); diff != "" {
			t.Fatal(diff)
		}
	}
	return last
}

// alike is a response without what two of the same differ in.
func alike(r *gotResponse) gotResponse {
	c := *r
	c.ID, c.Created, c.Completed, c.Output = "", 0, nil, slices.Clone(r.Output)
	for i := range c.Output {
		c.Output[i].ID, c.Output[i].CallID = "", ""
	}
	return c
}

// bothResponses asks for a whole answer and for a stream, which must come to the same.
func bothResponses(t rapid.TB, a *api, body obj) *gotResponse {
	t.Helper()
	r := a.response(body)
	events := a.events(body)
	delete(body, "stream")
	got := follow(t, events)
	if diff := cmp.Diff(alike(&r), alike(got)); diff != "" {
		t.Fatal(diff)
	}
	return got
}

func TestResponseStream(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello 😀.\n\"end\"")...))
	r := bothResponses(t, a, obj{"input": "Hi", "instructions": "a\nb", "stream_options": nil})
	if diff := cmp.Diff([]string{"message;completed;assistant;;;;Hello 😀.\n\"end\""}, r.words()); diff != "" {
		t.Error(diff)
	}
	events := a.events(obj{"input": "Hi", "stream_options": obj{"include_obfuscation": true}})
	if len(events) < 9 {
		t.Errorf("%d events", len(events))
	}
	// One that is cut, and one without a text.
	for _, x := range []struct {
		events []engine.Event
		words  string
		status string
	}{
		{tokens(testTokenizer(t).Encode("Hello", false)...), "message;incomplete;assistant;;;;Hello", "incomplete"},
		{says(t, ""), "message;completed;assistant;;;;", "completed"},
	} {
		r := bothResponses(t, serve(t, scripted(x.events...)), obj{"input": "Hi"})
		if !slices.Equal(r.words(), []string{x.words}) || r.Status != x.status {
			t.Errorf("%q %s, want %q", r.words(), r.Status, x.words)
		}
	}
}

func TestResponseLogprobs(t *testing.T) {
	for _, text := range []string{"Hello 😀.", ""} {
		events := withLogprobs(says(t, text), nil)
		a := serve(t, scripted(events...))
		r := bothResponses(t, a, obj{"input": "Hi", "include": []string{"message.output_text.logprobs"}, "top_logprobs": 2})
		got := r.Output[0].Content[0].Logprobs
		if len(got) != len(events) || r.Top != 2 {
			t.Errorf("%q: %d log probabilities of %d tokens", text, len(got), len(events))
		}
		for i, l := range got {
			if want := events[i].Logprob; l.Logprob > 0 || len(l.Top) != len(want.Top) || l.Token == "" && text == "" {
				t.Errorf("%+v, want %+v", l, want)
			}
		}
	}
}

// What a client wrote over several lines does not break the events.
func TestResponseLines(t *testing.T) {
	a := serveWith(t, templated(t, "qwen25"), scripted(says(t, "[]")...), wide)
	body := "{\"input\":\n\"a\",\r\n\"stream\":true, \"tools\": [\n{\"type\": \"function\",\n \"name\": \"f\",\n\"parameters\":\n{\n\"type\":\n\"object\"}}],\n\"tool_choice\":\n{\n\"type\": \"allowed_tools\",\n\"mode\":\"auto\",\"tools\":[\n{\"type\":\"function\",\"name\":\"f\"}]},\n" +
		"\"text\":{\n\"format\":{\n\"type\":\"json_schema\",\"name\":\"n\",\n\"schema\":{\n\"type\":\n\"array\"}}}}"
	r := a.post(responsesPath, body)
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	follow(t, readEvents(t, string(r.body)))
}

// Of any answer a stream comes to the whole, with every parser.
func TestAnyResponse(t *testing.T) {
	fragments := []string{
		"<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "f", "é", " ", "\n", "[", "]", "{", "}", "😀",
		`{"name": "f", "arguments": {"a": "x"}}`, `{"name": "g", "parameters": {}}`, `"`, `\`, "<",
	}
	b := scripted()
	forms := []string{"hermes", "llama3_json", "mistral", "none"}
	apis := map[string]*api{}
	for _, form := range forms {
		apis[form] = serveWith(t, templated(t, "qwen3"), b, wide, func(c *Config) { c.ToolCallParser = form })
	}
	rapid.Check(t, func(rt *rapid.T) {
		events := says(t, strings.Join(rapid.SliceOfN(rapid.SampledFrom(fragments), 0, 12).Draw(rt, "fragments"), ""))
		if rapid.Bool().Draw(rt, "logprobs") {
			events = withLogprobs(events, nil)
		}
		if cut := rapid.IntRange(1, 2*len(events)).Draw(rt, "cut"); cut < len(events) {
			events = slices.Clone(events[:cut])
			events[cut-1].Finish = "length"
		}
		b.setScript(scripted(events...).script)
		r := bothResponses(rt, apis[rapid.SampledFrom(forms).Draw(rt, "form")], asking(nil))
		if len(r.Output) == 0 || r.Usage.Output != len(events) {
			rt.Fatalf("%+v", r)
		}
	})
}

// An answer that breaks off says so, and is not stored.
func TestResponseFails(t *testing.T) {
	b := scripted()
	a := serve(t, b)
	for _, f := range failures {
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return nil, f.err })
		wantError(t, a.post(responsesPath, `{"input":"a","stream":true}`), f.status, f.kind, "", f.err.Error())
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) {
			return ended(engine.Event{Token: testTokenizer(t).Encode("a", false)[0], HasToken: true}, engine.Event{Finish: "error", Err: f.err}), nil
		})
		wantError(t, a.post(responsesPath, `{"input":"a"}`), f.status, f.kind, "", f.err.Error())
		events := a.events(obj{"input": "a"})
		n := len(events)
		told, last := events[n-2], events[n-1]
		code := map[int]string{429: "rate_limit_exceeded"}[f.status]
		if code == "" {
			code = "server_error"
		}
		if told.Type != "error" || *told.Code != code || *told.Message != f.err.Error() || told.Param != nil || last.Type != "response.failed" || last.Response.Status != "failed" || *last.Response.Error != (gotError{code, f.err.Error()}) {
			t.Errorf("%+v %+v", told, last)
		}
		if r := a.do("GET", responsesPath+"/"+last.Response.ID, ""); r.status != 404 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) {
		return panicStream{newFakeStream()}, nil
	})
	if events := a.events(obj{"input": "a"}); events[len(events)-1].Type != "response.failed" {
		t.Errorf("%+v", events)
	}
	a.idle()
	if got := a.counters()[`infinite_request_failures_total{code="429",path="/v1/responses"}`]; got != "6" {
		t.Errorf("%s failures of one kind counted", got)
	}
}

// A client that leaves frees its request, and nothing of it is stored.
func TestGoneFromResponse(t *testing.T) {
	for _, stream := range []bool{false, true} {
		s := newFakeStream()
		b := scripted()
		b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
		a := serve(t, b)
		if stream {
			open := a.open(responsesPath, obj{"input": "a"})
			s.ch <- engine.Event{Token: testTokenizer(t).Encode("a", false)[0], HasToken: true}
			for line := ""; !strings.Contains(line, "response.output_text.delta"); {
				var err error
				if line, err = open.body.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			open.close()
		} else {
			a.hangUp(responsesPath, obj{"input": "a"}, s.waits)
		}
		within(t, "closing of the stream", s.closed)
		a.idle()
		if n := len(a.srv.responses.byID); n != 0 {
			t.Errorf("%d responses are stored", n)
		}
	}
}

// A stream to a client of HTTP/1.0 ends with the connection.
func TestResponseHTTP10(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello.")...))
	all, err := io.ReadAll(a.send10(responsesPath, obj{"input": "a", "stream": true}.String()))
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := strings.Cut(string(all), "\r\n\r\n")
	if !ok {
		t.Fatalf("%q", all)
	}
	if r := follow(t, readEvents(t, body)); r.words()[0] != "message;completed;assistant;;;;Hello." {
		t.Errorf("%+v", r)
	}
}

// Draining waits for a response, and cutting tells its client.
func TestShutdownCutsResponse(t *testing.T) {
	s := newFakeStream()
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return s, nil })
	a := serve(t, b)
	open := a.open(responsesPath, obj{"input": "a"})
	within(t, "it runs", s.waits)
	if err := <-a.shutdown(1); err == nil {
		t.Error("a shutdown that cut a request says nothing of it")
	}
	all, err := io.ReadAll(open.body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if events := readEvents(t, string(all)); events[len(events)-1].Type != "response.failed" || !strings.Contains(*events[2].Message, "stopping") {
		t.Errorf("%s", all)
	}
}

func TestResponseForm(t *testing.T) {
	b := scripted(says(t, `{"a":1}`)...)
	a := serve(t, b)
	schema := obj{"type": "object", "properties": obj{"a": obj{"type": "integer"}}, "required": []string{"a"}, "additionalProperties": false}
	r := bothResponses(t, a, obj{"input": "a", "text": obj{"format": obj{"type": "json_schema", "name": "n", "strict": true, "schema": schema}}})
	if g := b.last(t).Guide; g.Kind != grammar.JSONSchema || !json.Valid([]byte(g.Source)) || r.words()[0] != `message;completed;assistant;;;;{"a":1}` {
		t.Errorf("%+v %q", g, r.words())
	}
}

func TestResponseOrigins(t *testing.T) {
	r := serve(t, scripted()).do("OPTIONS", responsesPath+"/resp_1", "", "Access-Control-Request-Method", "DELETE", "Origin", "http://x")
	if r.status != http.StatusOK || !strings.Contains(r.header.Get("Access-Control-Allow-Methods"), "DELETE") {
		t.Errorf("%d %v", r.status, r.header)
	}
}
