/* What walks rows once, one number at a time: embedding, the table of rotations, residual sum and
 * norm, the gate, casts. All of it is bound by memory, or, with one row, by latency.
 *
 *   operation    bytes per number (16-bit formats)        flops
 *   embed        2 read, 4 written                        0
 *   add_norm     4 + 2 read, 4 + 2 written, and the       4
 *                weight's 4, which caches hold
 *   gate         2 + 2 read, 2 written                    5 or 8, and an exponential
 *   softcap      4 read, 4 written                        3 and a tanh
 *   cast         2 or 4 read, 2 or 4 written              0
 *
 * The fast kernels move VECTOR numbers per access, 16 bytes of a 16-bit format; they want rows of a
 * multiple of VECTOR numbers and aligned buffers. Anything else goes one number at a time.
 *
 * A thread of embed, gate and cast has one access of each buffer and ends; a row is a handful of
 * blocks, so that one row of some thousand numbers is spread over several SMs and many rows fill
 * them all. (Work per thread is small so that there are enough threads; what a block costs to start
 * hides behind the other blocks of its SM.)
 *
 * add_norm must see a whole row before it writes y. A block takes a row and keeps it in registers
 * between the sum of squares and the result, so that each buffer is touched once and there is one
 * barrier: every warp leaves its sum in shared memory, and after the barrier every warp adds all of
 * them up by itself. The order of that sum depends on the row's length alone: a row's result does
 * not depend on what else is in the batch. The weight is read first, before the kernel in front has
 * ended where the launch allows that. Rows longer than MAX_HELD go through memory a second time.
 *
 * The rotations' angle float(position * inv_freq) can be millions of radians; its f32 rounding is
 * the models' convention, and from there on everything is double: sine and cosine in f32 would
 * have to reduce the angle in more than f32 anyway, and there are only rows * half of them in a
 * step. */
#include "kernels/cuda/rows.cuh"

enum { WALK_THREADS = 128, NORM_THREADS = 1024, NORM_ANY_THREADS = 256 };
enum { MAX_HELD = NORM_THREADS * 2 * VECTOR }; /* numbers of a row that registers hold */

/* The block's place in a grid of `chunks` blocks per row. */
struct place {
    uint32_t row;
    int32_t at; /* the thread's first number within the row */
};

template <int N> static __device__ __forceinline__ place walk_place(int32_t n) {
    uint32_t chunks = ((uint32_t)n + WALK_THREADS * N - 1) / (WALK_THREADS * N);
    uint32_t chunk = blockIdx.x % chunks;
    return {blockIdx.x / chunks, (int32_t)((chunk * WALK_THREADS + threadIdx.x) * N)};
}

/* Blocks for that; 0 when they are too many. */
static unsigned walk_blocks(int32_t rows, int32_t n, int numbers) {
    int64_t chunks = ((int64_t)n + WALK_THREADS * numbers - 1) / (WALK_THREADS * numbers);
    int64_t blocks = chunks * rows;
    return blocks <= INT32_MAX ? (unsigned)blocks : 0;
}

/* ---- embed ---- */

template <class T, int N>
__global__ void __launch_bounds__(WALK_THREADS) embed_kernel(const inf_cuda_embed a) {
    place w = walk_place<N>(a.hidden);
    float x[N];
    start_successor();
    after_predecessor();
    if (w.at < a.hidden) {
        size_t from = (size_t)a.tokens[w.row] * (size_t)a.hidden + (size_t)w.at;
        load_run<N>(x, (const T *)a.table + from);
        for (int i = 0; i < N; i++) {
            x[i] *= a.scale;
        }
        store_run<N>(a.x + (size_t)w.row * (size_t)a.hidden + (size_t)w.at, x);
    }
}

int inf_cuda_embed_launch(const inf_cuda_embed *p, inf_stream stream) {
    if (!known_dtype(p->dtype) || p->rows < 0 || p->hidden <= 0) {
        return (int)cudaErrorInvalidValue;
    }
    bool fast = p->hidden % VECTOR == 0 && aligned_16(p->table, p->x);
    unsigned blocks = walk_blocks(p->rows, p->hidden, fast ? VECTOR : 1);
    if (p->rows == 0 || blocks == 0) {
        return p->rows == 0 ? 0 : (int)cudaErrorInvalidValue;
    }
    dim3 grid(blocks), block(WALK_THREADS);
    return with_type(p->dtype, [&](auto number) {
        using T = decltype(number);
        return (int)(fast ? INF_LAUNCH_EARLY(p->early != 0, (embed_kernel<T, VECTOR>), grid, block,
                                             0, stream, *p)
                          : INF_LAUNCH_EARLY(p->early != 0, (embed_kernel<T, 1>), grid, block, 0,
                                             stream, *p));
    });
}

/* ---- rope_table ---- */

__global__ void __launch_bounds__(WALK_THREADS) rope_table_kernel(const inf_cuda_rope_table a) {
    place w = walk_place<1>(a.half);
    start_successor();
    after_predecessor();
    if (w.at >= a.half) {
        return;
    }
    float angle = (float)a.position[w.row] * a.inv_freq[w.at];
    double c, s;
    sincos((double)angle, &s, &c);
    size_t to = (size_t)w.row * (size_t)a.half + (size_t)w.at;
    a.cos[to] = (float)(c * (double)a.scale);
    a.sin[to] = (float)(s * (double)a.scale);
}

int inf_cuda_rope_table_launch(const inf_cuda_rope_table *p, inf_stream stream) {
    if (p->rows < 0 || p->half <= 0) {
        return (int)cudaErrorInvalidValue;
    }
    unsigned blocks = walk_blocks(p->rows, p->half, 1);
    if (p->rows == 0 || blocks == 0) {
        return p->rows == 0 ? 0 : (int)cudaErrorInvalidValue;
    }
    return (int)INF_LAUNCH_EARLY(p->early != 0, rope_table_kernel, dim3(blocks), dim3(WALK_THREADS),
                                 0, stream, *p);
}

/* ---- add_norm ---- */

/* Sum over the block; every thread gets it. */
static __device__ __forceinline__ float block_sum(float x, float *sums) {
    int lane = (int)(threadIdx.x % 32), warps = (int)(blockDim.x / 32);
    x = warp_sum(x);
    if (lane == 0) {
        sums[threadIdx.x / 32] = x;
    }
    __syncthreads();
    return warp_sum(lane < warps ? sums[lane] : 0.0f);
}

/* VECTOR numbers of add as they lie in memory; ADD bytes each. */
template <int ADD> struct addend { uint4 v[ADD == 4 ? 2 : 1]; };

template <int ADD>
static __device__ __forceinline__ void widen_addend(float *y, const addend<ADD> &d, int32_t dtype) {
    if constexpr (ADD == 4) {
        const uint32_t bits[VECTOR] = {d.v[0].x, d.v[0].y, d.v[0].z, d.v[0].w,
                                       d.v[1].x, d.v[1].y, d.v[1].z, d.v[1].w};
        for (int i = 0; i < VECTOR; i++) {
            y[i] = bits_to_float(bits[i]);
        }
    } else if (dtype == INF_DTYPE_BF16) {
        widen<bf16>(y, d.v[0]);
    } else {
        widen<f16>(y, d.v[0]);
    }
}

template <int ADD>
static __device__ __forceinline__ void add_to(float *x, const addend<ADD> &d, int32_t dtype) {
    float y[VECTOR];
    widen_addend(y, d, dtype);
    for (int i = 0; i < VECTOR; i++) {
        x[i] += y[i];
    }
}

/* x += add / sqrt(mean(add^2) + eps) * post, of the thread's runs. post is read beside the sum. */
template <int ADD, int RUNS>
static __device__ __forceinline__ void add_normed(const inf_cuda_add_norm &a,
                                                  float (&x)[RUNS][VECTOR],
                                                  const addend<ADD> (&d)[RUNS], float *sums) {
    const int runs = a.n / VECTOR;
    float y[RUNS][VECTOR] = {}, w[RUNS][VECTOR] = {}, sum = 0;
#pragma unroll
    for (int i = 0; i < RUNS; i++) {
        int at = (int)(threadIdx.x + i * blockDim.x);
        if (at < runs) {
            load_run<VECTOR>(w[i], a.post + at * VECTOR);
            widen_addend(y[i], d[i], a.add_dtype);
        }
        for (int k = 0; k < VECTOR; k++) {
            sum += y[i][k] * y[i][k];
        }
    }
    float inverse = 1.0f / sqrtf(block_sum(sum, sums) / (float)a.n + a.eps);
#pragma unroll
    for (int i = 0; i < RUNS; i++) {
        for (int k = 0; k < VECTOR; k++) {
            x[i][k] += y[i][k] * inverse * w[i][k];
        }
    }
}

/* Row blockIdx.x. ADD: bytes of a number of add, 0: there is none. RUNS: runs of VECTOR numbers per
 * thread. POST: add is normed first. */
template <int ADD, int RUNS, bool POST = false>
__global__ void __launch_bounds__(NORM_THREADS, 1) add_norm_kernel(const inf_cuda_add_norm a) {
    __shared__ float sums[NORM_THREADS / 32];
    const int runs = a.n / VECTOR;
    float x[RUNS][VECTOR] = {}, w[RUNS][VECTOR] = {};
    addend<ADD> d[RUNS] = {};
    start_successor();
#pragma unroll
    for (int i = 0; i < RUNS; i++) {
        int at = (int)(threadIdx.x + i * blockDim.x);
        if (at < runs && a.weight != NULL) {
            load_run<VECTOR>(w[i], a.weight + at * VECTOR);
        }
    }
    after_predecessor();
    const size_t row = (size_t)blockIdx.x * (size_t)a.n;
    float *from = a.x + (a.pick != NULL ? (size_t)a.pick[blockIdx.x] * (size_t)a.n : row);
#pragma unroll
    for (int i = 0; i < RUNS; i++) {
        int at = (int)(threadIdx.x + i * blockDim.x);
        if (at < runs) {
            load_run<VECTOR>(x[i], from + at * VECTOR);
            if constexpr (ADD > 0) {
                const uint4 *add = (const uint4 *)((const uint8_t *)a.add + row * ADD);
                for (int k = 0; k < (ADD == 4 ? 2 : 1); k++) {
                    d[i].v[k] = add[at * (ADD == 4 ? 2 : 1) + k];
                }
            }
        }
    }
    float sum = 0;
    if constexpr (POST) {
        __shared__ float of_add[NORM_THREADS / 32]; /* whose readers may lag behind */
        add_normed<ADD, RUNS>(a, x, d, of_add);
    }
#pragma unroll
    for (int i = 0; i < RUNS; i++) {
        int at = (int)(threadIdx.x + i * blockDim.x);
        if (at < runs) {
            if constexpr (ADD > 0) {
                if constexpr (!POST) {
                    add_to<ADD>(x[i], d[i], a.add_dtype);
                }
                store_run<VECTOR>(from + at * VECTOR, x[i]);
            }
            for (int k = 0; k < VECTOR; k++) {
                sum += x[i][k] * x[i][k];
            }
        }
    }
    if (a.y == NULL) {
        return;
    }
    float inverse = 1.0f;
    if (a.weight != NULL) {
        inverse = 1.0f / sqrtf(block_sum(sum, sums) / (float)a.n + a.eps);
    }
#pragma unroll
    for (int i = 0; i < RUNS; i++) {
        int at = (int)(threadIdx.x + i * blockDim.x);
        if (at < runs) {
            for (int k = 0; k < VECTOR && a.weight != NULL; k++) {
                x[i][k] = x[i][k] * inverse * w[i][k];
            }
            store_run_as<VECTOR>(a.y, a.y_dtype, row + (size_t)(at * VECTOR), x[i]);
        }
    }
}

/* Any length and alignment. A thread reads again what it wrote itself. */
__global__ void __launch_bounds__(NORM_ANY_THREADS) add_norm_any_kernel(const inf_cuda_add_norm a) {
    __shared__ float sums[NORM_ANY_THREADS / 32], of_add[NORM_ANY_THREADS / 32];
    const size_t row = (size_t)blockIdx.x * (size_t)a.n;
    start_successor();
    after_predecessor();
    float *x = a.x + (a.pick != NULL ? (size_t)a.pick[blockIdx.x] * (size_t)a.n : row);
    float sum = 0, factor = 1.0f;
    if (a.post != NULL) {
        for (int32_t i = (int32_t)threadIdx.x; i < a.n; i += NORM_ANY_THREADS) {
            float v = load_as(a.add, a.add_dtype, row + (size_t)i);
            sum += v * v;
        }
        factor = 1.0f / sqrtf(block_sum(sum, of_add) / (float)a.n + a.eps);
        sum = 0;
    }
    for (int32_t i = (int32_t)threadIdx.x; i < a.n; i += NORM_ANY_THREADS) {
        float v = x[i];
        if (a.add != NULL) {
            float more = load_as(a.add, a.add_dtype, row + (size_t)i);
            v += a.post != NULL ? more * factor * a.post[i] : more;
            x[i] = v;
        }
        sum += v * v;
    }
    if (a.y == NULL) {
        return;
    }
    float inverse = 1.0f;
    if (a.weight != NULL) {
        inverse = 1.0f / sqrtf(block_sum(sum, sums) / (float)a.n + a.eps);
    }
    for (int32_t i = (int32_t)threadIdx.x; i < a.n; i += NORM_ANY_THREADS) {
        float y = a.weight != NULL ? x[i] * inverse * a.weight[i] : x[i];
        store_as(a.y, a.y_dtype, row + (size_t)i, y);
    }
}

template <int RUNS> static int add_norm_held(const inf_cuda_add_norm *p, inf_stream stream) {
    int threads = (p->n / VECTOR + RUNS - 1) / RUNS;
    dim3 grid((unsigned)p->rows), block((unsigned)((threads + 31) / 32 * 32));
    if (p->add == NULL) {
        return (int)INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<0, RUNS>), grid, block, 0,
                                     stream, *p);
    }
    if (p->post != NULL) {
        return (int)(p->add_dtype == INF_DTYPE_F32
                         ? INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<4, RUNS, true>), grid,
                                            block, 0, stream, *p)
                         : INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<2, RUNS, true>), grid,
                                            block, 0, stream, *p));
    }
    return (int)(p->add_dtype == INF_DTYPE_F32
                     ? INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<4, RUNS>), grid, block, 0,
                                        stream, *p)
                     : INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<2, RUNS>), grid, block, 0,
                                        stream, *p));
}

int inf_cuda_add_norm_launch(const inf_cuda_add_norm *p, inf_stream stream) {
    bool adds = p->add != NULL, gives = p->y != NULL;
    if (p->rows < 0 || p->n <= 0 || (adds && !known_dtype(p->add_dtype)) ||
        (gives && !known_dtype(p->y_dtype)) || (adds && p->pick != NULL) ||
        (!adds && p->post != NULL) || (!gives && p->weight != NULL) ||
        /* in place, a row of y may not lie over another row of add */
        (adds && gives && p->add == p->y && p->add_dtype != p->y_dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->rows == 0 || (!adds && !gives)) {
        return 0;
    }
    if (p->n % VECTOR == 0 && p->n <= MAX_HELD &&
        aligned_16(p->x, p->add, p->post, p->weight, p->y)) {
        return p->n <= MAX_HELD / 2 ? add_norm_held<1>(p, stream) : add_norm_held<2>(p, stream);
    }
    return (int)INF_LAUNCH_EARLY(p->early != 0, add_norm_any_kernel, dim3((unsigned)p->rows),
                                 dim3(NORM_ANY_THREADS), 0, stream, *p);
}

/* ---- gate ---- */

template <class T, int N>
__global__ void __launch_bounds__(WALK_THREADS) gate_kernel(const inf_cuda_gate a) {
    place w = walk_place<N>(a.n);
    __shared__ float sums[WALK_THREADS / 32];
    float gate[N], up[N], scale = 1.0f;
    start_successor();
    after_predecessor();
    if (a.x_squares != NULL) { /* the block is of one row */
        float sum = 0;
        for (int32_t i = (int32_t)threadIdx.x; i < a.squares; i += WALK_THREADS) {
            sum += a.x_squares[(size_t)w.row * (size_t)a.squares + (size_t)i];
        }
        scale = 1.0f / sqrtf(block_sum(sum, sums) / (float)(16 * a.squares) + a.eps);
    }
    if (w.at >= a.n) {
        return;
    }
    size_t row = (size_t)w.row * (size_t)a.n, at = (size_t)w.at;
    load_run<N>(gate, (const T *)a.gu + 2 * row + at);
    load_run<N>(up, (const T *)a.gu + 2 * row + (size_t)a.n + at);
    for (int i = 0; i < N; i++) {
        float g = scale * gate[i];
        gate[i] = activated(g, a.activation) * (scale * up[i]);
    }
    store_run<N>((T *)a.y + row + at, gate);
}

int inf_cuda_gate_launch(const inf_cuda_gate *p, inf_stream stream) {
    if (!known_dtype(p->act) || p->rows < 0 || p->n <= 0 || p->activation < INF_ACT_SILU ||
        p->activation > INF_ACT_GELU_TANH) {
        return (int)cudaErrorInvalidValue;
    }
    bool fast = p->n % VECTOR == 0 && aligned_16(p->gu, p->y);
    unsigned blocks = walk_blocks(p->rows, p->n, fast ? VECTOR : 1);
    if (p->rows == 0 || blocks == 0) {
        return p->rows == 0 ? 0 : (int)cudaErrorInvalidValue;
    }
    dim3 grid(blocks), block(WALK_THREADS);
    return with_type(p->act, [&](auto number) {
        using T = decltype(number);
        return (int)(fast ? INF_LAUNCH_EARLY(p->early != 0, (gate_kernel<T, VECTOR>), grid, block,
                                             0, stream, *p)
                          : INF_LAUNCH_EARLY(p->early != 0, (gate_kernel<T, 1>), grid, block, 0,
                                             stream, *p));
    });
}

/* ---- softcap ---- */

__global__ void __launch_bounds__(WALK_THREADS) softcap_kernel(const inf_cuda_softcap a) {
    int64_t step = (int64_t)gridDim.x * WALK_THREADS;
    start_successor();
    after_predecessor();
    for (int64_t i = (int64_t)blockIdx.x * WALK_THREADS + threadIdx.x; i < a.n; i += step) {
        a.x[i] = a.cap * tanhf(a.x[i] / a.cap);
    }
}

int inf_cuda_softcap_launch(const inf_cuda_softcap *p, inf_stream stream) {
    if (p->n < 0 || !(p->cap > 0.0f)) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->n == 0) {
        return 0;
    }
    int64_t blocks = (p->n + WALK_THREADS - 1) / WALK_THREADS;
    dim3 grid((unsigned)(blocks < 65535 ? blocks : 65535)), block(WALK_THREADS);
    return (int)INF_LAUNCH_EARLY(p->early != 0, softcap_kernel, grid, block, 0, stream, *p);
}

/* ---- cast ---- */

/* T: of src. The last n % N numbers go one by one. */
template <class T, int N>
__global__ void __launch_bounds__(WALK_THREADS) cast_kernel(const inf_cuda_cast a) {
    const T *src = (const T *)a.src;
    int64_t step = (int64_t)gridDim.x * WALK_THREADS * N;
    start_successor();
    after_predecessor();
    for (int64_t i = ((int64_t)blockIdx.x * WALK_THREADS + threadIdx.x) * N; i < a.n; i += step) {
        float x[N];
        if (i + N <= a.n) {
            load_run<N>(x, src + i);
            store_run_as<N>(a.dst, a.dst_dtype, (size_t)i, x);
        } else {
            for (int64_t k = i; k < a.n; k++) {
                store_as(a.dst, a.dst_dtype, (size_t)k, load1(src + k));
            }
        }
    }
}

int inf_cuda_cast_launch(const inf_cuda_cast *p, inf_stream stream) {
    if (!known_dtype(p->src_dtype) || !known_dtype(p->dst_dtype) || p->n < 0) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->n == 0) {
        return 0;
    }
    bool fast = aligned_16(p->src, p->dst);
    int64_t each = WALK_THREADS * (fast ? VECTOR : 1), blocks = (p->n + each - 1) / each;
    dim3 grid((unsigned)(blocks < INT32_MAX ? blocks : INT32_MAX)), block(WALK_THREADS);
    return with_type(p->src_dtype, [&](auto number) {
        using T = decltype(number);
        return (int)(fast ? INF_LAUNCH_EARLY(p->early != 0, (cast_kernel<T, VECTOR>), grid, block,
                                             0, stream, *p)
                          : INF_LAUNCH_EARLY(p->early != 0, (cast_kernel<T, 1>), grid, block, 0,
                                             stream, *p));
    });
}
