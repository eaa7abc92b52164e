package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/head"
	"github.com/infinite-llm/infinite/engine/node"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve [MODEL]", Short: "Serve a model: the OpenAI API and its instances; with --join, one more instance",
		Args: cobra.MaximumNArgs(1),
	}
	load := bindFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if cfg.Join != "" {
			return node.Run(cmd.Context(), cfg)
		}
		h, err := head.Start(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		announce(cmd, cfg, h)
		select {
		case <-cmd.Context().Done():
			slog.Info("draining")
		case err = <-h.Failed():
		}
		h.Close()
		return err
	}
	return cmd
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
