package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/doctor"
	"github.com/infinite-llm/infinite/engine/node"
	"github.com/infinite-llm/infinite/rdma"
)

func doctorCommand() *cobra.Command {
	var asJSON, strict bool
	cmd := &cobra.Command{
		Use: "doctor [MODEL]", Short: "Check this machine for serve with the same settings; says what is wrong, and the remedy",
		Long: `Check this machine for serve with the same settings: one line for each thing, with ok, warning or error,
what was found, and after an arrow the remedy. A warning costs speed or a feature, an error keeps serve from
doing what it is told to. The exit status is 0 without errors, else 1.`,
		Args: cobra.MaximumNArgs(1),
	}
	load := bindFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one array of {check, subject, level, found, remedy}")
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings make the exit status 1, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return examine(cmd, thisMachine(load()), asJSON, strict)
	}
	return cmd
}

func examine(cmd *cobra.Command, m *doctor.Machine, asJSON, strict bool) error {
	out := cmd.OutOrStdout()
	colour := out == os.Stdout && term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""
	results := []doctor.Result{} // not nil: an empty array, not null
	var summary doctor.Summary
	doctor.Run(cmd.Context(), m, doctor.Checks(), func(r doctor.Result) {
		summary.Add(r)
		if results = append(results, r); !asJSON {
			fmt.Fprintln(out, r.Line(colour))
		}
	})
	if asJSON {
		if err := printJSON(out, "the results", results); err != nil {
			return err
		}
	}
	if err := cmd.Context().Err(); err != nil {
		return fmt.Errorf("cannot finish the checks: %w", err)
	}
	return summary.Err(strict)
}

// thisMachine gives the checks what they need of the engine. With settings that cannot be used they get the defaults.
func thisMachine(cfg config.Config, err error) *doctor.Machine {
	m := doctor.This()
	if m.ConfigErr = err; err == nil {
		m.Config = cfg
	}
	m.Threads = node.Threads(m.Config)
	m.Etcd, m.Folder, m.Files = askEtcd, cluster.CheckFolder, node.FilesNeeded(m.Config, 0)
	m.Refused = func() error { return refused(m.Config) }
	m.Join = func(ctx context.Context) (bool, error) { return node.CheckJoin(ctx, m.Config) }
	m.Ports = verbsPorts
	m.UsesGPUs, m.CUDALibrary = device.BuiltForCUDA, device.CUDALibrary
	places, err := node.Places(m.Config)
	if err == nil {
		err = node.CheckQuantization(m.Config.Quantization, places[0].OnGPU())
	}
	if m.DeviceErr = err; err != nil {
		places = []node.Place{{GPU: -1}}
	} else {
		m.Device = placesText(places)
	}
	m.OnGPU = places[0].OnGPU()
	m.RingBytes = func() (uint64, error) { return ringBytes(m.Config, places[0]) }
	m.GPUNeed = func() (string, error) { return gpuNeed(m.Config, places[0]) }
	return m
}

// refused is what serve says of settings. That there is no model is not about them.
func refused(cfg config.Config) error {
	m, err := node.OpenModel(cfg)
	if err != nil {
		return nil
	}
	defer func() { _ = m.Close() }()
	_, err = node.Settle(cfg, m.Config)
	return err
}

func askEtcd(ctx context.Context, endpoint string) error {
	c, err := cluster.EtcdClient([]string{endpoint}, 0)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = c.Status(ctx, endpoint)
	return err
}

func verbsPorts() ([]doctor.VerbsPort, error) {
	found, err := rdma.VerbsPorts(rdma.VerbsConfig{}, nil)
	ports := make([]doctor.VerbsPort, len(found))
	for i, p := range found {
		ports[i] = doctor.VerbsPort{Device: p.Device, Port: p.Port, MTU: p.MTU}
	}
	return ports, err
}

// placesText is where the instances compute, each place once, and why.
func placesText(places []node.Place) string {
	var names []string
	for _, p := range places {
		if !slices.Contains(names, p.Name()) {
			names = append(names, p.Name())
		}
	}
	return strings.Join(names, ", ") + "; " + places[0].Why
}

// shape is the device of the first instance.
func shape(cfg config.Config, place node.Place) (d device.Config, dtype string, err error) {
	m, err := node.OpenModel(cfg)
	if err != nil {
		return d, "", err
	}
	defer func() { _ = m.Close() }()
	if dtype, err = node.DType(cfg.DType, m.Config.DType, place.OnGPU()); err != nil {
		return d, "", err
	}
	d, err = node.DeviceConfig(cfg, m, dtype, place)
	return d, dtype, err
}

// gpuNeed says what pool an instance gets.
func gpuNeed(cfg config.Config, place node.Place) (string, error) {
	d, dtype, err := shape(cfg, place)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("on %s an instance gets a pool of %d blocks (%d tokens) in %s", place.Name(), d.NumBlocks, d.NumBlocks*d.BlockSize,
		node.KVDType(cfg.KVCacheDType, dtype)), nil
}

// ringBytes is the locked memory of the links to one peer: a query lane and a move lane in each direction. A
// link has slots to receive into, as the rManager asks for, and as many and half as many again to send from.
func ringBytes(cfg config.Config, place node.Place) (uint64, error) {
	d, _, err := shape(cfg, place)
	if err != nil {
		return 0, err
	}
	both := func(slots uint64) uint64 { return 2*slots + (slots+1)/2 }
	const directions = 2
	return directions * (both(uint64(device.QuerySlots))*device.QuerySlotBytes(d) + both(cluster.MoveSlots)*device.MoveSlotBytes(d)), nil
}
