/* What every kernel file begins with: the launch macro, number formats, and the few machine
 * instructions that have no C form.
 *
 * Kernels are compiled three ways. nvcc makes the library for GPUs. With INF_EMU the same files are
 * ordinary C++ over emu/emu.h, which runs each thread of a block as a fiber on one CPU thread: so
 * every kernel's arithmetic, indexing and barriers are tested on machines without a GPU, under the
 * address sanitizer too. Therefore kernels keep to this: one parameter struct by value, shared
 * memory by INF_SHARED, launches by INF_LAUNCH, warp intrinsics only those that emu.h has, and
 * inline PTX only in this file, beside its emulation. */
#ifndef INF_CUDA_PRELUDE_CUH
#define INF_CUDA_PRELUDE_CUH

#include <math.h>
#include <stdint.h>

#ifdef INF_EMU
#include "kernels/cuda/emu/emu.h"
#else
#include <cuda_runtime.h>
#endif

#include "kernels/cuda/launch.h"

#ifndef INF_EMU
/* Enqueues kernel(args) with `shared` bytes of dynamic shared memory; evaluates to a cudaError_t.
 * More than 48 KiB must have been allowed by INF_ALLOW_SHARED before. */
/* clang-format off */
#define INF_LAUNCH(kernel, grid, block, shared, stream, args)                                      \
    ((kernel)<<<(grid), (block), (shared), (cudaStream_t)(stream)>>>(args), cudaPeekAtLastError())
/* clang-format on */
/* The same, but the kernel may start before its predecessor in the stream has ended (sm_90,
 * programmatic dependent launch): it must call after_predecessor before it touches what that one
 * writes or reads. With early false it is an ordinary launch. */
#define INF_LAUNCH_EARLY(early, kernel, grid, block, shared, stream, args)                         \
    launch_early((early), (kernel), (grid), (block), (shared), (cudaStream_t)(stream), (args))
template <typename Args>
static inline cudaError_t launch_early(bool early, void (*kernel)(Args), dim3 grid, dim3 block,
                                       size_t shared, cudaStream_t stream, const Args &args) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, args);
}
#define INF_ALLOW_SHARED(kernel, bytes)                                                            \
    cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))
/* Declares the block's dynamic shared memory, 128-byte aligned. One name per file. */
#define INF_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]
#endif

/* Number formats. Their arithmetic is float's. */
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

#ifndef INF_EMU
static __device__ __forceinline__ uint32_t pack_bf16x2(float lo, float hi) {
    uint32_t d; /* round to nearest even; the first operand is the upper half */
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
static __device__ __forceinline__ uint32_t pack_f16x2(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
static __device__ __forceinline__ float f16_to_float(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
/* Both products, rounded once each. */
static __device__ __forceinline__ uint32_t mul_f16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
static __device__ __forceinline__ float bits_to_float(uint32_t u) { return __uint_as_float(u); }
/* 2^x to about 2^-22; 0 for results below the normal numbers. */
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 16 bytes that are read once: they do not stay in L1. Only of memory that no kernel under way
 * writes. */
static __device__ __forceinline__ uint4 load_once(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
/* Asks for the 128-byte line to be brought to the L2 cache. */
static __device__ __forceinline__ void prefetch_line(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
/* Lets the kernel behind this one start where it can; waits for the one before. */
static __device__ __forceinline__ void start_successor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
static __device__ __forceinline__ void after_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* 16 bytes from global to shared memory, past the registers; with valid false the 16 bytes become
 * zeros and global memory is not read. Both pointers are 16-byte aligned. */
static __device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most n of this thread's groups are under way. */
template <int n> static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

/* Four 8x8 matrices of 16-bit numbers: thread i names row i % 8 of matrix i / 8 (16 bytes,
 * aligned); thread t receives of each matrix the pair at row t / 4, columns 2 (t % 4) and the next.
 * With trans each matrix is transposed on the way. */
static __device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* d[16, 8] += a[16, 16] b[16, 8], f32 sums. Thread t, g = t / 4, c = 2 (t % 4), holds
 *   a: (g, c..), (g + 8, c..), (g, c + 8..), (g + 8, c + 8..)   pairs in one register each
 *   b: (c.., g), (c + 8.., g)                                   pairs along k
 *   d: (g, c), (g, c + 1), (g + 8, c), (g + 8, c + 1) */
static __device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4],
                                                const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
static __device__ __forceinline__ void mma_f16(float d[4], const uint32_t a[4],
                                               const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

/* One number in and out of a buffer. */
static __device__ __forceinline__ float load1(const float *p) { return *p; }
static __device__ __forceinline__ float load1(const bf16 *p) {
    return bits_to_float((uint32_t)p->bits << 16);
}
static __device__ __forceinline__ float load1(const f16 *p) { return f16_to_float(p->bits); }
static __device__ __forceinline__ void store1(float *p, float x) { *p = x; }
static __device__ __forceinline__ void store1(bf16 *p, float x) {
    p->bits = (uint16_t)pack_bf16x2(x, 0.0f);
}
static __device__ __forceinline__ void store1(f16 *p, float x) {
    p->bits = (uint16_t)pack_f16x2(x, 0.0f);
}

/* Sum and maximum over a warp; every lane gets it. All 32 lanes call. */
static __device__ __forceinline__ float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        x += __shfl_xor_sync(0xffffffffu, x, mask);
    }
    return x;
}
static __device__ __forceinline__ float warp_max(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
    }
    return x;
}

/* INF_ACT_*: silu is x / (1 + e^-x), gelu with tanh x / (1 + e^-u), u = 2 sqrt(2 / pi) (x +
 * 0.044715 x^3). */
static __device__ __forceinline__ float activated(float x, int32_t activation) {
    float u = x;
    if (activation == INF_ACT_GELU_TANH) {
        u = x * (1.5957691216057308f + 0.0713548162726f * x * x);
    }
    return x / (1.0f + expf(-u));
}

/* Host: 1 if the code that the current device would run of a kernel was made for sm_90 or later, 0
 * if not; below 0: it cannot be asked. */
template <class K> static inline int made_for_sm90(K *kernel) {
#ifdef INF_EMU
    (void)kernel;
    return 1;
#else
    cudaFuncAttributes a;
    if (cudaFuncGetAttributes(&a, kernel) != cudaSuccess) {
        (void)cudaGetLastError();
        return -1;
    }
    return a.ptxVersion >= 90;
#endif
}

#endif
