package node

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/model"
)

// maxBlocks is how many blocks a device's tables take.
const maxBlocks = 1 << 28

// BlockBytes is the memory of one KV block.
func BlockBytes(cfg config.Config, m *model.Config, dtype string) (uint64, error) {
	block := device.BlockBytes(stepConfig(cfg, m, dtype))
	if block == 0 {
		return 0, fmt.Errorf("cannot size a KV block of %d tokens", cfg.BlockSize)
	}
	return block, nil
}

// DeviceConfig sizes a device for a model: its pool by --kv-cache-memory, else on a GPU by what the rest of the
// instance leaves of its share.
func DeviceConfig(cfg config.Config, m *model.Model, dtype string, place Place) (device.Config, error) {
	d := stepConfig(cfg, m.Config, dtype)
	d.GPU = place.GPU + 1
	if err := CheckRanks(cfg, m.Config); err != nil {
		return d, err
	}
	block, err := BlockBytes(cfg, m.Config, dtype)
	if err != nil {
		return d, err
	}
	if cfg.KVCacheMemory == 0 && place.OnGPU() {
		d.NumBlocks, err = blocksOnGPU(m, d, place, block)
	} else {
		d.NumBlocks, err = poolBlocks(cfg, block)
	}
	d.MaxStepBlocks = stepBlocks(cfg, m.Config, d.NumBlocks)
	return d, err
}

// poolBlocks is how many blocks --kv-cache-memory is.
func poolBlocks(cfg config.Config, block uint64) (int, error) {
	pool := cfg.KVCacheMemory
	if pool == 0 {
		pool = config.CPUPool
	}
	blocks := uint64(pool) / block
	if blocks < 2 || blocks > maxBlocks {
		return 0, fmt.Errorf("cannot use --kv-cache-memory %s: it holds %d blocks of %d bytes; between 2 and %d are needed",
			pool, blocks, block, maxBlocks)
	}
	return int(blocks), nil
}

// tableEntries is how many entries tables of a step may have at most where the pool is smaller: 64 MiB.
const tableEntries = 1 << 24

// stepBlocks is the entries of all block tables of a step over a pool. Requests that share what they begin with list it
// each; where there would be more entries than these, the youngest requests wait for the others to end.
func stepBlocks(cfg config.Config, m *model.Config, pool int) int {
	if !cfg.EnablePrefixCaching {
		return pool
	}
	longest := min(pool, m.LongestLen()/cfg.BlockSize+1)
	return max(pool, min(longest*cfg.MaxNumSeqs, tableEntries))
}

func blocksOnGPU(m *model.Model, d device.Config, place Place, block uint64) (int, error) {
	if place.Info == nil {
		return 0, fmt.Errorf("cannot size a KV pool on %s: its memory is not known here; give --kv-cache-memory, or build with -tags cuda", place)
	}
	ranks := max(d.TensorParallel, 1)
	var weights uint64
	if !d.NoWeights {
		var err error
		if weights, err = m.WeightBytes(elem(d.DType), ranks); err != nil {
			return 0, err
		}
		weights += expertsRounded(d)
	}
	step := stepBytes(d)
	if ranks > 1 {
		step += sums
	}
	blocks := maxBlocks
	for _, gpu := range append([]device.GPU{*place.Info}, place.More...) {
		free, err := device.GPUFree(gpu.Ordinal)
		if err != nil {
			return 0, err
		}
		room := gpuRoom{Total: gpu.Memory, Free: free, Share: place.Share, Weights: weights, Step: step, Block: block / uint64(ranks)}
		n, err := room.blocks()
		if err != nil {
			return 0, fmt.Errorf("cannot fit a KV pool on %s: %w", place.Name(), err)
		}
		if room.short() {
			slog.Warn("others have taken memory of the GPU; the KV pool is smaller for it", "device", fmt.Sprintf("cuda:%d", gpu.Ordinal),
				"total", inUnits(room.Total), "share", place.Share, "free", inUnits(room.Free), "kv_blocks", n)
		}
		blocks = min(blocks, n) // a block is on all of them
	}
	return blocks, nil
}

// CheckRanks says why a model cannot be cut by --tensor-parallel-size.
func CheckRanks(cfg config.Config, m *model.Config) error {
	n := max(cfg.TensorParallelSize, 1)
	type part struct {
		count int
		name  string
	}
	parts := []part{{m.NumHeads, "attention heads"}, {m.NumKVHeads, "KV heads"}, {m.IntermediateSize, "intermediate numbers"}}
	if e := m.Experts; e != nil {
		parts = append(parts, part{e.Intermediate, "intermediate numbers of an expert"}, part{e.Shared, "intermediate numbers of the shared expert"})
	}
	for _, part := range parts {
		if part.count%n != 0 {
			return fmt.Errorf("cannot use --tensor-parallel-size %d: the model's %d %s are no multiple of it", n, part.count, part.name)
		}
	}
	return nil
}

// elem is the size of a number, in bytes.
func elem(dtype int) int {
	if dtype == device.F32 {
		return 4
	}
	return 2
}

// reserve is left to the CUDA context, the code of the kernels, workspaces of libraries, and the rounding of
// allocations.
const reserve = 512 << 20

// sums is left to NCCL, which has buffers on every GPU of an instance that has several.
const sums = 512 << 20

// gpuRoom is what is known when a pool on a GPU is sized, in bytes.
type gpuRoom struct {
	Total, Free   uint64
	Share         float64 // of Total, for this instance
	Weights, Step uint64
	Block         uint64
}

// budget is what the instance may take: its share, of which others may have taken some.
func (r gpuRoom) budget() uint64 { return min(uint64(float64(r.Total)*r.Share), r.Free) }

// short tells that others have taken some of the share. The context in which Free was asked for is not others.
func (r gpuRoom) short() bool { return float64(r.Free+reserve) < float64(r.Total)*r.Share }

// blocks is how many blocks the budget has room for beside everything else, as many as the tables take at most.
func (r gpuRoom) blocks() (int, error) {
	budget, taken := r.budget(), r.Weights+r.Step+reserve
	n := (budget - min(budget, taken)) / r.Block
	if n < 2 {
		return 0, errors.New(r.String() + "; use a larger --gpu-memory-utilization, fewer instances on this GPU, a smaller --max-num-batched-tokens, or a smaller model")
	}
	return int(min(n, maxBlocks)), nil
}

func (r gpuRoom) String() string {
	return fmt.Sprintf("a share of %.3g of its %s, of which %s are free, has to hold weights of %s, a step's memory of %s, %s for CUDA, and at least 2 blocks of %s",
		r.Share, inUnits(r.Total), inUnits(r.Free), inUnits(r.Weights), inUnits(r.Step), inUnits(reserve), inUnits(r.Block))
}

// granule is what CUDA rounds an allocation of some size up to.
const granule = 2 << 20

// expertsRounded is what the matrices of experts take beyond their numbers: of all layers' two for each, and each is an
// allocation of its own.
func expertsRounded(d device.Config) uint64 {
	inner := uint64(d.ExpertIntermediate / max(d.TensorParallel, 1))
	down := inner * uint64(d.Hidden) * uint64(elem(d.DType))
	rest := func(n uint64) uint64 { return (granule - n%granule) % granule }
	return uint64(d.Layers) * uint64(d.Experts) * (rest(2*down) + rest(down))
}

// inUnits is a size for reading.
func inUnits(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}

// stepBytes is about what a step's activations and the two lanes of attention, the step's own and that for
// others' queries, take on a GPU, which is one of the config's ranks.
func stepBytes(d device.Config) uint64 {
	const (
		logitRows      = 128 // computed at once
		lanes          = 2
		multiprocessor = 160                   // of a large GPU
		partials       = 1536 * multiprocessor // heads * rows of partials of cut attention, whatever the number of heads
	)
	u := func(n int) uint64 { return uint64(n) }
	ranks := max(d.TensorParallel, 1)
	d.Heads, d.KVHeads, d.Intermediate = d.Heads/ranks, d.KVHeads/ranks, d.Intermediate/ranks
	rows, hidden, q := u(d.MaxTokens), u(d.Hidden), u(d.Heads)*u(d.HeadDim)
	act := u(elem(d.DType))
	activations := rows * (4*hidden + act*(hidden+3*q+2*u(d.KVHeads)*u(d.HeadDim)+3*u(d.Intermediate)))
	// What experts compute of every row that they have, and each row's share of what was chosen.
	if d.Experts > 0 {
		chosen, shared := rows*u(d.ExpertsPerToken), u(d.SharedIntermediate/ranks)
		activations += chosen*(4*hidden+act*u(d.ExpertIntermediate/ranks)+20) + rows*(act*(hidden+3*shared)+4*u(d.Experts+2))
	}
	logits := 2 * 4 * u(min(logitRows, d.MaxRows)) * u(d.Vocab) // and a copy with biases and penalties
	if ranks > 1 {
		logits += logits / 2 // the shares that the first rank gathers
	}
	counts := 4 * u(d.MaxSeqs) * u(d.Vocab) // of tokens, for penalties
	attention := lanes * 4 * (3*rows*q + partials*u(d.HeadDim))
	return activations + logits + counts + attention
}
