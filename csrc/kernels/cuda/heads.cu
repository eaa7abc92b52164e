/* From the QKV product to what attention reads: norms of single heads, rotation, the append to the
 * pool.
 *
 *   norm      y = x / sqrt(mean(x^2) + eps) * weight over a head's numbers (q and k, where the
 *             model has the weights)
 *   rotation  (a, b) -> (a cos - b sin, b cos + a sin), a = y[i], b = y[i + head_dim / 2] (q and k;
 *             Su et al. 2021)
 *
 * Per number one read and one write of 2 bytes (16-bit formats) and about 5 flops: bound by memory.
 * cos and sin of a row, 4 head_dim bytes, are read by every head of the row; they and the weights
 * stay in caches.
 *
 * A head is a run of neighbouring threads; each has VECTOR numbers of the first half and the same
 * VECTOR of the second, the other ends of its rotations. So every access is 16 bytes, both numbers
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

static __device__ __forceinline__ const float *norm_of(const inf_cuda_heads &a, head_kind kind) {
    return kind == QUERY ? a.q_norm : kind == KEY ? a.k_norm : NULL;
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

/* T: act. A thread has the runs at VECTOR * lane of both halves. */
template <class T>
__global__ void __launch_bounds__(HEAD_THREADS) heads_kernel(const inf_cuda_heads a) {
    const uint32_t half = (uint32_t)a.kv.head_dim / 2, lanes = half / VECTOR;
    const uint32_t all = (uint32_t)(a.heads + 2 * a.kv.kv_heads);
    const uint32_t thread = blockIdx.x * HEAD_THREADS + threadIdx.x;
    const uint32_t head = thread / lanes, first = thread % lanes * VECTOR, row = head / all;
    const bool valid = row < (uint32_t)a.rows;
    int32_t h = (int32_t)(head % all);
    const head_kind kind = kind_of(a, &h);
    const float *norm = norm_of(a, kind);
    float x[VECTOR] = {}, y[VECTOR] = {}, w[VECTOR], z[VECTOR], c[VECTOR], s[VECTOR], sum = 0;
    void *to = NULL;
    start_successor();
    if (norm != NULL) {
        load_run<VECTOR>(w, norm + first);
        load_run<VECTOR>(z, norm + half + first);
    }
    after_predecessor();
    if (valid) {
        const T *from = (const T *)a.qkv + (size_t)head * 2 * half + first;
        load_run<VECTOR>(x, from);
        load_run<VECTOR>(y, from + half);
        if (kind != VALUE) {
            load_run<VECTOR>(c, a.cos + (size_t)row * half + first);
            load_run<VECTOR>(s, a.sin + (size_t)row * half + first);
        }
        to = head_at(a, kind, h, row);
    }
    if (a.q_norm != NULL) { /* the whole warp, whatever its heads are */
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
        float inverse = 1.0f / sqrtf(sum / (float)(2 * half) + a.eps);
        for (int i = 0; i < VECTOR; i++) {
            x[i] = x[i] * inverse * w[i];
            y[i] = y[i] * inverse * z[i];
        }
    }
    if (kind != VALUE) {
        for (int i = 0; i < VECTOR; i++) {
            float turned = x[i] * c[i] - y[i] * s[i];
            y[i] = y[i] * c[i] + x[i] * s[i];
            x[i] = turned;
        }
    }
    int32_t dtype = kind == QUERY ? a.act : a.kv.dtype;
    store_head<VECTOR>(to, dtype, first, x);
    store_head<VECTOR>(to, dtype, half + first, y);
}

/* Any even head_dim and alignment; a warp per head. */
template <class T>
__global__ void __launch_bounds__(HEAD_THREADS) heads_any_kernel(const inf_cuda_heads a) {
    const uint32_t half = (uint32_t)a.kv.head_dim / 2, lane = threadIdx.x % 32;
    const uint32_t all = (uint32_t)(a.heads + 2 * a.kv.kv_heads);
    const uint32_t head = (blockIdx.x * HEAD_THREADS + threadIdx.x) / 32, row = head / all;
    int32_t h = (int32_t)(head % all);
    const head_kind kind = kind_of(a, &h);
    const float *norm = norm_of(a, kind);
    start_successor();
    after_predecessor();
    if (row >= (uint32_t)a.rows) {
        return; /* with its whole warp */
    }
    const T *from = (const T *)a.qkv + (size_t)head * 2 * half;
    float inverse = 1.0f;
    if (norm != NULL) {
        float sum = 0;
        for (uint32_t i = lane; i < 2 * half; i += 32) {
            sum += load1(from + i) * load1(from + i);
        }
        inverse = 1.0f / sqrtf(warp_sum(sum) / (float)(2 * half) + a.eps);
    }
    void *to = head_at(a, kind, h, row);
    int32_t dtype = kind == QUERY ? a.act : a.kv.dtype;
    for (uint32_t i = lane; i < half; i += 32) {
        float x = load1(from + i), y = load1(from + half + i);
        if (norm != NULL) {
            x = x * inverse * norm[i];
            y = y * inverse * norm[half + i];
        }
        if (kind != VALUE) {
            float c = a.cos[(size_t)row * half + i], s = a.sin[(size_t)row * half + i];
            float turned = x * c - y * s;
            y = y * c + x * s;
            x = turned;
        }
        store_head<1>(to, dtype, i, &x);
        store_head<1>(to, dtype, half + i, &y);
    }
}

static bool heads_shape_holds(const inf_cuda_heads *p) {
    const inf_kv_shape *kv = &p->kv;
    return known_dtype(p->act) && kv_format_holds(kv) && p->rows >= 0 && p->heads > 0 &&
           kv->kv_heads > 0 && kv->head_dim > 0 && kv->head_dim % 2 == 0 && p->layer >= 0 &&
           p->layer < kv->layers && (p->q_norm == NULL) == (p->k_norm == NULL);
}

int inf_cuda_heads_launch(const inf_cuda_heads *p, inf_stream stream) {
    if (!heads_shape_holds(p)) {
        return (int)cudaErrorInvalidValue;
    }
    int half = p->kv.head_dim / 2, lanes = half / VECTOR;
    bool fast = half % VECTOR == 0 && half <= MOST_HALF && (lanes & (lanes - 1)) == 0 &&
                p->kv.block_bytes % 16 == 0 &&
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
