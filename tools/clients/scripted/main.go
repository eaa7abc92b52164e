// Command scripted serves the API over answers that are written here, for the clients' checks of tools: the bundled
// model cannot call any. The prompts are Qwen3's, by whose template the server chooses the parser.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/model/bundled"
	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

const (
	template = "engine/tokenizer/testdata/chat/qwen3.jinja"
	calls    = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"note\": \"<é>\"}}\n</tool_call>\n" +
		"<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>"
)

// script answers a question with calls, one that asks for thoughts with these, and results with a text that has them.
type script struct{ tok *tokenizer.Tokenizer }

func (s script) Submit(_ context.Context, req *engine.Request) (engine.Stream, error) {
	prompt := s.tok.Decode(req.Prompt, false)
	text := calls
	if at := strings.LastIndex(prompt, "<|im_start|>user\n<tool_response>"); at >= 0 {
		results := strings.FieldsFunc(prompt[at:], func(r rune) bool { return r == '\n' })
		text = fmt.Sprintf("It is %s degrees at %s.", results[2], results[5])
	} else if strings.Contains(prompt, "Think.") {
		text = "<think>\nHm.\n</think>\n\nYes."
	} else if !strings.Contains(prompt, "<tools>") {
		text = "No tools."
	}
	eos, ok := s.tok.EOS()
	if !ok {
		return nil, errors.New("the tokenizer has no EOS")
	}
	return &answer{append(s.tok.Encode(text, false), eos), 0}, nil
}

func (script) Capacity() int { return 1 << 20 }
func (script) Cluster(context.Context) (*server.ClusterView, error) {
	return &server.ClusterView{}, nil
}

// answer is a token after the other.
type answer struct {
	tokens []int32
	next   int
}

func (a *answer) Next(context.Context) (engine.Event, error) {
	if a.next == len(a.tokens) {
		return engine.Event{}, io.EOF
	}
	ev := engine.Event{Token: a.tokens[a.next], HasToken: true, StopToken: -1}
	if a.next++; a.next == len(a.tokens) {
		ev.Finish, ev.StopToken = "stop", ev.Token
	}
	return ev, nil
}

func (a *answer) Close() {}

func run() error {
	tok, err := tokenizer.LoadFS(bundled.FS)
	if err != nil {
		return err
	}
	if tok, err = tok.WithChatTemplateFile(template); err != nil {
		return err
	}
	cfg := server.Config{
		ModelNames: []string{"scripted"}, APIKey: "test-key", MaxBodySize: 1 << 20, MaxModelLen: 1 << 16,
		Defaults: server.Defaults{Temperature: 1, TopP: 1, RepetitionPenalty: 1, VocabSize: tok.VocabSize()},
	}
	if eos, ok := tok.EOS(); ok {
		cfg.Defaults.EOS = []int32{eos}
	}
	s, err := server.New(cfg, tok, script{tok})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	s.Serve(l)
	fmt.Printf("serving on http://%s\n", l.Addr())
	<-ctx.Done()
	return s.Shutdown(context.Background())
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
