package node

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"time"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/tokenizer"
	"github.com/infinite-llm/infinite/rdma"
)

// OpenModel opens a model folder, or the bundled model for "".
func OpenModel(dir string) (*model.Model, error) {
	if dir == "" {
		return model.OpenFS(model.Bundled())
	}
	return model.Open(dir)
}

// OpenTokenizer opens a model folder's tokenizer, or the bundled model's for "".
func OpenTokenizer(dir string) (*tokenizer.Tokenizer, error) {
	if dir == "" {
		return tokenizer.LoadFS(model.Bundled())
	}
	return tokenizer.Load(dir)
}

// BlockBytes is the memory of one KV block.
func BlockBytes(cfg config.Config, m *model.Config, dtype string) (uint64, error) {
	block := device.BlockBytes(stepConfig(cfg, m, dtype))
	if block == 0 {
		return 0, fmt.Errorf("cannot size a KV block of %d tokens", cfg.BlockSize)
	}
	return block, nil
}

// DType resolves --dtype for a checkpoint: "float32" or "bfloat16". The CPU has no f16 arithmetic, and
// f16 does not fit bf16 without loss, so auto takes f32 for an f16 checkpoint.
func DType(flag, checkpoint string) (string, error) {
	switch {
	case flag == "float32" || flag == "bfloat16":
		return flag, nil
	case flag != "auto":
		return "", fmt.Errorf("cannot use --dtype %s", flag)
	case checkpoint == "bfloat16":
		return "bfloat16", nil
	}
	return "float32", nil
}

// Limits of one step that no flag sets.
const (
	maxHostedSpans = 4096
	spansPerSeq    = 64
)

// stepConfig is a device's config but for the pool's size: the step's buffers get the scheduler's limits.
func stepConfig(cfg config.Config, m *model.Config, dtype string) device.Config {
	d := device.ForModel(m, device.Config{
		DType: device.F32, BlockSize: cfg.BlockSize, MaxTokens: cfg.MaxNumBatchedTokens, MaxSeqs: cfg.MaxNumSeqs,
		MaxRows: cfg.MaxNumBatchedTokens, MaxSpans: maxHostedSpans, MaxStepSpans: spansPerSeq * cfg.MaxNumSeqs, Threads: Threads(cfg),
		ISA: map[string]int{"auto": 0, "c": 1, "avx2": 2, "avx512": 3}[cfg.ISA],
	})
	if dtype == "bfloat16" {
		d.DType = device.BF16
	}
	return d
}

// DeviceConfig sizes a device for a model, its pool by --kv-cache-memory.
func DeviceConfig(cfg config.Config, m *model.Config, dtype string) (device.Config, error) {
	d := stepConfig(cfg, m, dtype)
	block, err := BlockBytes(cfg, m, dtype)
	if err != nil {
		return d, err
	}
	blocks := uint64(cfg.KVCacheMemory) / block
	if blocks < 2 || blocks > math.MaxInt32/2 {
		return d, fmt.Errorf("cannot use --kv-cache-memory %s: it holds %d blocks of %d bytes; between 2 and %d are needed",
			cfg.KVCacheMemory, blocks, block, math.MaxInt32/2)
	}
	d.NumBlocks = int(blocks)
	d.MaxStepBlocks = d.NumBlocks
	return d, nil
}

// linkChoice is what links to peers may be.
func linkChoice(cfg config.Config) rdma.Choice {
	return rdma.Choice{Transport: rdma.Transport(cfg.Transport), Verbs: rdma.VerbsConfig{
		Devices: cfg.RDMADevice, GIDIndex: cfg.RDMAGIDIndex + 1, TrafficClass: cfg.RDMATrafficClass, MTU: cfg.RDMAMTU,
	}}
}

// Threads resolves --threads: the CPUs divided among this machine's instances.
func Threads(cfg config.Config) int {
	if cfg.Threads > 0 {
		return cfg.Threads
	}
	return max(1, runtime.GOMAXPROCS(0)/max(1, cfg.Instances))
}

// openDevice loads the model, and says how far it is when that takes long.
func openDevice(shape device.Config, m *model.Model) (*device.Device, error) {
	said := time.Now()
	return device.LoadModel(m, shape, func(done, all int) {
		if time.Since(said) > 2*time.Second {
			said = time.Now()
			slog.Info("loading the model", "percent", 100*done/all)
		}
	})
}
