//go:build !cuda

package device

// BuiltForCUDA tells whether this build can list GPUs.
const BuiltForCUDA = false

// GPUs lists the CUDA devices that this process sees.
func GPUs() ([]GPU, error) { return nil, ErrNoCUDA }

// GPUFree is the memory of a GPU that nobody has taken, in bytes.
func GPUFree(int) (uint64, error) { return 0, ErrNoCUDA }
