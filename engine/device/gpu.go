package device

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/NVIDIA/go-nvml/pkg/dl"
)

// ErrNoCUDA is why a build without the tag knows no GPUs.
var ErrNoCUDA = errors.New("this build has no CUDA: build with -tags cuda")

// GPU is a CUDA device that this process sees.
type GPU struct {
	Ordinal      int    // among those that the process sees; Config.GPU is one more
	Name         string // "NVIDIA H100 80GB HBM3"
	Memory       uint64 // bytes
	Major, Minor int    // compute capability
	UUID         string // as NVML writes it
	PCI          string // 00000000:17:00.0
}

// Fits tells whether the kernels run on the GPU. They need asynchronous copies and bf16 products.
func (g GPU) Fits() bool { return g.Major >= 8 }

const (
	cudaLibrary = "libinfinite_cuda.so"
	// CUDALibraryEnv names the library of kernels, which is else looked for beside the program and where the
	// linker looks.
	CUDALibraryEnv = "INFINITE_CUDA_LIBRARY"
)

// CUDALibrary says where the library of kernels is, by the rules by which C finds it. It stays loaded.
func CUDALibrary() (string, error) {
	name := os.Getenv(CUDALibraryEnv)
	if name == "" {
		name = cudaLibrary
		if self, err := os.Readlink("/proc/self/exe"); err == nil {
			if beside := filepath.Join(filepath.Dir(self), cudaLibrary); readable(beside) {
				name = beside
			}
		}
	}
	if err := dl.New(name, dl.RTLD_NOW).Open(); err != nil {
		return "", fmt.Errorf("cannot load the CUDA library: %w", err)
	}
	return name, nil
}

func readable(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}
