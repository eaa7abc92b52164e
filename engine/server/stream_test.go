package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine"
)

// sseReader reads an answer's events one at a time.
type sseReader struct {
	t    testing.TB
	res  *http.Response
	body *bufio.Reader
	stop context.CancelFunc
}

// open begins a streamed answer. Closing it hangs up.
func (a *api) open(path string, body obj) *sseReader {
	a.t.Helper()
	body["stream"] = true
	ctx, stop := context.WithTimeout(context.Background(), patience)
	req, err := http.NewRequestWithContext(ctx, "POST", a.url+path, strings.NewReader(body.String()))
	if err != nil {
		a.t.Fatal(err)
	}
	res, err := a.client.Do(req)
	if err != nil {
		stop()
		a.t.Fatal(err)
	}
	s := &sseReader{a.t, res, bufio.NewReader(res.Body), stop}
	a.t.Cleanup(s.close)
	if ct := res.Header.Get("Content-Type"); res.StatusCode != 200 || !strings.HasPrefix(ct, "text/event-stream") {
		b, _ := io.ReadAll(res.Body)
		a.t.Fatalf("%d %s %s", res.StatusCode, ct, b)
	}
	return s
}

func (s *sseReader) close() {
	s.stop()
	_ = s.res.Body.Close()
}

// event is the data of one event.
type event []byte

// next is the next event, nil at the end of the answer.
func (s *sseReader) next() event {
	s.t.Helper()
	line, err := s.body.ReadBytes('\n')
	if err == io.EOF && len(line) == 0 {
		return nil
	}
	if err != nil {
		s.t.Fatalf("%v after %q", err, line)
	}
	blank, err := s.body.ReadBytes('\n')
	data, ok := bytes.CutPrefix(line, []byte("data: "))
	if !ok || err != nil || string(blank) != "\n" || !utf8.Valid(data) {
		s.t.Fatalf("no event: %q %q %v", line, blank, err)
	}
	return event(bytes.TrimSuffix(data, []byte("\n")))
}

// rest reads on to [DONE], which must be the last event, and returns what comes before it.
func (s *sseReader) rest() (events []event) {
	s.t.Helper()
	for {
		ev := s.next()
		if ev == nil {
			s.t.Fatalf("the stream ends without [DONE] after %d events", len(events))
		}
		if string(ev) == "[DONE]" {
			if more := s.next(); more != nil {
				s.t.Fatalf("%s after [DONE]", more)
			}
			return events
		}
		events = append(events, ev)
	}
}

func (a *api) chunks(path string, body obj) []event {
	a.t.Helper()
	return a.open(path, body).rest()
}

func (e event) text(t testing.TB) (c completion) { t.Helper(); strict(t, e, &c); return c }
func (e event) chat(t testing.TB) (c chatAnswer) { t.Helper(); strict(t, e, &c); return c }

func (e event) hasUsage(t testing.TB) (value string, ok bool) {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(e, &m); err != nil {
		t.Fatal(err)
	}
	v, ok := m["usage"]
	return string(v), ok
}

func chatBody(more obj) obj {
	b := obj{"messages": []obj{{"role": "user", "content": "Hi"}}}
	for k, v := range more {
		b[k] = v
	}
	return b
}

func TestStreamText(t *testing.T) {
	const text = " naïve 😀\n\"end\""
	a := serve(t, scripted(says(t, text)...))
	events := a.chunks("/v1/completions", obj{"prompt": "a"})
	var got string
	id := events[0].text(t).ID
	for i, e := range events {
		c := e.text(t)
		if c.ID != id || !strings.HasPrefix(id, "cmpl-") || c.Object != "text_completion" || c.Model != modelName || c.Created == 0 || len(c.Choices) != 1 {
			t.Fatalf("chunk %s", e)
		}
		if _, ok := e.hasUsage(t); ok {
			t.Errorf("usage that nobody asked for: %s", e)
		}
		ch := c.Choices[0]
		got += ch.Text
		if last := i == len(events)-1; last != (ch.Finish != nil) || last && *ch.Finish != "stop" || strings.Contains(ch.Text, "\ufffd") || ch.Logprobs != nil {
			t.Errorf("chunk %d of %d: %s", i, len(events), e)
		}
	}
	if got != text {
		t.Errorf("text %q", got)
	}
}

func TestStreamChat(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello 😀.")...))
	events := a.chunks("/v1/chat/completions", chatBody(nil))
	var got string
	for i, e := range events {
		c := e.chat(t)
		if c.Object != "chat.completion.chunk" || !strings.HasPrefix(c.ID, "chatcmpl-") || len(c.Choices) != 1 || c.Choices[0].Delta == nil || c.Choices[0].Message != nil {
			t.Fatalf("chunk %s", e)
		}
		d := c.Choices[0].Delta
		if (d.Role == "assistant") != (i == 0) || i == 0 && str(d.Content) != "" {
			t.Errorf("chunk %d: %s", i, e)
		}
		if last := i == len(events)-1; last != (c.Choices[0].Finish != nil) {
			t.Errorf("chunk %d: %s", i, e)
		}
		if d.Content != nil {
			got += *d.Content
		}
	}
	if got != "Hello 😀." {
		t.Errorf("text %q", got)
	}
}

func TestStreamUsage(t *testing.T) {
	b := scripted(says(t, "Hello there.")...)
	a := serve(t, b)
	n := len(says(t, "Hello there."))
	for path, body := range map[string]obj{"/v1/completions": {"prompt": "a", "n": 2}, "/v1/chat/completions": chatBody(obj{"n": 2})} {
		body["stream_options"] = obj{"include_usage": true}
		events := a.chunks(path, body)
		for i, e := range events[:len(events)-1] {
			if v, ok := e.hasUsage(t); !ok || v != "null" {
				t.Errorf("%s: chunk %d has usage %s", path, i, v)
			}
		}
		last := events[len(events)-1].chat(t)
		p := len(b.last(t).Prompt)
		if last.Choices == nil || len(last.Choices) != 0 || last.Usage == nil || *last.Usage != used(p, 2*n) {
			t.Errorf("%s: last chunk %s", path, events[len(events)-1])
		}
	}
	// How far each choice is, chunk by chunk.
	far := map[int]int{}
	events := a.chunks("/v1/completions", obj{"prompt": "a", "n": 2, "stream_options": obj{"include_usage": true, "continuous_usage_stats": true}})
	for _, e := range events[:len(events)-1] {
		c := e.text(t)
		at := c.Choices[0].Index
		if u := c.Usage; u == nil || u.Prompt != len(b.last(t).Prompt) || u.Completion <= far[at] || u.Total != u.Prompt+u.Completion {
			t.Fatalf("%s after %d tokens", e, far[at])
		}
		far[at] = c.Usage.Completion
	}
	if far[0] != n || far[1] != n {
		t.Errorf("at the end %v, want %d each", far, n)
	}
	body := obj{"prompt": "a", "stream_options": obj{"include_usage": false}}
	for _, e := range a.chunks("/v1/completions", body) {
		if _, ok := e.hasUsage(t); ok {
			t.Errorf("usage that nobody asked for: %s", e)
		}
	}
}

// Each choice's chunks leave when its tokens come.
func TestStreamInterleaving(t *testing.T) {
	streams := []*fakeStream{newFakeStream(), newFakeStream()}
	b := scripted()
	b.setScript(func(_ context.Context, r *engine.Request) (engine.Stream, error) {
		return streams[r.ID[len(r.ID)-1]-'0'], nil
	})
	a, tok := serve(t, b), testTokenizer(t)
	s := a.open("/v1/chat/completions", chatBody(obj{"n": 2}))
	for i := range 2 {
		if c := s.next().chat(t).Choices[0]; c.Index != i || c.Delta.Role != "assistant" {
			t.Fatalf("%+v", c)
		}
	}
	letter := func(s string) int32 {
		id, ok := tok.TokenID(s)
		if !ok {
			t.Fatalf("no token %q", s)
		}
		return id
	}
	for _, x := range []struct {
		index       int
		text, finis string
	}{{1, "a", ""}, {1, "b", ""}, {0, "c", ""}, {1, "d", "length"}, {0, "e", ""}, {0, "f", "length"}} {
		streams[x.index].ch <- engine.Event{Token: letter(x.text), HasToken: true, Finish: x.finis, StopToken: -1}
		c := s.next().chat(t).Choices[0]
		finish := ""
		if c.Finish != nil {
			finish = *c.Finish
		}
		if c.Index != x.index || str(c.Delta.Content) != x.text || finish != x.finis {
			t.Fatalf("after %+v: %+v %s", x, c, finish)
		}
	}
	if more := s.rest(); len(more) != 0 {
		t.Errorf("more: %s", more)
	}
	for _, st := range streams {
		within(t, "closing", st.closed)
	}
}

// A stop string over several tokens: nothing of it is ever sent.
func TestStreamStop(t *testing.T) {
	events := says(t, "one two three four five")
	a := serve(t, scripted(events...))
	for _, x := range []struct {
		stop, want string
		include    bool
	}{{"wo thr", "one t", false}, {"wo thr", "one two thr", true}, {"five!", "one two three four five", false}} {
		var got, finish string
		var reason any
		for _, e := range a.chunks("/v1/completions", obj{"prompt": "a", "stop": []string{x.stop, "never"}, "include_stop_str_in_output": x.include}) {
			c := e.text(t).Choices[0]
			got, reason = got+c.Text, c.StopReason
			if c.Finish != nil {
				finish = *c.Finish
			}
		}
		if got != x.want || finish != "stop" || (reason == x.stop) != (x.stop != "five!") {
			t.Errorf("%+v: %q %s %v", x, got, finish, reason)
		}
	}
}

// A failure after the first bytes is an event of OpenAI's error shape.
func TestStreamFailure(t *testing.T) {
	b := scripted()
	a := serve(t, b)
	for _, f := range failures {
		st := ended(engine.Event{Token: testTokenizer(t).Encode("a", false)[0], HasToken: true}, engine.Event{Finish: "error", Err: f.err})
		other := newFakeStream()
		b.setScript(func(_ context.Context, r *engine.Request) (engine.Stream, error) {
			if strings.HasSuffix(r.ID, "-1") {
				return other, nil
			}
			return st, nil
		})
		events := a.chunks("/v1/completions", obj{"prompt": "a", "n": 2})
		var last struct {
			Error struct {
				Message, Type string
				Param         *string
				Code          int
			}
		}
		strict(t, events[len(events)-1], &last)
		if len(events) != 2 || events[0].text(t).Choices[0].Text != "a" || last.Error.Code != f.status || last.Error.Type != f.kind || last.Error.Message != f.err.Error() || last.Error.Param != nil {
			t.Errorf("%v: %s", f.err, events)
		}
		within(t, "closing", st.closed)
		within(t, "closing of the other choice", other.closed)
	}
}
