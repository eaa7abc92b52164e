/* Bulk copies from global to shared memory and the barriers that say when they are there: machine
 * instructions of sm_90 on. Emulated in emu/bulk.h.
 *
 * An mbarrier counts arrivals and bytes. A phase ends when the expected arrivals have come and
 * every byte that was announced has landed; whoever waits names the parity of the phase whose end
 * it waits for, 0 for the first; 1 at first does not wait. */
#ifndef INF_CUDA_BULK_CUH
#define INF_CUDA_BULK_CUH

#include "kernels/cuda/prelude.cuh"

/* Whether the code being compiled may use them: always in emulation; on the device for sm_90 on. A
 * kernel's body is empty elsewhere, and its launcher asks the runtime which one it would get. */
#if defined(INF_EMU)
#define INF_HAS_BULK 1
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ >= 12
#define INF_HAS_BULK 1
#else
#define INF_HAS_BULK 0
#endif

#if defined(INF_EMU)
#include "kernels/cuda/emu/bulk.h"
#elif INF_HAS_BULK

static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
/* `count` arrivals end a phase. One thread calls, then mbar_init_fence, then a block-wide barrier.
 */
static __device__ __forceinline__ void mbar_init(uint64_t *bar, int count = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count)
                 : "memory");
}
static __device__ __forceinline__ void mbar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* Orders this thread's ordinary accesses to shared memory before bulk copies that follow. */
static __device__ __forceinline__ void bulk_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
static __device__ __forceinline__ void mbar_arrive(uint64_t *bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
/* The arrival, and the bytes that the phase waits for. */
static __device__ __forceinline__ void mbar_expect(uint64_t *bar, uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
        "r"(bytes)
        : "memory");
}
/* All three a multiple of 16. */
static __device__ __forceinline__ void bulk_copy(void *shared, const void *global, uint32_t bytes,
                                                 uint64_t *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}
static __device__ __forceinline__ void mbar_wait(uint64_t *bar, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}

#endif
#endif
