/* Sampling, fourth step: tokens and alternatives. sampling.cu has the whole picture.
 *
 * Both kinds of job ask the same of a row in descending order: which number is the k-th, and with
 * which one does the mass reach so much. A block answers from the sorted list, each thread for
 * OWN of its numbers: the mass up to a number is what is listed up to it, and that of the bins
 * before its own which are not listed. Or, where the list is too long, from the row itself, by the
 * digits of the candidates from the highest on, much like a radix sort that follows one bucket. */
#include "kernels/cuda/sampling_bins.cuh"

enum { OWN = CAP / THREADS, DIGIT_BITS = 10, DIGITS = 1 << DIGIT_BITS };
enum { TOP_SHIFT = 50 }; /* a candidate has 32 + ID_BITS = 52 bits: six digits */

/* The number that a query finds, and the mass up to it. */
struct found {
    uint64_t candidate, mass;
};

/* A row may be asked for: the k-th, the end of the nucleus, the drawn one. */
enum { QUERIES = 3 };

struct choose_shared {
    prefix before;
    union {
        uint64_t list[CAP];
        tally digits;
    };
    uint64_t parts[2][WARPS];
    found answer[QUERIES];
    uint32_t listed;
    int32_t token;
};

/* What a block knows when it has read the list. */
struct search {
    job j;
    bool sorted;        /* the list is complete; else the row is asked */
    uint32_t n;         /* of the list */
    uint64_t mass[OWN]; /* up to and with this thread's numbers */
    uint32_t count[OWN];
};

/* Descending. n <= CAP. All threads call, a barrier at either end. */
static __device__ void sort_list(uint64_t *list, uint32_t n) {
    uint32_t size = 2;
    while (size < n) {
        size *= 2;
    }
    for (uint32_t i = n + threadIdx.x; i < size; i += THREADS) {
        list[i] = 0;
    }
    __syncthreads();
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t step = run / 2; step > 0; step /= 2) {
            for (uint32_t i = threadIdx.x; i < size / 2; i += THREADS) {
                uint32_t low = i / step * 2 * step + i % step, high = low + step;
                uint64_t x = list[low], y = list[high];
                if ((x < y) == ((low & run) == 0)) {
                    list[low] = y;
                    list[high] = x;
                }
            }
            __syncthreads();
        }
    }
}

/* What the bins of the set that lie before `bin` hold, given what all bins before each hold. */
template <class T>
static __device__ __forceinline__ T in_set_before(const T *before, const bin_set &s, int32_t bin) {
    T sum = 0;
#pragma unroll
    for (int i = 0; i < RANGES; i++) {
        if (s.low[i] <= s.high[i] && s.low[i] < bin) {
            sum += before[bin <= s.high[i] ? bin : s.high[i] + 1] - before[s.low[i]];
        }
    }
    return sum;
}

/* Reads and sorts the list, if it is complete; s.before is of the row's bins. */
static __device__ __forceinline__ void read_list(choose_shared &s, search &q, const job_bins &bins,
                                                 const uint64_t *list) {
    q.sorted = bins.listed <= CAP;
    q.n = q.sorted ? bins.listed : 0;
    if (q.sorted) {
        for (uint32_t i = threadIdx.x; i < q.n; i += THREADS) {
            s.list[i] = list[i];
        }
        sort_list(s.list, q.n);
    }
}

/* The mass and count up to this thread's numbers of the sorted list. */
static __device__ __forceinline__ void sum_list(choose_shared &s, search &q, const bin_set &set) {
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        uint32_t at = threadIdx.x * OWN + (uint32_t)i;
        sum += at < q.n ? weight_of(q.j, value_of(s.list[at])) : 0;
        q.mass[i] = sum;
    }
    const uint64_t before = block_before_u64(sum, s.parts[0]);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        uint32_t at = threadIdx.x * OWN + (uint32_t)i;
        if (at < q.n) {
            int32_t bin = (int32_t)bin_of(q.j, value_of(s.list[at]));
            q.mass[i] += before + s.before.mass[bin] - in_set_before(s.before.mass, set, bin);
            q.count[i] = at + 1 + s.before.count[bin] - in_set_before(s.before.count, set, bin);
        }
    }
}

/* Of the row's numbers from the largest down, the one with which their count (or mass) reaches
 * `least`. All threads call; six passes over the row. */
static __device__ found find_in_row(choose_shared &s, const job &j, int32_t vocab, bool counts,
                                    uint64_t least) {
    uint64_t digits = 0, mass = 0, count = 0;
    for (int shift = TOP_SHIFT; shift >= 0; shift -= DIGIT_BITS) {
        __syncthreads();
        tally_clear(s.digits);
        __syncthreads();
        for (int32_t first = 0; first < vocab; first += CHUNK) {
            float x[EACH];
            load_chunk<1>(x, j.x + first, vocab - first);
            for (int k = 0; k < EACH; k++) {
                int32_t id = first + spot<1>(k);
                uint64_t c = candidate_of(x[k], id);
                bool valid = id < vocab && x[k] >= j.floor &&
                             c >> (shift + DIGIT_BITS) == digits >> (shift + DIGIT_BITS);
                uint32_t digit = (uint32_t)(c >> shift) % DIGITS;
                tally_add(s.digits, valid, DIGITS - 1 - digit, valid ? weight_of(j, x[k]) : 0);
            }
        }
        __syncthreads();
        make_prefix(s.before, s.parts, [&](int b, uint64_t *m, uint32_t *n) {
            *m = tally_mass(s.digits, b);
            *n = s.digits.count[b];
        });
        int32_t bin = counts ? bin_reaching(s.before.count, (uint32_t)(least - count))
                             : bin_reaching(s.before.mass, least - mass);
        digits |= (uint64_t)(DIGITS - 1 - bin) << shift;
        mass += s.before.mass[bin];
        count += s.before.count[bin];
    }
    return {digits, mass + weight_of(j, value_of(digits))};
}

/* The same from the list where there is one. query: each one of a row has another. */
static __device__ __forceinline__ found find(choose_shared &s, const search &q, int32_t vocab,
                                             int query, bool counts, uint64_t least) {
    if (!q.sorted) {
        return find_in_row(s, q.j, vocab, counts, least);
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        uint32_t at = threadIdx.x * OWN + (uint32_t)i;
        if (at < q.n) {
            uint64_t c = s.list[at], w = weight_of(q.j, value_of(c));
            bool here = counts ? q.count[i] == (uint32_t)least
                               : q.mass[i] >= least && q.mass[i] - w < least;
            if (here) { /* of one number only */
                s.answer[query] = {c, q.mass[i]};
            }
        }
    }
    __syncthreads();
    return s.answer[query];
}

/* A draw from the largest. */
static __device__ int32_t draw_cut(choose_shared &s, const sample_args &a, uint32_t r,
                                   const job &j) {
    const inf_cuda_sample_row &row = a.p.row[r];
    const size_t at = (size_t)r * KINDS + DRAWS;
    search q;
    q.j = j;
    read_prefix(s.before, s.parts, a.bins[at]);
    const uint32_t all = s.before.count[BINS], keep = kept_of(row, all);
    uint64_t mass = s.before.mass[BINS];
    const bin_set set = bins_of(s.before, j, row, a.p.vocab);
    read_list(s, q, a.bins[at], a.list + at * CAP);
    if (q.sorted) {
        sum_list(s, q, set);
    }
    if (keep < all) {
        mass = find(s, q, a.p.vocab, 0, true, keep).mass;
    }
    if (row.top_p < 1) {
        mass = find(s, q, a.p.vocab, 1, false, nucleus_mass(row.top_p, mass)).mass;
    }
    return id_of(find(s, q, a.p.vocab, 2, false, drawn_mass(uniform_of(row), mass)).candidate);
}

/* A draw from all, in the order of ids: the chunk by the chunks' weights, then the token. */
static __device__ int32_t draw_whole(choose_shared &s, const sample_args &a, uint32_t r,
                                     const job &j) {
    const int lane = (int)(threadIdx.x % 32);
    uint64_t own[2], sum, chunk = 0, rest = 0;
    for (int i = 0; i < 2; i++) { /* every warp for itself; MAX_CHUNKS are two per lane */
        int c = 2 * lane + i;
        own[i] = c < a.chunks ? a.weight[(size_t)r * (size_t)a.chunks + (size_t)c] : 0;
    }
    sum = own[0] + own[1];
    for (int step = 1; step < 32; step <<= 1) {
        uint64_t y = __shfl_up_sync(ALL_LANES, (unsigned long long)sum, (unsigned)step);
        sum += lane >= step ? y : 0;
    }
    const uint64_t all = __shfl_sync(ALL_LANES, (unsigned long long)sum, 31);
    const uint64_t drawn = drawn_mass(uniform_of(a.p.row[r]), all);
    uint64_t before = sum - own[0] - own[1];
    for (int i = 0; i < 2; i++) {
        if (drawn > before && drawn <= before + own[i]) {
            chunk = (uint64_t)(2 * lane + i);
            rest = drawn - before;
        }
        before += own[i];
    }
    chunk = warp_max_u64(chunk); /* one lane has found it */
    rest = warp_max_u64(rest);
    const int32_t first = (int32_t)chunk * CHUNK + (int32_t)threadIdx.x * EACH;
    uint64_t w[EACH], mine = 0;
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        float x = first + k < a.p.vocab ? j.x[first + k] : -INFINITY;
        w[k] = first + k < a.p.vocab && x >= j.floor ? weight_of(j, x) : 0;
        mine += w[k];
    }
    before = block_before_u64(mine, s.parts[0]);
    if (rest > before && rest <= before + mine) {
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            if (rest > before && rest <= before + w[k]) {
                s.token = first + k;
            }
            before += w[k];
        }
    }
    __syncthreads();
    return s.token;
}

/* ln sum e^x of the logits; a warp's work. */
static __device__ __forceinline__ double lse_of(const sample_args &a, uint32_t r, float max) {
    double sum = 0;
    for (int c = (int)(threadIdx.x % 32); c < a.chunks; c += 32) {
        const chunk_stats &s = a.stats[(size_t)r * (size_t)a.chunks + (size_t)c];
        sum += (double)s.sum * exp((double)value_of(s.top) - (double)max);
    }
    return (double)max + log(warp_sum_double(sum));
}

/* The token's part of a row's result; a warp's work. token < 0: there is none. */
static __device__ void put_token(const sample_args &a, uint32_t r, const row_stats &stats,
                                 int32_t token) {
    const inf_cuda_sample_row &row = a.p.row[r];
    const uint32_t lane = threadIdx.x % 32;
    inf_row_out &out = a.p.out[r];
    uint32_t greater = 0;
    const double lse = lse_of(a, r, value_of(stats.top));
    for (uint32_t c = lane; c < (uint32_t)a.chunks; c += 32) {
        greater += a.stats[(size_t)r * (size_t)a.chunks + c].greater;
    }
    greater = warp_sum_u32(greater);
    const bool tops = token >= 0 && row.n_top > 0;
    for (uint32_t i = lane; i < INF_MAX_TOP && !tops; i += 32) {
        out.top_ids[i] = 0;
        out.top_logprobs[i] = 0;
    }
    if (lane != 0) {
        return;
    }
    float logprob = 0;
    if (token >= 0) {
        float x = a.p.logits[(size_t)r * (size_t)a.p.vocab + (size_t)token];
        logprob = (float)((double)x - lse);
    }
    out.token = token;
    out.logprob = logprob;
    out.rank = token >= 0 ? 1 + (int32_t)greater : 0; /* of a drawn one rank_kernel says more */
    a.chosen[r].greater = 0;
    a.chosen[r].token = row.target == INF_CUDA_SAMPLE_DRAW ? token : -1;
    if (!tops) {
        out.n_top = 0;
    }
    a.p.status[r] = stats.bad && row.target != INF_CUDA_SAMPLE_SKIP ? (int32_t)INF_ENOTFINITE : 0;
    if (token >= 0 && row.target == INF_CUDA_SAMPLE_DRAW && row.slot >= 0 && !row.uncounted) {
        uint32_t &count = a.p.counts[(size_t)row.slot * (size_t)a.p.vocab + (size_t)token];
        count += (count & ~IN_PROMPT) < ~IN_PROMPT ? 1u : 0u;
    }
}

/* The alternatives of a row. */
static __device__ void put_tops(choose_shared &s, const sample_args &a, uint32_t r, const job &j) {
    const size_t at = (size_t)r * KINDS + TOPS;
    const uint32_t most = a.p.vocab < INF_MAX_TOP ? (uint32_t)a.p.vocab : (uint32_t)INF_MAX_TOP;
    const uint32_t n = a.p.row[r].n_top < most ? a.p.row[r].n_top : most;
    search q;
    q.j = j;
    read_list(s, q, a.bins[at], a.list + at * CAP);
    if (!q.sorted) {
        const uint64_t least = find_in_row(s, j, a.p.vocab, true, n).candidate;
        if (threadIdx.x == 0) {
            s.listed = 0;
        }
        __syncthreads();
        for (int32_t id = (int32_t)threadIdx.x; id < a.p.vocab; id += THREADS) {
            uint64_t c = candidate_of(j.x[id], id);
            if (c >= least) {
                s.list[atomicAdd(&s.listed, 1u)] = c;
            }
        }
        sort_list(s.list, n);
    }
    if (threadIdx.x >= 32) {
        return;
    }
    inf_row_out &out = a.p.out[r];
    const double lse = lse_of(a, r, j.max);
    for (uint32_t i = threadIdx.x; i < INF_MAX_TOP; i += 32) {
        out.top_ids[i] = i < n ? id_of(s.list[i]) : 0;
        out.top_logprobs[i] = i < n ? (float)((double)value_of(s.list[i]) - lse) : 0.0f;
    }
    if (threadIdx.x == 0) {
        out.n_top = n;
    }
}

/* Grid: row, kind. */
__global__ void __launch_bounds__(THREADS, 1) choose_kernel(const sample_args a) {
    __shared__ choose_shared s;
    const uint32_t r = blockIdx.x;
    const job_kind kind = (job_kind)(a.first_kind + (int32_t)blockIdx.y);
    start_successor();
    after_predecessor();
    const inf_cuda_sample_row &row = a.p.row[r];
    const row_stats stats = stats_of(a, r);
    const job j = job_of(a, row, r, kind, stats);
    if (kind == TOPS) {
        if (j.mode == BEST) {
            put_tops(s, a, r, j);
        }
        return;
    }
    int32_t token = row.target;
    if (stats.bad || token == INF_CUDA_SAMPLE_SKIP) {
        token = -1;
    } else if (j.mode == CUT) {
        token = draw_cut(s, a, r, j);
    } else if (j.mode == WHOLE) {
        token = draw_whole(s, a, r, j);
    } else if (token < 0) {
        token = id_of(is_adjusted(row) ? stats.adjusted_top : stats.top);
    }
    if (threadIdx.x < 32) {
        put_token(a, r, stats, token);
    }
}

int inf_cuda_sample_choose(const sample_args *a, inf_stream stream) {
    sample_args b = *a;
    b.first_kind = DRAWS;
    const bool tops = (a->p.needs & INF_CUDA_SAMPLE_TOPS) != 0;
    dim3 grid((unsigned)a->p.rows, tops ? 2 : 1);
    return (int)INF_LAUNCH_EARLY(a->p.early != 0, choose_kernel, grid, dim3(THREADS), 0, stream, b);
}
