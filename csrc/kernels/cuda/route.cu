/* Which experts each row has, all of it on the GPU: steps are recorded, and nobody waits for it.
 *
 *   logits   [rows, experts (+ 1)] = router x, in f32: a warp makes an expert's of LOGIT_ROWS rows,
 *            so that one row of 128 experts is spread over 16 SMs. Bytes: the router, once for
 *            LOGIT_ROWS rows.
 *   choose   a warp takes a row: top_k times the best of what is left, by all lanes; then softmax.
 *   group    one block: a counting sort of the places by expert, and items of at most
 *            INF_CUDA_ITEM_ROWS of them. A warp counts an expert's places, all rows' choices in
 *            order, so that the order of places is that of rows, whatever the timing.
 *   gather   the weighted sum of what a row's experts gave, in the row's own order.
 *
 * Nothing of a row's result depends on the other rows. */
#include "kernels/cuda/experts.h"
#include "kernels/cuda/rows.cuh"

enum { WARPS = 8, LOGIT_ROWS = 4, GROUP_THREADS = 1024, GATHER_THREADS = 128 };

/* ---- logits ---- */

/* 1 / sqrt(mean of squares + eps) of a row that is not scaled yet; every lane gets it. */
static __device__ __forceinline__ float scale_of(const inf_cuda_route &a, int row) {
    if (a.x_squares == NULL) {
        return 1.0f;
    }
    const int n = a.hidden / 16;
    float sum = 0;
    for (int i = (int)(threadIdx.x % 32); i < n; i += 32) {
        sum += a.x_squares[(size_t)row * (size_t)n + (size_t)i];
    }
    return 1.0f / sqrtf(warp_sum(sum) / (float)a.hidden + a.eps);
}

/* Block (x, y): WARPS experts, LOGIT_ROWS rows. */
template <class T> __global__ void __launch_bounds__(WARPS * 32) logits_kernel(inf_cuda_route a) {
    const int lane = (int)(threadIdx.x % 32), all = a.experts + a.shared;
    const int expert = (int)(blockIdx.x * WARPS + threadIdx.x / 32);
    const int row0 = (int)blockIdx.y * LOGIT_ROWS;
    const int rows = a.rows - row0 < LOGIT_ROWS ? a.rows - row0 : LOGIT_ROWS;
    if (expert >= all) { /* whole warps, and no barrier follows */
        return;
    }
    const float *w = a.router + (size_t)expert * (size_t)a.hidden;
    const T *x = (const T *)a.x + (size_t)row0 * (size_t)a.hidden;
    float sum[LOGIT_ROWS] = {};
    for (int i = lane; i < a.hidden; i += 32) {
        const float each = w[i];
        for (int r = 0; r < LOGIT_ROWS; r++) {
            if (r < rows) {
                sum[r] += each * load1(x + (size_t)r * (size_t)a.hidden + (size_t)i);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        const float scale = scale_of(a, row0 + r), logit = warp_sum(sum[r]) * scale;
        if (lane == 0) {
            a.logits[(size_t)(row0 + r) * (size_t)all + (size_t)expert] = logit;
            if (expert == 0) {
                a.scale[row0 + r] = scale;
            }
        }
    }
}

/* ---- choose ---- */

struct candidate {
    float logit;
    int expert;
};

/* The better of two: also where a logit is no number, one of them is. */
static __device__ __forceinline__ candidate better(candidate a, candidate b) {
    return b.logit > a.logit || (b.logit == a.logit && b.expert < a.expert) ? b : a;
}

/* The best expert that is not taken; every lane gets it. Lane i looks at experts i, i + 32, ..,
 * whose bits in taken are 0, 1, ... */
static __device__ __forceinline__ candidate best_of(const float *logits, int n, uint32_t taken) {
    candidate best = {-INFINITY, INT32_MAX};
    for (int i = 0, e = (int)(threadIdx.x % 32); e < n; i++, e += 32) {
        const float logit = logits[e];
        if ((taken >> i & 1u) == 0) {
            best = better(best, {logit == logit ? logit : -INFINITY, e});
        }
    }
    for (int mask = 16; mask > 0; mask >>= 1) {
        candidate other;
        other.logit = __shfl_xor_sync(0xffffffffu, best.logit, mask);
        other.expert = __shfl_xor_sync(0xffffffffu, best.expert, mask);
        best = better(best, other);
    }
    return best;
}

/* A warp takes a row. */
__global__ void __launch_bounds__(WARPS * 32) choose_kernel(inf_cuda_route a) {
    const int lane = (int)(threadIdx.x % 32), n = a.experts;
    const int row = (int)(blockIdx.x * WARPS + threadIdx.x / 32);
    if (row >= a.rows) {
        return;
    }
    const float *logits = a.logits + (size_t)row * (size_t)(n + a.shared);
    const size_t at = (size_t)row * (size_t)a.top_k;
    uint32_t taken = 0;
    float most = 0, sum = 0;
    for (int i = 0; i < a.top_k; i++) {
        const int expert = best_of(logits, n, taken).expert;
        const float logit = logits[expert];
        most = i == 0 ? logit : most;
        sum += a.normalise ? expf(logit - most) : 0.0f;
        taken |= expert % 32 == lane ? 1u << (expert / 32) : 0u;
        if (lane == 0) {
            a.chosen[at + (size_t)i] = expert;
            a.weight[at + (size_t)i] = expf(logit - most);
        }
    }
    if (!a.normalise) {
        for (int e = lane; e < n; e += 32) {
            sum += expf(logits[e] - most);
        }
        sum = warp_sum(sum);
    }
    for (int i = 0; lane == 0 && i < a.top_k; i++) {
        a.weight[at + (size_t)i] /= sum;
    }
}

/* ---- group ---- */

/* Places of an expert, counted by a warp, which calls f(i, the number of them before i) for each.
 */
template <class F>
static __device__ __forceinline__ int each_place(const inf_cuda_route &a, int expert, const F &f) {
    const int lane = (int)(threadIdx.x % 32), places = a.rows * a.top_k;
    int count = 0;
    for (int base = 0; base < places; base += 32) {
        const int i = base + lane;
        const bool mine = i < places && a.chosen[i] == expert;
        const unsigned all = __ballot_sync(0xffffffffu, mine);
        if (mine) {
            f(i, count + __popc(all & ((1u << lane) - 1u)));
        }
        count += __popc(all);
    }
    return count;
}

/* One block. */
__global__ void __launch_bounds__(GROUP_THREADS) group_kernel(inf_cuda_route a) {
    __shared__ int32_t counts[INF_MAX_EXPERTS];
    const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    for (int e = warp; e < a.experts; e += GROUP_THREADS / 32) {
        const int count = each_place(a, e, [](int, int) {});
        if (lane == 0) {
            counts[e] = count;
        }
    }
    __syncthreads();
    const int e = (int)threadIdx.x, size = INF_CUDA_ITEM_ROWS;
    if (e < a.experts) {
        int first = 0, item = 0;
        for (int before = 0; before < e; before++) {
            first += counts[before];
            item += (counts[before] + size - 1) / size;
        }
        for (int left = counts[e]; left > 0; left -= size, first += size) {
            a.items[item++] = {e, first, left < size ? left : size};
        }
        if (e == a.experts - 1) {
            *a.n_items = item;
        }
    }
    for (int w = warp; w < a.experts; w += GROUP_THREADS / 32) {
        int first = 0;
        for (int before = lane; before < w; before += 32) {
            first += counts[before];
        }
        for (int mask = 16; mask > 0; mask >>= 1) {
            first += __shfl_xor_sync(0xffffffffu, first, mask);
        }
        (void)each_place(a, w, [&](int i, int before) {
            a.place[i] = first + before;
            a.source[first + before] = i / a.top_k;
        });
    }
}

int inf_cuda_route_launch(const inf_cuda_route *p, inf_stream stream) {
    if (!known_dtype(p->act) || p->rows < 0 || p->hidden <= 0 || p->experts < 1 ||
        p->experts > INF_MAX_EXPERTS || p->top_k < 1 || p->top_k > p->experts ||
        (p->x_squares != NULL && p->hidden % 16 != 0) ||
        (int64_t)p->rows * p->top_k > INT32_MAX - 32) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->rows == 0) {
        return 0;
    }
    const int all = p->experts + p->shared, blocks = (p->rows + LOGIT_ROWS - 1) / LOGIT_ROWS;
    const dim3 grid((unsigned)((all + WARPS - 1) / WARPS), (unsigned)blocks), block(WARPS * 32);
    int status = blocks > 65535 ? (int)cudaErrorInvalidValue : with_type(p->act, [&](auto number) {
        using T = decltype(number);
        return (int)INF_LAUNCH(logits_kernel<T>, grid, block, 0, stream, *p);
    });
    if (status == 0) {
        const dim3 rows((unsigned)((p->rows + WARPS - 1) / WARPS));
        status = (int)INF_LAUNCH(choose_kernel, rows, block, 0, stream, *p);
    }
    return status != 0 ? status
                       : (int)INF_LAUNCH(group_kernel, dim3(1), dim3(GROUP_THREADS), 0, stream, *p);
}

/* ---- gather ---- */

/* Block (x, y): GATHER_THREADS numbers of row x. */
template <class T>
__global__ void __launch_bounds__(GATHER_THREADS) gather_kernel(inf_cuda_gather_experts a) {
    const size_t row = blockIdx.x, hidden = (size_t)a.hidden, k = (size_t)a.top_k;
    const size_t column = (size_t)blockIdx.y * GATHER_THREADS + threadIdx.x;
    if (column >= hidden) {
        return;
    }
    float sum = 0;
    for (size_t i = row * k; i < (row + 1) * k; i++) {
        sum += a.weight[i] * a.out[(size_t)a.place[i] * hidden + column];
    }
    if (a.shared != NULL) {
        const float logit = a.logits[row * (size_t)(a.experts + 1) + (size_t)a.experts];
        sum += load1((const T *)a.shared + row * hidden + column) / (1.0f + expf(-logit));
    }
    store1((T *)a.y + row * hidden + column, sum);
}

int inf_cuda_gather_experts_launch(const inf_cuda_gather_experts *p, inf_stream stream) {
    if (!known_dtype(p->act) || p->rows < 0 || p->hidden <= 0 || p->top_k < 1) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->rows == 0) {
        return 0;
    }
    const int blocks = (p->hidden + GATHER_THREADS - 1) / GATHER_THREADS;
    const dim3 grid((unsigned)p->rows, (unsigned)blocks), block(GATHER_THREADS);
    return with_type(p->act, [&](auto number) {
        using T = decltype(number);
        return (int)INF_LAUNCH(gather_kernel<T>, grid, block, 0, stream, *p);
    });
}
