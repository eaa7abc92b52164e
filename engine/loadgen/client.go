package loadgen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/infinite-llm/infinite/engine/openai"
)

// maxChunks bounds what is kept of one answer, whose server may never end it.
const maxChunks = 1 << 20

// outcome is what became of one request. Times count from when it was sent.
type outcome struct {
	ttft    time.Duration // to the first chunk
	latency time.Duration // to the last chunk
	gaps    []time.Duration
	late    time.Duration // sent after it was due
	prompt  int           // tokens
	output  int           // tokens
	counted bool          // by the server; else prompt is in words or ids, and output in chunks with text
	err     error
	stopped bool // the run was over before it was
}

// chunk is what is looked at of an answer's event.
type chunk struct {
	Choices []struct {
		Text  string `json:"text"`
		Delta struct {
			Role             string `json:"role"`
			Content          string `json:"content"`
			Reasoning        string `json:"reasoning"`
			ReasoningContent string `json:"reasoning_content"`
		} `json:"delta"`
		Finish *string `json:"finish_reason"`
	} `json:"choices"`
	Usage *struct {
		Prompt int `json:"prompt_tokens"`
		Output int `json:"completion_tokens"`
	} `json:"usage"`
}

// answer is one answer as far as it was read.
type answer struct {
	outcome
	sent, last time.Time
	texts      int // chunks with text
	finished   bool
}

// add takes an event that came at now. As vLLM counts them, every event with a choice is a chunk, also one whose
// token has no text; but the one that only opens a chat is none, since some servers send it before they compute.
func (a *answer) add(data []byte, now time.Time) error {
	var c chunk
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("cannot read an event: %w", err)
	}
	if u := c.Usage; u != nil {
		if u.Prompt < 0 || u.Prompt > maxLength*2 || u.Output < 0 || u.Output > maxLength*2 {
			return fmt.Errorf("cannot believe a usage of %d and %d tokens", u.Prompt, u.Output)
		}
		a.prompt, a.output, a.counted = u.Prompt, u.Output, true
	}
	if len(c.Choices) == 0 {
		return nil
	}
	first := &c.Choices[0]
	d := &first.Delta
	text := first.Text != "" || d.Content != "" || d.Reasoning != "" || d.ReasoningContent != ""
	finish := first.Finish != nil && *first.Finish != ""
	if finish {
		a.finished = true
	}
	if d.Role != "" && !text && !finish {
		return nil
	}
	if text {
		a.texts++
	}
	switch {
	case a.last.IsZero():
		a.ttft = now.Sub(a.sent)
	case len(a.gaps) >= maxChunks:
		return fmt.Errorf("cannot keep more than %d chunks of an answer", maxChunks)
	default:
		a.gaps = append(a.gaps, now.Sub(a.last))
	}
	a.last = now
	return nil
}

// ask sends one request and reads its answer. If ctx ends before it does, it was stopped.
func (r *runner) ask(ctx context.Context, p Prompt, body []byte) outcome {
	limited, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	a := answer{sent: time.Now(), outcome: outcome{gaps: make([]time.Duration, 0, min(p.Output, 4096))}}
	err := r.client.Stream(limited, r.path, body, func(data []byte) error { return a.add(data, time.Now()) })
	if a.finished && errors.Is(err, openai.ErrNoEnd) {
		err = nil // it said that it is whole
	}
	switch {
	case err == nil && a.last.IsZero():
		err = errors.New("the answer had no tokens")
	case err != nil && ctx.Err() != nil:
		a.stopped = true
	case err != nil && limited.Err() != nil:
		err = fmt.Errorf("no end within %s", r.options.Timeout)
	}
	a.err = err
	if !a.last.IsZero() {
		a.latency = a.last.Sub(a.sent)
	}
	if !a.counted {
		a.prompt, a.output = p.length(), a.texts
	}
	return a.outcome
}

// reason is an error without what differs from one request to the next, such as ports, so that the same errors
// can be counted.
func reason(err error) string {
	var told *openai.ServerError
	var dial *net.OpError
	var number syscall.Errno
	var from *url.Error
	text := err.Error()
	switch {
	case errors.As(err, &told):
	case errors.As(err, &number) && errors.As(err, &dial):
		text = "cannot reach the server: " + dial.Op + ": " + number.Error()
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &from) && errors.Is(from.Err, io.EOF):
		text = "the server closed the connection in the middle of an answer"
	case errors.As(err, &from):
		text = "cannot reach the server: " + from.Err.Error()
	}
	return openai.Printable(text, 300)
}

// newTransport keeps a connection for every request that may be under way, and asks for no compression, which
// would hold tokens back.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: maxConcurrency, DisableCompression: true,
		ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 1 << 20, TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout: 90 * time.Second,
	}
}
