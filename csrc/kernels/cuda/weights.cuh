/* What products by the tensor cores' 16 x 8 x 16 instruction share where the weights are its 16
 * rows: a thread's share of them, loaded once and past the L1, and their product with 8 columns. */
#ifndef INF_CUDA_WEIGHTS_CUH
#define INF_CUDA_WEIGHTS_CUH

#include "kernels/cuda/prelude.cuh"

/* One thread's share of a piece: 16 numbers of two weight rows. */
struct weights {
    uint4 low[2], high[2]; /* row g: first and second 8 numbers; row g + 8 */
};

static __device__ __forceinline__ void load_weights(weights &w, const uint16_t *row, size_t k) {
    w.low[0] = load_once(row);
    w.low[1] = load_once(row + 8);
    w.high[0] = load_once(row + 8 * k);
    w.high[1] = load_once(row + 8 * k + 8);
}

template <typename T>
static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t b[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<f16>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_f16(d, a, b);
}

/* 16 numbers of k: four steps of the instruction's 16, since 4 threads hold 16 each. */
template <typename T>
static __device__ __forceinline__ void multiply(float d[4], const weights &w, const uint4 x[2]) {
    for (int i = 0; i < 2; i++) {
        const uint32_t a0[4] = {w.low[i].x, w.high[i].x, w.low[i].y, w.high[i].y};
        const uint32_t a1[4] = {w.low[i].z, w.high[i].z, w.low[i].w, w.high[i].w};
        const uint32_t b0[2] = {x[i].x, x[i].y}, b1[2] = {x[i].z, x[i].w};
        mma<T>(d, a0, b0);
        mma<T>(d, a1, b1);
    }
}

#endif
