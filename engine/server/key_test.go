package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// exchange sends bytes over a new connection, whose writing side stays open, and reads n answers.
func (a *api) exchange(request string, n int) (answers []reply, rest *bufio.Reader) {
	a.t.Helper()
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err = io.WriteString(c, request); err != nil {
		a.t.Fatal(err)
	}
	rest = bufio.NewReader(c)
	for range n {
		r, err := http.ReadResponse(rest, nil)
		if err != nil {
			a.t.Fatalf("%.80q: %v", request, err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			a.t.Fatal(err)
		}
		answers = append(answers, reply{r.StatusCode, r.Header, body})
	}
	return answers, rest
}

const wrongKey = "Host: x\r\nAuthorization: Bearer wrong\r\n"

// Who lacks the key is told so before the body is there, and makes the server hold none.
func TestKeyBeforeBody(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), func(c *Config) { c.APIKey = "secret"; c.MaxBodySize = 32 << 20 })
	part := strings.Repeat("x", 100<<10)
	for name, rest := range map[string]string{
		"a length":         "Content-Length: 10000000\r\n\r\n" + part,
		"above the limit":  "Content-Length: 100000000\r\n\r\n" + part,
		"nothing yet":      "Content-Length: 10000000\r\n\r\n",
		"chunks":           "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n", len(part)) + part + "\r\n",
		"no chunk yet":     "Transfer-Encoding: chunked\r\n\r\n",
		"asks first":       "Content-Length: 10000000\r\nExpect: 100-continue\r\n\r\n",
		"asks with chunks": "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
		"a form":           "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 10000000\r\n\r\n--b\r\n",
		"another request":  "Content-Length: 10000000\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, more := a.exchange("POST /v1/completions HTTP/1.1\r\n"+wrongKey+rest, 1)
			wantError(t, got[0], 401, "AuthenticationError", "")
			if h := got[0].header; h.Get("WWW-Authenticate") != "Bearer" || h.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("header %v", h)
			}
			if b, err := more.ReadByte(); err != io.EOF {
				t.Errorf("%q and %v after the answer", b, err)
			}
		})
	}
	// What needs no key needs no body either.
	if got, _ := a.exchange("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n", 1); got[0].status != 200 {
		t.Errorf("/health: %d", got[0].status)
	}
}

// A small body is read, key or not, and the connection goes on.
func TestWrongKeyKeepsConnection(t *testing.T) {
	a := serve(t, scripted(tokens(5)...), func(c *Config) { c.APIKey = "secret"; c.MaxBodySize = 100 << 10 })
	body := strings.Repeat(" ", keylessBody-14) + `{"prompt":"a"}`
	post := func(head string) string {
		return fmt.Sprintf("POST /v1/completions HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	rightKey := strings.Replace(wrongKey, "wrong", "secret", 1)
	got, _ := a.exchange(post(wrongKey)+post(rightKey)+post(wrongKey)+post(rightKey), 4)
	for i, want := range []int{401, 200, 401, 200} {
		if got[i].status != want {
			t.Errorf("answer %d: %d %s, want %d", i, got[i].status, got[i].body, want)
		}
	}
	// With the key the limit is --max-body-size, known beforehand or not.
	for _, large := range []string{"Content-Length: 200000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n30000\r\n"} {
		got, _ = a.exchange("POST /v1/completions HTTP/1.1\r\n"+rightKey+large, 1)
		wantError(t, got[0], 413, "BadRequestError", "", "102400")
	}
	body = strings.Repeat(" ", 80<<10) + `{"prompt":"a"}`
	if got, _ = a.exchange(post(rightKey), 1); got[0].status != 200 {
		t.Errorf("a large body with the key: %d", got[0].status)
	}
}
