package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/top/live"
)

// topFlags are what `infinite top` was told.
type topFlags struct {
	url, key string
	options  live.Options
}

const leastInterval, mostInterval = 100 * time.Millisecond, time.Hour

func topCommand() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use: "top", Short: "Look at a running cluster: instances, their KV pools and rates, and where requests' KV lies",
		Long: `Look at a running cluster, again and again: totals, instances, and the largest requests with where their KV lies, a letter for
each instance. On a terminal q and Ctrl-C end it; elsewhere it prints all anew at each interval.

POOL IN USE: blocks of requests here, of those the ones that others use where they lie (SHARED counts uses), blocks of others
(HOSTED), free ones with KV that requests may begin with (CACHED), and those without. LENT: blocks elsewhere, of requests here.
STEP: mean time of a step; REMOTE: share of it spent waiting for the partials of others; MOVE/S: blocks sent to others.
HITS: share of the tokens of requests that began in the last minute, or else so far, whose KV was there; SHARED beside it:
those used at other instances. Rates are between two samples, - while there is none before. Tokens in and out are those of
the API process that is asked.

While the server is away that is said, and asked on. The status is 1 if it refuses the key, or with --once if it is away.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", defaultServer, "server, without /v1")
	flags.StringVar(&f.key, "api-key", "", "key of the server, default $INFINITE_API_KEY")
	flags.DurationVar(&f.options.Interval, "interval", time.Second, "between two samples, from 100ms to 1h")
	flags.BoolVar(&f.options.Once, "once", false, "print one table, of two samples, and end")
	flags.BoolVar(&f.options.JSON, "json", false, "print JSON, an object a line for each sample")
	return cmd
}

func (f *topFlags) run(cmd *cobra.Command) error {
	o := &f.options
	if f.key == "" {
		f.key = os.Getenv("INFINITE_API_KEY") // not as the flag's default, which --help shows
	}
	url, err := serverURL(f.url)
	if err != nil {
		return err
	}
	if o.Interval < leastInterval || o.Interval > mostInterval {
		return fmt.Errorf("cannot use --interval %s, which is not between %s and %s", o.Interval, leastInterval, mostInterval)
	}
	client := &openai.Client{URL: url, Key: f.key}
	o.Source, o.Out, o.Width = openai.Printable(client.URL, 200), cmd.OutOrStdout(), live.Columns(os.Stdout)
	if !o.Once && !o.JSON && live.IsTerminal(os.Stdout) {
		if o.Screen, err = live.OpenScreen(os.Stdin, os.Stdout, os.Getenv("NO_COLOR") == ""); err != nil {
			return err
		}
		defer o.Screen.Close() // also after a panic
	}
	return live.Run(cmd.Context(), &live.Server{Client: client}, *o)
}
