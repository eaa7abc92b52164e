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
	GPU   int         // a CUDA device, -1: the CPU
	Info  *device.GPU // what is known of the GPU; nil on the CPU, and where this build cannot ask
	Share float64     // of the GPU's memory, for this instance
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
// are dealt to them in turn, and those on one GPU share its memory equally.
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
		if gpus, err = g.asked(number); err != nil {
			return nil, fmt.Errorf("cannot use --device %s: %w", cfg.Device, err)
		}
	case "auto":
		if gpus, err = g.fit(); err != nil {
			why = err.Error()
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
func (g ground) asked(number int) ([]Place, error) {
	places, err := g.fit()
	if err != nil && g.named != "" {
		return []Place{{GPU: max(number, 0), Why: fmt.Sprintf("%s names the kernels of %s", device.CUDALibraryEnv, g.named)}}, nil
	}
	if err != nil || number < 0 {
		return places, err
	}
	for _, p := range places {
		if p.GPU == number {
			return []Place{p}, nil
		}
	}
	return nil, fmt.Errorf("no GPU that fits has this number; those that do: %s", list(places))
}

func list(places []Place) string {
	names := make([]string, len(places))
	for i, p := range places {
		names[i] = p.Name()
	}
	return strings.Join(names, ", ")
}
