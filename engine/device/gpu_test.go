package device

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/model"
)

// gpuConfig is testConfig on the first GPU, of the library that INFINITE_CUDA_LIBRARY names: the one for real
// GPUs, or the emulation that the CPU's build makes.
func gpuConfig(t *testing.T, dtype int) Config {
	t.Helper()
	if os.Getenv(CUDALibraryEnv) == "" {
		t.Skipf("%s names no library of kernels", CUDALibraryEnv)
	}
	c := testConfig()
	c.GPU, c.DType = 1, dtype
	return c
}

// As TestGoldenF32, with sums in another order.
func TestGoldenGPU(t *testing.T) {
	c := gpuConfig(t, F32)
	eachGolden(t, func(t *testing.T, m *model.Model, g *golden) {
		d := openModel(t, m, c)
		if d.ISA() != "cuda" {
			t.Fatalf("%s computes", d.ISA())
		}
		checkGolden(t, d, g, m.Config.VocabSize, 1e-3)
	})
}

// Ranks that share the GPU: one may be all there is.
func TestGoldenGPURanks(t *testing.T) {
	c := gpuConfig(t, F32)
	t.Setenv("INFINITE_CUDA_WITH", "one_gpu")
	eachGolden(t, func(t *testing.T, m *model.Model, g *golden) { checkRanks(t, m, g, c, 1e-3) })
}

// 16-bit weights and KV: f16 has three bits more than bf16. Bounds are for two layers, each of which rounds.
func TestGoldenGPU16(t *testing.T) {
	for name, x := range map[string]struct {
		dtype int
		bound float64
	}{"bf16": {BF16, 0.25}, "f16": {F16, 0.03}} {
		t.Run(name, func(t *testing.T) {
			c := gpuConfig(t, x.dtype)
			eachGolden(t, func(t *testing.T, m *model.Model, g *golden) {
				checkClose(t, openModel(t, m, c), g, m.Config.VocabSize, x.bound*float64(m.Config.NumLayers)/2)
			})
		})
	}
}

func TestSamplingGPU(t *testing.T) {
	c := gpuConfig(t, F32)
	_, m := openLlama(t)
	checkSampling(t, openModel(t, m, c))
	t.Setenv("INFINITE_CUDA_WITH", "one_gpu")
	c.TensorParallel = 2 // the first rank draws
	checkSampling(t, openModel(t, m, c))
}

func TestNoSuchGPU(t *testing.T) {
	_, m := openLlama(t)
	c := ForModel(m.Config, gpuConfig(t, F32))
	c.GPU = 1000
	before := OpenCount()
	if d, err := Open(c, make([]float32, c.HeadDim/2), make([]int32, c.Layers)); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "CUDA device 999") {
		t.Errorf("%v, %v", d, err)
	}
	if OpenCount() != before {
		t.Errorf("%d devices are open, %d were", OpenCount(), before)
	}
}

func TestCUDALibrary(t *testing.T) {
	here := os.Getenv(CUDALibraryEnv)
	t.Setenv(CUDALibraryEnv, t.TempDir()+"/none.so")
	if where, err := CUDALibrary(); err == nil || !strings.Contains(err.Error(), "none.so") {
		t.Errorf("a library that is not there: %q, %v", where, err)
	}
	if gpus, err := GPUs(); !BuiltForCUDA && (gpus != nil || !errors.Is(err, ErrNoCUDA)) {
		t.Errorf("a build without the tag knows of %v, %v", gpus, err)
	}
	if here == "" {
		t.Skipf("%s names no library of kernels", CUDALibraryEnv)
	}
	t.Setenv(CUDALibraryEnv, here)
	if where, err := CUDALibrary(); err != nil || where != here {
		t.Errorf("%q, %v", where, err)
	}
}
