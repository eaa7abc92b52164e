/* What walks rows once, one number at a time: embedding, the table of rotations, the
 * gate, the cap, casts. All of it is bound by memory, or, with one row, by latency.
 *
 *   operation    bytes per number (16-bit formats)        flops
 *   embed        2 read, 4 written                        0
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
 * The rotations' angle float(position * inv_freq) can be millions of radians; its f32 rounding is
 * the models' convention, and from there on everything is double: sine and cosine in f32 would
 * have to reduce the angle in more than f32 anyway, and there are only rows * half of them in a
 * step. */
#include "kernels/cuda/rows.cuh"

enum { WALK_THREADS = 128 };

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
