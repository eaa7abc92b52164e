/* Sampling, second and third step: what is in each interval, and the list of what matters.
 * sampling.cu has the whole picture. */
#include "kernels/cuda/sampling_bins.cuh"

/* Grid: chunk, row, kind. */
template <int VEC> __global__ void __launch_bounds__(THREADS, 2) weigh_kernel(const sample_args a) {
    __shared__ tally bins;
    __shared__ uint64_t parts[WARPS];
    const uint32_t r = blockIdx.y;
    const job_kind kind = (job_kind)(a.first_kind + (int32_t)blockIdx.z);
    const int32_t first = (int32_t)blockIdx.x * CHUNK, n = a.p.vocab - first;
    start_successor();
    after_predecessor();
    const job j = job_of(a, a.p.row[r], r, kind, stats_of(a, r));
    if (j.mode == NO_JOB) {
        return; /* the whole block */
    }
    float x[EACH];
    load_chunk<VEC>(x, j.x + first, n);
    if (j.mode == WHOLE) {
        uint64_t sum = 0;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            sum += spot<VEC>(k) < n && x[k] >= j.floor ? weight_of(j, x[k]) : 0;
        }
        sum = block_sum_u64(sum, parts);
        if (threadIdx.x == 0) {
            a.weight[(size_t)r * (size_t)a.chunks + blockIdx.x] = sum;
        }
        return;
    }
    tally_clear(bins);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const bool valid = spot<VEC>(k) < n && x[k] >= j.floor;
        tally_add(bins, valid, bin_of(j, valid ? x[k] : j.max), weight_of(j, valid ? x[k] : j.max));
    }
    __syncthreads();
    job_bins &to = a.bins[(size_t)r * KINDS + kind];
    for (int b = (int)threadIdx.x; b < BINS; b += THREADS) {
        if (bins.count[b] != 0) {
            atomicAdd(&to.count[b], bins.count[b]);
            atomicAdd(&to.mass[b], tally_mass(bins, b));
        }
    }
}

/* Lists what is in the set's bins. Grid as above. */
template <int VEC>
__global__ void __launch_bounds__(THREADS, 2) gather_kernel(const sample_args a) {
    __shared__ prefix before;
    __shared__ uint64_t parts[2][WARPS];
    const uint32_t r = blockIdx.y;
    const job_kind kind = (job_kind)(a.first_kind + (int32_t)blockIdx.z);
    const int32_t first = (int32_t)blockIdx.x * CHUNK, n = a.p.vocab - first;
    start_successor();
    after_predecessor();
    const inf_cuda_sample_row &row = a.p.row[r];
    const job j = job_of(a, row, r, kind, stats_of(a, r));
    if (j.mode != CUT && j.mode != BEST) {
        return;
    }
    float x[EACH];
    load_chunk<VEC>(x, j.x + first, n);
    const size_t at = (size_t)r * KINDS + kind;
    job_bins &bins = a.bins[at];
    read_prefix(before, parts, bins);
    const bin_set set = bins_of(before, j, row, a.p.vocab);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        if (spot<VEC>(k) < n && x[k] >= j.floor && is_in(set, (int32_t)bin_of(j, x[k]))) {
            uint32_t place = atomicAdd(&bins.listed, 1u);
            if (place < CAP) {
                a.list[at * CAP + place] = candidate_of(x[k], first + spot<VEC>(k));
            }
        }
    }
}

int inf_cuda_sample_weigh(const sample_args *a, bool fast, inf_stream stream) {
    const bool draws = (a->p.needs & INF_CUDA_SAMPLE_WEIGHS) != 0;
    const bool cuts = (a->p.needs & INF_CUDA_SAMPLE_CUTS) != 0;
    const bool tops = (a->p.needs & INF_CUDA_SAMPLE_TOPS) != 0;
    dim3 grid((unsigned)a->chunks, (unsigned)a->p.rows, draws && tops ? 2 : 1), block(THREADS);
    sample_args b = *a;
    b.first_kind = draws ? DRAWS : TOPS;
    int status =
        (int)(fast ? INF_LAUNCH_EARLY(a->p.early != 0, (weigh_kernel<4>), grid, block, 0, stream, b)
                   : INF_LAUNCH_EARLY(a->p.early != 0, (weigh_kernel<1>), grid, block, 0, stream,
                                      b));
    if (status != 0 || (!cuts && !tops)) {
        return status;
    }
    grid.z = cuts && tops ? 2 : 1;
    b.first_kind = cuts ? DRAWS : TOPS;
    return (
        int)(fast ? INF_LAUNCH_EARLY(a->p.early != 0, (gather_kernel<4>), grid, block, 0, stream, b)
                  : INF_LAUNCH_EARLY(a->p.early != 0, (gather_kernel<1>), grid, block, 0, stream,
                                     b));
}
