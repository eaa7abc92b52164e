package openai

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a server that answers every request by do.
func fake(t *testing.T, do http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(do)
	t.Cleanup(s.Close)
	return &Client{URL: s.URL, Key: "secret", HTTP: s.Client()}
}

func TestErrorsAreTold(t *testing.T) {
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{400, `{"error":{"message":"too long","type":"BadRequestError"}}`, "too long (400 Bad Request)"},
		{429, `{"error":{"message":"queue is full"}}`, "queue is full (429 Too Many Requests)"},
		{404, `{"error":"no such model"}`, "no such model (404 Not Found)"},
		{400, `{"object":"error","message":"old shape"}`, "old shape (400 Bad Request)"},
		{500, "oops", "cannot use the server's answer: 500 Internal Server Error"},
		{500, `{"error":{"message":17}}`, "cannot use the server's answer: 500 Internal Server Error"},
		{502, "", "cannot use the server's answer: 502 Bad Gateway"},
		{599, "{}", "cannot use the server's answer: 599"},
		{503, `{"error":{"message":"bad \u001b[31m\nthing"}}`, "bad ?[31m thing (503 Service Unavailable)"},
	} {
		client := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		})
		err := client.Get(t.Context(), "/v1/models", &struct{}{})
		var told *ServerError
		if !errors.As(err, &told) || told.Status != c.status || err.Error() != c.want {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
	}
}

func TestParseURL(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:8000": "http://127.0.0.1:8000", "localhost:8000": "http://localhost:8000", "host": "http://host", "[::1]:8000": "http://[::1]:8000",
		"host:8000/": "http://host:8000", "host:8000/v1": "http://host:8000", "http://host:1/v1/": "http://host:1", "https://host": "https://host",
		"HTTP://host:65535": "http://host:65535", "https://gate/team%20a/v1": "https://gate/team%20a", "gate/v1/": "http://gate", "http://host//": "http://host",
		"http://[fe80::1%25eth0]:80": "http://[fe80::1%25eth0]:80", "[fe80::1%eth0]:80": "http://[fe80::1%25eth0]:80", "[fe80::1%25]/a%20b": "http://[fe80::1%2525]/a%20b",
	} {
		if got, err := ParseURL(text); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", text, got, err, want)
		} else if again, err := ParseURL(got); err != nil || again != want {
			t.Errorf("%s: %s is read as %s, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", ":8000", "http://", "http://:8000", "host:", "host:0", "host:65536", "host:x", "::1", "ftp://host", "http://me:word@host", "me:word@host:1", "http://host?a", "http://host#a",
		"http:/host", "/v1", "a b", "host:80 00", "://host", "http://[fe80::1%eth0]:80", "ho%41st:80", "ho%st:80", "fe80::1%eth0", "[fe80::1%eth0",
	} {
		if got, err := ParseURL(text); err == nil || strings.Contains(err.Error(), "word") {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
}

func TestRequests(t *testing.T) {
	client := fake(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, `{"Data":[{"id":"%s %s %s"}]}`, r.Method, r.Header.Get("Authorization"), strings.ReplaceAll(string(body), `"`, "'"))
	})
	if name, err := client.FirstModel(t.Context()); err != nil || name != "GET Bearer secret " {
		t.Errorf("%q, %v", name, err)
	}
	var into struct{ Data []struct{ ID string } }
	if err := client.Post(t.Context(), "/x", map[string]int{"a": 1}, &into); err != nil || into.Data[0].ID != "POST Bearer secret {'a':1}" {
		t.Errorf("%+v, %v", into, err)
	}
	for _, none := range []string{`{}`, `{"data":[]}`, `{"data":[{"id":""}]}`} {
		client := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, none) })
		if _, err := client.FirstModel(t.Context()); err == nil || !strings.Contains(err.Error(), "the server lists none") {
			t.Errorf("%s: %v", none, err)
		}
	}
	for _, broken := range []string{"", "<html>", `{"data":[{"id":`, `{"data":7}`} {
		client := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, broken) })
		if _, err := client.FirstModel(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot read the answer of /v1/models") {
			t.Errorf("%s: %v", broken, err)
		}
	}
}

func TestStream(t *testing.T) {
	each := errors.New("each")
	for _, c := range []struct {
		name, body, got, want string
	}{
		{"to its end", "data: 1\n\ndata: 2\n\ndata: [DONE]\n\ndata: 3\n\n", "12", ""},
		{"no end", "data: 1\n\n", "1", ErrNoEnd.Error()},
		{"nothing", "", "", ErrNoEnd.Error()},
		{"a web page", "<html>\n\n</html>\n", "", ErrNoEnd.Error()},
		{"an error in mid-stream", "data: 1\n\ndata: {\"error\":{\"message\":\"creditor lost\",\"code\":500}}\n\ndata: [DONE]\n\n", "1", "creditor lost"},
		{"an event of errors", "event: error\ndata: {\"message\":\"lost\"}\n\n", "", "lost"},
		{"llama.cpp's", "error: {\"code\":500,\"message\":\"lost\"}\n\n", "", "lost"},
		{"an error without words", "event: error\ndata: 7\n\n", "", "did not explain"},
		{"null is no error", "data: {\"error\":null}\n\ndata: [DONE]\n\n", `{"error":null}`, ""},
		{"nor is text that speaks of one", "data: {\"text\":\"\\\"error\\\"\",\"x\":[\"error\"]}\n\ndata: [DONE]\n\n", `{"text":"\"error\"","x":["error"]}`, ""},
		{"what each does not like", "data: bad\n\n", "", "each"},
	} {
		client := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.body) })
		var got strings.Builder
		err := client.Stream(t.Context(), "/x", []byte("{}"), func(data []byte) error {
			if string(data) == "bad" {
				return each
			}
			got.Write(data)
			return nil
		})
		if got.String() != c.got || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v", c.name, got.String(), err)
		}
	}
}

// hijack writes raw bytes in place of an answer, and closes.
func hijack(t *testing.T, w http.ResponseWriter, raw string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_, _ = io.WriteString(conn, raw)
	_ = conn.Close()
}

func TestStreamThatIsCutOff(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, c := range map[string]struct{ raw, want string }{
		"between events": {head + "9\r\ndata: 1\n\n\r\n", "cannot read the stream: unexpected EOF"},
		"in an event":    {head + "9\r\ndat", "cannot read the stream: unexpected EOF"},
		"bad chunks":     {head + "zz\r\n", "cannot read the stream"},
		"no answer":      {"", "cannot reach the server"},
		"not HTTP":       {"hello\r\n\r\n", "cannot reach the server"},
	} {
		client := fake(t, func(w http.ResponseWriter, _ *http.Request) { hijack(t, w, c.raw) })
		err := client.Stream(t.Context(), "/x", []byte("{}"), func([]byte) error { return nil })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server that goes on after the end mark holds nobody up for long, and one that stalls before it as long as
// the context lets it.
func TestStreamThatStalls(t *testing.T) {
	for _, c := range []struct {
		text string
		want error
	}{{"data: [DONE]\n\n", nil}, {"data: 1\n\n", context.DeadlineExceeded}, {"data: 1", context.DeadlineExceeded}} {
		client := fake(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, c.text)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		limit := 100 * time.Millisecond
		if c.want == nil {
			limit = time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		if err := client.Stream(ctx, "/x", []byte("{}"), func([]byte) error { return nil }); !errors.Is(err, c.want) {
			t.Errorf("%q: %v", c.text, err)
		}
		cancel()
	}
}

// Connections are used again after a stream, or every request of a load would make its own.
func TestStreamsShareAConnection(t *testing.T) {
	seen := map[string]bool{}
	client := fake(t, func(w http.ResponseWriter, r *http.Request) {
		seen[r.RemoteAddr] = true
		for _, text := range []string{"data: 1\n\n", "data: [DONE]\n\n"} {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
	})
	for range 5 {
		if err := client.Stream(t.Context(), "/x", []byte("{}"), func([]byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 1 {
		t.Errorf("%d connections for 5 requests, one after the other", len(seen))
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		" a\tb\r\nc ":             "a b  c",
		"\x1b]0;x\x07":            "?]0;x?",
		"\xff\xfe":                "??",
		"0123456789":              "0123456789",
		"0123456789a":             "0123456789 ...",
		"012345678\u00e9":         "012345678 ...",
		strings.Repeat("é", 9999): "ééééé ...",
		strings.Repeat(" ", 9999): " ...",
	} {
		if got := Printable(in, 10); got != want || !utf8.ValidString(got) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
