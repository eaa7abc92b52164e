package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/server"
)

// message is one turn of a conversation, in OpenAI's shape.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func chatCommand() *cobra.Command {
	var server, key, model string
	var maxTokens int
	cmd := &cobra.Command{
		Use: "chat", Short: "Talk to a running server; reads lines, /new begins anew, /quit ends", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("api-key") {
				key = os.Getenv("INFINITE_API_KEY") // not as the flag's default, which --help shows
			}
			url, err := serverURL(server)
			if err != nil {
				return err
			}
			if maxTokens < 0 {
				return fmt.Errorf("cannot use --max-tokens %d: it must be at least 1, or 0 for what fits", maxTokens)
			}
			c := &openai.Client{URL: url, Key: key}
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
	cmd.Flags().StringVar(&server, "url", defaultServer, "server, without /v1")
	cmd.Flags().StringVar(&key, "api-key", "", "key of the server, default $INFINITE_API_KEY")
	cmd.Flags().StringVar(&model, "model", "", "model name, default the server's first")
	cmd.Flags().IntVar(&maxTokens, "max-tokens", 0, "longest answer, in tokens; 0: what fits")
	return cmd
}

func converse(ctx context.Context, c *openai.Client, body map[string]any, in io.Reader, out io.Writer) error {
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
			turn := turn{out: out, thoughts: interactive}
			_, err := streamChat(ctx, c, body, turn.add)
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
			history = append(history, message{"user", line}, message{"assistant", turn.answer.String()})
		}
	}
}

// turn shows an answer as it comes, on a terminal with the thoughts before it in faint letters.
type turn struct {
	out      io.Writer
	thoughts bool
	thought  bool // some were shown
	answer   strings.Builder
}

func (t *turn) add(thought, text string) {
	if thought != "" && t.thoughts {
		fmt.Fprint(t.out, "\x1b[2m"+thought+"\x1b[0m")
		t.thought = true
	}
	if text != "" && t.thought && t.answer.Len() == 0 {
		fmt.Fprint(t.out, "\n\n")
	}
	t.answer.WriteString(text)
	fmt.Fprint(t.out, text)
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

// streamChat runs a chat completion and hands out its thoughts and its text as they come. With return_kv_placement in the body
// it returns where the KV lay, oldest blocks first.
func streamChat(ctx context.Context, c *openai.Client, body map[string]any, each func(thought, text string)) (placement []server.SpanView, err error) {
	body["stream"] = true
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the request: %w", err)
	}
	err = c.Stream(ctx, "/v1/chat/completions", data, func(data []byte) error {
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content   string
					Reasoning string `json:"reasoning_content"`
				}
				Placement []server.SpanView `json:"kv_placement"`
			}
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return fmt.Errorf("cannot read an event: %w", err)
		}
		for _, ch := range chunk.Choices {
			each(ch.Delta.Reasoning, ch.Delta.Content)
			if ch.Placement != nil {
				placement = ch.Placement
			}
		}
		return nil
	})
	return placement, err
}
