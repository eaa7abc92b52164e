package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/head"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/server"
)

// wrongAnswer ends `infinite sample` with status 1 after everything was shown.
type wrongAnswer struct{ want string }

func (e *wrongAnswer) Error() string { return "the answer does not hold " + e.want }

// sample is the bundled prompt: a chat whose last message asks about a fact stated far back.
type sample struct {
	body   map[string]any
	text   string // of all messages
	answer string // what a right answer holds
	fact   int    // byte offset of the fact's answer in text
}

func sampleCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use: "sample", Short: "Answer a prompt larger than any one instance's KV cache, show where its KV lay, then serve",
		Args: cobra.NoArgs,
	}
	load := bindFlags(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "end after the sample; exit status 0 only if the answer was right")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return runSample(cmd, cfg, once)
	}
	return cmd
}

func runSample(cmd *cobra.Command, cfg config.Config, once bool) error {
	out := cmd.OutOrStdout()
	s, err := readSample()
	if err != nil {
		return err
	}
	tokens, err := shrinkPools(cmd, &cfg, s)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "starting %d instances, each with a KV cache of %s\n", cfg.Instances, cfg.KVCacheMemory)
	h, err := head.Start(cmd.Context(), draining(cmd.Context()), cfg)
	if err != nil {
		return err
	}
	defer h.Close()
	c := &openai.Client{URL: h.URL(), Key: cfg.APIKey}
	waitLinked(cmd.Context(), c, cfg.Instances)
	right, err := s.ask(cmd.Context(), c, out, tokens, cfg.BlockSize)
	if err != nil {
		return err
	}
	if once {
		if !right {
			return &wrongAnswer{s.answer}
		}
		return nil
	}
	announce(cmd, cfg, h)
	fmt.Fprintf(out, "\ntry:\n  curl %s/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d '{\"messages\":[{\"role\":\"user\",\"content\":\"The password of Mira is copper-lantern. What is the password of Mira?\"}]}'\nor:\n  bin/infinite chat --url %s\n", h.URL(), h.URL())
	return untilEnd(cmd, h)
}

// waitLinked waits until all instances have links to each other, or a while: before, a prompt is computed by those that
// know of each other.
func waitLinked(ctx context.Context, c *openai.Client, instances int) {
	for range 100 {
		var v server.ClusterView
		err := c.Get(ctx, "/cluster", &v)
		missing := slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool {
			links := 0
			for _, peers := range in.Links {
				links += int(peers)
			}
			return links < len(v.Instances)-1
		})
		if ctx.Err() != nil || err == nil && !missing && len(v.Instances) >= instances {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func readSample() (*sample, error) {
	raw, err := fs.ReadFile(model.Bundled(), "sample_prompt.json")
	if err != nil {
		return nil, fmt.Errorf("cannot read the sample prompt: %w", err)
	}
	answer, err := fs.ReadFile(model.Bundled(), "sample_answer.txt")
	if err != nil {
		return nil, fmt.Errorf("cannot read the sample's answer: %w", err)
	}
	s := &sample{answer: strings.TrimSpace(string(answer))}
	if err = json.Unmarshal(raw, &s.body); err != nil {
		return nil, fmt.Errorf("cannot read the sample prompt: %w", err)
	}
	var typed struct{ Messages []message }
	if err = json.Unmarshal(raw, &typed); err != nil {
		return nil, fmt.Errorf("cannot read the sample prompt: %w", err)
	}
	for _, m := range typed.Messages {
		s.text += m.Content + "\n"
	}
	if s.fact = strings.Index(s.text, s.answer); s.fact < 0 {
		return nil, fmt.Errorf("cannot find %q in the sample prompt", s.answer)
	}
	return s, nil
}

// shrinkPools sizes the instances so that the prompt fits none of them alone: each pool gets 60 % of it.
// Settings that were given stay.
func shrinkPools(cmd *cobra.Command, cfg *config.Config, s *sample) (tokens int, err error) {
	m, err := node.OpenModel(*cfg)
	if err != nil {
		return 0, err
	}
	defer func() { _ = m.Close() }()
	tok, err := node.OpenTokenizer(cfg.Model)
	if err != nil {
		return 0, err
	}
	tokens = len(tok.Encode(s.text, true))
	if !cmd.Flags().Changed("instances") {
		cfg.Instances = 3
	}
	if cmd.Flags().Changed("kv-cache-memory") {
		return tokens, nil
	}
	places, err := node.Places(*cfg)
	if err != nil {
		return 0, err
	}
	dtype, err := node.DType(cfg.DType, m.Config.DType, places[0].OnGPU())
	if err != nil {
		return 0, err
	}
	block, err := node.BlockBytes(*cfg, m.Config, dtype)
	if err != nil {
		return 0, err
	}
	blocks := (tokens*6/10 + cfg.BlockSize - 1) / cfg.BlockSize
	cfg.KVCacheMemory = config.Size(uint64(blocks) * block)
	return tokens, nil
}

// ask streams the answer and prints it, and where the prompt's KV lay at its end.
func (s *sample) ask(ctx context.Context, c *openai.Client, out io.Writer, tokens, blockSize int) (right bool, err error) {
	fmt.Fprintf(out, "asking about a fact in a prompt of %d tokens:\n  %s\n", tokens, s.question())
	var answer strings.Builder
	fmt.Fprint(out, "answer: ")
	started := time.Now()
	s.body["return_kv_placement"] = true
	spans, err := streamChat(ctx, c, s.body, func(_, text string) {
		answer.WriteString(text)
		fmt.Fprint(out, text)
	})
	fmt.Fprintf(out, "\n(%.1f s)\n\n", time.Since(started).Seconds())
	if err != nil {
		return false, fmt.Errorf("cannot answer the sample: %w", err)
	}
	if err = s.printPlacement(ctx, c, out, spans, blockSize); err != nil {
		return false, err
	}
	right = strings.Contains(answer.String(), s.answer)
	if right {
		fmt.Fprintf(out, "\nthe answer is right: %s\n\n", s.answer)
	} else {
		fmt.Fprintf(out, "\nthe answer is wrong: it should hold %q\n\n", s.answer)
	}
	return right, nil
}

func (s *sample) question() string {
	lines := strings.Split(strings.TrimSpace(s.text), "\n")
	last := lines[len(lines)-1]
	if i := strings.LastIndex(strings.TrimSuffix(last, "?"), ". "); i >= 0 {
		last = last[i+2:]
	}
	return last
}

func (s *sample) printPlacement(ctx context.Context, c *openai.Client, out io.Writer, spans []server.SpanView, blockSize int) error {
	var prefix struct{ Count int }
	if err := c.Post(ctx, "/tokenize", map[string]any{"prompt": s.text[:s.fact]}, &prefix); err != nil {
		return err
	}
	var cluster server.ClusterView
	if err := c.Get(ctx, "/cluster", &cluster); err != nil {
		return err
	}
	pool := map[string]int{}
	for _, in := range cluster.Instances {
		pool[in.ID] = in.KVBlocksTotal
	}
	fmt.Fprintf(out, "where the prompt's KV lay (blocks of %d tokens):\n", blockSize)
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  instance\trole\tblocks\tof pool\ttokens\t")
	all := places(spans, blockSize, prefix.Count)
	for _, p := range all {
		mark := ""
		if p.marked {
			mark = fmt.Sprintf("<- the fact, near token %d", prefix.Count)
		}
		fmt.Fprintf(w, "  %s\t%s\t%d\t%d\t%s\t%s\n", p.instance, p.role, p.blocks, pool[p.instance], strings.Join(p.tokens, ", "), mark)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(spans) > len(all) {
		fmt.Fprintf(out, "these %d instances computed it together, each in turn what lies there\n", len(all))
	}
	return nil
}

// place is what an instance had of the prompt.
type place struct {
	instance, role string
	blocks         int
	tokens         []string // runs of them
	marked         bool     // one of them has the token that was asked for
}

// places gathers by instance what spans say in the order of the text; the home, which has the last, comes last.
func places(spans []server.SpanView, blockSize, token int) (out []*place) {
	byName := map[string]*place{}
	first := 0
	for _, s := range spans {
		p := byName[s.Instance]
		if p == nil {
			p = &place{instance: s.Instance, role: "creditor"}
			byName[s.Instance] = p
			out = append(out, p)
		}
		next := first + s.Blocks*blockSize
		p.blocks += s.Blocks
		p.tokens = append(p.tokens, fmt.Sprintf("%d..%d", first, next-1))
		p.marked = p.marked || token >= first && token < next
		first = next
	}
	if n := len(spans); n > 0 {
		home := byName[spans[n-1].Instance]
		home.role = "home"
		slices.SortStableFunc(out, func(a, b *place) int { return strings.Compare(a.role, b.role) })
	}
	return out
}
