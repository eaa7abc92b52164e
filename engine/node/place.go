package node

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
)

// Place is where an instance computes.
type Place struct {
	GPU   int          // a CUDA device, the first of the instance's, -1: the CPU
	Info  *device.GPU  // what is known of the GPU; nil on the CPU, and where this build cannot ask
	More  []device.GPU // the GPUs behind it that --tensor-parallel-size takes too, where they are known
	Share float64      // of each GPU's memory, for this instance
	Why   string
}

// OnGPU tells a GPU from the CPU.
func (p Place) OnGPU() bool { return p.GPU >= 0 }

// String is the place as --device names it.
func (p Place) String() string {
	if p.OnGPU() {
		return fmt.Sprintf("cuda:%d", p.GPU)
	}
	return "cpu"
}

// Name is the place for reading.
func (p Place) Name() string {
	if p.Info == nil {
		return p.String()
	}
	if n := len(p.More); n > 0 {
		return fmt.Sprintf("%s to cuda:%d (%s)", p, p.GPU+n, p.Info.Name)
	}
	return fmt.Sprintf("%s (%s)", p, p.Info.Name)
}

// ground is what the choice of a device rests on.
type ground struct {
	named   string // the library of kernels that the environment names
	gpus    func() ([]device.GPU, error)
	library func() (string, error)
}

func here() ground {
	return ground{os.Getenv(device.CUDALibraryEnv), device.GPUs, device.CUDALibrary}
}

// Places resolves --device for the instances that this process starts, in their order: with several GPUs they
// are dealt to them in turn, and those on one GPU share its memory equally. With --tensor-parallel-size they are
// dealt to groups of so many GPUs.
func Places(cfg config.Config) ([]Place, error) { return here().places(cfg) }

func (g ground) places(cfg config.Config) ([]Place, error) {
	kind, number, err := config.ParseDevice(cfg.Device)
	if err != nil {
		return nil, err
	}
	var gpus []Place
	why := "--device cpu"
	switch kind {
	case "cuda":
		if gpus, err = g.asked(number, cfg.TensorParallelSize); err != nil {
			return nil, fmt.Errorf("cannot use --device %s: %w", cfg.Device, err)
		}
	case "auto":
		if gpus, err = g.fit(); err != nil {
			why = err.Error()
		} else if gpus, err = groups(gpus, cfg.TensorParallelSize); err != nil {
			// Not the CPU in their stead: nobody who cuts a model over GPUs would want that unasked.
			return nil, fmt.Errorf("%w; --device cpu does without GPUs", err)
		}
	}
	places := make([]Place, max(1, cfg.Instances))
	for i := range places {
		places[i] = Place{GPU: -1, Why: why}
		if n := len(gpus); n > 0 {
			places[i] = gpus[i%n]
			places[i].Share = cfg.GPUMemoryUtilization / float64((len(places)-i%n+n-1)/n)
		}
	}
	return places, nil
}

// fit lists the GPUs that the kernels run on, or says why there is none to use.
func (g ground) fit() ([]Place, error) {
	all, err := g.gpus()
	if err != nil {
		return nil, err
	}
	var places []Place
	var unfit []string
	for _, gpu := range all {
		if gpu.Fits() {
			places = append(places, Place{GPU: gpu.Ordinal, Info: &gpu})
		} else {
			unfit = append(unfit, fmt.Sprintf("%s has compute capability %d.%d", gpu.Name, gpu.Major, gpu.Minor))
		}
	}
	if len(places) == 0 && len(unfit) > 0 {
		return nil, fmt.Errorf("the kernels need compute capability 8.0: %s", strings.Join(unfit, ", "))
	}
	if len(places) == 0 {
		return nil, errors.New("this process sees no GPU")
	}
	library, err := g.library()
	if err != nil {
		return nil, fmt.Errorf("%w (make cuda builds it)", err)
	}
	for i := range places {
		places[i].Why = fmt.Sprintf("compute capability %d.%d, kernels of %s", places[i].Info.Major, places[i].Info.Minor, library)
	}
	return places, nil
}

// asked takes what --device cuda (number -1) or cuda:N asks for. Who names the library of kernels may use a
// build that knows no GPUs, or a library that brings its own.
func (g ground) asked(number, ranks int) ([]Place, error) {
	places, err := g.fit()
	if err != nil && g.named != "" {
		return []Place{{GPU: max(number, 0), Why: fmt.Sprintf("%s names the kernels of %s", device.CUDALibraryEnv, g.named)}}, nil
	}
	if err != nil {
		return nil, err
	}
	if number < 0 {
		return groups(places, ranks)
	}
	for i, p := range places {
		if p.GPU == number {
			return groups(places[i:min(i+max(ranks, 1), len(places))], ranks)
		}
	}
	return nil, fmt.Errorf("no GPU that fits has this number; those that do: %s", list(places))
}

// groups puts so many GPUs together whose numbers follow each other, from the first on. What is left over is
// nobody's.
func groups(gpus []Place, ranks int) ([]Place, error) {
	n := max(ranks, 1)
	var out []Place
	for i := 0; i+n <= len(gpus); {
		if gpus[i+n-1].GPU != gpus[i].GPU+n-1 {
			i++
			continue
		}
		group := gpus[i]
		for _, p := range gpus[i+1 : i+n] {
			group.More = append(group.More, *p.Info)
		}
		out = append(out, group)
		i += n
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("cannot use --tensor-parallel-size %d: it takes as many GPUs whose numbers follow each other; here there are: %s", n, list(gpus))
	}
	return out, nil
}

func list(places []Place) string {
	names := make([]string, len(places))
	for i, p := range places {
		names[i] = p.Name()
	}
	return strings.Join(names, ", ")
}
