/* Attention for any head_dim up to 256 and any format, in f32: the reference on the GPU, and the
 * way of f32 models.
 *
 * For a query q and the keys k_j, values v_j that it sees:
 *
 *     s_j = scale q.k_j, with a softcap c  c tanh(s_j / c)     m = max s_j     l = sum e^(s_j - m)
 *     o = sum e^(s_j - m) v_j / l           lse = m + ln l
 *
 * in one pass over the keys with the running maximum: when it rises to m', l and o so far are
 * multiplied by e^(m - m') (Milakov and Gimelshein 2018; Dao et al. 2022).
 *
 * One warp computes one (row, head) of a piece, 32 keys at a time. For the scores a lane takes a
 * key and walks its head_dim numbers, q being read from shared memory by all lanes at once; the
 * warp thus touches 32 rows of K, and every sector that it fetches is used up by the next steps.
 * For the values a lane takes dims and the warp walks the 32 keys, each lane's weight being passed
 * around. So both products are sums within a lane, and only the maximum crosses lanes. The heads of
 * a group read the same keys; they are neighbours in the thread block, and L1 serves all but the
 * first.
 *
 * Per key and (row, head): 4 head_dim flops, 2 head_dim numbers from L1 or L2. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/e4m3.cuh"

enum { PLAIN_WARPS = 4, PLAIN_MAX_DIM = 256, PLAIN_DIMS = PLAIN_MAX_DIM / 32 };

/* VEC numbers from p on; with 4 they are aligned to their size together. */
template <int VEC> static __device__ __forceinline__ void load_some(float *x, const float *p) {
    if (VEC == 4) {
        float4 v = *(const float4 *)p;
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
        x[0] = *p;
    }
}

static __device__ __forceinline__ float number_of(uint32_t bits, bf16) {
    return bits_to_float(bits << 16);
}
static __device__ __forceinline__ float number_of(uint32_t bits, f16) {
    return f16_to_float((uint16_t)bits);
}

template <int VEC, class T> static __device__ __forceinline__ void load_some(float *x, const T *p) {
    if (VEC == 4) {
        uint2 v = *(const uint2 *)p;
        x[0] = number_of(v.x & 0xffffu, T()), x[1] = number_of(v.x >> 16, T());
        x[2] = number_of(v.y & 0xffffu, T()), x[3] = number_of(v.y >> 16, T());
    } else {
        x[0] = load1(p);
    }
}

template <int VEC> static __device__ __forceinline__ void load_some(float *x, const e4m3 *p) {
    if (VEC == 4) {
        e4m3x4_to_float(*(const uint32_t *)p, x);
    } else {
        x[0] = load1(p);
    }
}

/* The numbers of a head that lane `lane` owns: i-th of PLAIN_DIMS. */
template <int VEC> static __device__ __forceinline__ int dim_of(int lane, int i) {
    return (i / VEC) * 32 * VEC + lane * VEC + i % VEC;
}

struct plain_state {
    float m, l;          /* l is this lane's share of the sum */
    float o[PLAIN_DIMS]; /* the dims of dim_of */
};

/* Where the numbers of a token begin: at index of block, K's or V's. */
template <class T>
static __device__ __forceinline__ const T *token_at(const inf_cuda_attn &p, int32_t block,
                                                    int32_t index, int32_t kv, int32_t kv_head) {
    return (const T *)(p.pool + (uint64_t)block * p.kv.block_bytes +
                       kv_head_offset(p.kv, p.layer, kv, kv_head)) +
           (size_t)index * (size_t)p.kv.head_dim;
}

/* Up to 32 keys from t0 on, all seen by the row. q: [head_dim] in shared memory, scaled. */
template <class T, int VEC>
static __device__ void plain_step(plain_state &state, const inf_cuda_attn &p, const int32_t *blocks,
                                  const float *q, int32_t kv_head, uint32_t t0, int n) {
    int lane = (int)(threadIdx.x % 32), dim = p.kv.head_dim;
    uint32_t t = t0 + (uint32_t)lane, block_size = (uint32_t)p.kv.block_size;
    int32_t block = 0, index = 0;
    float s = -INFINITY;
    if (lane < n) {
        block = blocks[t / block_size];
        index = (int32_t)(t % block_size);
        const T *key = token_at<T>(p, block, index, 0, kv_head);
        float sum[VEC] = {};
#pragma unroll 4
        for (int d = 0; d < dim; d += VEC) {
            float x[VEC], y[VEC];
            load_some<VEC>(x, key + d);
            load_some<VEC>(y, q + d);
            for (int i = 0; i < VEC; i++) {
                sum[i] += x[i] * y[i];
            }
        }
        s = sum[0];
        for (int i = 1; i < VEC; i++) {
            s += sum[i];
        }
        if (p.softcap > 0.0f) {
            s = p.softcap * tanhf(s / p.softcap);
        }
    }
    float m = fmaxf(state.m, warp_max(s));
    float shrink = m == -INFINITY ? 1.0f : expf(state.m - m);
    float weight = lane < n && m != -INFINITY ? expf(s - m) : 0.0f;
    state.m = m;
    state.l = state.l * shrink + weight;
    for (int i = 0; i < PLAIN_DIMS; i++) {
        state.o[i] *= shrink;
    }
#pragma unroll 4
    for (int j = 0; j < n; j++) {
        float w = __shfl_sync(0xffffffffu, weight, j);
        int32_t b = __shfl_sync(0xffffffffu, block, j), at = __shfl_sync(0xffffffffu, index, j);
        const T *value = token_at<T>(p, b, at, 1, kv_head);
        for (int i = 0; i < PLAIN_DIMS; i += VEC) {
            int d = dim_of<VEC>(lane, i);
            if (d < dim) {
                float x[VEC];
                load_some<VEC>(x, value + d);
                for (int k = 0; k < VEC; k++) {
                    state.o[i + k] += w * x[k];
                }
            }
        }
    }
}

template <class T, int VEC>
static __device__ void plain_row(const inf_cuda_attn &p, const inf_cuda_segment &s,
                                 const inf_cuda_work &w, float *q, uint32_t row, int32_t head) {
    int lane = (int)(threadIdx.x % 32), dim = p.kv.head_dim;
    size_t at = ((size_t)s.row0 + w.row0 + row) * (size_t)p.heads + (size_t)head;
    for (int d = lane; d < dim; d += 32) {
        q[d] = load_as(p.q, p.act, at * (size_t)dim + (size_t)d) * p.scale;
    }
    __syncwarp();
    plain_state state;
    state.m = -INFINITY, state.l = 0.0f;
    for (int i = 0; i < PLAIN_DIMS; i++) {
        state.o[i] = 0.0f;
    }
    key_range keys = visible_keys(s, w, p.window, w.row0 + row);
    for (uint32_t t = keys.from; t < keys.upto; t += 32) {
        uint32_t left = keys.upto - t;
        plain_step<T, VEC>(state, p, p.blocks + s.block_off, q, head / (p.heads / p.kv.kv_heads), t,
                           left < 32 ? (int)left : 32);
    }
    __syncwarp(); /* q is read to the end before the next row's overwrites it */
    float l = warp_sum(state.l), inverse = l != 0.0f ? 1.0f / l : 0.0f;
    out_place out = place_of(p, s, w, row, head);
    for (int i = 0; i < PLAIN_DIMS; i++) {
        int d = dim_of<VEC>(lane, i);
        if (d < dim) {
            store_as(out.o, out.dtype, out.at * (size_t)dim + (size_t)d, state.o[i] * inverse);
        }
    }
    if (lane == 0 && out.lse != NULL) {
        out.lse[out.at] = l != 0.0f ? state.m + logf(l) : -INFINITY;
    }
}

template <class T, int VEC>
static __global__ void __launch_bounds__(PLAIN_WARPS * 32, 4) attn_plain_kernel(inf_cuda_attn p) {
    __shared__ __align__(16) float q[PLAIN_WARPS][PLAIN_MAX_DIM];
    int warp = (int)(threadIdx.x / 32);
    int32_t group = p.heads / p.kv.kv_heads, n_work = *p.n_work;
    for (int32_t x = (int32_t)blockIdx.x; x < n_work; x += (int32_t)gridDim.x) {
        inf_cuda_work w = p.work[x];
        inf_cuda_segment s = p.segments[w.segment];
        for (int32_t i = warp; i < (int32_t)w.rows * group; i += PLAIN_WARPS) {
            plain_row<T, VEC>(p, s, w, q[warp], (uint32_t)(i / group),
                              (int32_t)blockIdx.y * group + i % group);
        }
    }
}

template <class T> static int launch_plain(const inf_cuda_attn *p, inf_stream stream) {
    dim3 grid((unsigned)p->max_work, (unsigned)p->kv.kv_heads), block(PLAIN_WARPS * 32);
    /* Groups of four numbers lie together in memory when heads and blocks are made of such. */
    int together =
        p->kv.head_dim % 4 == 0 && p->kv.block_bytes % 16 == 0 && (uintptr_t)p->pool % 16 == 0;
    return together ? (int)INF_LAUNCH((attn_plain_kernel<T, 4>), grid, block, 0, stream, *p)
                    : (int)INF_LAUNCH((attn_plain_kernel<T, 1>), grid, block, 0, stream, *p);
}

int inf_cuda_attn_plain_launch(const inf_cuda_attn *p, inf_stream stream) {
    if (!attn_shape_holds(p) || p->kv.head_dim > PLAIN_MAX_DIM || p->kv.kv_heads > 65535) {
        return cudaErrorInvalidValue;
    }
    if (p->max_work == 0) {
        return cudaSuccess;
    }
    switch (p->kv.dtype) {
    case INF_DTYPE_F32:
        return launch_plain<float>(p, stream);
    case INF_DTYPE_BF16:
        return launch_plain<bf16>(p, stream);
    case INF_DTYPE_E4M3:
        return launch_plain<e4m3>(p, stream);
    default:
        return launch_plain<f16>(p, stream);
    }
}
