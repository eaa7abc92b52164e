// Command infinite serves language models over a cluster's pooled KV cache.
//
//	signals.go    what Ctrl-C and SIGTERM do, once, twice and three times
//	serve.go      infinite serve: an API and its instances, or with --join one more instance
//	sample.go     infinite sample: what `make run` shows
//	chat.go       infinite chat: talks to a running server
//	doctor.go     infinite doctor: checks of this machine
//	trace.go      infinite trace: times of messages of running instances
//	linkbench.go  infinite linkbench: latency and bandwidth between two processes
//	bench.go      infinite bench: loads any server of OpenAI's API
//	top.go        infinite top: a running cluster, live
//	flags.go      flags that commands share, and what is wrong with them
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/head"
	"github.com/infinite-llm/infinite/engine/model"
)

func main() { os.Exit(run()) }

func run() int {
	ctx := untilSignal(context.Background())
	root := &cobra.Command{
		Use: "infinite", Short: "An LLM serving engine that pools the KV cache of all its instances",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(serveCommand(), sampleCommand(), chatCommand(), doctorCommand(), traceCommand(), linkbenchCommand(), benchCommand(), topCommand(), versionCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		var wrong *wrongAnswer
		if !errors.As(err, &wrong) && !head.TellHead(err) {
			fmt.Fprintln(os.Stderr, "infinite:", err)
		}
		return 1
	}
	return 0
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		version := "unknown"
		if info, ok := debug.ReadBuildInfo(); ok {
			version = info.Main.Version
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					version += " " + s.Value
				}
			}
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "infinite", version)
		return err
	}}
}

// bindFlags makes a flag of every setting, or of the named ones, and returns how to load the configuration once
// flags are parsed.
func bindFlags(cmd *cobra.Command, only ...string) func() (config.Config, error) {
	defaults := config.Default()
	var file string
	cmd.Flags().StringVar(&file, "config", "", "YAML file of settings, by the flags' names")
	bound := func(name string) bool { return name != "model" && (len(only) == 0 || slices.Contains(only, name)) }
	for _, f := range config.Fields(&defaults) {
		if bound(f.Name) {
			cmd.Flags().String(f.Name, f.String(), f.Usage)
			if f.IsBool() {
				cmd.Flags().Lookup(f.Name).NoOptDefVal = "true"
				cmd.Flags().Bool("no-"+f.Name, false, "the same as --"+f.Name+"=false")
				cmd.MarkFlagsMutuallyExclusive(f.Name, "no-"+f.Name)
			}
		}
	}
	return func() (config.Config, error) {
		given := map[string]string{}
		for _, f := range config.Fields(&defaults) {
			if flag := cmd.Flags().Lookup(f.Name); bound(f.Name) && flag != nil && flag.Changed {
				given[f.Name] = flag.Value.String()
			}
			if not := cmd.Flags().Lookup("no-" + f.Name); not != nil && not.Value.String() == "true" {
				given[f.Name] = "false"
			}
		}
		if args := cmd.Flags().Args(); len(args) == 1 {
			given["model"] = args[0]
		}
		if file == "" {
			file = os.Getenv("INFINITE_CONFIG")
		}
		cfg, err := config.Load(file, os.LookupEnv, given)
		if err == nil {
			setLogger(cfg.LogLevel)
		}
		warnOfStrays()
		if err == nil && len(only) == 0 {
			err = findModel(&cfg)
		}
		return cfg, err
	}
}

// findModel makes a folder of a model's name, under which the API then knows it.
func findModel(cfg *config.Config) error {
	dir, err := model.Find(cfg.Model, cfg.Revision, os.Getenv)
	if err != nil {
		return &config.FieldError{Field: "model", Err: err}
	}
	if dir != cfg.Model && len(cfg.ServedModelName) == 0 {
		cfg.ServedModelName = []string{cfg.Model}
	}
	cfg.Model = dir
	return nil
}

// warnOfStrays names variables that look like settings and are none. Their values may be secrets.
func warnOfStrays() {
	for _, entry := range os.Environ() {
		if config.Stray(entry) {
			name, _, _ := strings.Cut(entry, "=")
			slog.Warn("a variable is ignored: there is no such setting", "variable", name)
		}
	}
}

// printJSON prints what a command found out, for programs.
func printJSON(out io.Writer, what string, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("cannot print %s: %w", what, err)
	}
	return nil
}

func setLogger(level string) {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // validated
	var h slog.Handler = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})
	if term.IsTerminal(int(os.Stderr.Fd())) {
		h = tint.NewTextHandler(os.Stderr, &tint.Options{Level: l, TimeFormat: "15:04:05.000"})
	}
	slog.SetDefault(slog.New(h))
}
