/* What the kernels of product_small.cu's products share: how a tile of 16 outputs is cut among a
 * block's warps, what is read beside the weights, and what becomes of a tile's sums. All of them
 * add in the same order, so that which of them made an output cannot be told from its bits. */
#ifndef INF_CUDA_PRODUCT_SMALL_CUH
#define INF_CUDA_PRODUCT_SMALL_CUH

#include "kernels/cuda/prelude.cuh"
#include "kernels/cuda/product_small.h"
#include "kernels/cuda/weights.cuh"

enum { WARPS = 8, PIECE = 64, OUTPUTS = 16, MAX_ROWS = INF_CUDA_SMALL_ROWS, PREFETCH_LINES = 48 };

static __device__ __forceinline__ void load_x(uint4 x[2], const uint16_t *row, bool valid) {
    const uint4 zero = {0, 0, 0, 0};
    x[0] = valid ? *(const uint4 *)row : zero;
    x[1] = valid ? *(const uint4 *)(row + 8) : zero;
}

/* Lines of the block's rows behind those that registers take, PREFETCH_LINES of each row. */
template <int HALVES>
static __device__ __forceinline__ void prefetch_rows(const inf_cuda_small &a, int first, int from) {
    const int lines = a.k * 2 / 128, most = PREFETCH_LINES / HALVES;
    const int upto = from + most < lines ? from + most : lines, n = upto - from;
    for (int i = (int)threadIdx.x; i < n * OUTPUTS * HALVES; i += WARPS * 32) {
        const int row = i / n, half = row / OUTPUTS;
        const size_t w_row = (size_t)(first + row % OUTPUTS) + (size_t)half * (size_t)a.n;
        prefetch_line((const uint8_t *)a.w + w_row * (size_t)a.k * 2 +
                      (size_t)(from + i % n) * 128);
    }
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

/* What an output's sum is added to, its residual or its bias, and its weight of the norm. Nobody
 * else in the launch touches this residual, so they are read ahead of the sums, which then wait for
 * no memory. */
struct addend {
    float x, norm;
};

/* Of the calling thread's output of the tile that begins with output `first`. */
template <typename T>
static __device__ __forceinline__ addend load_addend(const inf_cuda_small &a, int first) {
    const int row = (int)threadIdx.x / OUTPUTS, output = first + (int)threadIdx.x % OUTPUTS;
    addend r = {0.0f, 0.0f};
    if (row < a.rows && a.residual != NULL) {
        r.x = a.residual[(size_t)row * (size_t)a.n + (size_t)output];
        r.norm = a.y != NULL ? a.norm[output] : 0.0f;
    } else if (row < a.rows && a.bias != NULL) {
        r.x = load1((const T *)a.bias + output);
    }
    return r;
}

/* The outputs of a half of a layer: threads of a row are 16 neighbours, all of them or none. */
template <typename T>
static __device__ __forceinline__ void add_to_residual(const inf_cuda_small &a, int row, int output,
                                                       const addend &r, float y, bool valid) {
    const size_t at = (size_t)row * (size_t)a.n + (size_t)output;
    float x = valid ? __fadd_rn(r.x, y) : 0.0f, square = x * x;
    for (int mask = OUTPUTS / 2; mask > 0; mask >>= 1) {
        square += __shfl_xor_sync(0xffffffffu, square, mask);
    }
    if (!valid) {
        return;
    }
    a.residual[at] = x;
    if (a.y != NULL) {
        store1((T *)a.y + at, x * r.norm);
    }
    if (output % OUTPUTS == 0 && a.squares != NULL) {
        a.squares[(size_t)row * (size_t)(a.n / OUTPUTS) + (size_t)(output / OUTPUTS)] = square;
    }
}

/* A tile's sums of each warp. */
template <int HALVES> struct tile_sums { float of[HALVES][WARPS][OUTPUTS * MAX_ROWS]; };

/* d: outputs g and g + 8, rows 2 q and 2 q + 1. */
template <int HALVES>
static __device__ __forceinline__ void put_sums(tile_sums<HALVES> &sums, const float d[HALVES][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    for (int h = 0; h < HALVES; h++) {
        float *to = sums.of[h][warp];
        to[(2 * q) * OUTPUTS + g] = d[h][0];
        to[(2 * q + 1) * OUTPUTS + g] = d[h][1];
        to[(2 * q) * OUTPUTS + g + 8] = d[h][2];
        to[(2 * q + 1) * OUTPUTS + g + 8] = d[h][3];
    }
}

/* The outputs of the tile that begins with output `first`, once all warps have put their sums;
 * scales: of find_scales. */
template <typename T, int HALVES>
static __device__ __forceinline__ void write_tile(const inf_cuda_small &a, int first,
                                                  const tile_sums<HALVES> &sums,
                                                  const float *scales, const addend &before) {
    const int i = (int)threadIdx.x, row = i / OUTPUTS, output = first + i % OUTPUTS;
    const bool valid = i < OUTPUTS * a.rows;
    const float scale = a.x_squares != NULL && valid ? scales[row] : 1.0f;
    float sum[HALVES] = {};
    for (int h = 0; valid && h < HALVES; h++) {
#pragma unroll 4
        for (int v = 0; v < WARPS; v++) {
            sum[h] += sums.of[h][v][i];
        }
        sum[h] = __fmul_rn(sum[h], scale); /* in no kernel one rounding with what follows */
    }
    if (HALVES == 1 && a.residual != NULL) {
        if (i < OUTPUTS * MAX_ROWS) { /* whole warps */
            add_to_residual<T>(a, row, output, before, sum[0], valid);
        }
        return;
    }
    if (!valid) {
        return;
    }
    float y = sum[0];
    if (HALVES == 2) {
        y = activated(sum[0], a.activation) * sum[HALVES - 1];
    } else if (a.bias != NULL) {
        y = __fadd_rn(y, before.x);
    }
    const size_t at = (size_t)row * (size_t)a.n + (size_t)output;
    if (a.y_f32) {
        ((float *)a.y)[at] = y;
    } else {
        store1((T *)a.y + at, y);
    }
}

/* ---- host ---- */

/* Blocks for so many tiles where `slots` run at a time: as many rounds as it takes, and no more
 * blocks than these rounds need, so that all have as many tiles or one less. */
static inline unsigned even_blocks(int tiles, int slots) {
    const int rounds = (tiles + slots - 1) / slots;
    return (unsigned)((tiles + rounds - 1) / rounds);
}

/* Multiprocessors that a launch is for. */
static inline int sms_of(const inf_cuda_small &p) {
    int device = 0, sms = p.sms;
    if (sms <= 0 &&
        (cudaGetDevice(&device) != cudaSuccess ||
         cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)) {
        (void)cudaGetLastError();
        sms = 132;
    }
    return sms;
}

/* Of what inf_cuda_small_launch has found to be good: product_small_through.cu and
 * product_small_bulk.cu; the latter says cudaErrorNotSupported where there are no bulk copies. */
int small_through_launch(const inf_cuda_small *p, inf_stream stream);
int small_bulk_launch(const inf_cuda_small *p, inf_stream stream);

#endif
