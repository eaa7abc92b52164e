/* Sampling: what is to be found in a row, and the intervals that narrow it down. sampling.cu has
 * the whole picture. */
#ifndef INF_CUDA_SAMPLING_BINS_CUH
#define INF_CUDA_SAMPLING_BINS_CUH

#include <float.h>

#include "kernels/cuda/sampling.cuh"

/* ---- jobs: what is to be found in a row ---- */

enum job_mode {
    NO_JOB,
    WHOLE, /* draw from all, in the order of ids */
    CUT,   /* draw from the largest, in descending order */
    BEST   /* the n_top largest */
};

struct job {
    job_mode mode;
    const float *x; /* the row's numbers */
    float max;
    float scale; /* 1 / temperature */
    float fine;  /* bins per unit of (max - x) * scale */
    float floor; /* what is below is not drawn: min_p, and what a mask made -inf */
};

static __device__ __forceinline__ job_mode mode_of(const inf_cuda_sample_row &row, int32_t vocab,
                                                   job_kind kind) {
    if (kind == TOPS) {
        return row.n_top > 0 && row.target != INF_CUDA_SAMPLE_SKIP ? BEST : NO_JOB;
    }
    if (row.target != INF_CUDA_SAMPLE_DRAW || row.temperature < 1e-5f || row.top_k == 1) {
        return NO_JOB;
    }
    return row.top_p < 1 || (row.top_k > 0 && row.top_k < vocab) ? CUT : WHOLE;
}

static __device__ __forceinline__ job job_of(const sample_args &a, const inf_cuda_sample_row &row,
                                             uint32_t r, job_kind kind, const row_stats &s) {
    bool adjusted = kind == DRAWS && is_adjusted(row);
    size_t at = (size_t)r * (size_t)a.p.vocab;
    job j = {s.bad ? NO_JOB : mode_of(row, a.p.vocab, kind), NULL, 0, 1.0f, 0, -INFINITY};
    j.x = adjusted ? a.adjusted + at : a.p.logits + at;
    j.max = value_of(adjusted ? s.adjusted_top : s.top);
    float low = adjusted ? s.adjusted_low : s.low;
    if (kind == DRAWS && j.mode != NO_JOB) {
        j.scale = 1.0f / row.temperature;
        /* p >= min_p * p_max  <=>  x >= max + T ln min_p, rounded as the CPU does */
        if (row.min_p > 0) {
            float ln = (float)log((double)row.min_p);
            j.floor = __fadd_rn(j.max, __fmul_rn(row.temperature, ln));
        }
        j.floor = fmaxf(j.floor, -FLT_MAX);
    }
    float range = (j.max - low) * j.scale, least = LINEAR / 32.0f;
    j.fine = range < least ? fminf((LINEAR - 1) / range, 1e30f) : 32.0f;
    return j;
}

/* Bins of equal width to where 32 of them make a unit; from there on four to every doubling. With
 * less range than that the equal bins fill it. Monotone in x, and that is all that is asked. */
static __device__ __forceinline__ uint32_t bin_of(const job &j, float x) {
    float t = (j.max - x) * j.scale, v = t * j.fine;
    if (j.fine > 32.0f) {
        return v < LINEAR - 1 ? (uint32_t)v : LINEAR - 1;
    }
    return v < LINEAR ? (uint32_t)v : LINEAR + ((float_bits(t) - float_bits(32.0f)) >> 21);
}

/* The weight e^((x - max) / T) as a multiple of 2^-44: sums are exact, in any order. */
static __device__ __forceinline__ uint64_t weight_of(const job &j, float x) {
    if (j.mode == BEST) {
        return 0;
    }
    return (uint64_t)(expf((x - j.max) * j.scale) * 0x1p44f);
}

/* ---- bins in shared memory ---- */

struct tally {
    uint32_t low[BINS], high[BINS], count[BINS]; /* halves of the mass */
};

static __device__ __forceinline__ void tally_clear(tally &t) {
    for (int b = (int)threadIdx.x; b < BINS; b += THREADS) {
        t.low[b] = t.high[b] = t.count[b] = 0;
    }
}

/* All lanes of a warp call; those with valid count. There are no 64-bit additions in shared memory:
 * whoever makes the lower half overflow carries. */
static __device__ __forceinline__ void tally_add(tally &t, bool valid, uint32_t bin, uint64_t w) {
    uint32_t n = 1;
    uint32_t first = __shfl_sync(ALL_LANES, bin, 0);
    if (__all_sync(ALL_LANES, valid && bin == first)) { /* as in rows of equal numbers */
        w = warp_sum_u64(w);
        n = 32;
        valid = threadIdx.x % 32 == 0;
    }
    if (!valid) {
        return;
    }
    atomicAdd(&t.count[bin], n);
    uint32_t low = (uint32_t)w, high = (uint32_t)(w >> 32);
    if (low != 0) {
        uint32_t old = atomicAdd(&t.low[bin], low);
        high += old + low < low;
    }
    if (high != 0) {
        atomicAdd(&t.high[bin], high);
    }
}

static __device__ __forceinline__ uint64_t tally_mass(const tally &t, int b) {
    return ((uint64_t)t.high[b] << 32) + t.low[b];
}

/* mass[b], count[b]: of the bins before b. */
struct prefix {
    uint64_t mass[BINS + 1];
    uint32_t count[BINS + 1];
};

/* get(b, &mass, &count) says what is in bin b. The whole block calls; a barrier at the end. */
template <class F>
static __device__ __forceinline__ void make_prefix(prefix &p, uint64_t parts[2][WARPS],
                                                   const F &get) {
    const int each = BINS / THREADS, first = (int)threadIdx.x * each;
    uint64_t mass[each], mass_sum = 0, count_sum = 0;
    uint32_t count[each];
#pragma unroll
    for (int i = 0; i < each; i++) {
        get(first + i, &mass[i], &count[i]);
        mass_sum += mass[i];
        count_sum += count[i];
    }
    uint64_t mass_at = block_before_u64(mass_sum, parts[0]);
    uint32_t count_at = (uint32_t)block_before_u64(count_sum, parts[1]);
#pragma unroll
    for (int i = 0; i < each; i++) {
        p.mass[first + i] = mass_at;
        p.count[first + i] = count_at;
        mass_at += mass[i];
        count_at += count[i];
    }
    if (threadIdx.x == THREADS - 1) {
        p.mass[BINS] = mass_at;
        p.count[BINS] = count_at;
    }
    __syncthreads();
}

/* The bin in which the mass, or the count, reaches `least`; least <= that of all. */
template <class T>
static __device__ __forceinline__ int32_t bin_reaching(const T *before, T least) {
    int32_t low = 0, high = BINS - 1;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (before[middle + 1] >= least) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* ---- the masses that are sought ---- */

/* The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
 * generators"); see model/sampling.c. */
static __device__ __forceinline__ uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static __device__ __forceinline__ double uniform_of(const inf_cuda_sample_row &row) {
    return (double)(mix(mix(row.seed) ^ mix(~row.position)) >> 11) * 0x1p-53;
}

/* The drawn token is the first with which the sum exceeds u * sum of all. */
static __device__ __forceinline__ uint64_t drawn_mass(double u, uint64_t all) {
    uint64_t mass = (uint64_t)(u * (double)all) + 1;
    return mass < all ? mass : all;
}
/* The last of the nucleus is the first with which the sum reaches top_p * sum of all. */
static __device__ __forceinline__ uint64_t nucleus_mass(float top_p, uint64_t all) {
    double mass = ceil((double)top_p * (double)all);
    return mass < 1 ? 1 : (uint64_t)mass < all ? (uint64_t)mass : all;
}

/* ---- the bins that matter ---- */

static __device__ __forceinline__ void read_prefix(prefix &p, uint64_t parts[2][WARPS],
                                                   const job_bins &bins) {
    make_prefix(p, parts, [&](int b, uint64_t *mass, uint32_t *count) {
        *mass = bins.mass[b];
        *count = bins.count[b];
    });
}

/* Bins low[i] .. high[i], ascending and apart; none where high < low. */
enum { RANGES = 3 };
struct bin_set {
    int32_t low[RANGES], high[RANGES];
};

static __device__ __forceinline__ bool is_in(const bin_set &s, int32_t bin) {
    bool in = false;
#pragma unroll
    for (int i = 0; i < RANGES; i++) {
        in = in || (bin >= s.low[i] && bin <= s.high[i]);
    }
    return in;
}

/* How many of the largest may be drawn at most; all: those that min_p leaves. */
static __device__ __forceinline__ uint32_t kept_of(const inf_cuda_sample_row &row, uint32_t all) {
    return row.top_k > 0 && (uint32_t)row.top_k < all ? (uint32_t)row.top_k : all;
}

/* All that choose will ask for: see sampling.cu. Every query's mass rises with the sum it is a
 * share of, so a query of an unknown sum is between those of its bounds. */
static __device__ __forceinline__ bin_set bins_of(const prefix &p, const job &j,
                                                  const inf_cuda_sample_row &row, int32_t vocab) {
    if (j.mode == BEST) {
        uint32_t n = row.n_top < (uint32_t)vocab ? row.n_top : (uint32_t)vocab;
        return {{0, 1, 1}, {bin_reaching(p.count, n), 0, 0}};
    }
    const uint32_t keep = kept_of(row, p.count[BINS]);
    uint64_t least = p.mass[BINS], most = least;
    bin_set s = {{0, 1, 1}, {0, 0, 0}};
    int32_t last = BINS - 1;
    if (keep < p.count[BINS]) { /* the k-th */
        last = bin_reaching(p.count, keep);
        s.low[2] = s.high[2] = last;
        least = p.mass[last] > 0 ? p.mass[last] : 1;
        most = p.mass[last + 1];
    }
    if (row.top_p < 1) { /* the last of the nucleus */
        least = nucleus_mass(row.top_p, least);
        s.low[1] = bin_reaching(p.mass, least);
        s.high[1] = last = bin_reaching(p.mass, nucleus_mass(row.top_p, most));
        most = p.mass[last + 1];
    }
    const double u = uniform_of(row);
    s.low[0] = bin_reaching(p.mass, drawn_mass(u, least));
    s.high[0] = bin_reaching(p.mass, drawn_mass(u, most));
    s.low[1] = s.low[1] > s.high[0] ? s.low[1] : s.high[0] + 1;
    int32_t behind = s.high[0] > s.high[1] ? s.high[0] : s.high[1];
    s.low[2] = s.low[2] > behind ? s.low[2] : behind + 1;
    return s;
}

#endif
