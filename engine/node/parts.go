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
	cfg.KVCacheMemory = 1 << 40
	d, err := DeviceConfig(cfg, m, dtype)
	return device.BlockBytes(d), err
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

// DeviceConfig sizes a device for a model: the pool from --kv-cache-memory, the step's buffers from the
// limits of the scheduler.
func DeviceConfig(cfg config.Config, m *model.Config, dtype string) (device.Config, error) {
	d := device.Config{
		Layers: m.NumLayers, Hidden: m.HiddenSize, Intermediate: m.IntermediateSize, Heads: m.NumHeads, KVHeads: m.NumKVHeads,
		HeadDim: m.HeadDim, Vocab: m.VocabSize, QKVBias: m.QKVBias, QKNorm: m.QKNorm, Tied: m.TieEmbeddings, RMSEps: m.RMSNormEps,
		DType: device.F32, BlockSize: cfg.BlockSize, MaxTokens: cfg.MaxNumBatchedTokens, MaxSeqs: cfg.MaxNumSeqs,
		MaxRows: cfg.MaxNumBatchedTokens, MaxSpans: maxHostedSpans, MaxStepSpans: spansPerSeq * cfg.MaxNumSeqs, Threads: Threads(cfg),
		ISA: map[string]int{"auto": 0, "c": 1, "avx2": 2, "avx512": 3}[cfg.ISA],
	}
	if dtype == "bfloat16" {
		d.DType = device.BF16
	}
	_, scale := m.RopeTable()
	d.RopeScale = float32(scale)
	block := device.BlockBytes(d)
	if block == 0 {
		return d, fmt.Errorf("cannot size a KV block of %d tokens", cfg.BlockSize)
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

// Threads resolves --threads: the CPUs divided among this machine's instances.
func Threads(cfg config.Config) int {
	if cfg.Threads > 0 {
		return cfg.Threads
	}
	return max(1, runtime.GOMAXPROCS(0)/max(1, cfg.Instances))
}

func openDevice(shape device.Config, m *model.Model) (*device.Device, error) {
	invFreq, _ := m.Config.RopeTable()
	freq := make([]float32, len(invFreq))
	for i, f := range invFreq {
		freq[i] = float32(f)
	}
	windows := make([]int32, m.Config.NumLayers)
	for i, w := range m.Config.SlidingWindow {
		windows[i] = int32(w)
	}
	dev, err := device.Open(shape, freq, windows)
	if err != nil {
		return nil, err
	}
	tensors, err := m.Tensors()
	if err == nil {
		err = load(dev, tensors, m.Config.TieEmbeddings)
	}
	if err == nil {
		err = dev.Ready()
	}
	if err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

func load(dev *device.Device, tensors []model.Tensor, tied bool) error {
	said := time.Now()
	for i, t := range tensors {
		if t.Role == model.LMHead && tied {
			continue // the device takes the embedding for it
		}
		if err := dev.Load(int(t.Role), t.Layer, int(t.DType), int64(t.Rows), int64(t.Cols), t.Data); err != nil {
			return fmt.Errorf("cannot load tensor %d of %d: %w", i+1, len(tensors), err)
		}
		if time.Since(said) > 2*time.Second {
			said = time.Now()
			slog.Info("loading the model", "percent", 100*(i+1)/len(tensors))
		}
	}
	return nil
}
