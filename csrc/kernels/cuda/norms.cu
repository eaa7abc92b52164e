/* Residual sum and norm: x += add, or add normed first, and y = x normed. A number costs 4 + 2
 * bytes read and 4 + 2 written, and the weights' 4, which caches hold, for 4 flops, or 8: bound by
 * memory, or, with one row, by latency.
 *
 * add_norm must see a whole row before it writes y. A block takes a row and keeps it in registers
 * between the sum of squares and the result, so that each buffer is touched once and there is one
 * barrier: every warp leaves its sum in shared memory, and after the barrier every warp adds all of
 * them up by itself. The order of that sum depends on the row's length alone: a row's result does
 * not depend on what else is in the batch. The weight is read first, before the kernel in front has
 * ended where the launch allows that. Rows longer than MAX_HELD go through memory a second time.
 *
 * Where add is normed first there are two sums, and two barriers; such a row's registers hold half
 * as much. */
#include "kernels/cuda/rows.cuh"

enum { NORM_THREADS = 1024, NORM_ANY_THREADS = 256 };
enum { MAX_HELD = NORM_THREADS * 2 * VECTOR }; /* numbers of a row that registers hold */

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
    if constexpr (RUNS == 1) { /* with two a thread has not the registers for it */
        if (p->post != NULL) {
            return (int)(p->add_dtype == INF_DTYPE_F32
                             ? INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<4, 1, true>), grid,
                                                block, 0, stream, *p)
                             : INF_LAUNCH_EARLY(p->early != 0, (add_norm_kernel<2, 1, true>), grid,
                                                block, 0, stream, *p));
        }
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
    int32_t held = p->post != NULL ? MAX_HELD / 2 : MAX_HELD;
    if (p->n % VECTOR == 0 && p->n <= held && aligned_16(p->x, p->add, p->post, p->weight, p->y)) {
        return p->n <= MAX_HELD / 2 ? add_norm_held<1>(p, stream) : add_norm_held<2>(p, stream);
    }
    return (int)INF_LAUNCH_EARLY(p->early != 0, add_norm_any_kernel, dim3((unsigned)p->rows),
                                 dim3(NORM_ANY_THREADS), 0, stream, *p);
}
