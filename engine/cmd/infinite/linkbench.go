package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/linkbench"
	"github.com/infinite-llm/infinite/engine/node"
)

// linkbenchFlags are the command's own flags; the others are settings.
type linkbenchFlags struct {
	listen, wait, asJSON bool
	port                 int
	connect              string
	sizes, measure       []string
	peerDevices          []string
	options              linkbench.Options
}

func linkbenchCommand() *cobra.Command {
	var f linkbenchFlags
	cmd := &cobra.Command{
		Use: "linkbench", Short: "Measure a link between two processes: latency and bandwidth over a sweep of sizes",
		Long: `Measure a link between two processes, as instances have them: round trips (p50, p99, max) and bandwidth over a
sweep of sizes. With --listen on one host and --connect HOST:PORT on another it measures between these; with
neither it starts a second process on this host. Round trips are whole ones, there and back (perftest prints
half). Both ends of a round trip poll, and of the ends of a bandwidth the sender, as perftest does, unless
--wait is given to the end that connects; who polls needs a CPU of its own.`,
		Args: cobra.NoArgs,
	}
	load := bindFlags(cmd, "transport", "rdma-device", "rdma-gid-index", "rdma-traffic-class", "rdma-mtu",
		"cluster-host", "cluster-secret", "cluster-id", "peer-timeout", "log-level")
	flags := cmd.Flags()
	flags.BoolVar(&f.listen, "listen", false, "answer one client; prints what to connect to")
	flags.IntVar(&f.port, "port", 0, "port to --listen on, at --cluster-host; 0 picks a free one")
	flags.StringVar(&f.connect, "connect", "", "HOST:PORT that --listen printed")
	flags.StringSliceVar(&f.sizes, "sizes", []string{"64", "4KiB", "16KiB", "64KiB", "1MiB"}, "sizes of messages, up to 64MiB")
	flags.StringSliceVar(&f.measure, "measure", nil, "what: latency, bandwidth, puts (verbs); default all that the link can do")
	flags.Uint64Var(&f.options.Rounds, "rounds", 0, "round trips, and messages one way, of each size; 0: as many as --duration has time for")
	flags.DurationVar(&f.options.Duration, "duration", time.Second, "longest time for each figure")
	flags.Uint32Var(&f.options.Slots, "slots", linkbench.DefaultSlots, "messages that may be under way")
	flags.BoolVar(&f.wait, "wait", false, "both ends sleep between messages")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON instead of a table")
	flags.StringSliceVar(&f.peerDevices, "peer-rdma-device", nil, "without --listen and --connect: --rdma-device of the second process")
	cmd.MarkFlagsMutuallyExclusive("listen", "connect", "peer-rdma-device")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if f.listen {
			return linkbenchListen(cmd, cfg, f.port)
		}
		if err := f.fill(cfg); err != nil {
			return err
		}
		return linkbenchMeasure(cmd, cfg, &f)
	}
	return cmd
}

// fill makes the options of the flags and the settings.
func (f *linkbenchFlags) fill(cfg config.Config) error {
	for _, text := range f.sizes {
		size, err := config.ParseSize(text)
		if err != nil {
			return fmt.Errorf("cannot use --sizes: %w", err)
		}
		f.options.Sizes = append(f.options.Sizes, uint64(size))
	}
	f.options.Measure, f.options.Waits = f.measure, f.wait
	f.options.Cluster, f.options.Secret, f.options.Silence = cfg.ClusterID, cfg.ClusterSecret, cfg.PeerTimeout
	f.options.Link = node.LinkChoice(cfg)
	return f.options.Check()
}

func linkbenchListen(cmd *cobra.Command, cfg config.Config, port int) error {
	if port < 0 || port > 65535 {
		return fmt.Errorf("cannot use --port %d, which is not between 0 and 65535", port)
	}
	s, err := linkbench.Listen(linkbench.ServerOptions{
		Cluster: cfg.ClusterID, Secret: cfg.ClusterSecret, Host: cfg.ClusterHost, Port: port,
		Verbs: node.LinkChoice(cfg).Verbs, Silence: cfg.PeerTimeout,
	})
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Fprintf(cmd.OutOrStdout(), "on the other side: %s%s\n", linkbench.Ready, s.Address())
	return s.Serve(cmd.Context())
}

func linkbenchMeasure(cmd *cobra.Command, cfg config.Config, f *linkbenchFlags) error {
	address := f.connect
	var second *linkbench.Second
	if address == "" {
		if f.options.Secret == "" {
			f.options.Secret = rand.Text() // the second process alone may answer
		}
		var err error
		if second, err = startSecond(cmd.Context(), cfg, f); err != nil {
			return err
		}
		address = second.Address
	}
	report, err := linkbench.Measure(cmd.Context(), address, f.options)
	if second != nil {
		err = errors.Join(err, second.End(err != nil))
	}
	if err != nil {
		return err
	}
	if !f.asJSON {
		return report.Table(cmd.OutOrStdout())
	}
	return printJSON(cmd.OutOrStdout(), "the report", report)
}

// startSecond starts this program to listen with the same settings, which it is told by variables: arguments
// can be seen by all.
func startSecond(ctx context.Context, cfg config.Config, f *linkbenchFlags) (*linkbench.Second, error) {
	cfg.ClusterSecret, cfg.ClusterHost = f.options.Secret, "127.0.0.1"
	cfg.Host = config.Default().Host // it serves no API, which without a key might be refused
	if len(f.peerDevices) > 0 {
		cfg.RDMADevice = f.peerDevices
	}
	env := []string{"INFINITE_CONFIG="}
	for _, field := range config.Fields(&cfg) {
		env = append(env, field.Env()+"="+field.String())
	}
	return linkbench.StartSecond(ctx, []string{"linkbench", "--listen"}, env)
}
