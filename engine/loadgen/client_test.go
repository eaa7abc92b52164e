package loadgen

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	event = `data: {"choices":[{"text":"x"}]}` + "\n\n"
	done  = "data: [DONE]\n\n"
)

// One request each to servers that are not as they should be, over real connections.
func TestHostileServers(t *testing.T) {
	text := func(parts ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Join(parts, "")) }
	}
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	raw := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}
	}
	endless := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, text); err != nil {
					return
				}
			}
		}
	}
	stall := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct {
		name string
		do   http.HandlerFunc
		want string // of the error, "" for none
	}{
		{"as it should be", text(event, event, done), ""},
		{"no end mark, but a reason to end", text(event, `data: {"choices":[{"text":"","finish_reason":"stop"}]}`, "\n\n"), ""},
		{"no end mark", text(event, event), "ended before its end mark"},
		{"no tokens", text(done), "had no tokens"},
		{"nothing", text(), "ended before its end mark"},
		{"a role and no more", text(`data: {"choices":[{"delta":{"role":"assistant","content":""}}]}`, "\n\n", done), "had no tokens"},
		{"usage alone", text(`data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, "\n\n", done), "had no tokens"},
		{"a usage that cannot be", text(event, `data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":-2}}`, "\n\n", done), "cannot believe a usage"},
		{"a usage that is no number", text(event, `data: {"choices":[],"usage":{"prompt_tokens":"x"}}`, "\n\n", done), "cannot read an event"},
		{"no JSON", text("data: {\"choices\n\n", done), "cannot read an event"},
		{"an answer that is no stream", text(`{"choices":[{"text":"x"}]}`), "ended before its end mark"},
		{"cut off in an event", raw(head + "5\r\ndata:"), "closed the connection"},
		{"cut off between events", raw(head + "25\r\n" + event + "\r\n"), "closed the connection"},
		{"closed at once", raw(""), "closed the connection"},
		{"not HTTP", raw("hello\n\n"), "cannot reach the server"},
		{"refused", status(429, `{"error":{"message":"queue is full"}}`), "queue is full (429 Too Many Requests)"},
		{"broken", status(500, "<html>"), "500 Internal Server Error"},
		{"an error in mid-stream", text(event, `data: {"error":{"message":"creditor lost"}}`, "\n\n", done), "creditor lost"},
		{"an endless line", endless("data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), "an event has more than"},
		{"an endless header", endless(": ping\n\n"), "no end within"},
		{"endless chunks", endless(strings.Repeat(event, 100)), "no end within"},
		{"silence", stall(""), "no end within"},
		{"silence after a token", stall(event), "no end within"},
	} {
		s := httptest.NewServer(c.do)
		o := options(nil, Load{1, inf})
		o.URL, o.Requests, o.Timeout = s.URL, 1, time.Minute
		if c.want == "no end within" {
			o.Timeout = 200 * time.Millisecond
		}
		r, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		p := r.Points[0]
		if (c.want == "") != (p.OK == 1) || c.want != "" && (p.Failed != 1 || !strings.Contains(p.Errors[0].Message, c.want)) {
			t.Errorf("%s: %+v", c.name, p)
		}
		s.Close()
	}
}

func TestServerThatIsNotThere(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	o := options(nil, Load{0, inf})
	o.URL = s.URL
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Failure{{"cannot reach the server: dial: connection refused", 6}}, r.Points[0].Errors); d != "" {
		t.Error(d)
	}
	o.Model = ""
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "cannot ask for the model's name") {
		t.Error(err)
	}
}

// What counts as a chunk, and when the first one came.
func TestChunks(t *testing.T) {
	chat := func(delta, more string) string { return `{"choices":[{"delta":` + delta + more + `}]}` }
	for _, c := range []struct {
		name                string
		events              []string
		first, gaps, output int // the event of the ttft, counted from 1
	}{
		{"text", []string{`{"choices":[{"text":"a"}]}`, `{"choices":[{"text":""}]}`, `{"choices":[{"text":"b","finish_reason":"length"}]}`}, 1, 2, 2},
		{"a chat, opened before the first token", []string{chat(`{"role":"assistant","content":""}`, ""), chat(`{"content":"a"}`, ""), chat(`{}`, `,"finish_reason":"stop"`)}, 2, 1, 1},
		{"a role beside each text", []string{chat(`{"role":"assistant","content":"a"}`, ""), chat(`{"role":"assistant","content":"b"}`, "")}, 1, 1, 2},
		{"a content of null", []string{chat(`{"role":"assistant","content":null}`, ""), chat(`{"content":"a"}`, "")}, 2, 0, 1},
		{"reasoning", []string{chat(`{"reasoning_content":"a"}`, ""), chat(`{"reasoning":"b"}`, ""), chat(`{"content":"c"}`, "")}, 1, 2, 3},
		{"usage in every event", []string{`{"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}`, `{"choices":[{"text":"b"}],"usage":{"prompt_tokens":3,"completion_tokens":9}}`, `{"choices":[],"usage":null}`}, 1, 1, 9},
	} {
		begin := time.Now()
		a := answer{sent: begin}
		for i, e := range c.events {
			if err := a.add([]byte(e), begin.Add(time.Duration(i+1)*time.Second)); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		output := a.texts
		if a.counted {
			output = a.output
		}
		if a.ttft != time.Duration(c.first)*time.Second || len(a.gaps) != c.gaps || output != c.output {
			t.Errorf("%s: ttft %s, gaps %v, %d tokens", c.name, a.ttft, a.gaps, output)
		}
	}
	a := answer{outcome: outcome{gaps: make([]time.Duration, maxChunks)}, last: time.Now()}
	if err := a.add([]byte(`{"choices":[{"text":"a"}]}`), time.Now()); err == nil {
		t.Error("an answer may have any number of chunks")
	}
}
