/* Merging partials of attention.
 *
 * With partials (o_i, lse_i) over disjoint sets of keys, every o_i normalised,
 *
 *     m = max lse_i    w_i = e^(lse_i - m)    o = sum w_i o_i / sum w_i    lse = m + ln sum w_i
 *
 * is attention over the union; an empty partial has lse -inf and weight 0. Bytes: 4 head_dim per
 * partial of each (row, head), read once. Few rows have many parts each, since plan.c cuts long
 * texts until the GPU is full, and many rows have few: so either 8 warps share a (row, head), each
 * taking every 8th part, or one warp does it alone.
 *
 * A warp takes 32 parts at a time. Lane j fetches the index and lse of the j-th, and so finds the
 * weights in parallel; then lanes take dims and the warp walks the parts, whose reads do not depend
 * on each other. What warps found is merged by the same formula, through shared memory. */
#include "kernels/cuda/combine.cuh"

enum { COMBINE_WARPS = 8 };

/* What a warp knows of some parts. */
struct combined {
    float m, sum; /* e^(lse - m) summed */
    float o[COMBINE_DIMS];
};

/* Parts from, from + step, .. of the list. */
template <int VEC>
static __device__ combined combine_parts(const inf_cuda_combine &a, int32_t head, uint32_t from,
                                         uint32_t end, uint32_t step) {
    const uint32_t lane = threadIdx.x % 32;
    combined c = {-INFINITY, 0, {}};
    for (uint32_t base = from; base < end; base += 32 * step) {
        uint32_t at = base + lane * step, count = (end - base + step - 1) / step;
        uint32_t part = 0;
        float lse = -INFINITY;
        if (lane < count) {
            part = a.list[at];
            lse = a.part_lse[(size_t)part * (size_t)a.heads + (size_t)head];
        }
        float m = fmaxf(c.m, warp_max(lse));
        if (m == -INFINITY) {
            continue;
        }
        float shrink = expf(c.m - m), weight = expf(lse - m);
        c.m = m;
        c.sum = c.sum * shrink + warp_sum(weight);
        for (int i = 0; i < COMBINE_DIMS; i++) {
            c.o[i] *= shrink;
        }
        count = count < 32 ? count : 32;
#pragma unroll 4
        for (uint32_t j = 0; j < count; j++) {
            float x[COMBINE_DIMS], w = __shfl_sync(0xffffffffu, weight, (int)j);
            size_t row = (size_t)__shfl_sync(0xffffffffu, part, (int)j) * (size_t)a.heads;
            load_dims<VEC>(x, a.part_o + (row + (size_t)head) * (size_t)a.head_dim, a.head_dim);
            for (int i = 0; i < COMBINE_DIMS; i++) {
                c.o[i] += w * x[i];
            }
        }
    }
    return c;
}

/* Writes a (row, head); c is normalised on the way. */
template <int VEC>
static __device__ __forceinline__ void put_combined(const inf_cuda_combine &a, size_t at,
                                                    const combined &c) {
    float inverse = c.sum > 0 ? 1.0f / c.sum : 0.0f;
#pragma unroll
    for (int i = 0; i < COMBINE_DIMS; i += VEC) {
        int32_t d = dim_at<VEC>(i);
        if (d < a.head_dim) {
            float x[VEC];
            for (int k = 0; k < VEC; k++) {
                x[k] = c.o[i + k] * inverse;
            }
            store_run_as<VEC>(a.o, a.o_dtype, at * (size_t)a.head_dim + (size_t)d, x);
        }
    }
    if (a.lse != NULL && threadIdx.x % 32 == 0) {
        a.lse[at] = c.sum > 0 ? c.m + logf(c.sum) : -INFINITY;
    }
}

/* SHARE: warps of the block that share a (row, head); 1 or all of them. */
template <int VEC, int SHARE>
__global__ void __launch_bounds__(COMBINE_WARPS * 32) combine_kernel(const inf_cuda_combine a) {
    __shared__ float shared_m[COMBINE_WARPS], shared_sum[COMBINE_WARPS];
    __shared__ float shared_o[COMBINE_WARPS][COMBINE_MAX_DIM];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const size_t at = (size_t)blockIdx.x * (COMBINE_WARPS / SHARE) + (SHARE == 1 ? warp : 0);
    start_successor();
    after_predecessor();
    if (at >= (size_t)a.rows * (size_t)a.heads) {
        return; /* SHARE == 1: with its whole warp, and there is no barrier */
    }
    const size_t row = at / (size_t)a.heads;
    const uint32_t from = a.off[row], end = a.off[row + 1];
    if (from == end) {
        return; /* with its whole block where the block shares */
    }
    const int32_t head = (int32_t)(at % (size_t)a.heads);
    combined c = combine_parts<VEC>(a, head, from + (SHARE == 1 ? 0 : warp), end, SHARE);
    if constexpr (SHARE > 1) {
        if (lane == 0) {
            shared_m[warp] = c.m;
            shared_sum[warp] = c.sum;
        }
        for (int i = 0; i < COMBINE_DIMS; i++) {
            shared_o[warp][lane + 32 * i] = c.o[i];
        }
        __syncthreads();
        if (warp > 0) {
            return;
        }
        float m = warp_max(lane < SHARE ? shared_m[lane] : -INFINITY);
        combined all = {m, 0, {}};
        for (int w = 0; w < SHARE && m > -INFINITY; w++) {
            float weight = expf(shared_m[w] - m);
            all.sum += weight * shared_sum[w];
            for (int i = 0; i < COMBINE_DIMS; i++) {
                all.o[i] += weight * shared_o[w][lane + 32 * i];
            }
        }
        c = all;
    }
    put_combined<VEC>(a, at, c);
}

template <int VEC>
static int combine_launch(const inf_cuda_combine *p, int64_t items, inf_stream stream) {
    /* Alone, a warp of each item: enough of them to fill a GPU is some hundred blocks. */
    bool share = items < 64 * COMBINE_WARPS;
    int64_t blocks = share ? items : (items + COMBINE_WARPS - 1) / COMBINE_WARPS;
    dim3 grid((unsigned)blocks), block(COMBINE_WARPS * 32);
    if (blocks > INT32_MAX) {
        return (int)cudaErrorInvalidValue;
    }
    return (int)(share ? INF_LAUNCH_EARLY(p->early != 0, (combine_kernel<VEC, COMBINE_WARPS>), grid,
                                          block, 0, stream, *p)
                       : INF_LAUNCH_EARLY(p->early != 0, (combine_kernel<VEC, 1>), grid, block, 0,
                                          stream, *p));
}

int inf_cuda_combine_launch(const inf_cuda_combine *p, inf_stream stream) {
    if (!known_dtype(p->o_dtype) || p->rows < 0 || p->heads <= 0 || p->head_dim <= 0 ||
        p->head_dim > COMBINE_MAX_DIM) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->rows == 0) {
        return 0;
    }
    int64_t items = (int64_t)p->rows * p->heads;
    return p->head_dim % 4 == 0 && aligned_16(p->part_o, p->o)
               ? combine_launch<4>(p, items, stream)
               : combine_launch<1>(p, items, stream);
}
