package node

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/model"
)

// gpus is a machine's GPUs by their compute capabilities, 90 for 9.0.
func gpus(capabilities ...int) []device.GPU {
	var out []device.GPU
	for i, c := range capabilities {
		out = append(out, device.GPU{Ordinal: i, Name: "GPU " + string(rune('A'+i)), Memory: 80 << 30, Major: c / 10, Minor: c % 10})
	}
	return out
}

func TestPlaces(t *testing.T) {
	noDriver, noLibrary := errors.New("cannot start the CUDA driver"), errors.New("cannot load the CUDA library")
	for _, tc := range []struct {
		name, device string
		instances    int
		ranks        int
		gpus         []device.GPU
		driver       error
		library      error
		named        string
		want         string // the places
		shares       []float64
		why          string
		refused      string
	}{
		{name: "auto with one GPU", device: "auto", gpus: gpus(90), want: "cuda:0", shares: []float64{0.8}, why: "compute capability 9.0, kernels of lib"},
		{name: "auto with two", device: "auto", gpus: gpus(90, 80), instances: 3, want: "cuda:0 cuda:1 cuda:0", shares: []float64{0.4, 0.8, 0.4}},
		{name: "auto beside an old one", device: "auto", gpus: gpus(75, 89), instances: 2, want: "cuda:1 cuda:1", shares: []float64{0.4, 0.4}},
		{name: "auto with an old one", device: "auto", gpus: gpus(75), want: "cpu", why: "need compute capability 8.0: GPU A has compute capability 7.5"},
		{name: "auto without GPUs", device: "auto", want: "cpu", why: "sees no GPU"},
		{name: "auto without the tag", device: "auto", driver: device.ErrNoCUDA, instances: 2, want: "cpu cpu", why: "build with -tags cuda"},
		{name: "auto without a driver", device: "auto", driver: noDriver, want: "cpu", why: "driver"},
		{name: "auto without the library", device: "auto", gpus: gpus(90), library: noLibrary, want: "cpu", why: "make cuda"},
		{name: "auto does not take a library that is named for a machine without GPUs", device: "auto", driver: device.ErrNoCUDA, named: "emu", want: "cpu"},
		{name: "cpu", device: "cpu", gpus: gpus(90), want: "cpu", why: "--device cpu"},
		{name: "cuda", device: "cuda", gpus: gpus(90, 90, 90), instances: 4, want: "cuda:0 cuda:1 cuda:2 cuda:0", shares: []float64{0.4, 0.8, 0.8, 0.4}},
		{name: "cuda without GPUs", device: "cuda", refused: "--device cuda: this process sees no GPU"},
		{name: "cuda without the tag", device: "cuda", driver: device.ErrNoCUDA, refused: "--device cuda: this build has no CUDA: build with -tags cuda"},
		{name: "cuda without the library", device: "cuda", gpus: gpus(90), library: noLibrary, refused: "make cuda"},
		{name: "one of two", device: "cuda:1", gpus: gpus(90, 90), instances: 2, want: "cuda:1 cuda:1", shares: []float64{0.4, 0.4}},
		{name: "the third of two", device: "cuda:2", gpus: gpus(90, 90), refused: "those that do: cuda:0 (GPU A), cuda:1 (GPU B)"},
		{name: "the old one", device: "cuda:0", gpus: gpus(75, 90), refused: "those that do: cuda:1 (GPU B)"},
		{name: "a named library without the tag", device: "cuda:3", driver: device.ErrNoCUDA, named: "emu", instances: 2, want: "cuda:3 cuda:3", shares: []float64{0.4, 0.4}, why: "emu"},
		{name: "a named library and no number", device: "cuda", driver: noDriver, named: "emu", want: "cuda:0", shares: []float64{0.8}},
		{name: "two ranks of four GPUs", device: "cuda", gpus: gpus(90, 90, 90, 90, 90), ranks: 2, instances: 3, want: "cuda:0+1 cuda:2+1 cuda:0+1", shares: []float64{0.4, 0.8, 0.4}},
		{name: "two ranks around an old one", device: "auto", gpus: gpus(90, 75, 90, 80, 90), ranks: 2, instances: 2, want: "cuda:2+1 cuda:2+1", shares: []float64{0.4, 0.4}},
		{name: "two ranks from a number on", device: "cuda:1", gpus: gpus(90, 90, 90, 90), ranks: 2, instances: 2, want: "cuda:1+1 cuda:1+1", shares: []float64{0.4, 0.4}},
		{name: "four ranks from the last but one on", device: "cuda:2", gpus: gpus(90, 90, 90, 90), ranks: 4, refused: "cannot use --tensor-parallel-size 4: it takes as many GPUs whose numbers follow each other; here there are: cuda:2 (GPU C), cuda:3 (GPU D)"},
		{name: "four ranks of two", device: "cuda", gpus: gpus(90, 90), ranks: 4, refused: "cannot use --tensor-parallel-size 4"},
		{name: "two ranks on the CPU", device: "auto", ranks: 2, want: "cpu", why: "sees no GPU"},
		{name: "two ranks of a named library", device: "cuda:0", driver: device.ErrNoCUDA, named: "emu", ranks: 2, want: "cuda:0", shares: []float64{0.8}},
		{name: "a library that is named and one of two", device: "cuda:2", gpus: gpus(90, 90), named: "lib", refused: "no GPU that fits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := ground{tc.named, func() ([]device.GPU, error) { return tc.gpus, tc.driver }, func() (string, error) { return "lib", tc.library }}
			cfg := config.Default()
			cfg.Device, cfg.Instances, cfg.GPUMemoryUtilization = tc.device, max(1, tc.instances), 0.8
			cfg.TensorParallelSize = max(1, tc.ranks)
			places, err := g.places(cfg)
			if tc.refused != "" {
				if err == nil || !strings.HasPrefix(err.Error(), "cannot use --device ") || !strings.Contains(err.Error(), tc.refused) {
					t.Fatalf("%v, %v", places, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for i, p := range places {
				name := p.String()
				if n := len(p.More); n > 0 {
					name += fmt.Sprintf("+%d", n)
				}
				for k, gpu := range p.More {
					if gpu.Ordinal != p.GPU+1+k {
						t.Errorf("place %d: %+v", i, p)
					}
				}
				names = append(names, name)
				if p.OnGPU() != strings.HasPrefix(p.String(), "cuda") || !strings.Contains(p.Why, tc.why) || p.Why == "" {
					t.Errorf("place %d: %+v", i, p)
				}
				if p.OnGPU() && math.Abs(p.Share-tc.shares[i]) > 1e-12 || !p.OnGPU() && p.Share != 0 {
					t.Errorf("place %d has a share of %g", i, p.Share)
				}
				if p.Info != nil && p.Info.Ordinal != p.GPU {
					t.Errorf("place %d is on %d and knows of %d", i, p.GPU, p.Info.Ordinal)
				}
			}
			if got := strings.Join(names, " "); got != tc.want {
				t.Errorf("the instances compute on %s, want %s", got, tc.want)
			}
		})
	}
}

func TestKVDType(t *testing.T) {
	for _, tc := range []struct{ flag, dtype, want string }{
		{"auto", "float32", "float32"}, {"auto", "bfloat16", "bfloat16"}, {"fp8", "bfloat16", "fp8_e4m3"}, {"fp8_e4m3", "float32", "fp8_e4m3"},
	} {
		if got := KVDType(tc.flag, tc.dtype); got != tc.want {
			t.Errorf("--kv-cache-dtype %s beside %s: %q", tc.flag, tc.dtype, got)
		}
	}
}

func TestQuantization(t *testing.T) {
	if CheckQuantization("int8", false) != nil || CheckQuantization("none", true) != nil {
		t.Error("what there are kernels for is refused")
	}
	if err := CheckQuantization("int8", true); err == nil || !strings.Contains(err.Error(), "--quantization int8") {
		t.Error(err)
	}
	m := &model.Model{Fingerprint: "f"}
	cfg := config.Default()
	plain := Fingerprint(cfg, m)
	cfg.Quantization = "int8"
	if plain != "f" || Fingerprint(cfg, m) == plain {
		t.Errorf("%q and %q", plain, Fingerprint(cfg, m))
	}
}

func TestFourBits(t *testing.T) {
	m := &model.Config{Quantized: &model.Quantized{Method: "awq"}}
	if CheckFourBits("none", m, false) != nil || CheckFourBits("int4", &model.Config{}, true) != nil {
		t.Error("what there are kernels for is refused")
	}
	if err := CheckFourBits("none", m, true); err == nil || !strings.Contains(err.Error(), "(awq) on a GPU") {
		t.Error(err)
	}
	if err := CheckFourBits("int8", m, false); err == nil || !strings.Contains(err.Error(), "--quantization int8") {
		t.Error(err)
	}
}

func TestDType(t *testing.T) {
	for _, tc := range []struct {
		flag, checkpoint string
		onGPU            bool
		want             string
	}{
		{"auto", "float32", false, "float32"}, {"auto", "float16", false, "float32"}, {"auto", "bfloat16", false, "bfloat16"},
		{"auto", "float32", true, "float32"}, {"auto", "float16", true, "float16"}, {"auto", "bfloat16", true, "bfloat16"},
		{"float32", "float16", true, "float32"}, {"bfloat16", "float16", false, "bfloat16"}, {"float16", "bfloat16", true, "float16"},
	} {
		if got, err := DType(tc.flag, tc.checkpoint, tc.onGPU); err != nil || got != tc.want {
			t.Errorf("--dtype %s for %s, on a GPU %v: %q, %v", tc.flag, tc.checkpoint, tc.onGPU, got, err)
		}
	}
	if got, err := DType("float16", "float16", false); err == nil || !strings.HasPrefix(err.Error(), "cannot use --dtype float16 on the CPU") {
		t.Errorf("float16 on the CPU: %q, %v", got, err)
	}
}

// One of two GPUs is not taken where two are asked for, and the CPU not in their stead.
func TestTooFewGPUs(t *testing.T) {
	g := ground{"", func() ([]device.GPU, error) { return gpus(90), nil }, func() (string, error) { return "lib", nil }}
	cfg := config.Default()
	cfg.TensorParallelSize = 2
	if places, err := g.places(cfg); err == nil || !strings.Contains(err.Error(), "--tensor-parallel-size 2") || !strings.Contains(err.Error(), "--device cpu") {
		t.Errorf("%v, %v", places, err)
	}
	p := Place{GPU: 2, Info: &device.GPU{Ordinal: 2, Name: "H"}, More: []device.GPU{{Ordinal: 3}}}
	if p.Name() != "cuda:2 to cuda:3 (H)" || p.String() != "cuda:2" {
		t.Errorf("%s, %s", p.Name(), p)
	}
}
