package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// ErrNoEnd is a stream that broke off: it ended, but without the mark that says so.
var ErrNoEnd = errors.New("the stream ended before its end mark")

// endGrace is how long a server has to end its answer after the end mark, so that the connection can be used
// again.
const endGrace = time.Second

// Stream posts body, which asks for a stream, and hands out the data of each event until the end mark. It ends
// with an error of the server, of each, or of the way there.
func (c *Client) Stream(ctx context.Context, path string, body []byte, each func(data []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.Do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	events := NewEvents(resp.Body)
	for {
		ev, err := events.Next()
		if errors.Is(err, io.EOF) {
			return ErrNoEnd
		}
		if err != nil {
			return fmt.Errorf("cannot read the stream: %w", err)
		}
		if string(ev.Data) == "[DONE]" {
			stop := time.AfterFunc(endGrace, cancel)
			defer stop.Stop()
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
			return nil
		}
		if err := eventError(ev); err != nil {
			return err
		}
		if err := each(ev.Data); err != nil {
			return err
		}
	}
}

// eventError is the error that an event tells, nil if it tells none.
func eventError(ev Event) error {
	if ev.Name != "error" {
		// Most events are not looked into here: each reads them, and that should be the only time.
		if !bytes.Contains(ev.Data, []byte(`"error"`)) {
			return nil
		}
		var body struct {
			Error json.RawMessage `json:"error"`
		}
		if json.Unmarshal(ev.Data, &body) != nil || len(body.Error) == 0 || string(body.Error) == "null" {
			return nil
		}
	}
	message := errorMessage(ev.Data)
	if message == "" {
		message = "the server broke off with an error that it did not explain"
	}
	return &ServerError{Message: message}
}
