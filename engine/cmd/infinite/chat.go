package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/infinite-llm/infinite/engine/server"
)

// message is one turn of a conversation, in OpenAI's shape.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func chatCommand() *cobra.Command {
	var url, key, model string
	var maxTokens int
	cmd := &cobra.Command{
		Use: "chat", Short: "Talk to a running server; reads lines, /new begins anew, /quit ends", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("api-key") {
				key = os.Getenv("INFINITE_API_KEY") // not as the flag's default, which --help shows
			}
			c := &client{url: strings.TrimSuffix(url, "/"), key: key}
			body := map[string]any{"temperature": 0}
			if model != "" {
				body["model"] = model
			}
			if maxTokens > 0 {
				body["max_tokens"] = maxTokens
			}
			return converse(cmd.Context(), c, body, os.Stdin, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&url, "url", "http://127.0.0.1:8000", "server")
	cmd.Flags().StringVar(&key, "api-key", "", "key of the server, default $INFINITE_API_KEY")
	cmd.Flags().StringVar(&model, "model", "", "model name, default the server's first")
	cmd.Flags().IntVar(&maxTokens, "max-tokens", 0, "longest answer, default what fits")
	return cmd
}

func converse(ctx context.Context, c *client, body map[string]any, in io.Reader, out io.Writer) error {
	f, ok := in.(*os.File)
	interactive := ok && term.IsTerminal(int(f.Fd()))
	lines, failed := readLines(ctx, in)
	var history []message
	for {
		if interactive {
			fmt.Fprint(out, "> ")
		}
		var line string
		select {
		case text, ok := <-lines:
			if !ok {
				return <-failed
			}
			line = strings.TrimSpace(text)
		case <-ctx.Done():
			fmt.Fprintln(out)
			return nil
		}
		switch line {
		case "":
		case "/quit":
			return nil
		case "/new":
			history = nil
		default:
			body["messages"] = append(history, message{"user", line})
			var answer strings.Builder
			_, err := c.stream(ctx, body, func(text string) {
				answer.WriteString(text)
				fmt.Fprint(out, text)
			})
			fmt.Fprintln(out)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				if !interactive {
					return err
				}
				fmt.Fprintln(out, "error:", err)
				continue
			}
			history = append(history, message{"user", line}, message{"assistant", answer.String()})
		}
	}
}

// readLines reads in the background, since a terminal's read does not end with ctx. After the last line
// failed has the reason.
func readLines(ctx context.Context, in io.Reader) (lines <-chan string, failed <-chan error) {
	out, end := make(chan string), make(chan error, 1)
	go func() {
		defer close(out)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(nil, 16<<20)
		for scanner.Scan() {
			select {
			case out <- scanner.Text():
			case <-ctx.Done():
				end <- nil
				return
			}
		}
		end <- scanner.Err()
	}()
	return out, end
}

// client is the little of an OpenAI client that chat and sample need.
type client struct{ url, key string }

func (c *client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("cannot encode the request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the server: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		var e struct {
			Error struct{ Message string }
		}
		if json.Unmarshal(text, &e) == nil && e.Error.Message != "" {
			return nil, fmt.Errorf("%s (%s)", e.Error.Message, resp.Status)
		}
		return nil, fmt.Errorf("cannot use the server's answer: %s", resp.Status)
	}
	return resp, nil
}

// get reads a JSON answer.
func (c *client) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

func (c *client) call(ctx context.Context, method, path string, body, into any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(into)
}

// stream runs a chat completion and hands out its text as it comes. With return_kv_placement in the body
// it returns where the KV lay, oldest blocks first.
func (c *client) stream(ctx context.Context, body map[string]any, each func(string)) (placement []server.SpanView, err error) {
	body["stream"] = true
	resp, err := c.do(ctx, http.MethodPost, "/v1/chat/completions", body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return placement, nil
		}
		var chunk struct {
			Error   *struct{ Message string }
			Choices []struct {
				Delta     struct{ Content string }
				Placement []server.SpanView `json:"kv_placement"`
			}
		}
		if err = json.Unmarshal([]byte(data), &chunk); err != nil {
			return nil, fmt.Errorf("cannot read an event: %w", err)
		}
		if chunk.Error != nil {
			return nil, errors.New(chunk.Error.Message)
		}
		for _, ch := range chunk.Choices {
			each(ch.Delta.Content)
			if ch.Placement != nil {
				placement = ch.Placement
			}
		}
	}
	if err = lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the stream: %w", err)
	}
	return nil, errors.New("the stream ended before its end mark")
}
