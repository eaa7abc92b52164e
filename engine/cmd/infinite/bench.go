package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/loadgen"
)

// benchFlags are what is not an option of loadgen as it stands.
type benchFlags struct {
	options     loadgen.Options
	concurrency []int
	rates       []string
	goodput     []string
	json        string
	strict      bool
}

func benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use: "bench", Short: "Load a server of OpenAI's API, this or another, and measure its latency and throughput",
		Long: `Load a server of OpenAI's API, this or another, and measure its latency and throughput under one load or several.

With --max-concurrency N the next request is sent when one of N has its answer; with --request-rate R requests are
sent as a Poisson process has them, whatever is under way; with both, a request that is due waits for a place. Of
lists, each combination is a point, with its own prompts (those of a --dataset are the same at all).

Times are as vLLM's benchmark defines them. TTFT: from sending to the first chunk; E2EL: to the last; ITL: between
two chunks; TPOT: (E2EL - TTFT) / (output tokens - 1). Tokens are those that the server counts in usage.

The status is 1 if it was interrupted, if at a point no request was answered and, with --strict, if one failed.`,
		Args: cobra.NoArgs,
	}
	load := bindFlags(cmd, "log-level")
	f.bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := load(); err != nil {
			return err
		}
		if err := f.fill(cmd.Flags().Changed("num-prompts")); err != nil {
			return err
		}
		out, err := f.open() // before the load, which takes long
		if err != nil {
			return err
		}
		report, err := loadgen.Run(cmd.Context(), f.options)
		if err != nil {
			_ = out.Close() // nil where there is none
			return err
		}
		return errors.Join(f.print(cmd, out, report), report.Verdict(f.strict))
	}
	return cmd
}

func (f *benchFlags) bind(cmd *cobra.Command) {
	o, s, flags := &f.options, &f.options.Shape, cmd.Flags()
	flags.StringVar(&o.URL, "url", defaultServer, "server, without /v1")
	flags.StringVar(&o.Key, "api-key", "", "key of the server, default $INFINITE_API_KEY")
	flags.StringVar(&o.Model, "model", "", "model name, default the first that the server lists")
	flags.StringVar(&o.Endpoint, "endpoint", loadgen.Completions, "completions or chat")
	flags.IntVar(&o.Requests, "num-prompts", 100, "requests of each point; default with --dataset all of it")
	flags.IntVar(&s.Input, "input-len", 1024, "length of prompts behind the common prefix, in words or token ids")
	flags.IntVar(&s.Output, "output-len", 128, "tokens of each answer")
	flags.Float64Var(&s.Spread, "range-ratio", 0, "lengths are drawn evenly from this share less to this share more, below 1")
	flags.IntVar(&s.Prefix, "prefix-len", 0, "length of a prefix that all prompts share")
	flags.Uint64Var(&o.Seed, "seed", 0, "of prompts, lengths and arrivals")
	flags.StringVar(&s.Format, "prompt-format", loadgen.Text, "text: words, of which most are one token each; tokens: ids, for exact lengths, where the server takes them")
	flags.IntVar(&s.Vocab, "vocab", 1024, "with --prompt-format tokens: ids are from 16 up to below this")
	flags.StringVar(&o.DatasetFile, "dataset", "", `file of prompts instead, a line each: {"prompt": "...", "output_tokens": 100}`)
	flags.BoolVar(&o.IgnoreEOS, "ignore-eos", true, "ask for answers of full length; false for servers that refuse unknown fields")
	flags.IntSliceVar(&f.concurrency, "max-concurrency", []int{0}, "most requests at once, or a list; 0: no limit")
	flags.StringSliceVar(&f.rates, "request-rate", []string{"inf"}, "requests per second, or a list; inf: all at once")
	flags.IntVar(&o.Warmup, "warmup", 0, "requests before the first point that are not counted")
	flags.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "longest time for a request")
	flags.StringSliceVar(&f.goodput, "goodput", nil, "count requests within these limits, such as ttft:500ms,tpot:50ms,e2el:10s")
	flags.StringVar(&f.json, "json", "", "write the report as JSON into this file; -: print it instead of the tables")
	flags.BoolVar(&f.strict, "strict", false, "fail if any request failed")
}

// fill makes the options of the flags. chosen says that the number of requests was given.
func (f *benchFlags) fill(chosen bool) error {
	o := &f.options
	if o.Key == "" {
		o.Key = os.Getenv("INFINITE_API_KEY") // not as the flag's default, which --help shows
	}
	var err error
	if o.URL, err = serverURL(o.URL); err != nil {
		return err
	}
	for _, text := range f.rates {
		rate, err := loadgen.ParseRate(text)
		if err != nil {
			return fmt.Errorf("cannot use --request-rate: %w", err)
		}
		for _, n := range f.concurrency {
			o.Loads = append(o.Loads, loadgen.Load{Concurrency: n, Rate: rate})
		}
	}
	o.Goodput = []loadgen.Limit{}
	for _, text := range f.goodput {
		limit, err := loadgen.ParseLimit(text)
		if err != nil {
			return fmt.Errorf("cannot use --goodput: %w", err)
		}
		o.Goodput = append(o.Goodput, limit)
	}
	if err := o.Check(); err != nil || o.DatasetFile == "" {
		return err
	}
	if o.Shape.Format != loadgen.Text {
		return errors.New("cannot use --dataset, which has text, with --prompt-format tokens")
	}
	return f.readDataset(chosen)
}

func (f *benchFlags) readDataset(chosen bool) error {
	o := &f.options
	file, err := os.Open(o.DatasetFile)
	if err != nil {
		return fmt.Errorf("cannot read the data set: %w", err)
	}
	defer func() { _ = file.Close() }()
	most := loadgen.MaxRequests
	if chosen {
		most = o.Requests
	}
	if o.Dataset, err = loadgen.ReadDataset(file, o.Shape.Output, most); err != nil {
		return fmt.Errorf("cannot read the data set %s: %w", o.DatasetFile, err)
	}
	if !chosen {
		o.Requests = len(o.Dataset)
	}
	return nil
}

// open makes the file of --json; nil when the report goes elsewhere.
func (f *benchFlags) open() (*os.File, error) {
	if f.json == "" || f.json == "-" {
		return nil, nil
	}
	file, err := os.Create(f.json)
	if err != nil {
		return nil, fmt.Errorf("cannot write the report: %w", err)
	}
	return file, nil
}

// print writes what was asked for, into file if there is one, and closes it.
func (f *benchFlags) print(cmd *cobra.Command, file *os.File, report *loadgen.Report) error {
	if f.json == "-" {
		return printJSON(cmd.OutOrStdout(), "the report", report)
	}
	err := report.Tables(cmd.OutOrStdout())
	if file == nil {
		return err
	}
	return errors.Join(err, printJSON(file, "the report", report), file.Close())
}
