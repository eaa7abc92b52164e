/* Prefill attention: many query rows against many keys, bound by the tensor cores. This kernel runs
 * on every GPU from sm_80 on; attention_prefill_sm90.cu has the one for Hopper.
 *
 * Maths as in attention_plain.cu, in tiles (Dao 2023): a thread block keeps the scores of 128 query
 * rows against 64 keys in registers, turns them into weights there, and adds weights times V to the
 * rows' o in registers. Scores are q.k; the scale, times log2 e, is folded into the exponent, so a
 * weight is one fused multiply-add and one 2^x. Weights are rounded to the KV's format for the
 * product with V; sums, maxima and o are f32.
 *
 * Flops and bytes. A visible (row, key) pair of a head costs 4 head_dim flops. A tile of keys (K
 * and V) is read by each block once from L2 for 128 rows: 128 flops a byte, so L2 is no limit.
 * Shared memory can be one: a warp reads all of K and V for its rows, 4 head_dim bytes a key. With
 * 16 rows per warp that is 16 flops a byte, and the 128 bytes per clock of an SM would feed 2048
 * flops, below what newer tensor cores do. So a warp has 32 rows, every fragment of K and V being
 * used twice, and four warps make the tile. q is read again from shared memory for each key tile,
 * since o and the scores leave no registers for it.
 *
 * Two blocks share an SM: while one computes weights, the other one's products run. For this a
 * block has a single place for K and one for V: V comes while the scores are computed, the next K
 * while the weights and their product with V are. The block table is looked up one tile further
 * ahead.
 *
 * Packed heads. The rows of a tile are (row, head) pairs of one kv head's group: row i is head i %
 * group of row i / group. Short pieces then fill their tiles (32 rows of a group of 4 do), and a
 * full tile spans 128 / group positions, so that fewer of the products on the diagonal are wasted.
 * Every head's keys are read as often as if heads were apart.
 *
 * Masks cost something, so only tiles that cross the diagonal, a window's start or the end of the
 * keys have them. Rows of V that nobody sees are filled with zeros: their weights are 0, but 0
 * times what lies there need not be.
 *
 * Banks. Rows in shared memory are contiguous; the 16-byte word c of row r stands at place c ^ (r %
 * 8), so that ldmatrix finds eight rows' words of one column in different banks. */
#include <stdio.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/prefill_e4m3.cuh"

/* T, of K and V: bf16, f16 or e4m3 (prefill_e4m3.cuh). CAP: scores are capped
 * (inf_cuda_attn.softcap), which costs others nothing so. */
template <class T, int DIM, bool CAP> struct prefill_cut {
    typedef T number;
    static constexpr bool capped = CAP;
    static constexpr int dim = DIM, keys = 64, warps = 4, threads = warps * 32;
    static constexpr bool narrow = sizeof(T) == 1;
    /* Bytes of a row of q, and bytes and 16-byte words of one of K or V. */
    static constexpr int q_row = DIM * 2, row = DIM * (int)sizeof(T), words = row / 16;
    static constexpr int groups = keys / 8; /* column groups of the scores */
    static constexpr int q_bytes = PREFILL_M * q_row, half = keys * row;
    static constexpr int shared = q_bytes + 2 * half;
    static constexpr int resident = 2;
    static constexpr int rows_at_once =
        threads / words; /* that one cp.async of all threads moves */
};

/* What a warp knows of its 32 rows, as two fragments of 16; a thread holds rows lane / 4 and 8
 * more. */
template <class C> struct prefill_rows {
    float o[2][C::dim / 8][4]; /* not yet divided */
    float m[2][2], l[2][2];    /* maximum of q.k; this thread's share of the sum */
};

/* ---- copies ---- */

template <class C>
static __device__ __forceinline__ void copy_queries(const inf_cuda_attn &p, const prefill_tile &x,
                                                    uint8_t *to) {
    int word = (int)threadIdx.x % C::words, row = (int)threadIdx.x / C::words;
#pragma unroll 4
    for (; row < PREFILL_M; row += C::rows_at_once) {
        bool there = row < x.n_rows;
        const uint8_t *from =
            (const uint8_t *)p.q + prefill_query(p, x, there ? row : 0) * C::row + word * 16;
        cp_async_16(to + word_at<C::row>(row, word), from, there);
    }
}

/* Where this lane's unit of eight keys, unit lane % 8 of the tile at t0, begins. */
template <class C>
static __device__ __forceinline__ uint32_t look_up(const inf_cuda_attn &p, const prefill_tile &x,
                                                   uint32_t t0) {
    return pool_row(p, x, t0 + threadIdx.x % 8 * 8, C::row, 8);
}

/* The tile of K or V at t0; keys that nobody sees become zeros. */
template <class C>
static __device__ __forceinline__ void copy_keys(const prefill_tile &x, uint32_t t0,
                                                 const uint8_t *head, uint32_t unit, uint8_t *to) {
    int word = (int)threadIdx.x % C::words, row = (int)threadIdx.x / C::words;
    static_assert(C::rows_at_once % 8 == 0, "");
    bool whole = t0 >= x.first && t0 + C::keys <= x.end;
    head += (row % 8) * C::row + word * 16;
    to += word_at<C::row>(row, word);
#pragma unroll
    for (int i = 0; i < C::keys / C::rows_at_once; i++) {
        int at = row / 8 + i * (C::rows_at_once / 8);
        uint64_t from = (uint64_t)__shfl_sync(0xffffffffu, unit, at) * C::row;
        uint32_t t = t0 + (uint32_t)(row + i * C::rows_at_once);
        bool there = whole | ((t >= x.first) & (t < x.end));
        cp_async_16(to + i * C::rows_at_once * C::row, head + from, there);
    }
}

/* ---- arithmetic ---- */

static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t *b,
                                           bf16) {
    mma_bf16(d, a, b);
}
static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t *b,
                                           f16) {
    mma_f16(d, a, b);
}

/* s = q.k of the warp's rows and the tile's keys. */
template <class C>
static __device__ __forceinline__ void scores(const uint8_t *q, const uint8_t *k,
                                              float s[2][C::groups][4]) {
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    q += (warp * 32 + lane % 16) * C::row;
    k += (lane / 16 * 8 + lane % 8) * C::row;
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[0][n][i] = s[1][n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int d = 0; d < C::dim / 16; d++) {
        uint32_t a[2][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            ldmatrix_x4(a[r], q + r * 16 * C::row + (((2 * d + lane / 16) ^ (lane % 8)) << 4));
        }
#pragma unroll
        for (int n = 0; n < C::groups; n += 2) {
            uint32_t b[4]; /* 16 dims of 16 keys */
            ldmatrix_x4(b, k + n * 8 * C::row + (((2 * d + lane / 8 % 2) ^ (lane % 8)) << 4));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                mma(s[r][n], a[r], b, typename C::number());
                mma(s[r][n + 1], a[r], b + 2, typename C::number());
            }
        }
    }
}

template <class C>
static __device__ __forceinline__ void cap_scores(const score_cap &cap, float s[2][C::groups][4]) {
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[0][n][i] = capped_score(s[0][n][i], cap);
            s[1][n][i] = capped_score(s[1][n][i], cap);
        }
    }
}

/* Keys that a row does not see get -inf. */
template <class C>
static __device__ __forceinline__ void mask(const inf_cuda_attn &p, const prefill_tile &x,
                                            uint32_t t0, float s[2][C::groups][4]) {
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            key_range seen = prefill_keys(p, x, warp * 32 + r * 16 + h * 8 + lane / 4);
#pragma unroll
            for (int n = 0; n < C::groups; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    uint32_t t = t0 + (uint32_t)(n * 8 + 2 * (lane % 4) + i);
                    if (t < seen.from || t >= seen.upto) {
                        s[r][n][2 * h + i] = -INFINITY;
                    }
                }
            }
        }
    }
}

/* Scores to weights, in the KV's format (f16 for e4m3) and the layout of a left operand, which is
 * that of the scores: no exchange. o so far is brought to the new maximum. */
template <class C>
static __device__ __forceinline__ void weigh(prefill_rows<C> &rows, float scale,
                                             float s[2][C::groups][4],
                                             uint32_t w[2][C::groups / 2][4]) {
    typedef typename C::number T;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float shrink0 = weigh_row<C::groups>(s[r], 0, rows.m[r][0], rows.l[r][0], scale);
        float shrink1 = weigh_row<C::groups>(s[r], 2, rows.m[r][1], rows.l[r][1], scale);
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
            w[r][n / 2][n % 2 * 2] = pack2(s[r][n][0], s[r][n][1], T());
            w[r][n / 2][n % 2 * 2 + 1] = pack2(s[r][n][2], s[r][n][3], T());
        }
#pragma unroll
        for (int d = 0; d < C::dim / 8; d++) {
            rows.o[r][d][0] *= shrink0, rows.o[r][d][1] *= shrink0;
            rows.o[r][d][2] *= shrink1, rows.o[r][d][3] *= shrink1;
        }
    }
}

/* o += weights V */
template <class C>
static __device__ __forceinline__ void add_values(prefill_rows<C> &rows, const uint8_t *v,
                                                  const uint32_t w[2][C::groups / 2][4]) {
    typedef typename C::number T;
    int lane = (int)(threadIdx.x % 32);
    v += (lane % 16) * C::row;
#pragma unroll
    for (int n = 0; n < C::groups / 2; n++) {
#pragma unroll
        for (int d = 0; d < C::dim / 8; d += 2) {
            uint32_t b[4]; /* 16 keys of 16 dims */
            ldmatrix_x4_trans(b, v + n * 16 * C::row + (((d + lane / 16) ^ (lane % 8)) << 4));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                mma(rows.o[r][d], w[r][n], b, T());
                mma(rows.o[r][d + 1], w[r][n], b + 2, T());
            }
        }
    }
}

/* ---- a tile of rows ---- */

template <class C>
static __device__ __forceinline__ void attend(const inf_cuda_attn &p, const prefill_tile &x,
                                              uint8_t *shared, prefill_rows<C> &rows) {
    uint8_t *q = shared, *k = shared + C::q_bytes, *v = k + C::half;
    uint32_t unit = look_up<C>(p, x, x.token0), next = look_up<C>(p, x, x.token0 + C::keys);
    if (x.key_tiles > 0) {
        if constexpr (C::narrow) {
            e4m3_copy_queries<C>(p, x, q);
        } else {
            copy_queries<C>(p, x, q);
        }
        copy_keys<C>(x, x.token0, x.keys, unit, k);
    }
    cp_async_commit();
    for (int j = 0; j < x.key_tiles; j++) {
        uint32_t t0 = x.token0 + (uint32_t)(j * C::keys);
        float s[2][C::groups][4];
        cp_async_wait<0>();
        __syncthreads(); /* K is there for all, and all have done with the V before */
        copy_keys<C>(x, t0, x.values, unit, v);
        cp_async_commit();
        if constexpr (C::narrow) {
            e4m3_scores<C>(q, k, s);
        } else {
            scores<C>(q, k, s);
        }
        cp_async_wait<0>();
        __syncthreads(); /* V is there for all, and all have done with K */
        if (j + 1 < x.key_tiles) {
            unit = next;
            copy_keys<C>(x, t0 + C::keys, x.keys, unit, k);
            next = look_up<C>(p, x, t0 + 2 * C::keys);
        }
        cp_async_commit();
        if constexpr (C::capped) {
            cap_scores<C>(score_cap_of(p), s);
        }
        if (t0 < x.all_from || t0 + C::keys > x.all_upto) {
            mask<C>(p, x, t0, s);
        }
        uint32_t w[2][C::groups / 2][4];
        weigh(rows, x.scale, s, w);
        if constexpr (C::narrow) {
            e4m3_add_values<C>(rows, v, w);
        } else {
            add_values(rows, v, w);
        }
    }
}

template <class C>
static __device__ __forceinline__ void write_rows(const inf_cuda_attn &p, const prefill_tile &x,
                                                  const prefill_rows<C> &rows) {
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int i = warp * 32 + r * 16 + h * 8 + lane / 4;
            float l = rows.l[r][h];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            bool there = i < x.n_rows;
            out_place out = prefill_out(p, x, i);
            if constexpr (!C::narrow) {
                write_row<C::dim / 8>(rows.o[r], 2 * h, rows.m[r][h], l, x.scale, there, out);
            } else if (there) {
                e4m3_write_row<C::dim / 8>(rows.o[r], 2 * h, rows.m[r][h], l, x.scale, out);
            }
        }
    }
}

template <class C>
static __global__ void __launch_bounds__(C::threads, C::resident)
    attn_prefill_kernel(inf_cuda_attn p) {
    INF_SHARED(shared);
    __shared__ prefill_tile x; /* there, since o and the scores need the registers */
    int32_t n_work = *p.n_work;
    for (int32_t index = (int32_t)blockIdx.x; index < n_work; index += (int32_t)gridDim.x) {
        if (threadIdx.x == 0) {
            x = prefill_tile_of<C::keys>(p, index, (int32_t)blockIdx.y);
        }
        __syncthreads();
        prefill_rows<C> rows;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            rows.m[r][0] = rows.m[r][1] = -INFINITY, rows.l[r][0] = rows.l[r][1] = 0.0f;
#pragma unroll
            for (int d = 0; d < C::dim / 8; d++) {
                rows.o[r][d][0] = rows.o[r][d][1] = rows.o[r][d][2] = rows.o[r][d][3] = 0.0f;
            }
        }
        attend(p, x, shared, rows);
        write_rows(p, x, rows);
        __syncthreads(); /* the next piece overwrites what this one read */
    }
}

/* ---- host ---- */

int inf_cuda_attn_prefill_takes(const inf_cuda_attn *p) {
    return attn_shape_holds(p) && (p->act == p->kv.dtype || p->kv.dtype == INF_DTYPE_E4M3) &&
           p->act != INF_DTYPE_F32 && (p->kv.head_dim == 64 || p->kv.head_dim == 128) &&
           p->kv.block_size % 8 == 0 &&
           p->kv.block_bytes % (uint64_t)(p->kv.head_dim * p->kv.elem) == 0 &&
           (uintptr_t)p->pool % 16 == 0 && (uintptr_t)p->q % 16 == 0 && (uintptr_t)p->o % 16 == 0 &&
           p->heads <= 65535 && p->scale > 0.0f;
}

template <class C> static int launch_mma(const inf_cuda_attn *p, inf_stream stream) {
    dim3 grid((unsigned)p->max_work, (unsigned)p->heads);
    int error = (int)INF_ALLOW_SHARED(attn_prefill_kernel<C>, C::shared);
    return error != 0 ? error
                      : (int)INF_LAUNCH(attn_prefill_kernel<C>, grid, dim3(C::threads), C::shared,
                                        stream, *p);
}

template <class C> static int describe_mma(inf_cuda_prefill_variant *out) {
    snprintf(out->name, sizeof out->name, "mma, 128 rows x %d keys", C::keys);
    out->shared = C::shared, out->registers = out->local = 0, out->resident = 1;
#ifndef INF_EMU
    cudaFuncAttributes a;
    int error = (int)cudaFuncGetAttributes(&a, attn_prefill_kernel<C>);
    error = error != 0 ? error : (int)INF_ALLOW_SHARED(attn_prefill_kernel<C>, C::shared);
    if (error == 0) {
        error = (int)cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &out->resident, attn_prefill_kernel<C>, C::threads, C::shared);
    }
    if (error != 0) {
        (void)cudaGetLastError();
        out->resident = 0;
        return 0;
    }
    out->registers = a.numRegs, out->local = (int32_t)a.localSizeBytes;
#endif
    return 0;
}

/* With out, describes; otherwise launches. */
template <class C>
static int call_cut(const inf_cuda_attn *p, inf_stream stream, inf_cuda_prefill_variant *out) {
    return out != NULL ? describe_mma<C>(out) : launch_mma<C>(p, stream);
}

template <class T>
static int call_mma(const inf_cuda_attn *p, inf_stream stream, inf_cuda_prefill_variant *out) {
    if (p->kv.head_dim == 128) {
        return p->softcap > 0.0f ? call_cut<prefill_cut<T, 128, true>>(p, stream, out)
                                 : call_cut<prefill_cut<T, 128, false>>(p, stream, out);
    }
    return p->softcap > 0.0f ? call_cut<prefill_cut<T, 64, true>>(p, stream, out)
                             : call_cut<prefill_cut<T, 64, false>>(p, stream, out);
}

static int call_variant(const inf_cuda_attn *p, int index, inf_stream stream,
                        inf_cuda_prefill_variant *out) {
    if (!inf_cuda_attn_prefill_takes(p) || index < 0 || index >= INF_CUDA_PREFILL_VARIANTS) {
        return cudaErrorInvalidValue;
    }
    if (out == NULL && p->max_work == 0) {
        return cudaSuccess;
    }
    if (index == INF_CUDA_PREFILL_WGMMA) {
        if (p->kv.dtype == INF_DTYPE_E4M3 || p->softcap > 0.0f) {
            return cudaErrorInvalidValue; /* it reads 16-bit K and V, by TMA, and caps no scores */
        }
        return out != NULL ? inf_cuda_prefill_wgmma_of(p, out)
                           : inf_cuda_prefill_wgmma_launch(p, stream);
    }
    if (p->kv.dtype == INF_DTYPE_E4M3) {
        return call_mma<e4m3>(p, stream, out);
    }
    return p->act == INF_DTYPE_BF16 ? call_mma<bf16>(p, stream, out)
                                    : call_mma<f16>(p, stream, out);
}

int inf_cuda_prefill_variant_of(const inf_cuda_attn *p, int index, inf_cuda_prefill_variant *out) {
    return call_variant(p, index, NULL, out);
}

int inf_cuda_prefill_variant_launch(const inf_cuda_attn *p, int index, inf_stream stream) {
    return call_variant(p, index, stream, NULL);
}

int inf_cuda_attn_prefill_launch(const inf_cuda_attn *p, inf_stream stream) {
    inf_cuda_prefill_variant about;
    int best = INF_CUDA_PREFILL_MMA;
    if (p->wgmma != 0 && inf_cuda_attn_prefill_takes(p) &&
        inf_cuda_prefill_variant_of(p, INF_CUDA_PREFILL_WGMMA, &about) == 0 && about.resident > 0) {
        best = INF_CUDA_PREFILL_WGMMA;
    }
    return inf_cuda_prefill_variant_launch(p, best, stream);
}
