/* Sampling: the launch, the scan that every row begins with, ranks, counts.
 *
 * What is computed of a row x of logits is in model/sampling.h. As sums and order statistics:
 *
 *   log probability   x_t - ln sum e^x               rank   1 + the number of x_i > x_t
 *   y                 x with bias and penalties,     top    the n_top largest x
 *                     -inf where a mask forbids
 *   w_i               e^((y_i - max y) / T), 0 where min_p drops i
 *   all may be drawn  the first t with sum_(i <= t) w_i > u sum w           in the order of ids
 *   top_k, top_p      the same over y in descending order, cut behind the k-th and then behind the
 *                     first with which the sum reaches top_p of what is left
 *
 * u is a function of the seed and the position. Sorting a row would take dozens of passes over it;
 * these take two or three, in kernels whose grid is (chunk of the row, row):
 *
 *   scan     largest and smallest number, sum e^(x - max), rank where the token is given; writes y
 *            for the rows that have a bias or penalties. Greedy rows are done then.
 *   weigh    the weight of each chunk; or, for the rows whose draw is cut and for the top, number
 *            and weight of what falls into each of BINS intervals of (max - y) / T.
 *   gather   says which intervals hold the numbers that matter (the k-th, the last of the nucleus,
 *            the drawn one, all of the top) and lists what is in them: mostly a few hundred numbers
 *            at most.
 *   choose   one block for each row and kind: sorts the list and finds the token exactly; or draws
 *            in the chunk that the draw falls into. Writes the results, counts the token.
 *   rank     counts the logits above the token's.
 *
 * Weights are summed as integers of 2^-44 (w <= 1, and 2^19 of them fit), so the sums are exact and
 * equal in whatever order blocks add, and a token does not depend on what else is in the batch. The
 * floats that choose decides by, u sum w and top_p sum w, are doubles.
 *
 * In gather which interval matters can depend on what only a sorted list tells (where the nucleus
 * ends decides how much mass is drawn from), so bounds are used: the token of a bound is in the
 * interval of the bound, and all that lies between two bounds is listed.
 *
 * A list has CAP numbers. When more fall into the intervals that matter, as in a row of many equal
 * numbers, choose finds its tokens one after the other by digits of the number's bits, in six
 * passes over the row each. Nothing is then approximate either, only slower.
 *
 * Bytes: the logits are read once by scan, and once each by weigh, gather and rank where they run;
 * the second time they come from the L2 cache if they fit. */
#include "kernels/cuda/sampling.cuh"

/* ---- scan ---- */

static __device__ __forceinline__ bool is_bad(float x) {
    return (float_bits(x) & 0x7f800000u) == 0x7f800000u;
}

/* The largest of numbers in the order of their ids. */
struct largest {
    float x;
    int32_t id; /* -1: none so far */
};
static __device__ __forceinline__ void look_at(largest &l, float x, int32_t id) {
    if (x > l.x) {
        l = {x, id};
    }
}
static __device__ __forceinline__ uint64_t as_candidate(const largest &l) {
    return l.id >= 0 ? candidate_of(l.x, l.id) : 0;
}

struct penalties {
    float repetition, presence, frequency;
};

/* A logit after bias and penalties, rounded like the CPU's. */
static __device__ __forceinline__ float adjust(const penalties &p, float x, float bias,
                                               uint32_t count) {
    float y = __fadd_rn(x, bias);
    if (count != 0) {
        uint32_t made = count & ~IN_PROMPT;
        y = y > 0 ? y / p.repetition : __fmul_rn(y, p.repetition);
        float off = __fmul_rn(p.frequency, (float)made);
        y = __fadd_rn(y, -__fadd_rn(off, made > 0 ? p.presence : 0.0f));
    }
    return y;
}

/* The row's bias within the chunk, in shared memory; entries of a row are of different tokens. */
static __device__ __forceinline__ void
spread_bias(const sample_args &a, const inf_cuda_sample_row &row, int32_t first, float *bias) {
    for (int i = (int)threadIdx.x; i < CHUNK; i += THREADS) {
        bias[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.n_bias; i += THREADS) {
        int32_t at = a.p.bias_ids[row.bias_off + i] - first;
        if (at >= 0 && at < CHUNK) {
            bias[at] = a.p.bias[row.bias_off + i];
        }
    }
    __syncthreads();
}

/* How often each token of the chunk is among the row's drafts, four to a word of shared memory: 15
 * at most. In registers it would be too much for two blocks at a time. */
static __device__ __forceinline__ void spread_drafts(const sample_args &a,
                                                     const inf_cuda_sample_row &row, int32_t first,
                                                     uint32_t *times) {
    for (int i = (int)threadIdx.x; i < CHUNK / 4; i += THREADS) {
        times[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x < row.n_drafts) {
        int32_t at = a.p.drafts[row.draft_off + threadIdx.x] - first;
        if (at >= 0 && at < CHUNK) {
            atomicAdd(&times[at / 4], 1u << (8 * (at % 4)));
        }
    }
    __syncthreads();
}

/* Bins of the row's jobs, for the kernels that come: a share for each chunk. */
static __device__ __forceinline__ void clear_bins(const sample_args &a, uint32_t row) {
    for (int k = 0; k < KINDS; k++) {
        job_bins &bins = a.bins[(size_t)row * KINDS + (size_t)k];
        for (uint32_t b = blockIdx.x * THREADS + threadIdx.x; b < BINS; b += gridDim.x * THREADS) {
            bins.mass[b] = 0;
            bins.count[b] = 0;
        }
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            bins.listed = 0;
        }
    }
}

/* y of the chunk into a.adjusted; its part of the stats. */
template <int VEC>
static __device__ __forceinline__ void
adjust_chunk(const sample_args &a, const inf_cuda_sample_row &row, int32_t first, const float *x,
             float *bias, uint32_t *times, chunk_stats *s) {
    const int32_t n = a.p.vocab - first;
    const size_t vocab = (size_t)a.p.vocab;
    float *y = a.adjusted + (size_t)blockIdx.y * vocab + (size_t)first;
    const penalties p = {row.repetition, row.presence, row.frequency};
    const bool biased = row.n_bias > 0;
    uint32_t count[EACH] = {};
    if (row.slot >= 0) {
        load_chunk<VEC>(count, a.p.counts + (size_t)row.slot * vocab + (size_t)first, n);
    }
    if (biased) {
        spread_bias(a, row, first, bias);
    }
    if (row.slot >= 0 && row.n_drafts > 0) {
        spread_drafts(a, row, first, times);
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            int32_t at = spot<VEC>(k);
            count[k] += times[at / 4] >> (8 * (at % 4)) & 255u;
        }
    }
    const uint32_t *mask = NULL; /* a chunk begins with a whole word */
    if (row.mask >= 0) {
        mask = a.p.masks + (size_t)row.mask * ((vocab + 31) / 32) + (size_t)first / 32;
    }
    largest top = {-INFINITY, -1};
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        int32_t at = spot<VEC>(k);
        if (at < n) {
            float z = adjust(p, x[k], biased ? bias[at] : 0.0f, count[k]);
            s->bad |= is_bad(z) ? 1u : 0u;
            if (mask != NULL && (mask[at / 32] >> (at % 32) & 1u) == 0) {
                z = -INFINITY;
            } else {
                look_at(top, z, first + at);
                s->adjusted_low = fminf(z, s->adjusted_low);
            }
            y[at] = z;
        }
    }
    s->adjusted_top = as_candidate(top);
}

/* Over a warp; sum is of e^(x - top's value). */
static __device__ __forceinline__ chunk_stats warp_stats(const chunk_stats &s) {
    chunk_stats w;
    w.top = warp_max_u64(s.top);
    w.adjusted_top = warp_max_u64(s.adjusted_top);
    w.low = warp_min(s.low);
    w.adjusted_low = warp_min(s.adjusted_low);
    w.sum = warp_sum(s.top != 0 ? s.sum * expf(value_of(s.top) - value_of(w.top)) : 0.0f);
    w.greater = warp_sum_u32(s.greater);
    w.bad = warp_sum_u32(s.bad) != 0;
    return w;
}

template <int VEC>
__global__ void __launch_bounds__(THREADS, VEC == 4 ? 2 : 1) scan_kernel(const sample_args a) {
    __shared__ chunk_stats parts[WARPS];
    __shared__ float bias[CHUNK];
    __shared__ uint32_t times[CHUNK / 4];
    const int32_t first = (int32_t)blockIdx.x * CHUNK, n = a.p.vocab - first;
    const float *logits = a.p.logits + (size_t)blockIdx.y * (size_t)a.p.vocab;
    start_successor();
    after_predecessor();
    const inf_cuda_sample_row &row = a.p.row[blockIdx.y];
    if (a.bins != NULL) {
        clear_bins(a, blockIdx.y);
    }
    float x[EACH];
    load_chunk<VEC>(x, logits + first, n);
    const float target = row.target >= 0 ? logits[row.target] : INFINITY;
    chunk_stats s = {0, 0, INFINITY, INFINITY, 0, 0, 0};
    largest top = {-INFINITY, -1};
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        int32_t at = spot<VEC>(k);
        if (at < n) {
            look_at(top, x[k], first + at);
            s.low = fminf(x[k], s.low);
            s.bad |= is_bad(x[k]) ? 1u : 0u;
            s.greater += x[k] > target ? 1u : 0u;
        }
    }
    s.top = as_candidate(top);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        s.sum += spot<VEC>(k) < n ? expf(x[k] - top.x) : 0.0f;
    }
    if (is_adjusted(row)) {
        adjust_chunk<VEC>(a, row, first, x, bias, times, &s);
    }
    chunk_stats w = warp_stats(s);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = w;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        chunk_stats one = {0, 0, INFINITY, INFINITY, 0, 0, 0};
        if (threadIdx.x < WARPS) {
            one = parts[threadIdx.x];
        }
        w = warp_stats(one);
        if (threadIdx.x == 0) {
            a.stats[(size_t)blockIdx.y * (size_t)a.chunks + blockIdx.x] = w;
        }
    }
}

/* ---- rank ---- */

/* Of drawn tokens. Each block adds its count, and one to the upper half of the same number, so the
 * last one knows the rank: out is written once and never read, since it may be host memory. */
template <int VEC> __global__ void __launch_bounds__(THREADS) rank_kernel(const sample_args a) {
    __shared__ uint64_t parts[WARPS];
    const int32_t first = (int32_t)blockIdx.x * CHUNK, n = a.p.vocab - first;
    const float *logits = a.p.logits + (size_t)blockIdx.y * (size_t)a.p.vocab;
    start_successor();
    after_predecessor();
    const int32_t token = a.chosen[blockIdx.y].token;
    if (token < 0) {
        return;
    }
    const float least = logits[token];
    float x[EACH];
    uint64_t greater = 0;
    load_chunk<VEC>(x, logits + first, n);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        greater += spot<VEC>(k) < n && x[k] > least ? 1 : 0;
    }
    greater = block_sum_u64(greater, parts);
    if (threadIdx.x == 0) {
        uint64_t before =
            atomicAdd(&a.chosen[blockIdx.y].greater, (unsigned long long)(greater + (1ull << 32)));
        uint64_t all = (before & 0xffffffffu) + greater;
        if (before >> 32 == (uint64_t)a.chunks - 1 && all > 0) {
            a.p.out[blockIdx.y].rank = 1 + (int32_t)all; /* choose has written 1 */
        }
    }
}

/* ---- the launch ---- */

/* Takes the next `bytes` of the scratch. */
static void *carve(uint8_t **at, uint64_t bytes) {
    void *part = *at;
    *at += (bytes + 255) / 256 * 256;
    return part;
}

static sample_args divide(const inf_cuda_sample *p, uint64_t *bytes) {
    sample_args a = {};
    uint64_t rows = (uint64_t)p->rows, vocab = (uint64_t)p->vocab;
    uint8_t *base = (uint8_t *)p->scratch, *at = base;
    a.p = *p;
    a.chunks = (p->vocab + CHUNK - 1) / CHUNK;
    a.stats = (chunk_stats *)carve(&at, rows * (uint64_t)a.chunks * sizeof(chunk_stats));
    a.chosen = (chosen_token *)carve(&at, rows * sizeof(chosen_token));
    if (p->needs & INF_CUDA_SAMPLE_WEIGHS) {
        a.weight = (uint64_t *)carve(&at, rows * (uint64_t)a.chunks * sizeof(uint64_t));
    }
    if (p->needs & (INF_CUDA_SAMPLE_CUTS | INF_CUDA_SAMPLE_TOPS)) {
        a.bins = (job_bins *)carve(&at, rows * KINDS * sizeof(job_bins));
        a.list = (uint64_t *)carve(&at, rows * KINDS * CAP * sizeof(uint64_t));
    }
    if (p->needs & INF_CUDA_SAMPLE_ADJUSTS) {
        a.adjusted = (float *)carve(&at, rows * vocab * sizeof(float));
    }
    *bytes = (uint64_t)(at - base);
    return a;
}

uint64_t inf_cuda_sample_scratch(int32_t rows, int32_t vocab, uint32_t needs) {
    inf_cuda_sample p = {};
    uint64_t bytes = 0;
    p.rows = rows;
    p.vocab = vocab;
    p.needs = needs;
    divide(&p, &bytes);
    return bytes;
}

int inf_cuda_sample_launch(const inf_cuda_sample *p, inf_stream stream) {
    const uint32_t lists = INF_CUDA_SAMPLE_CUTS | INF_CUDA_SAMPLE_TOPS;
    if (p->rows < 0 || p->rows > 65535 || p->vocab <= 0 || p->vocab > INF_CUDA_SAMPLE_MAX_VOCAB ||
        (uintptr_t)p->scratch % 256 != 0 ||
        ((p->needs & INF_CUDA_SAMPLE_CUTS) != 0 && (p->needs & INF_CUDA_SAMPLE_WEIGHS) == 0)) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->rows == 0) {
        return 0;
    }
    uint64_t bytes = 0;
    sample_args a = divide(p, &bytes);
    bool fast =
        p->vocab % 4 == 0 && (uintptr_t)p->logits % 16 == 0 && (uintptr_t)p->counts % 16 == 0;
    dim3 grid((unsigned)a.chunks, (unsigned)p->rows), block(THREADS);
    int status =
        (int)(fast ? INF_LAUNCH_EARLY(a.p.early != 0, (scan_kernel<4>), grid, block, 0, stream, a)
                   : INF_LAUNCH_EARLY(a.p.early != 0, (scan_kernel<1>), grid, block, 0, stream, a));
    if (status == 0 && (p->needs & (INF_CUDA_SAMPLE_WEIGHS | lists)) != 0) {
        status = inf_cuda_sample_weigh(&a, fast, stream);
    }
    if (status == 0) {
        status = inf_cuda_sample_choose(&a, stream);
    }
    if (status == 0 && (p->needs & (INF_CUDA_SAMPLE_WEIGHS | INF_CUDA_SAMPLE_ADJUSTS)) != 0) {
        status = (int)(fast ? INF_LAUNCH_EARLY(a.p.early != 0, (rank_kernel<4>), grid, block, 0,
                                               stream, a)
                            : INF_LAUNCH_EARLY(a.p.early != 0, (rank_kernel<1>), grid, block, 0,
                                               stream, a));
    }
    return status;
}

/* ---- counts ---- */

/* One block: a slot is opened once per request. */
__global__ void __launch_bounds__(THREADS) counts_kernel(const inf_cuda_counts a) {
    uint32_t *counts = a.counts + (size_t)a.slot * (size_t)a.vocab;
    start_successor();
    after_predecessor();
    for (int32_t i = (int32_t)threadIdx.x; i < a.vocab; i += THREADS) {
        counts[i] = 0;
    }
    __syncthreads();
    for (int64_t i = (int64_t)threadIdx.x; i < a.n_tokens; i += THREADS) {
        if (i < a.n_prompt) {
            atomicOr(&counts[a.tokens[i]], IN_PROMPT);
        } else {
            atomicAdd(&counts[a.tokens[i]], 1u);
        }
    }
}

int inf_cuda_counts_launch(const inf_cuda_counts *p, inf_stream stream) {
    if (p->slot < 0 || p->vocab <= 0 || p->n_tokens < 0 || p->n_prompt < 0) {
        return (int)cudaErrorInvalidValue;
    }
    return (int)INF_LAUNCH(counts_kernel, dim3(1), dim3(THREADS), 0, stream, *p);
}

/* One block: few tokens. */
__global__ void __launch_bounds__(THREADS) counted_kernel(const inf_cuda_counted a) {
    start_successor();
    after_predecessor();
    for (int32_t i = (int32_t)threadIdx.x; i < a.n; i += THREADS) {
        atomicAdd(&a.counts[(size_t)a.pairs[2 * i] * (size_t)a.vocab + a.pairs[2 * i + 1]], 1u);
    }
}

int inf_cuda_counted_launch(const inf_cuda_counted *p, inf_stream stream) {
    if (p->n <= 0 || p->vocab <= 0) {
        return (int)cudaErrorInvalidValue;
    }
    return (int)INF_LAUNCH(counted_kernel, dim3(1), dim3(THREADS), 0, stream, *p);
}
