// Package openai is the client's side of OpenAI's API, as far as commands of this program need it: requests,
// the errors that servers tell, and answers that come as server-sent events. It speaks to any such server and
// trusts none: whatever is read has a bound.
//
//	client.go   requests and errors
//	events.go   server-sent events
//	stream.go   answers in events
package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxErrorBody = 64 << 10
	maxAnswer    = 64 << 20
	maxMessage   = 300 // bytes of a server's error that are passed on
)

// Client asks one server.
type Client struct {
	URL  string       // without a slash at its end
	Key  string       // "" for none
	HTTP *http.Client // nil: the default one
}

// ParseURL reads where a server is: HOST:PORT, or a URL, in whose path there may be a gateway's prefix. A /v1 at the end is the
// API's own, which requests begin with. The % of an IPv6 zone is one in [HOST]:PORT, and %25 in a URL. Errors do not repeat the
// text, in which there may be a password.
func ParseURL(text string) (string, error) {
	whole := text
	if !strings.Contains(text, "://") {
		whole = "http://" + text
		if host, rest, ok := strings.Cut(text, "]"); ok && strings.HasPrefix(host, "[") {
			whole = "http://" + strings.ReplaceAll(host, "%", "%25") + "]" + rest
		}
	}
	u, err := url.Parse(whole)
	if err == nil {
		port, perr := strconv.Atoi(u.Port())
		bad := u.Port() == "" && strings.HasSuffix(u.Host, ":") || u.Port() != "" && (perr != nil || port < 1 || port > 65535)
		if !bad && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" {
			host := url.URL{Scheme: u.Scheme, Host: u.Host}
			return host.String() + strings.TrimRight(strings.TrimSuffix(strings.TrimRight(u.EscapedPath(), "/"), "/v1"), "/"), nil
		}
	}
	return "", errors.New("it must be like HOST:PORT or http://HOST:PORT")
}

// ServerError is what a server said in place of an answer.
type ServerError struct {
	Status  int    // 0 in mid-stream, where the status line is long out
	Message string // "" if there was none that could be read
}

func (e *ServerError) Error() string {
	status := ""
	if e.Status != 0 {
		status = strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status)))
	}
	switch {
	case e.Message == "":
		return "cannot use the server's answer: " + status
	case status == "":
		return e.Message
	}
	return fmt.Sprintf("%s (%s)", e.Message, status)
}

// Do sends a request with a JSON body, nil for none. What is no 200 becomes a ServerError.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Key != "" {
		req.Header.Set("Authorization", "Bearer "+c.Key)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the server: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		return nil, &ServerError{resp.StatusCode, errorMessage(text)}
	}
	return resp, nil
}

// Get reads a JSON answer.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

// Post sends body as JSON and reads a JSON answer.
func (c *Client) Post(ctx context.Context, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("cannot encode the request: %w", err)
	}
	return c.call(ctx, http.MethodPost, path, data, into)
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("cannot read the answer of %s: %w", path, err)
	}
	return nil
}

// FirstModel is the name of the first model that the server lists.
func (c *Client) FirstModel(ctx context.Context) (string, error) {
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := c.Get(ctx, "/v1/models", &list); err != nil {
		return "", err
	}
	if len(list.Data) == 0 || list.Data[0].ID == "" {
		return "", fmt.Errorf("cannot choose a model: the server lists none")
	}
	return list.Data[0].ID, nil
}

// errorMessage finds the message in a server's error: {"error": {"message": ...}} as OpenAI has it, or with
// the message one level higher, or the text itself in error; "" if it is none of these.
func errorMessage(data []byte) string {
	var body struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
	}
	if json.Unmarshal(data, &body) != nil {
		return ""
	}
	var inner struct {
		Message string `json:"message"`
	}
	var text string
	switch {
	case json.Unmarshal(body.Error, &inner) == nil && inner.Message != "":
		text = inner.Message
	case json.Unmarshal(body.Error, &text) == nil && text != "":
	default:
		text = body.Message
	}
	return Printable(text, maxMessage)
}

// Printable is text from outside that can go to a terminal or a log: in one line, without control characters,
// of at most so many bytes.
func Printable(text string, most int) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text[:min(len(text), 4*most)])
	if len(clean) <= most && len(text) <= 4*most {
		return strings.TrimSpace(clean)
	}
	cut := min(most, len(clean))
	for cut > 0 && cut < len(clean) && !utf8.RuneStart(clean[cut]) {
		cut--
	}
	return strings.TrimSpace(clean[:cut]) + " ..."
}
