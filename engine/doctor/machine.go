package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"

	"github.com/infinite-llm/infinite/engine/config"
)

// Machine is what the checks look at. Tests put fakes into its fields.
type Machine struct {
	FS        fs.FS // of "/"; symbolic links matter
	System    System
	Network   Network
	NVML      NVML
	Libraries Libraries

	Config    config.Config
	ConfigErr error // why Config is the defaults, if it is
	Threads   int   // of each instance, with the default worked out
	UsesGPUs  bool  // this build can list GPUs

	Device    string // where the instances compute and why, "" where it is not known
	DeviceErr error  // why --device cannot be used
	OnGPU     bool

	// What needs parts of the engine that this package does not import. Nil where there is none.
	Etcd    func(ctx context.Context, endpoint string) error
	Folder  func() error // of the embedded etcd: why it could not be had
	Refused func() error // what of the settings serve refuses with this model
	// Join says why the cluster would not take an instance in, and whether it was the cluster that said so.
	Join      func(ctx context.Context) (refused bool, err error)
	Files     int // descriptors that serve wants at least
	Ports     func() ([]VerbsPort, error)
	RingBytes func() (uint64, error) // what RDMA locks for the rings towards one peer

	CUDALibrary func() (string, error) // where it is
	GPUNeed     func() (string, error) // what an instance takes of its GPU
}

// System has the system calls that the engine cannot do without.
type System interface {
	Memfd() error
	Eventfd() error
	AbstractSocket() error
}

// Network has the interfaces and addresses of this machine.
type Network interface {
	Interfaces() ([]Interface, error)
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
	Listen(ctx context.Context, address string) error
	Dial(ctx context.Context, address string) error
}

// Interface is a network interface.
type Interface struct {
	Name         string
	MTU          int
	Up, Loopback bool
	Addresses    []netip.Addr
}

// NVML is the part of the management library that is asked.
type NVML interface {
	Init() nvml.Return
	Shutdown() nvml.Return
	Extensions() nvml.ExtendedInterface
	SystemGetDriverVersion() (string, nvml.Return)
	SystemGetCudaDriverVersion() (int, nvml.Return)
	DeviceGetCount() (int, nvml.Return)
	DeviceGetHandleByIndex(index int) (nvml.Device, nvml.Return)
}

// Libraries opens shared libraries.
type Libraries interface {
	// Missing opens a library and lists those of the symbols that it does not have.
	Missing(name string, symbols ...string) ([]string, error)
}

// VerbsPort is what the RDMA library says of a port that links can use.
type VerbsPort struct {
	Device string
	Port   int
	MTU    int // active path MTU, bytes
}

// This is the machine that the program runs on; what concerns the engine is left to the caller.
func This() *Machine {
	return &Machine{FS: os.DirFS("/"), System: system{}, Network: network{}, NVML: nvml.New(), Libraries: libraries{}, Config: config.Default(), Threads: 1}
}

type system struct{}

// Memfd does what a shm link does: memory whose size is sealed.
func (system) Memfd() error {
	fd, err := unix.MemfdCreate("infinite-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("cannot create shared memory: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err = unix.Ftruncate(fd, 1<<20); err != nil {
		return fmt.Errorf("cannot size shared memory: %w", err)
	}
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("cannot seal shared memory: %w", err)
	}
	return nil
}

func (system) Eventfd() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("cannot create an eventfd: %w", err)
	}
	return unix.Close(fd)
}

func (system) AbstractSocket() error {
	l, err := net.Listen("unix", fmt.Sprintf("@infinite-doctor-%d", os.Getpid()))
	if err != nil {
		return fmt.Errorf("cannot open an abstract unix socket: %w", err)
	}
	return l.Close()
}

type network struct{}

func (network) Interfaces() ([]Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("cannot list network interfaces: %w", err)
	}
	out := make([]Interface, len(list))
	for i, in := range list {
		out[i] = Interface{Name: in.Name, MTU: in.MTU, Up: in.Flags&net.FlagUp != 0, Loopback: in.Flags&net.FlagLoopback != 0}
		addrs, err := in.Addrs()
		if err != nil {
			return nil, fmt.Errorf("cannot list the addresses of %s: %w", in.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out[i].Addresses = append(out[i].Addresses, p.Addr().Unmap())
			}
		}
	}
	return out, nil
}

func (network) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

func (network) Listen(ctx context.Context, address string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

func (network) Dial(ctx context.Context, address string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

type libraries struct{}

func (libraries) Missing(name string, symbols ...string) ([]string, error) {
	lib := dl.New(name, dl.RTLD_LAZY)
	if err := lib.Open(); err != nil {
		return nil, err
	}
	defer func() { _ = lib.Close() }()
	var missing []string
	for _, s := range symbols {
		if lib.Lookup(s) != nil {
			missing = append(missing, s)
		}
	}
	return missing, nil
}
