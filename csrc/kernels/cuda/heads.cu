/* From the QKV product to what attention reads: norms of single heads, rotation, the append to the
 * pool.
 *
 *   norm      y = x / sqrt(mean(x^2) + eps) * weight over a head's numbers (q and k, where the
 *             model has the weights)
 *   rotation  (a, b) -> (a cos - b sin, b cos + a sin), a = y[i], b = y[i + rotary / 2], of the
 *             first `rotary` numbers (q and k; Su et al. 2021)
 *
 * Per number one read and one write of 2 bytes (16-bit formats) and about 5 flops: bound by memory.
 * cos and sin of a row, 4 head_dim bytes, are read by every head of the row; they and the weights
 * stay in caches.
 *
 * A norm over all heads of q or of k, which are far apart, has a kernel of its own in front: it
 * leaves two factors for each row (head_scales).
 *
 * A head is a run of neighbouring threads; each has VECTOR numbers of the first half of those that
 * are rotated and the same VECTOR of the second, the other ends of its rotations, or two runs of
 * those that are not. So every access is 16 bytes, both numbers
 * of a pair are in one thread, and the norm is a sum over a few lanes of a warp. A head_dim of 128
 * takes 8 threads. Heads that do not divide so (half a head must be 8, 16, .. 128 numbers, for the
 * lanes' sum) take a warp each and one number at a time.
 *
 * K and V are rounded to the cache's format as they are written, from the f32 that was computed. In
 * e4m3 (e4m3.cuh) they have the scale 1 and are saturated. */
#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/rows.cuh"

enum { HEAD_THREADS = 128, MOST_HALF = 16 * VECTOR };

enum head_kind { QUERY, KEY, VALUE };

/* Head h of a row of q | k | v, and its index among its kind. */
static __device__ __forceinline__ head_kind kind_of(const inf_cuda_heads &a, int32_t *h) {
    if (*h < a.heads) {
        return QUERY;
    }
    *h -= a.heads;
    if (*h < a.kv.kv_heads) {
        return KEY;
    }
    *h -= a.kv.kv_heads;
    return VALUE;
}

/* The weights of a norm over head h of its kind. */
static __device__ __forceinline__ const float *norm_of(const inf_cuda_heads &a, head_kind kind,
                                                       int32_t h) {
    const float *norm = kind == QUERY ? a.q_norm : kind == KEY ? a.k_norm : NULL;
    return norm != NULL && a.scales != NULL ? norm + (size_t)h * (size_t)a.kv.head_dim : norm;
}

static __device__ __forceinline__ float scale_of(const inf_cuda_heads &a, head_kind kind,
                                                 uint32_t row) {
    return a.scales[2 * (size_t)row + (kind == KEY ? 1 : 0)];
}

/* Where a head's numbers go, and their format. */
static __device__ __forceinline__ void *head_at(const inf_cuda_heads &a, head_kind kind, int32_t h,
                                                uint32_t row) {
    size_t dim = (size_t)a.kv.head_dim;
    if (kind == QUERY) {
        size_t at = ((size_t)row * (size_t)a.heads + (size_t)h) * dim;
        return (uint8_t *)a.q + at * (a.act == INF_DTYPE_F32 ? 4 : 2);
    }
    return a.pool + (uint64_t)a.kv_block[row] * a.kv.block_bytes +
           kv_head_offset(a.kv, a.layer, kind == KEY ? 0 : 1, h) +
           (size_t)a.kv_index[row] * dim * (size_t)a.kv.elem;
}

/* N numbers, one or VECTOR, of a head: only K and V may be e4m3. */
template <int N>
static __device__ __forceinline__ void store_head(void *to, int32_t dtype, size_t at,
                                                  const float *x) {
    if (dtype != INF_DTYPE_E4M3) {
        store_run_as<N>(to, dtype, at, x);
    } else if (N == VECTOR) {
        *(uint2 *)((e4m3 *)to + at) = make_uint2(pack_e4m3x4(x), pack_e4m3x4(x + 4));
    } else {
        store1((e4m3 *)to + at, x[0]);
    }
}

/* T: act. A thread has the runs at VECTOR * lane of both halves of what is rotated, or, behind
 * those, of what is not. */
template <class T>
__global__ void __launch_bounds__(HEAD_THREADS) heads_kernel(const inf_cuda_heads a) {
    const uint32_t half = (uint32_t)a.kv.head_dim / 2, lanes = half / VECTOR;
    const uint32_t all = (uint32_t)(a.heads + 2 * a.kv.kv_heads);
    const uint32_t thread = blockIdx.x * HEAD_THREADS + threadIdx.x;
    const uint32_t head = thread / lanes, column = thread % lanes * VECTOR, row = head / all;
    const uint32_t turns = (uint32_t)a.rotary / 2;
    const bool turned_run = column < turns;
    const uint32_t first = turned_run ? column : turns + column;
    const uint32_t second = turned_run ? turns + column : half + column;
    const bool valid = row < (uint32_t)a.rows;
    int32_t h = (int32_t)(head % all);
    const head_kind kind = kind_of(a, &h);
    const float *norm = norm_of(a, kind, h);
    const bool turn = kind != VALUE && turned_run;
    float x[VECTOR] = {}, y[VECTOR] = {}, w[VECTOR], z[VECTOR], c[VECTOR], s[VECTOR], sum = 0;
    void *to = NULL;
    start_successor();
    if (norm != NULL) {
        load_run<VECTOR>(w, norm + first);
        load_run<VECTOR>(z, norm + second);
    }
    after_predecessor();
    if (valid) {
        const T *from = (const T *)a.qkv + (size_t)head * 2 * half;
        load_run<VECTOR>(x, from + first);
        load_run<VECTOR>(y, from + second);
        if (turn) {
            load_run<VECTOR>(c, a.cos + (size_t)row * turns + first);
            load_run<VECTOR>(s, a.sin + (size_t)row * turns + first);
        }
        to = head_at(a, kind, h, row);
    }
    if (a.q_norm != NULL && a.scales == NULL) { /* the whole warp, whatever its heads are */
        for (int i = 0; i < VECTOR; i++) {
            sum += x[i] * x[i] + y[i] * y[i];
        }
        for (uint32_t mask = lanes / 2; mask > 0; mask /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, (int)mask);
        }
    }
    if (!valid) {
        return;
    }
    if (norm != NULL) {
        float inverse = a.scales != NULL ? scale_of(a, kind, row)
                                         : 1.0f / sqrtf(sum / (float)(2 * half) + a.eps);
        for (int i = 0; i < VECTOR; i++) {
            x[i] = x[i] * inverse * w[i];
            y[i] = y[i] * inverse * z[i];
        }
    }
    if (turn) {
        for (int i = 0; i < VECTOR; i++) {
            float turned = x[i] * c[i] - y[i] * s[i];
            y[i] = y[i] * c[i] + x[i] * s[i];
            x[i] = turned;
        }
    }
    int32_t dtype = kind == QUERY ? a.act : a.kv.dtype;
    store_head<VECTOR>(to, dtype, first, x);
    store_head<VECTOR>(to, dtype, second, y);
}

/* Any even head_dim and alignment; a warp per head. */
template <class T>
__global__ void __launch_bounds__(HEAD_THREADS) heads_any_kernel(const inf_cuda_heads a) {
    const uint32_t half = (uint32_t)a.kv.head_dim / 2, lane = threadIdx.x % 32;
    const uint32_t all = (uint32_t)(a.heads + 2 * a.kv.kv_heads);
    const uint32_t head = (blockIdx.x * HEAD_THREADS + threadIdx.x) / 32, row = head / all;
    int32_t h = (int32_t)(head % all);
    const head_kind kind = kind_of(a, &h);
    const float *norm = norm_of(a, kind, h);
    const uint32_t turns = (uint32_t)a.rotary / 2;
    start_successor();
    after_predecessor();
    if (row >= (uint32_t)a.rows) {
        return; /* with its whole warp */
    }
    const T *from = (const T *)a.qkv + (size_t)head * 2 * half;
    float inverse = 1.0f;
    if (norm != NULL && a.scales != NULL) {
        inverse = scale_of(a, kind, row);
    } else if (norm != NULL) {
        float sum = 0;
        for (uint32_t i = lane; i < 2 * half; i += 32) {
            sum += load1(from + i) * load1(from + i);
        }
        inverse = 1.0f / sqrtf(warp_sum(sum) / (float)(2 * half) + a.eps);
    }
    void *to = head_at(a, kind, h, row);
    int32_t dtype = kind == QUERY ? a.act : a.kv.dtype;
    for (uint32_t i = lane; i < half; i += 32) {
        const uint32_t first = i < turns ? i : turns + i, second = i < turns ? turns + i : half + i;
        float x = load1(from + first), y = load1(from + second);
        if (norm != NULL) {
            x = x * inverse * norm[first];
            y = y * inverse * norm[second];
        }
        if (kind != VALUE && i < turns) {
            float c = a.cos[(size_t)row * turns + i], s = a.sin[(size_t)row * turns + i];
            float turned = x * c - y * s;
            y = y * c + x * s;
            x = turned;
        }
        store_head<1>(to, dtype, first, &x);
        store_head<1>(to, dtype, second, &y);
    }
}

/* ---- norms over all heads ---- */

/* A block has q or k of a row. */
template <class T>
__global__ void __launch_bounds__(HEAD_THREADS) head_scales_kernel(const inf_cuda_head_scales a) {
    __shared__ float sums[HEAD_THREADS / 32];
    const uint32_t row = blockIdx.x / 2, key = blockIdx.x % 2;
    const size_t dim = (size_t)a.head_dim, q = (size_t)a.heads * dim, kv = (size_t)a.kv_heads * dim;
    const size_t n = key != 0 ? kv : q;
    const T *from = (const T *)a.qkv + (size_t)row * (q + 2 * kv) + (key != 0 ? q : 0);
    float sum = 0;
    start_successor();
    after_predecessor();
    for (size_t i = threadIdx.x; i < n; i += HEAD_THREADS) {
        float x = load1(from + i);
        sum += x * x;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < HEAD_THREADS / 32; i++) {
            sum += sums[i];
        }
        a.scales[blockIdx.x] = 1.0f / sqrtf(sum / (float)n + a.eps);
    }
}

int inf_cuda_head_scales_launch(const inf_cuda_head_scales *p, inf_stream stream) {
    if (!known_dtype(p->act) || p->rows < 0 || p->rows > INT32_MAX / 2 || p->heads <= 0 ||
        p->kv_heads <= 0 || p->head_dim <= 0) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->rows == 0) {
        return 0;
    }
    dim3 grid(2 * (unsigned)p->rows), block(HEAD_THREADS);
    return with_type(p->act, [&](auto number) {
        using T = decltype(number);
        return (int)INF_LAUNCH_EARLY(p->early != 0, (head_scales_kernel<T>), grid, block, 0, stream,
                                     *p);
    });
}

/* ---- host ---- */

static bool heads_shape_holds(const inf_cuda_heads *p) {
    const inf_kv_shape *kv = &p->kv;
    return known_dtype(p->act) && kv_format_holds(kv) && p->rows >= 0 && p->heads > 0 &&
           kv->kv_heads > 0 && kv->head_dim > 0 && kv->head_dim % 2 == 0 && p->layer >= 0 &&
           p->layer < kv->layers && (p->q_norm == NULL) == (p->k_norm == NULL) && p->rotary >= 0 &&
           p->rotary <= kv->head_dim && p->rotary % 2 == 0 &&
           (p->scales == NULL || p->q_norm != NULL);
}

int inf_cuda_heads_launch(const inf_cuda_heads *given, inf_stream stream) {
    if (!heads_shape_holds(given)) {
        return (int)cudaErrorInvalidValue;
    }
    inf_cuda_heads all = *given;
    const inf_cuda_heads *p = &all;
    all.rotary = all.rotary > 0 ? all.rotary : all.kv.head_dim;
    int half = p->kv.head_dim / 2, lanes = half / VECTOR;
    bool fast = half % VECTOR == 0 && half <= MOST_HALF && (lanes & (lanes - 1)) == 0 &&
                p->rotary / 2 % VECTOR == 0 && p->kv.block_bytes % 16 == 0 &&
                aligned_16(p->qkv, p->q_norm, p->k_norm, p->cos, p->sin, p->q, p->pool);
    int64_t heads = (int64_t)p->rows * (p->heads + 2 * p->kv.kv_heads);
    int64_t threads = heads * (fast ? lanes : 32);
    if (threads > INT32_MAX - HEAD_THREADS) {
        return (int)cudaErrorInvalidValue;
    }
    if (threads == 0) {
        return 0;
    }
    dim3 grid((unsigned)((threads + HEAD_THREADS - 1) / HEAD_THREADS)), block(HEAD_THREADS);
    return with_type(p->act, [&](auto number) {
        using T = decltype(number);
        return (int)(fast ? INF_LAUNCH_EARLY(p->early != 0, (heads_kernel<T>), grid, block, 0,
                                             stream, *p)
                          : INF_LAUNCH_EARLY(p->early != 0, (heads_any_kernel<T>), grid, block, 0,
                                             stream, *p));
    });
}
