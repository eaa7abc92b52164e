package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/server"
	"github.com/infinite-llm/infinite/engine/trace"
	"github.com/infinite-llm/infinite/engine/trace/probe"
)

// tracing is what `infinite trace` was told.
type tracing struct {
	pids      []int
	duration  time.Duration
	asJSON    bool
	functions bool
	peer      int
	step      uint64
	request   string
	url, key  string
	maxEvents int
}

func traceCommand() *cobra.Command {
	var o tracing
	cmd := &cobra.Command{
		Use: "trace", Short: "Time the messages of running instances of this machine, by probes on them and on the kernel",
		Long: `Time the messages between running instances, by uprobes on the marks that they pass: posted, on the wire,
arrived at the creditor, computed, returned, back at home, merged. Shown are the times between these for each pair
of instances, the steps of each request, and the slowest step message by message. With Soft-RoCE, kprobes
count and time the kernel's part. Instances whose processes are not traced, such as those of other hosts, show only by
what comes back.

It needs Linux 5.8 on x86-64 or arm64, and root or CAP_BPF and CAP_PERFMON. What cannot be probed is named, with the
reason. While it runs each mark costs the instance about a microsecond; before and after it costs nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.key == "" {
				o.key = os.Getenv("INFINITE_API_KEY")
			}
			setLogger("info")
			return o.run(cmd)
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&o.pids, "pid", nil, "process to trace, again for each; default all of this program, and of those called infinite...")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "how long to look; 0: until interrupted")
	f.BoolVar(&o.asJSON, "json", false, "print the report as JSON")
	f.BoolVar(&o.functions, "kernel", true, "probe the kernel's functions for verbs too")
	f.IntVar(&o.peer, "peer", -1, "only messages of which one end calls the other so; -1: all")
	f.StringVar(&o.request, "request", "", "only steps of the request with this id, an answer's or one of /cluster")
	f.Uint64Var(&o.step, "step", 0, "step to show message by message, default the slowest")
	f.StringVar(&o.url, "url", "", "server that is asked for the ids of requests, which otherwise have numbers")
	f.StringVar(&o.key, "api-key", "", "key of the server, default $INFINITE_API_KEY")
	f.IntVar(&o.maxEvents, "max-events", 4_000_000, "stop after so many; a query has 7, and they are kept in memory")
	return cmd
}

func (o *tracing) processes() (list []trace.Process, err error) {
	if len(o.pids) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("cannot find this program: %w", err)
		}
		if list, err = probe.Find("/proc", self, os.Getpid()); err == nil && len(list) == 0 {
			err = errors.New("cannot trace: no process of this program is running here that this user may look at; give its --pid")
		}
		return list, err
	}
	for _, pid := range o.pids {
		p, err := probe.Look("/proc", pid)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func (o *tracing) run(cmd *cobra.Command) (err error) {
	if o.url != "" {
		if o.url, err = serverURL(o.url); err != nil {
			return err
		}
	}
	list, err := o.processes()
	if err != nil {
		return err
	}
	s, err := probe.Open(probe.Config{Processes: list, Functions: o.functions, RingBytes: probe.DefaultRing})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if o.duration > 0 {
		time.AfterFunc(o.duration, stop)
	}
	slog.Info("tracing", "processes", len(list), "for", o.duration)
	names := o.names(ctx)
	t := trace.New()
	err = s.Read(ctx, func(e trace.Event) {
		if t.Add(e); t.Events == o.maxEvents {
			slog.Warn("stopped early, at the most events that are kept", "max_events", o.maxEvents)
			stop()
		}
	})
	stop()
	src := trace.Source{Processes: s.Processes(), Refused: s.Refused(), Unknown: s.Unknown(), Names: <-names}
	if err == nil {
		src.Lost, err = s.Lost()
	}
	if err == nil {
		src.Functions, err = s.Functions()
	}
	if err == nil {
		err = o.print(cmd, t, src)
	}
	return errors.Join(err, s.Close()) // after the report: it takes a while
}

// ids are what the engine may call the request: an answer of the API has several choices and prompts.
func (o *tracing) ids() []string {
	if o.request == "" {
		return nil
	}
	all := []string{o.request}
	for i := range 128 {
		all = append(all, o.request+"-"+strconv.Itoa(i))
	}
	return all
}

// names asks the server which requests there are, until ctx ends. Those that come and go between two looks
// stay without a name.
func (o *tracing) names(ctx context.Context) <-chan map[uint64]string {
	out := make(chan map[uint64]string, 1)
	names := map[uint64]string{}
	for _, id := range o.ids() {
		names[uint64(batch.Tag(id))] = id
	}
	if o.url == "" {
		out <- names
		return out
	}
	c := &openai.Client{URL: o.url, Key: o.key}
	go func() {
		told := false
		for {
			var v server.ClusterView
			err := c.Get(ctx, "/cluster", &v)
			if err != nil && ctx.Err() == nil && !told {
				told = true
				slog.Warn("cannot ask for the ids of requests", "url", c.URL, "error", err)
			}
			for _, r := range v.Requests {
				names[uint64(batch.Tag(r.ID))] = r.ID
			}
			select {
			case <-ctx.Done():
				out <- names
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return out
}

func (o *tracing) print(cmd *cobra.Command, t *trace.Trace, src trace.Source) error {
	opt := trace.Options{Peer: o.peer, Step: o.step}
	for _, id := range o.ids() {
		if opt.Requests == nil {
			opt.Requests = map[uint64]bool{}
		}
		opt.Requests[uint64(batch.Tag(id))] = true
	}
	r := t.Report(src, opt)
	if !o.asJSON {
		return r.Text(cmd.OutOrStdout())
	}
	return printJSON(cmd.OutOrStdout(), "the report", r)
}
