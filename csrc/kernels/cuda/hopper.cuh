/* Machine instructions of sm_90a: products of a warpgroup (wgmma), registers that move between
 * warpgroups. Their operands come by boxes.cuh. Emulated in emu/hopper.h.
 *
 * wgmma. The 128 threads of a warpgroup together compute d[64, N] (+)= a[64, 16] b[16, N]. d lies
 * in their registers: warp w of the four has rows 16 w .. 16 w + 15, and within them thread t holds
 * d[n][0], d[n][1] at row t / 4, columns 8 n + 2 (t % 4) and the next, d[n][2], d[n][3] eight rows
 * below; a from registers lies as mma's in prelude.cuh. Operands in shared memory are named by
 * descriptors. The products run on their own once asked for: registers and shared memory that they
 * use may not be touched until a wait for their group says so, and since the compiler does not know
 * it, `settle` pins registers on the right side of a wait or a fence.
 *
 * Descriptors with swizzle mode 1 read tiles of atoms (boxes.cuh). A descriptor has the start
 * address in bits 0 .. 13, the leading byte offset in 16 .. 29, the stride byte offset in 32 .. 45
 * (all without their low four bits), the base offset in 49 .. 51 (0: atoms are aligned), the mode
 * in 62 .. 63. What the offsets mean depends on which way the operand lies:
 *
 *   K-major: a row is one of M or N, and its numbers run along K. Rows 8 apart are the stride
 * offset apart. The 16 numbers along K lie in one atom's rows, so the leading offset does nothing;
 * the next 16 begin 32 bytes further on, which the start address says, the swizzle being one of
 * final addresses. MN-major (the transposed bit of the instruction): a row is one of K, and its
 * numbers run along M or N. Rows 8 apart are the stride offset apart, and numbers 64 apart in a row
 * are the leading offset apart. */
#ifndef INF_CUDA_HOPPER_CUH
#define INF_CUDA_HOPPER_CUH

#include "kernels/cuda/boxes.cuh"

/* Whether the code being compiled may use them. A kernel's body is empty elsewhere, and its
 * launcher asks the runtime which one it would get. */
#if defined(INF_EMU)
#define INF_HAS_WGMMA 1
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL) && __CUDACC_VER_MAJOR__ >= 12
#define INF_HAS_WGMMA 1
#else
#define INF_HAS_WGMMA 0
#endif

#if defined(INF_EMU)
#include "kernels/cuda/emu/hopper.h"
#endif

/* Descriptor of an operand; leading and stride offset: see above. */
static __device__ __forceinline__ uint64_t operand_at(uint32_t address, uint32_t leading,
                                                      uint32_t stride) {
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

#if !defined(INF_EMU) && INF_HAS_WGMMA

/* Barriers by number among some of the block's threads; arrive does not wait. */
static __device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
static __device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- products ---- */

template <int n> static __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n> static __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}

/* Before the first product that reads or adds to registers which were written since. */
static __device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Waits until at most n groups are under way. */
template <int n> static __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}
template <int N> static __device__ __forceinline__ void settle(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
    }
}
template <int N> static __device__ __forceinline__ void settle(uint32_t (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        asm volatile("" : "+r"(d[n][0]), "+r"(d[n][1]), "+r"(d[n][2]), "+r"(d[n][3])::"memory");
    }
}

/* clang-format off */
#define WGMMA_D4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define WGMMA_SS128(format, d, a, b, keep)                                                         \
    asm volatile("{\n"                                                                             \
        ".reg .pred keep;\n"                                                                        \
        "setp.ne.b32 keep, %66, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." format "." format " {"                        \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" "}, %64, %65, keep, 1, 1, 0, 0;\n"                                                    \
        "}"                                                                                        \
        : WGMMA_D4(d, 0), WGMMA_D4(d, 1), WGMMA_D4(d, 2), WGMMA_D4(d, 3), WGMMA_D4(d, 4), WGMMA_D4(d, 5), WGMMA_D4(d, 6), WGMMA_D4(d, 7), WGMMA_D4(d, 8), WGMMA_D4(d, 9), WGMMA_D4(d, 10), WGMMA_D4(d, 11), WGMMA_D4(d, 12), WGMMA_D4(d, 13), WGMMA_D4(d, 14), WGMMA_D4(d, 15)                                                                                    \
        : "l"(a), "l"(b), "r"(keep))
#define WGMMA_RS128(format, d, a, b)                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." format "." format " {"               \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                      \
        : WGMMA_D4(d, 0), WGMMA_D4(d, 1), WGMMA_D4(d, 2), WGMMA_D4(d, 3), WGMMA_D4(d, 4), WGMMA_D4(d, 5), WGMMA_D4(d, 6), WGMMA_D4(d, 7), WGMMA_D4(d, 8), WGMMA_D4(d, 9), WGMMA_D4(d, 10), WGMMA_D4(d, 11), WGMMA_D4(d, 12), WGMMA_D4(d, 13), WGMMA_D4(d, 14), WGMMA_D4(d, 15)                                                                                    \
        : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "l"(b))

#define WGMMA_RS64(format, d, a, b)                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." format "." format " {"               \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                      \
        : WGMMA_D4(d, 0), WGMMA_D4(d, 1), WGMMA_D4(d, 2), WGMMA_D4(d, 3), WGMMA_D4(d, 4), WGMMA_D4(d, 5), WGMMA_D4(d, 6), WGMMA_D4(d, 7)                                                                                    \
        : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "l"(b))
/* clang-format on */

/* d[64, 128] = a b, or += with keep; both K-major in shared memory. */
static __device__ __forceinline__ void wgmma_ss(float (&d)[16][4], uint64_t a, uint64_t b, int keep,
                                                bf16) {
    WGMMA_SS128("bf16", d, a, b, keep);
}
static __device__ __forceinline__ void wgmma_ss(float (&d)[16][4], uint64_t a, uint64_t b, int keep,
                                                f16) {
    WGMMA_SS128("f16", d, a, b, keep);
}
/* d[64, N] += a b; a in registers, b MN-major in shared memory. */
static __device__ __forceinline__ void wgmma_rs(float (&d)[16][4], const uint32_t a[4], uint64_t b,
                                                bf16) {
    WGMMA_RS128("bf16", d, a, b);
}
static __device__ __forceinline__ void wgmma_rs(float (&d)[16][4], const uint32_t a[4], uint64_t b,
                                                f16) {
    WGMMA_RS128("f16", d, a, b);
}
static __device__ __forceinline__ void wgmma_rs(float (&d)[8][4], const uint32_t a[4], uint64_t b,
                                                bf16) {
    WGMMA_RS64("bf16", d, a, b);
}
static __device__ __forceinline__ void wgmma_rs(float (&d)[8][4], const uint32_t a[4], uint64_t b,
                                                f16) {
    WGMMA_RS64("f16", d, a, b);
}

#endif
#endif
