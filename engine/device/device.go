package device

// #cgo CFLAGS: -I${SRCDIR}/../../csrc/include
// // The last flag keeps the names of the marks (csrc/dist/marks.h) in a stripped program, for infinite trace.
// #cgo LDFLAGS: -linfinite -lm -lpthread -Wl,--export-dynamic
// #include "infinite/device.h"
import "C"

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/infinite-llm/infinite/engine/batch"
)

// Types of numbers, of weights that are loaded; arithmetic weights are F32, BF16 or, on a GPU, F16, and KV these or
// E4M3.
const (
	F32  = int(C.INF_DTYPE_F32)
	F16  = int(C.INF_DTYPE_F16)
	BF16 = int(C.INF_DTYPE_BF16)
	E4M3 = int(C.INF_DTYPE_E4M3)
	I8   = int(C.INF_DTYPE_I8)
	I4   = int(C.INF_DTYPE_I4_32)
)

// MaxPeers bounds peer indexes, MaxBias the logit biases of a request. QuerySlots is the least that a query link has of
// slots in each direction.
const (
	MaxPeers   = int(C.INF_MAX_PEERS)
	MaxBias    = int(C.INF_MAX_BIAS)
	QuerySlots = int(C.INF_QUERY_SLOTS)
)

// Config sizes a device. The model's part is what LoadModel fills in.
type Config struct {
	Layers, Hidden, Intermediate, Heads, KVHeads, HeadDim, Vocab int

	// Experts 0 is a model without. SharedIntermediate 0: without one that every token has.
	Experts, ExpertsPerToken, ExpertIntermediate, SharedIntermediate int

	QKVBias, QKNorm bool
	NormTopK        bool    // the weights of a token's experts add up to 1
	Tied            bool    // the LM head is the embedding
	NoWeights       bool    // none is loaded and no step run: the device hosts blocks of others, and attends over them
	RMSEps          float32 //
	RopeScale       float32 // multiplies cos and sin; 0 is 1

	// What families of models have unlike Llama, as in device.h; each zero value is Llama's.
	PostNorms, NoPreNorms, QKNormAll bool
	GELU                             bool // of the MLP's gate, in its form with tanh, instead of silu
	AttnScale, AttnSoftcap           float32
	LogitSoftcap, EmbedScale         float32
	RotaryDim                        int  // of a head's numbers; 0: all
	LocalRope                        bool // layers with a window have frequencies of their own

	DType     int // of weights: F32, BF16 or, on a GPU, F16; sums are always F32
	KVDType   int // of K and V: DType (0 too), or E4M3
	Matrices  int // of matrices but the embedding: DType (0), or, on the CPU, I8 or I4
	BlockSize int // tokens
	NumBlocks int // of the KV pool

	MaxTokens, MaxSeqs, MaxRows int // limits of one step
	MaxStepBlocks, MaxStepSpans int // entries of all block tables and span lists of one step
	MaxSpans                    int // spans hosted for others
	Threads                     int // of a step; the same again for others' partials
	ISA                         int // 0: best of this CPU but 4; 1 plain C, 2 AVX2, 3 AVX-512, 4 with bf16 products
	GPU                         int // 0: the CPU; n: CUDA device n - 1
	TensorParallel              int // ranks that the model is cut over, 0 as 1; on GPUs from GPU on
}

// c is the C form. A number that C's int32 cannot hold becomes -1, which C refuses.
func (c Config) c() C.inf_device_config {
	n := func(v int) C.int32_t {
		if v < 0 || v > math.MaxInt32 {
			return -1
		}
		return C.int32_t(v)
	}
	var flags C.uint32_t
	for _, f := range []struct {
		on   bool
		flag C.uint32_t
	}{{c.QKVBias, C.INF_MODEL_QKV_BIAS}, {c.QKNorm, C.INF_MODEL_QK_NORM}, {c.Tied, C.INF_MODEL_TIED}, {c.NoWeights, C.INF_MODEL_NO_WEIGHTS}, {c.NormTopK, C.INF_MODEL_NORM_TOPK},
		{c.PostNorms, C.INF_MODEL_POST_NORMS}, {c.NoPreNorms, C.INF_MODEL_NO_PRE_NORMS}, {c.QKNormAll, C.INF_MODEL_QK_NORM_ALL}} {
		if f.on {
			flags |= f.flag
		}
	}
	if c.RopeScale == 0 {
		c.RopeScale = 1
	}
	activation := C.INF_ACT_SILU
	if c.GELU {
		activation = C.INF_ACT_GELU_TANH
	}
	return C.inf_device_config{
		layers: n(c.Layers), hidden: n(c.Hidden), intermediate: n(c.Intermediate), heads: n(c.Heads), kv_heads: n(c.KVHeads),
		head_dim: n(c.HeadDim), vocab: n(c.Vocab), model_flags: flags, rms_eps: C.float(c.RMSEps), rope_scale: C.float(c.RopeScale),
		dtype: n(c.DType), kv_dtype: n(c.KVDType), block_size: n(c.BlockSize), num_blocks: n(c.NumBlocks),
		max_tokens: n(c.MaxTokens), max_seqs: n(c.MaxSeqs), max_rows: n(c.MaxRows),
		max_step_blocks: n(c.MaxStepBlocks), max_step_spans: n(c.MaxStepSpans), max_spans: n(c.MaxSpans),
		threads: n(c.Threads), isa: n(c.ISA), gpu: n(c.GPU), tensor_parallel: n(c.TensorParallel), matrix_dtype: n(c.Matrices),
		experts: n(c.Experts), experts_per_token: n(c.ExpertsPerToken), expert_intermediate: n(c.ExpertIntermediate),
		shared_intermediate: n(c.SharedIntermediate),
		activation:          C.int32_t(activation), attn_scale: C.float(c.AttnScale), attn_softcap: C.float(c.AttnSoftcap),
		logit_softcap: C.float(c.LogitSoftcap), embed_scale: C.float(c.EmbedScale), rotary_dim: n(c.RotaryDim), ropes: C.int32_t(c.ropes()),
	}
}

// ropes is the number of rotations that layers choose from.
func (c Config) ropes() int {
	if c.LocalRope {
		return 2
	}
	return 1
}

// frequencies is how many Open takes.
func (c Config) frequencies() int {
	dim := c.HeadDim
	if c.RotaryDim > 0 {
		dim = c.RotaryDim
	}
	return c.ropes() * (dim / 2)
}

// BlockBytes is the memory of one KV block, 0 if the config cannot have one.
func BlockBytes(c Config) uint64 {
	cc := c.c()
	return uint64(C.inf_device_block_bytes(&cc))
}

// QuerySlotBytes is the largest message of the query lane; both ends of a link compute the same.
func QuerySlotBytes(c Config) uint64 {
	cc := c.c()
	return uint64(C.inf_device_query_slot_bytes(&cc))
}

// MoveSlotBytes is the largest message of the move lane; both ends of a link compute the same.
func MoveSlotBytes(c Config) uint64 {
	cc := c.c()
	return uint64(C.inf_device_move_slot_bytes(&cc))
}

// open counts open devices, for tests that look for leaks.
var open atomic.Int64

// OpenCount is the number of devices that were opened and not closed.
func OpenCount() int { return int(open.Load()) }

// Device is one open device. Its methods are safe for concurrent use; Step, Submit, Wait and Run belong to
// one goroutine.
type Device struct {
	config Config

	mu      sync.RWMutex  // held for reading during every call into C, so that Close waits for them
	handle  *C.inf_device // nil once closed
	step    *batch.Step   // nil until Ready, and without weights
	cleanup runtime.Cleanup
}

// Open makes a device for tensors to be loaded into. invFreq is [head_dim / 2], or half of RotaryDim, and with LocalRope
// as many behind them; windows is [layers], the tokens a query may look back including itself, 0 for all.
func Open(config Config, invFreq []float32, windows []int32) (*Device, error) {
	if len(invFreq) == 0 || len(invFreq) != config.frequencies() || len(windows) == 0 || len(windows) != config.Layers {
		return nil, fmt.Errorf("cannot open a device: %d frequencies and %d windows for head_dim %d and %d layers: %w",
			len(invFreq), len(windows), config.HeadDim, config.Layers, ErrInvalid)
	}
	cc := config.c()
	var (
		handle *C.inf_device
		cerr   C.inf_err
	)
	status := C.inf_device_open(&cc, (*C.float)(&invFreq[0]), (*C.int32_t)(&windows[0]), &handle, &cerr)
	if err := check(status, &cerr); err != nil {
		return nil, fmt.Errorf("cannot open a device: %w", err)
	}
	open.Add(1)
	d := &Device{config: config, handle: handle}
	// The memory is not freed here: views of the step may outlive the Device. It is a bug to be found.
	d.cleanup = runtime.AddCleanup(d, func(layers int) {
		slog.Error("a device was not closed", "layers", layers)
	}, config.Layers)
	return d, nil
}

// call runs f with the C handle, unless the device is closed.
func (d *Device) call(what string, f func(*C.inf_device, *C.inf_err) C.int) error {
	_, err := d.status(what, f)
	return err
}

// status is call for functions that return INF_AGAIN.
func (d *Device) status(what string, f func(*C.inf_device, *C.inf_err) C.int) (C.int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.handle == nil {
		return C.INF_EINVAL, fmt.Errorf("cannot %s: %w", what, ErrClosed)
	}
	var cerr C.inf_err
	status := f(d.handle, &cerr)
	if err := check(status, &cerr); err != nil {
		return status, fmt.Errorf("cannot %s: %w", what, err)
	}
	return status, nil
}

// Load takes one tensor, row-major, of rows * cols numbers; vectors have one row. Roles are those of
// device.h, layer is -1 outside the layers. C copies what it needs. With a tied embedding the LM head is
// the embedding, and one that comes separately is left out.
func (d *Device) Load(role, layer int, dtype int, rows, cols int64, data []byte) error {
	return d.LoadExpert(role, layer, -1, dtype, rows, cols, data)
}

// LoadExpert is Load for a tensor of one expert of a layer.
func (d *Device) LoadExpert(role, layer, expert int, dtype int, rows, cols int64, data []byte) error {
	if d.config.Tied && role == C.INF_ROLE_LM_HEAD {
		return nil
	}
	return d.call("load a tensor", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_load_expert(h, C.int32_t(role), C.int32_t(layer), C.int32_t(expert), C.int32_t(dtype), C.int64_t(rows), C.int64_t(cols),
			unsafe.Pointer(unsafe.SliceData(data)), C.uint64_t(len(data)), e)
	})
}

// Ready checks that every tensor came, allocates the KV pool and the step, and starts the threads.
func (d *Device) Ready() error {
	var b C.inf_step_buffers
	err := d.call("start the device", func(h *C.inf_device, e *C.inf_err) C.int {
		if status := C.inf_device_ready(h, e); status < 0 || d.config.NoWeights {
			return status
		}
		return C.inf_device_buffers(h, &b, e)
	})
	if err != nil || d.config.NoWeights {
		return err
	}
	c := &d.config
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step = &batch.Step{
		Head:   (*batch.Head)(unsafe.Pointer(b.head)),
		Seqs:   unsafe.Slice((*batch.Seq)(unsafe.Pointer(b.seqs)), c.MaxSeqs),
		Tokens: unsafe.Slice((*int32)(b.tokens), c.MaxTokens),
		Blocks: unsafe.Slice((*int32)(b.blocks), c.MaxStepBlocks),
		Spans:  unsafe.Slice((*batch.Span)(unsafe.Pointer(b.spans)), c.MaxStepSpans),
		Rows:   unsafe.Slice((*batch.Row)(unsafe.Pointer(b.rows)), c.MaxRows),
		Masks:  unsafe.Slice((*uint32)(b.masks), c.MaxSeqs*batch.MaskWords(c.Vocab)),
		RowOut: unsafe.Slice((*batch.RowOut)(unsafe.Pointer(b.row_out)), c.MaxRows),
		SeqOut: unsafe.Slice((*batch.SeqOut)(unsafe.Pointer(b.seq_out)), c.MaxSeqs),
	}
	return nil
}

// Config returns what the device was opened with.
func (d *Device) Config() Config { return d.config }

// ISA names what computes: "avx512_bf16", "avx512", "avx2", "c" or "cuda"; "" when closed.
func (d *Device) ISA() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.handle == nil {
		return ""
	}
	return C.GoString(C.inf_device_isa(d.handle))
}

// Close lets a step in flight finish, ends all links and frees everything, the memory of Step included.
// It waits for calls that are under way; a second Close does nothing.
func (d *Device) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handle == nil {
		return
	}
	C.inf_device_close(d.handle)
	d.handle, d.step = nil, nil
	d.cleanup.Stop()
	open.Add(-1)
}
