/* Products of rows with their experts' matrices: a block takes an item, up to 32 places of one
 * expert, and 16 outputs. Experts without rows have no items, and their weights are not read.
 *
 *   flops  2 places n k (gate | up: twice that)
 *   bytes  2 n k for each item: with the few rows of a decode step the weights of the experts that
 *          are chosen, once each; the items of one expert follow each other, so that the L2 cache
 *          has the weights that the second one reads
 *
 * The fragments are those of product_small.cu: the weights of 16 outputs are A, the places are B, 8
 * columns a tile and up to TILES tiles, and both come from global memory in 16-byte loads that are
 * fragments as they are. So a place's sums are those that it has alone: the warps take pieces of k
 * in turn and are added up in their order, whatever the other columns are.
 *
 * x may be a row that is not scaled yet (product_small.cu); its scale comes to the sums at the end.
 *
 * Formats and sizes that this does not take go by a plain kernel, a warp an output. */
#include "kernels/cuda/experts.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/weights.cuh"

enum { WARPS = 8, PIECE = 64, OUTPUTS = 16, COLUMNS = 8, PLAIN_WARPS = 4 };

static __device__ __forceinline__ int32_t row_of(const inf_cuda_grouped &a, int32_t place) {
    return a.source != NULL ? a.source[place] : place;
}

/* The output of a place from its sums, gate's and up's or one. */
template <class T, int HALVES>
static __device__ __forceinline__ void finish(const inf_cuda_grouped &a, int32_t place, int output,
                                              const float *sum) {
    const float scale = a.scale != NULL ? a.scale[row_of(a, place)] : 1.0f;
    const size_t at = (size_t)place * (size_t)a.n + (size_t)output;
    if (HALVES == 2) {
        const float gate = scale * sum[0], up = scale * sum[HALVES - 1];
        store1((T *)a.y + at, gate / (1.0f + expf(-gate)) * up);
    } else {
        ((float *)a.y)[at] = scale * sum[0];
    }
}

/* HALVES: 1, or 2 for gate and up. TILES: of 8 places. DEPTH: pieces whose weights are under way
 * per warp. RESIDENT: blocks per SM that registers are for. */
template <class T, int HALVES, int TILES, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(WARPS * 32, RESIDENT) grouped_kernel(inf_cuda_grouped a) {
    __shared__ float sums[HALVES][TILES][WARPS][OUTPUTS * COLUMNS];
    const int blocks = a.n / OUTPUTS, at = (int)(blockIdx.x / (unsigned)blocks);
    if (at >= *a.n_items) {
        return;
    }
    const inf_cuda_item item = a.items[at];
    const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    const int g = lane / 4, q = lane % 4, pieces = a.k / PIECE;
    const int first = (int)(blockIdx.x % (unsigned)blocks) * OUTPUTS;
    const size_t k = (size_t)a.k, half = (size_t)a.n * k;
    const uint16_t *w = (const uint16_t *)a.w[item.expert] + (size_t)(first + g) * k + 16 * q;
    const uint16_t *x[TILES]; /* NULL: there is no such place */
    for (int t = 0; t < TILES; t++) {
        const int i = t * COLUMNS + g;
        x[t] = i < item.count
                   ? (const uint16_t *)a.x + (size_t)row_of(a, item.first + i) * k + 16 * q
                   : NULL;
    }
    weights ring[DEPTH][HALVES];
    float d[HALVES][TILES][4] = {};
    int next = warp;
#pragma unroll
    for (int s = 0; s < DEPTH; s++, next += WARPS) {
        for (int h = 0; h < HALVES; h++) {
            if (next < pieces) {
                load_weights(ring[s][h], w + h * half + (size_t)next * PIECE, k);
            }
        }
    }
    for (int base = warp; base < pieces; base += DEPTH * WARPS) {
#pragma unroll
        for (int s = 0; s < DEPTH; s++, next += WARPS) {
            const int piece = base + s * WARPS;
            if (piece >= pieces) {
                continue;
            }
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint4 zero = {0, 0, 0, 0};
                const uint16_t *from = x[t] + (x[t] != NULL ? (size_t)piece * PIECE : 0);
                const uint4 now[2] = {x[t] != NULL ? *(const uint4 *)from : zero,
                                      x[t] != NULL ? *(const uint4 *)(from + 8) : zero};
                for (int h = 0; h < HALVES; h++) {
                    multiply<T>(d[h][t], ring[s][h], now);
                }
            }
            for (int h = 0; h < HALVES; h++) {
                if (next < pieces) {
                    load_weights(ring[s][h], w + h * half + (size_t)next * PIECE, k);
                }
            }
        }
    }
    /* d: outputs g and g + 8, places 2 q and 2 q + 1 of a tile */
    for (int h = 0; h < HALVES; h++) {
        for (int t = 0; t < TILES; t++) {
            float *to = sums[h][t][warp];
            to[(2 * q) * OUTPUTS + g] = d[h][t][0];
            to[(2 * q + 1) * OUTPUTS + g] = d[h][t][1];
            to[(2 * q) * OUTPUTS + g + 8] = d[h][t][2];
            to[(2 * q + 1) * OUTPUTS + g + 8] = d[h][t][3];
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < OUTPUTS * item.count; i += WARPS * 32) {
        float sum[HALVES] = {};
        for (int h = 0; h < HALVES; h++) {
            for (int v = 0; v < WARPS; v++) {
                sum[h] += sums[h][i / (OUTPUTS * COLUMNS)][v][i % (OUTPUTS * COLUMNS)];
            }
        }
        finish<T, HALVES>(a, item.first + i / OUTPUTS, first + i % OUTPUTS, sum);
    }
}

/* Any format and size: a warp makes an output of all the item's places. */
template <class T, int HALVES>
__global__ void __launch_bounds__(PLAIN_WARPS * 32) plain_grouped_kernel(inf_cuda_grouped a) {
    const unsigned blocks = ((unsigned)a.n + PLAIN_WARPS - 1) / PLAIN_WARPS;
    const int at = (int)(blockIdx.x / blocks), lane = (int)(threadIdx.x % 32);
    const int output = (int)(blockIdx.x % blocks * PLAIN_WARPS + threadIdx.x / 32);
    if (at >= *a.n_items || output >= a.n) { /* whole warps, and no barrier follows */
        return;
    }
    const inf_cuda_item item = a.items[at];
    const T *w = (const T *)a.w[item.expert];
    for (int32_t p = item.first; p < item.first + item.count; p++) {
        const T *x = (const T *)a.x + (size_t)row_of(a, p) * (size_t)a.k;
        float sum[HALVES] = {};
        for (int h = 0; h < HALVES; h++) {
            const T *row = w + ((size_t)h * (size_t)a.n + (size_t)output) * (size_t)a.k;
            for (int i = lane; i < a.k; i += 32) {
                sum[h] += load1(x + i) * load1(row + i);
            }
            sum[h] = warp_sum(sum[h]);
        }
        if (lane == 0) {
            finish<T, HALVES>(a, p, output, sum);
        }
    }
}

/* Blocks of a grid over items and `each` blocks of outputs; 0: too many. */
static unsigned blocks_of(const inf_cuda_grouped *p, int64_t each) {
    int64_t blocks = inf_cuda_most_items(p->places, p->experts) * each;
    return blocks <= INT32_MAX ? (unsigned)blocks : 0;
}

template <class T> static int launch_fast(const inf_cuda_grouped *p, inf_stream stream) {
    const unsigned blocks = blocks_of(p, p->n / OUTPUTS);
    const dim3 grid(blocks), block(WARPS * 32);
    const bool few = p->most > 0 && p->most <= COLUMNS;
    enum { TILES = INF_CUDA_ITEM_ROWS / COLUMNS };
    auto kernel = p->gate
                      ? (few ? grouped_kernel<T, 2, 1, 2, 2> : grouped_kernel<T, 2, TILES, 2, 1>)
                      : (few ? grouped_kernel<T, 1, 1, 4, 2> : grouped_kernel<T, 1, TILES, 4, 1>);
    return blocks == 0 ? (int)cudaErrorInvalidValue
                       : (int)INF_LAUNCH(kernel, grid, block, 0, stream, *p);
}

int inf_cuda_grouped_launch(const inf_cuda_grouped *p, inf_stream stream) {
    if (!known_dtype(p->act) || p->places < 0 || p->experts < 1 || p->n < 1 || p->k < 1) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->places == 0) {
        return 0;
    }
    /* Matrices are allocations of their own, so they are aligned. */
    const bool fast = p->n % OUTPUTS == 0 && p->k % PIECE == 0 && aligned_16(p->x);
    if (fast && p->act == INF_DTYPE_BF16) {
        return launch_fast<bf16>(p, stream);
    }
    if (fast && p->act == INF_DTYPE_F16) {
        return launch_fast<f16>(p, stream);
    }
    const unsigned blocks = blocks_of(p, ((int64_t)p->n + PLAIN_WARPS - 1) / PLAIN_WARPS);
    const dim3 grid(blocks), block(PLAIN_WARPS * 32);
    return blocks == 0 ? (int)cudaErrorInvalidValue : with_type(p->act, [&](auto number) {
        using T = decltype(number);
        auto kernel = p->gate ? plain_grouped_kernel<T, 2> : plain_grouped_kernel<T, 1>;
        return (int)INF_LAUNCH(kernel, grid, block, 0, stream, *p);
    });
}
