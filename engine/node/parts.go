package node

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/tokenizer"
	"github.com/infinite-llm/infinite/rdma"
)

// OpenModel opens the model folder of --model, or the bundled model for "", for requests of at most --max-model-len.
func OpenModel(cfg config.Config) (*model.Model, error) {
	m, err := openModel(cfg.Model)
	if err != nil {
		return nil, err
	}
	if err := m.Limit(cfg.MaxModelLen); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func openModel(dir string) (*model.Model, error) {
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

// DType resolves --dtype for a checkpoint: "float32", "bfloat16" or, on a GPU, "float16". The CPU has no f16
// arithmetic, and f16 does not fit bf16 without loss, so auto takes f32 there for an f16 checkpoint.
func DType(flag, checkpoint string, onGPU bool) (string, error) {
	switch {
	case flag == "float16" && !onGPU:
		return "", errors.New("cannot use --dtype float16 on the CPU: use float32, which is as exact, or bfloat16, or a GPU (--device cuda)")
	case flag != "auto":
		return flag, nil
	case checkpoint == "bfloat16" || checkpoint == "float16" && onGPU:
		return checkpoint, nil
	}
	return "float32", nil
}

// CheckQuantization refuses what a place has no kernels for.
func CheckQuantization(flag string, onGPU bool) error {
	if flag != "none" && onGPU {
		return fmt.Errorf("cannot use --quantization %s on a GPU: only the CPU has kernels for it (--device cpu)", flag)
	}
	return nil
}

// CheckFourBits refuses what a checkpoint whose matrices are in 4 bits cannot be used with.
func CheckFourBits(flag string, m *model.Config, onGPU bool) error {
	switch {
	case m.Quantized == nil:
		return nil
	case onGPU:
		return fmt.Errorf("cannot use a model with weights in 4 bits (%s) on a GPU: only the CPU has kernels for them (--device cpu)", m.Quantized.Method)
	case flag != "none":
		return fmt.Errorf("cannot use --quantization %s: the model's weights are in 4 bits (%s) as they are", flag, m.Quantized.Method)
	}
	return nil
}

// Fingerprint names the model as the instances of a cluster serve it: of other weights KV would be another model's.
func Fingerprint(cfg config.Config, m *model.Model) string {
	if cfg.Quantization == "none" {
		return m.Fingerprint
	}
	return m.Fingerprint + " " + cfg.Quantization
}

// fp8KV is the KV cache's type that --kv-cache-dtype asks for by either of its names.
const fp8KV = "fp8_e4m3"

// ModelLen resolves --max-model-len for a model: the tokens of the longest prompt plus answer. Beyond what the model is
// made for answers would be nonsense.
func ModelLen(cfg config.Config, m *model.Config) (int, error) {
	if longest := m.LongestLen(); cfg.MaxModelLen > longest {
		return 0, fmt.Errorf("cannot use --max-model-len %d: the model is made for %d tokens (max_position_embeddings and RoPE scaling in its config.json)",
			cfg.MaxModelLen, longest)
	}
	if cfg.MaxModelLen > 0 {
		return cfg.MaxModelLen, nil
	}
	return m.MaxPositions, nil
}

// KVDType resolves --kv-cache-dtype: "fp8_e4m3", or what DType made of --dtype. Instances that pool their caches
// have the same.
func KVDType(flag, dtype string) string {
	if flag == "auto" {
		return dtype
	}
	return fp8KV
}

// Limits of one step that no flag sets.
const (
	maxHostedSpans = 4096
	spansPerSeq    = 64
)

// stepConfig is a device's config but for the pool's size: the step's buffers get the scheduler's limits.
func stepConfig(cfg config.Config, m *model.Config, dtype string) device.Config {
	types := map[string]int{"float32": device.F32, "float16": device.F16, "bfloat16": device.BF16, fp8KV: device.E4M3}
	return device.ForModel(m, device.Config{
		DType: types[dtype], KVDType: types[KVDType(cfg.KVCacheDType, dtype)], Matrices: map[string]int{"int8": device.I8, "int4": device.I4}[cfg.Quantization],
		BlockSize: cfg.BlockSize, MaxTokens: cfg.MaxNumBatchedTokens, MaxSeqs: cfg.MaxNumSeqs,
		MaxRows: cfg.MaxNumBatchedTokens, MaxSpans: maxHostedSpans, MaxStepSpans: spansPerSeq * cfg.MaxNumSeqs, Threads: Threads(cfg),
		ISA: map[string]int{"auto": 0, "c": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}[cfg.ISA], TensorParallel: max(cfg.TensorParallelSize, 1),
		NoWeights: cfg.MemoryOnly,
	})
}

// LinkChoice is what links to peers may be.
func LinkChoice(cfg config.Config) rdma.Choice {
	return rdma.Choice{Transport: rdma.Transport(cfg.Transport), Verbs: rdma.VerbsConfig{
		Devices: cfg.RDMADevice, GIDIndex: cfg.RDMAGIDIndex + 1, TrafficClass: cfg.RDMATrafficClass, MTU: cfg.RDMAMTU,
	}}
}

// linkChoice is LinkChoice for an instance: on a GPU without --rdma-device the devices that are nearest to the GPU
// are preferred.
func linkChoice(cfg config.Config, place Place) rdma.Choice {
	choice := LinkChoice(cfg)
	if len(cfg.RDMADevice) > 0 || !place.OnGPU() || place.Info == nil || place.Info.PCI == "" {
		return choice
	}
	near, err := rdma.Near(place.Info.PCI)
	if err != nil {
		slog.Warn("cannot see which RDMA devices are near the GPU", "error", err)
	}
	if len(near) > 0 {
		slog.Info("links prefer the RDMA devices that are near the GPU", "devices", near, "gpu", place.Info.PCI)
	}
	choice.Verbs.Prefer = near
	return choice
}

// sharePool registers the pool with the RDMA devices that links may use, before anybody waits for it.
func sharePool(d *device.Device, choice rdma.Choice, cluster string) {
	if choice.Transport != rdma.Verbs && choice.Transport != rdma.Auto {
		return
	}
	ports, err := rdma.VerbsPorts(choice.Verbs, nil)
	if err != nil {
		return // what that means is said where a link is made
	}
	shared := map[string]bool{}
	for _, p := range ports {
		if shared[p.Device] {
			continue
		}
		shared[p.Device] = true
		begun := time.Now()
		if err := d.SharePool(p.Device, cluster); err != nil {
			slog.Warn("KV blocks will be copied through messages", "rdma_device", p.Device, "error", err)
		} else {
			slog.Info("the KV pool is registered for RDMA", "rdma_device", p.Device, "took", time.Since(begun))
		}
	}
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
