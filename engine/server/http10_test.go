package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
)

// send10 sends a POST of HTTP/1.0 over a connection of its own.
func (a *api) send10(path, body string, header ...string) *net.TCPConn {
	a.t.Helper()
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	lines := append([]string{"POST " + path + " HTTP/1.0", fmt.Sprint("Content-Length: ", len(body))}, header...)
	if _, err = io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"+body); err != nil {
		a.t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// A client of HTTP/1.0 knows no chunks: the end of the connection is the end of its stream.
func TestStreamHTTP10(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello 😀.")...))
	for _, keep := range [][]string{nil, {"Connection: keep-alive"}} {
		r := bufio.NewReader(a.send10("/v1/chat/completions", chatBody(obj{"stream": true}).String(), keep...))
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		h := res.Header
		if len(res.TransferEncoding) != 0 || res.ContentLength != -1 || !res.Close || res.StatusCode != 200 {
			t.Errorf("%v: %d, encoded %v, %d bytes, closes %v", keep, res.StatusCode, res.TransferEncoding, res.ContentLength, res.Close)
		}
		if h.Get("Access-Control-Allow-Origin") != "*" || !strings.HasPrefix(h.Get("Content-Type"), "text/event-stream") || h.Get("Server") != "infinite" || h.Get("Date") == "" {
			t.Errorf("%v: %v", keep, h)
		}
		body := bufio.NewReader(res.Body)
		s := &sseReader{t, res, body, func() {}}
		var text string
		for _, e := range s.rest() {
			text += str(e.chat(t).Choices[0].Delta.Content)
		}
		if text != "Hello 😀." {
			t.Errorf("%v: %q", keep, text)
		}
	}
	// What has a length keeps it, and the connection.
	for _, body := range []string{`{"prompt":"a"}`, `{"prompt":5,"stream":true}`} {
		res, err := http.ReadResponse(bufio.NewReader(a.send10("/v1/completions", body, "Connection: keep-alive")), nil)
		if err != nil || res.ContentLength <= 0 || res.Close || len(res.TransferEncoding) != 0 {
			t.Errorf("%s: %v %+v", body, err, res)
		}
	}
	a.idle()
}

// Its events leave when they come, it is missed when it goes, and a shutdown waits for it.
func TestStreamHTTP10Life(t *testing.T) {
	st := newFakeStream()
	b := scripted()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return st, nil })
	a := serve(t, b)
	c := a.send10("/v1/completions", `{"prompt":"a","stream":true}`)
	r := bufio.NewReader(c)
	token := testTokenizer(t).Encode("a", false)[0]
	next := func(finish string) {
		st.ch <- engine.Event{Token: token, HasToken: true, Finish: finish, StopToken: -1}
		for line := ""; !strings.HasPrefix(line, "data: {"); {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	next("")
	done := a.shutdown(patience)
	eventually(t, "new connections are refused", func() bool { return refuses(a.addr) })
	next("")
	next("length")
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "\ndata: [DONE]\n\n" {
		t.Errorf("%v: %q", err, rest)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}

	gone := newFakeStream()
	b.setScript(func(context.Context, *engine.Request) (engine.Stream, error) { return gone, nil })
	a = serve(t, b)
	c = a.send10("/v1/completions", `{"prompt":"a","stream":true}`)
	within(t, "the request runs", gone.waits)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, "closing of the stream", gone.closed)
	a.idle()
}
