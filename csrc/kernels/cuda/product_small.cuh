/* What the kernels for products of a few rows share: the tensor cores' part, the scale of a norm
 * that was left out, and where outputs go. product_small.cu tells how threads hold them. */
#ifndef INF_CUDA_PRODUCT_SMALL_CUH
#define INF_CUDA_PRODUCT_SMALL_CUH

#include "kernels/cuda/prelude.cuh"
#include "kernels/cuda/product_small.h"

enum { WARPS = 8, PIECE = 64, OUTPUTS = 16, MAX_ROWS = INF_CUDA_SMALL_ROWS };

/* One thread's share of a piece: 16 numbers of two weight rows. */
struct weights {
    uint4 low[2], high[2]; /* row g: first and second 8 numbers; row g + 8 */
};

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

static __device__ __forceinline__ void load_x(uint4 x[2], const uint16_t *row, bool valid) {
    const uint4 zero = {0, 0, 0, 0};
    x[0] = valid ? *(const uint4 *)row : zero;
    x[1] = valid ? *(const uint4 *)(row + 8) : zero;
}

/* 1 / sqrt(mean of squares + eps) of the rows, by one warp each. */
static __device__ __forceinline__ void find_scales(const inf_cuda_small &a, float *scales) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32, n = a.k / OUTPUTS;
    float sum = 0;
    for (int i = lane; row < a.rows && i < n; i += 32) {
        sum += a.x_squares[(size_t)row * (size_t)n + (size_t)i];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        scales[row] = 1.0f / sqrtf(sum / (float)a.k + a.eps);
    }
}

/* The outputs of a half of a layer: threads of a row are 16 neighbours, all of them or none. */
template <typename T>
static __device__ __forceinline__ void add_to_residual(const inf_cuda_small &a, int row, int output,
                                                       float y, bool valid) {
    const size_t at = (size_t)row * (size_t)a.n + (size_t)output;
    float x = valid ? a.residual[at] + y : 0.0f, square = x * x;
    for (int mask = OUTPUTS / 2; mask > 0; mask >>= 1) {
        square += __shfl_xor_sync(0xffffffffu, square, mask);
    }
    if (!valid) {
        return;
    }
    a.residual[at] = x;
    if (a.y != NULL) {
        store1((T *)a.y + at, x * a.norm[output]);
    }
    if (output % OUTPUTS == 0 && a.squares != NULL) {
        a.squares[(size_t)row * (size_t)(a.n / OUTPUTS) + (size_t)(output / OUTPUTS)] = square;
    }
}

/* An output from its sums, gate's and up's with HALVES 2; i: the thread's number. */
template <typename T, int HALVES>
static __device__ __forceinline__ void finish(const inf_cuda_small &a, int i, int row, int output,
                                              const float *sum, bool valid) {
    if (HALVES == 1 && a.residual != NULL) {
        if (i < OUTPUTS * MAX_ROWS) { /* whole warps */
            add_to_residual<T>(a, row, output, sum[0], valid);
        }
        return;
    }
    if (!valid) {
        return;
    }
    float y = sum[0];
    if (HALVES == 2) {
        y = sum[0] / (1.0f + expf(-sum[0])) * sum[HALVES - 1];
    } else if (a.bias != NULL) {
        y += load1((const T *)a.bias + output);
    }
    const size_t at = (size_t)row * (size_t)a.n + (size_t)output;
    if (a.y_f32) {
        ((float *)a.y)[at] = y;
    } else {
        store1((T *)a.y + at, y);
    }
}

#endif
