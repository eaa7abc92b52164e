package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/head"
	"github.com/infinite-llm/infinite/engine/node"
)

// headOnly are settings that an instance which joins a cluster does not look at. In a file or a variable they may be meant
// for others; as flags they are a mistake.
var headOnly = []string{"host", "port", "api-key", "served-model-name", "max-body-size", "seed", "cluster-port", "cluster-id", "etcd-endpoints", "max-restarts"}

func givenFlags(cmd *cobra.Command, names []string) (given []string) {
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	return given
}

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve [MODEL]", Short: "Serve a model: the API and its instances; with --join, one more instance",
		Args: cobra.MaximumNArgs(1),
	}
	load := bindFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if missing := node.MissingDevices(cfg); len(missing) > 0 && !head.IsChild() { // whose head has said so
			slog.Warn("--rdma-device names what this machine does not have; links do without it; see: infinite doctor", "missing", strings.Join(missing, " "))
		}
		hurry := draining(cmd.Context())
		if cfg.Join != "" {
			if idle := givenFlags(cmd, headOnly); len(idle) > 0 {
				slog.Warn("with --join these flags have no effect: they are the API process's, which this is not", "flags", strings.Join(idle, " "))
			}
			return node.Run(cmd.Context(), hurry, cfg)
		}
		h, err := head.Start(cmd.Context(), hurry, cfg)
		if err != nil {
			return err
		}
		defer h.Close()
		announce(cmd, cfg, h)
		return untilEnd(cmd, h)
	}
	return cmd
}

// untilEnd waits for a signal, or for what the process cannot go on after.
func untilEnd(cmd *cobra.Command, h *head.Head) error {
	select {
	case <-cmd.Context().Done():
		return nil
	case err := <-h.Failed():
		failing(cmd.Context(), err)
		return err
	}
}

func announce(cmd *cobra.Command, cfg config.Config, h *head.Head) {
	name := h.ModelName()
	fmt.Fprintf(cmd.OutOrStdout(), "serving on %s  model %s, %d instances, %d tokens of KV in all\n", h.URL(), name, cfg.Instances, h.Capacity())
	fmt.Fprintf(cmd.OutOrStdout(), "add an instance: infinite serve %s--join %s\n", shown(cfg.Model), h.ControlAddress())
}

func shown(model string) string {
	if model == "" {
		return ""
	}
	return strconv.Quote(filepath.Clean(model)) + " "
}
