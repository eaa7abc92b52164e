/* Rows that lie here and there: queries out to messages, queries in from messages, partials out,
 * and one more partial merged in from where it arrived. The places are host memory that the GPU
 * sees, a link's slots or a lane's staging, so a row's bytes cross the bus once and nobody copies
 * them:
 *
 *   give    4 bytes per number over the bus, and 4 per (row, head) with lse
 *   fetch   4 bytes per number over the bus
 *   merge   4 bytes per number over the bus, 6 to 8 in device memory
 *
 * Which run a row is in is found by walking the list, which is an argument of the kernel: constant
 * memory, and no trip over the bus before the rows' own. */
#include "kernels/cuda/combine.cuh"

enum { EXCHANGE_THREADS = 128, MERGE_THREADS = 128 };

static __device__ __forceinline__ int32_t run_of(const inf_cuda_runs &r, uint32_t row) {
    int32_t i = 0;
    while (i + 1 < r.n && row >= r.run[i + 1].first) {
        i++;
    }
    return i;
}

/* Host: may VECTOR numbers be moved at a time? */
static bool fast_runs(const inf_cuda_runs &r, const void *tensor, int64_t n, int32_t head_dim) {
    bool fast = n % VECTOR == 0 && aligned_16(tensor);
    for (int32_t i = 0; i < r.n; i++) {
        fast = fast && aligned_16(r.run[i].at) && (int64_t)r.run[i].stride * head_dim % 4 == 0;
    }
    return fast;
}

static bool runs_ok(const inf_cuda_runs &r, int32_t dtype, int32_t heads, int32_t head_dim) {
    bool ok = known_dtype(dtype) && r.n >= 0 && r.n <= INF_CUDA_RUNS && r.rows >= 0 && heads > 0 &&
              head_dim > 0;
    for (int32_t i = 0; ok && i < r.n; i++) {
        ok = r.run[i].stride >= heads;
    }
    return ok;
}

/* Block (x, y): EXCHANGE_THREADS * N numbers of row x of the runs. */
template <int N> static dim3 exchange_grid(const inf_cuda_runs &r, int64_t n) {
    int64_t each = EXCHANGE_THREADS * N;
    return dim3((unsigned)r.rows, (unsigned)((n + each - 1) / each));
}

/* ---- rows out ---- */

template <class T, int N>
__global__ void __launch_bounds__(EXCHANGE_THREADS)
    give_kernel(const __grid_constant__ inf_cuda_give a) {
    const inf_cuda_run &run = a.runs.run[run_of(a.runs, blockIdx.x)];
    const uint32_t in_run = blockIdx.x - run.first, heads = (uint32_t)a.heads;
    const size_t row = (size_t)run.row0 + in_run, n = (size_t)a.heads * (size_t)a.head_dim;
    const size_t there = (size_t)in_run * (size_t)run.stride; /* heads before it */
    const size_t i = ((size_t)blockIdx.y * EXCHANGE_THREADS + threadIdx.x) * N;
    start_successor();
    after_predecessor();
    if (i < n) {
        float x[N];
        load_run<N>(x, (const T *)a.src + row * n + i);
        store_run<N>(run.at + there * (size_t)a.head_dim + i, x);
    }
    for (uint32_t h = threadIdx.x; run.lse != NULL && blockIdx.y == 0 && h < heads;
         h += EXCHANGE_THREADS) {
        run.lse[there + h] = a.src_lse[row * heads + h];
    }
}

int inf_cuda_give_launch(const inf_cuda_give *p, inf_stream stream) {
    int64_t n = (int64_t)p->heads * p->head_dim;
    if (!runs_ok(p->runs, p->dtype, p->heads, p->head_dim)) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->runs.rows == 0) {
        return 0;
    }
    bool fast = fast_runs(p->runs, p->src, n, p->head_dim);
    dim3 grid = fast ? exchange_grid<VECTOR>(p->runs, n) : exchange_grid<1>(p->runs, n);
    return with_type(p->dtype, [&](auto number) {
        using T = decltype(number);
        dim3 block(EXCHANGE_THREADS);
        return (int)(fast ? INF_LAUNCH_EARLY(p->early != 0, (give_kernel<T, VECTOR>), grid, block,
                                             0, stream, *p)
                          : INF_LAUNCH_EARLY(p->early != 0, (give_kernel<T, 1>), grid, block, 0,
                                             stream, *p));
    });
}

/* ---- rows in ---- */

template <int N>
__global__ void __launch_bounds__(EXCHANGE_THREADS)
    fetch_kernel(const __grid_constant__ inf_cuda_fetch a) {
    const int32_t which = run_of(a.runs, blockIdx.x);
    const inf_cuda_run &run = a.runs.run[which];
    const size_t in_run = blockIdx.x - run.first, n = (size_t)a.heads * (size_t)a.head_dim;
    const size_t i = ((size_t)blockIdx.y * EXCHANGE_THREADS + threadIdx.x) * N;
    float x[N] = {};
    start_successor();
    if (i < n) { /* no kernel wrote these: they come over the bus while the one in front ends */
        const size_t there = in_run * (size_t)run.stride * (size_t)a.head_dim;
        load_fresh<N>(x, run.at + there + i);
    }
    after_predecessor();
    if (i < n) {
        store_run_as<N>(a.dst, a.dtype, ((size_t)run.row0 + in_run) * n + i, x);
    }
    if (a.places != NULL && blockIdx.y == 0 && threadIdx.x == 0) {
        const inf_cuda_place to = a.answer[which];
        const size_t before = in_run * (size_t)run.stride;
        a.places[run.row0 + in_run] = {to.o + before * (size_t)a.head_dim, to.lse + before};
    }
}

int inf_cuda_fetch_launch(const inf_cuda_fetch *p, inf_stream stream) {
    int64_t n = (int64_t)p->heads * p->head_dim;
    if (!runs_ok(p->runs, p->dtype, p->heads, p->head_dim)) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->runs.rows == 0) {
        return 0;
    }
    dim3 block(EXCHANGE_THREADS);
    return (int)(fast_runs(p->runs, p->dst, n, p->head_dim)
                     ? INF_LAUNCH_EARLY(p->early != 0, (fetch_kernel<VECTOR>),
                                        exchange_grid<VECTOR>(p->runs, n), block, 0, stream, *p)
                     : INF_LAUNCH_EARLY(p->early != 0, (fetch_kernel<1>),
                                        exchange_grid<1>(p->runs, n), block, 0, stream, *p));
}

/* ---- more partials ---- */

/* A lane's dims of a (row, head), and the head's lse. */
struct head_partial {
    float o[COMBINE_DIMS], lse;
};

/* The first run from i on that has the row; runs.n: none. */
static __device__ __forceinline__ int32_t next_with(const inf_cuda_runs &r, uint32_t row,
                                                    int32_t i) {
    for (; i < r.n; i++) {
        uint32_t end = i + 1 < r.n ? r.run[i + 1].first : (uint32_t)r.rows;
        if (row - r.run[i].row0 < end - r.run[i].first) {
            break;
        }
    }
    return i;
}

/* What run i has of it, if there is such a run. */
template <int VEC>
static __device__ __forceinline__ void load_partial(head_partial &p, const inf_cuda_merge &a,
                                                    int32_t i, uint32_t row, size_t head) {
    if (i < a.runs.n) {
        const inf_cuda_run &run = a.runs.run[i];
        const size_t there = (size_t)(row - run.row0) * (size_t)run.stride + head;
        p.lse = __ldcv(run.lse + there);
        load_dims<VEC, true>(p.o, run.at + there * (size_t)a.head_dim, a.head_dim);
    }
}

static __device__ __forceinline__ void merge_in(head_partial &x, const head_partial &y) {
    if (y.lse == -INFINITY) {
        return;
    }
    float m = fmaxf(x.lse, y.lse), w = expf(x.lse - m), w2 = expf(y.lse - m), sum = w + w2;
#pragma unroll
    for (int i = 0; i < COMBINE_DIMS; i++) {
        x.o[i] = w == 0 ? y.o[i] : (x.o[i] * w + y.o[i] * w2) / sum;
    }
    x.lse = m + logf(sum);
}

/* A warp per (row, head). */
template <int VEC>
__global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(const __grid_constant__ inf_cuda_merge a) {
    const size_t at = (size_t)blockIdx.x * (MERGE_THREADS / 32) + threadIdx.x / 32;
    const size_t heads = (size_t)a.heads, head = at % heads;
    const uint32_t row = (uint32_t)(at / heads);
    start_successor();
    if (row >= (uint32_t)a.rows) {
        return;
    }
    int32_t i = next_with(a.runs, row, 0);
    if (i == a.runs.n && a.out == NULL) {
        return;
    }
    head_partial x, y;
    load_partial<VEC>(y, a, i, row, head);
    after_predecessor();
    float *o = a.o + at * (size_t)a.head_dim;
    x.lse = a.lse[at];
    load_dims<VEC>(x.o, o, a.head_dim);
    while (i < a.runs.n) {
        merge_in(x, y);
        i = next_with(a.runs, row, i + 1);
        load_partial<VEC>(y, a, i, row, head);
    }
#pragma unroll
    for (int k = 0; k < COMBINE_DIMS; k += VEC) {
        int32_t d = dim_at<VEC>(k);
        if (d < a.head_dim && a.out == NULL) {
            store_run<VEC>(o + d, x.o + k);
        } else if (d < a.head_dim) {
            store_run_as<VEC>(a.out, a.out_dtype, at * (size_t)a.head_dim + (size_t)d, x.o + k);
        }
    }
    __syncwarp(); /* every lane has read lse */
    if (a.out == NULL && threadIdx.x % 32 == 0) {
        a.lse[at] = x.lse;
    }
}

int inf_cuda_merge_launch(const inf_cuda_merge *p, inf_stream stream) {
    int64_t items = (int64_t)p->rows * p->heads;
    int64_t blocks = (items + MERGE_THREADS / 32 - 1) / (MERGE_THREADS / 32);
    if (!runs_ok(p->runs, p->out != NULL ? p->out_dtype : (int32_t)INF_DTYPE_F32, p->heads,
                 p->head_dim) ||
        p->head_dim > COMBINE_MAX_DIM || p->rows < 0 || blocks > INT32_MAX) {
        return (int)cudaErrorInvalidValue;
    }
    if (blocks == 0 || (p->runs.n == 0 && p->out == NULL)) {
        return 0;
    }
    dim3 grid((unsigned)blocks), block(MERGE_THREADS);
    bool fast =
        p->head_dim % 4 == 0 && aligned_16(p->out) && fast_runs(p->runs, p->o, 0, p->head_dim);
    return (
        int)(fast ? INF_LAUNCH_EARLY(p->early != 0, (merge_kernel<4>), grid, block, 0, stream, *p)
                  : INF_LAUNCH_EARLY(p->early != 0, (merge_kernel<1>), grid, block, 0, stream, *p));
}
