package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
)

func TestBlocksOfARoom(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tc := range []struct {
		name string
		room gpuRoom
		want int
		says []string // when there is no room
	}{
		{"an 8B model on 80 GiB", gpuRoom{80 * gib, 80 * gib, 0.9, 15 * gib, 512 * mib, 2 * mib}, (56 * gib) / (2 * mib), nil},
		{"half of it", gpuRoom{80 * gib, 80 * gib, 0.5, 15 * gib, 512 * mib, 2 * mib}, (24 * gib) / (2 * mib), nil},
		{"others took some", gpuRoom{80 * gib, 20 * gib, 0.9, 15 * gib, 512 * mib, 2 * mib}, (4 * gib) / (2 * mib), nil},
		{"two blocks", gpuRoom{4 * gib, 4 * gib, 1, 3 * gib, 508 * mib, 2 * mib}, 2, nil},
		{"one block", gpuRoom{4 * gib, 4 * gib, 1, 3 * gib, 509 * mib, 2 * mib}, 0,
			[]string{"a share of 1 of its 4.0 GiB", "4.0 GiB are free", "weights of 3.0 GiB", "step's memory of 509.0 MiB", "512.0 MiB for CUDA", "2 blocks of 2.0 MiB", "--gpu-memory-utilization"}},
		{"weights beyond it", gpuRoom{4 * gib, 4 * gib, 1, 5 * gib, 0, mib}, 0, []string{"weights of 5.0 GiB"}},
		{"nothing free", gpuRoom{80 * gib, 0, 0.9, gib, 0, mib}, 0, []string{"0.0 KiB are free"}},
		{"as many as the tables take", gpuRoom{1 << 50, 1 << 50, 1, 0, 0, 64}, maxBlocks, nil},
	} {
		got, err := tc.room.blocks()
		if got != tc.want || (err != nil) != (tc.says != nil) {
			t.Errorf("%s: %d blocks, %v", tc.name, got, err)
		}
		for _, s := range tc.says {
			if err != nil && !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", tc.name, err, s)
			}
		}
		used := uint64(got)*tc.room.Block + tc.room.Weights + tc.room.Step + reserve
		if err == nil && used > tc.room.budget() {
			t.Errorf("%s: %d bytes are used of %d", tc.name, used, tc.room.budget())
		}
	}
	if r := (gpuRoom{Total: 80 * gib, Free: 80*gib - 400*mib, Share: 1}); r.short() {
		t.Error("the context that asks counts as others")
	}
	if r := (gpuRoom{Total: 80 * gib, Free: 60 * gib, Share: 0.9}); !r.short() {
		t.Error("20 GiB of others are overlooked")
	}
}

// The estimate is between the largest part and a few times it, and grows with what it depends on.
func TestStepBytes(t *testing.T) {
	d := device.Config{Hidden: 4096, Intermediate: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 128256, DType: device.BF16,
		MaxTokens: 512, MaxRows: 512, MaxSeqs: 64}
	base := stepBytes(d)
	if base < 300<<20 || base > 600<<20 {
		t.Errorf("a step of an 8B model takes %d MiB", base>>20)
	}
	for name, change := range map[string]func(d *device.Config){
		"tokens":       func(d *device.Config) { d.MaxTokens *= 4 },
		"vocabulary":   func(d *device.Config) { d.Vocab *= 2 },
		"intermediate": func(d *device.Config) { d.Intermediate *= 2 },
		"float32":      func(d *device.Config) { d.DType = device.F32 },
		"experts":      func(d *device.Config) { d.Experts, d.ExpertsPerToken, d.ExpertIntermediate = 8, 2, 64 },
	} {
		c := d
		if change(&c); stepBytes(c) <= base {
			t.Errorf("%s: %d bytes are no more", name, stepBytes(c))
		}
	}
	if d.TensorParallel = 4; stepBytes(d) >= base {
		t.Errorf("one of four ranks: %d bytes are no fewer", stepBytes(d))
	}
}

// What an allocation is rounded up by is counted for every expert's two matrices, of 6 and 3 MiB here.
func TestExpertsRounded(t *testing.T) {
	d := device.Config{Layers: 48, Hidden: 2048, Experts: 128, ExpertIntermediate: 768, DType: device.BF16}
	if got := expertsRounded(d); got != 48*128<<20 {
		t.Errorf("%d bytes", got)
	}
	d.TensorParallel = 2 // 3 and 1.5 MiB
	if got := expertsRounded(d); got != 48*128*3<<19 {
		t.Errorf("%d bytes of a rank", got)
	}
	if got := expertsRounded(device.Config{Layers: 48, Hidden: 2048, DType: device.BF16}); got != 0 {
		t.Errorf("%d bytes without experts", got)
	}
}

func TestDeviceConfig(t *testing.T) {
	m, err := OpenModel(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cfg := config.Default()
	block, err := BlockBytes(cfg, m.Config, "float32")
	if err != nil {
		t.Fatal(err)
	}
	cpu, unknown := Place{GPU: -1}, Place{GPU: 2, Share: 0.9}
	d, err := DeviceConfig(cfg, m, "float32", cpu)
	if err != nil || d.GPU != 0 || uint64(d.NumBlocks) != uint64(config.CPUPool)/block || d.MaxStepBlocks != cfg.MaxNumSeqs*(m.Config.LongestLen()/cfg.BlockSize+1) {
		t.Errorf("on the CPU: %+v, %v", d, err)
	}
	alone := cfg
	alone.EnablePrefixCaching = false
	if d, err = DeviceConfig(alone, m, "float32", cpu); err != nil || d.MaxStepBlocks != d.NumBlocks {
		t.Errorf("without sharing: %+v, %v", d, err)
	}
	if _, err = DeviceConfig(cfg, m, "float16", unknown); err == nil || !strings.Contains(err.Error(), "give --kv-cache-memory, or build with -tags cuda") {
		t.Errorf("a GPU of unknown memory: %v", err)
	}
	known := Place{GPU: 0, Info: &device.GPU{Memory: 80 << 30}, Share: 0.9}
	if !device.BuiltForCUDA {
		if _, err = DeviceConfig(cfg, m, "float16", known); !errors.Is(err, device.ErrNoCUDA) {
			t.Errorf("a build that cannot ask: %v", err)
		}
	}
	cfg.KVCacheMemory = config.Size(7 * block)
	for _, p := range []Place{cpu, unknown, known} { // what is given wins
		if d, err = DeviceConfig(cfg, m, "float32", p); err != nil || d.NumBlocks != 7 || d.GPU != p.GPU+1 {
			t.Errorf("on %s: %d blocks, GPU %d, %v", p, d.NumBlocks, d.GPU, err)
		}
	}
	if d, err = DeviceConfig(cfg, m, "float16", unknown); err != nil || d.DType != device.F16 || d.NumBlocks != 14 {
		t.Errorf("float16: %+v, %v", d, err)
	}
	cfg.KVCacheDType = "fp8"
	if d, err = DeviceConfig(cfg, m, "float32", cpu); err != nil || d.DType != device.F32 || d.KVDType != device.E4M3 || d.NumBlocks != 28 {
		t.Errorf("KV in fp8: %+v, %v", d, err)
	}
	cfg.KVCacheDType = "auto"
	cfg.TensorParallelSize = 2
	if d, err = DeviceConfig(cfg, m, "float32", cpu); err != nil || d.TensorParallel != 2 || d.NumBlocks != 7 {
		t.Errorf("two ranks: %+v, %v", d, err)
	}
	whole, _ := m.WeightBytes(4, 1)
	if part, err := m.WeightBytes(4, 2); err != nil || part >= whole || part <= whole/2 {
		t.Errorf("one of two ranks takes %d bytes of %d, %v", part, whole, err)
	}
	cfg.TensorParallelSize = 4
	if _, err = DeviceConfig(cfg, m, "float32", cpu); err == nil || err.Error() != "cannot use --tensor-parallel-size 4: the model's 2 KV heads are no multiple of it" {
		t.Errorf("more ranks than KV heads: %v", err)
	}
	cfg.TensorParallelSize = 1
	cfg.KVCacheMemory = config.Size(block)
	if _, err = DeviceConfig(cfg, m, "float32", unknown); err == nil || !strings.Contains(err.Error(), "it holds 1 blocks") {
		t.Errorf("a pool of one block: %v", err)
	}
}
