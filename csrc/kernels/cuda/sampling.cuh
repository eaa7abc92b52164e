/* What the sampling kernels share; sampling.cu has the whole picture. */
#ifndef INF_CUDA_SAMPLING_CUH
#define INF_CUDA_SAMPLING_CUH

#include <string.h>

#include "infinite/status.h"
#include "kernels/cuda/prelude.cuh"
#include "kernels/cuda/sampling.h"

enum { THREADS = 512, WARPS = THREADS / 32, EACH = 16, CHUNK = THREADS * EACH };
enum { MAX_CHUNKS = INF_CUDA_SAMPLE_MAX_VOCAB / CHUNK }; /* 64: two for each lane of a warp */
enum { LINEAR = 1024, BINS = 1536 };                     /* bins of equal width, and in all */
enum { CAP = 2048 };                                     /* candidates that are sorted at once */
enum { ID_BITS = 20 };
#define IN_PROMPT 0x80000000u
#define ALL_LANES 0xffffffffu

/* ---- candidates: a value and an id in one number ---- */

static __device__ __forceinline__ uint32_t float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* Larger for larger x, then for lower ids; -0 is 0. Never 0 for a number. */
static __device__ __forceinline__ uint64_t candidate_of(float x, int32_t id) {
    uint32_t u = float_bits(x == 0 ? 0.0f : x);
    uint32_t key = (u >> 31) != 0 ? ~u : u | 0x80000000u;
    return ((uint64_t)key << ID_BITS) | ((1u << ID_BITS) - 1 - (uint32_t)id);
}
static __device__ __forceinline__ int32_t id_of(uint64_t candidate) {
    uint32_t low = (uint32_t)candidate & ((1u << ID_BITS) - 1);
    return (int32_t)((1u << ID_BITS) - 1 - low);
}
static __device__ __forceinline__ float value_of(uint64_t candidate) {
    uint32_t key = (uint32_t)(candidate >> ID_BITS);
    return bits_to_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

/* ---- a chunk of a row: EACH numbers of each thread ---- */

/* Which of the chunk is the thread's k-th. VEC: 4 where rows are aligned to 16 bytes, or 1. */
template <int VEC> static __device__ __forceinline__ int32_t spot(int k) {
    return (k / VEC * THREADS + (int32_t)threadIdx.x) * VEC + k % VEC;
}

/* Numbers behind the end of the row are 0. n: of the row from the chunk on. */
template <int VEC, class T>
static __device__ __forceinline__ void load_chunk(T x[EACH], const T *chunk, int32_t n) {
#pragma unroll
    for (int k = 0; k < EACH; k += VEC) {
        int32_t at = spot<VEC>(k);
        if constexpr (VEC == 4) {
            const uint4 zero = {0, 0, 0, 0};
            uint4 v = at < n ? *(const uint4 *)(chunk + at) : zero;
            memcpy(&x[k], &v, sizeof v);
        } else {
            x[k] = at < n ? chunk[at] : T(0);
        }
    }
}

/* ---- over a warp, over the block ---- */

static __device__ __forceinline__ uint64_t warp_max_u64(uint64_t x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        uint64_t y = __shfl_xor_sync(ALL_LANES, (unsigned long long)x, mask);
        x = y > x ? y : x;
    }
    return x;
}
static __device__ __forceinline__ uint64_t warp_sum_u64(uint64_t x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        x += __shfl_xor_sync(ALL_LANES, (unsigned long long)x, mask);
    }
    return x;
}
static __device__ __forceinline__ uint32_t warp_sum_u32(uint32_t x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        x += __shfl_xor_sync(ALL_LANES, x, mask);
    }
    return x;
}
static __device__ __forceinline__ float warp_min(float x) { return -warp_max(-x); }
static __device__ __forceinline__ double warp_sum_double(double x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        x += __shfl_xor_sync(ALL_LANES, x, mask);
    }
    return x;
}

/* Sum over the block; every thread gets it. parts is free again after the block's next barrier. */
static __device__ __forceinline__ uint64_t block_sum_u64(uint64_t x, uint64_t parts[WARPS]) {
    int lane = (int)(threadIdx.x % 32);
    x = warp_sum_u64(x);
    if (lane == 0) {
        parts[threadIdx.x / 32] = x;
    }
    __syncthreads();
    return warp_sum_u64(lane < WARPS ? parts[lane] : 0);
}

/* Sums of the lower threads' x. One barrier; parts as above. */
static __device__ __forceinline__ uint64_t block_before_u64(uint64_t x, uint64_t parts[WARPS]) {
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    uint64_t sum = x;
    for (int step = 1; step < 32; step <<= 1) {
        uint64_t y = __shfl_up_sync(ALL_LANES, (unsigned long long)sum, (unsigned)step);
        sum += lane >= step ? y : 0;
    }
    if (lane == 31) {
        parts[warp] = sum;
    }
    __syncthreads();
    return warp_sum_u64(lane < warp ? parts[lane] : 0) + sum - x;
}

/* ---- what the kernels hand on ---- */

/* Of one chunk of a row, without a sign of what the numbers are where bad is set. */
struct chunk_stats {
    uint64_t top, adjusted_top; /* the largest, as candidates; 0 in a warp without numbers */
    float low, adjusted_low;    /* the smallest; of the adjusted, that a mask allows */
    float sum;                  /* of e^(x - largest) */
    uint32_t greater;           /* logits above the target's */
    uint32_t bad;               /* some logit, before or after the penalties, is no number */
};

/* Number and fixed-point weight of what is in each bin of a job (row, kind); and its candidates. */
struct job_bins {
    unsigned long long mass[BINS];
    uint32_t count[BINS];
    uint32_t listed, reserved; /* candidates that were to be listed: CAP of them are */
};

/* For rank_kernel. */
struct chosen_token {
    unsigned long long greater; /* logits above the token's; above 2^32: blocks that have counted */
    int32_t token;              /* -1: there is nothing to count */
    int32_t reserved;
};

enum job_kind { DRAWS, TOPS, KINDS };

struct sample_args {
    inf_cuda_sample p;
    int32_t chunks;
    int32_t first_kind;   /* of the grid's last dimension */
    chunk_stats *stats;   /* [rows, chunks] */
    uint64_t *weight;     /* [rows, chunks]: sums of weights, where all may be drawn */
    chosen_token *chosen; /* [rows] */
    job_bins *bins;       /* [rows, KINDS] */
    uint64_t *list;       /* [rows, KINDS, CAP] */
    float *adjusted;      /* [rows, vocab] */
};

struct row_stats {
    uint64_t top, adjusted_top;
    float low, adjusted_low;
    bool bad;
};

/* A warp's work; every lane gets it. */
static __device__ __forceinline__ row_stats stats_of(const sample_args &a, uint32_t row) {
    row_stats r = {0, 0, INFINITY, INFINITY, false};
    uint32_t bad = 0;
    for (int c = (int)(threadIdx.x % 32); c < a.chunks; c += 32) {
        const chunk_stats &s = a.stats[(size_t)row * (size_t)a.chunks + (size_t)c];
        r.top = s.top > r.top ? s.top : r.top;
        r.adjusted_top = s.adjusted_top > r.adjusted_top ? s.adjusted_top : r.adjusted_top;
        r.low = fminf(s.low, r.low);
        r.adjusted_low = fminf(s.adjusted_low, r.adjusted_low);
        bad += s.bad;
    }
    r.top = warp_max_u64(r.top);
    r.adjusted_top = warp_max_u64(r.adjusted_top);
    r.low = warp_min(r.low);
    r.adjusted_low = warp_min(r.adjusted_low);
    r.bad = warp_sum_u32(bad) != 0;
    return r;
}

static __device__ __forceinline__ bool is_adjusted(const inf_cuda_sample_row &row) {
    return row.target == INF_CUDA_SAMPLE_DRAW && (row.n_bias > 0 || row.slot >= 0 || row.mask >= 0);
}

/* ---- the steps of a launch, by file; fast: rows are aligned to 16 bytes ---- */

int inf_cuda_sample_weigh(const sample_args *a, bool fast, inf_stream stream);
int inf_cuda_sample_choose(const sample_args *a, inf_stream stream);

#endif
