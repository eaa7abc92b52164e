package node

import (
	"fmt"
	"slices"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/rdma"
)

// Settled is what settings come to for a model on this machine.
type Settled struct {
	Places      []Place // of the instances
	DType       string
	MaxModelLen int
}

// Settle works it out, or says what cannot be used. An API process asks before it starts instances, so that the cause is
// told once, each instance for itself, and infinite doctor for whoever has not started any.
func Settle(cfg config.Config, m *model.Config) (s Settled, err error) {
	if s.Places, err = Places(cfg); err != nil {
		return s, err
	}
	onGPU := s.Places[0].OnGPU()
	if s.DType, err = DType(cfg.DType, m.DType, onGPU); err != nil {
		return s, err
	}
	if err = CheckQuantization(cfg.Quantization, onGPU); err != nil {
		return s, err
	}
	if err = CheckFourBits(cfg.Quantization, m, onGPU); err != nil {
		return s, err
	}
	if err = CheckRanks(cfg, m); err != nil {
		return s, err
	}
	if s.MaxModelLen, err = ModelLen(cfg, m); err != nil {
		return s, err
	}
	if cfg.KVCacheMemory == 0 && onGPU {
		return s, nil // sized by what is free there, which only who uses the GPU should ask
	}
	block, err := BlockBytes(cfg, m, s.DType)
	if err != nil {
		return s, err
	}
	_, err = poolBlocks(cfg, block)
	return s, err
}

// CheckTransport refuses to start without the transport that was asked for. A port that is down only now is waited for.
func CheckTransport(cfg config.Config) error {
	verbs := LinkChoice(cfg).Verbs
	if rdma.Transport(cfg.Transport) != rdma.Verbs || rdma.Rails(verbs) > 0 {
		return nil
	}
	_, err := rdma.VerbsPorts(verbs, nil)
	return fmt.Errorf("cannot use --transport verbs: %w; see: infinite doctor", err)
}

// MissingDevices are those of --rdma-device that this machine does not have, where links could use them.
func MissingDevices(cfg config.Config) []string {
	if len(cfg.RDMADevice) == 0 || !cfg.MayUseVerbs() {
		return nil
	}
	devices, err := rdma.Devices()
	if err != nil {
		return nil // what that means is said where a link is made
	}
	return slices.DeleteFunc(slices.Clone(cfg.RDMADevice), func(name string) bool {
		return slices.Contains(devices, name)
	})
}
