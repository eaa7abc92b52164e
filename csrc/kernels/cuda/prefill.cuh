/* What the two prefill kernels share: how a piece's query rows and heads fill tiles, which keys a
 * tile needs, and how results are written. */
#ifndef INF_CUDA_PREFILL_CUH
#define INF_CUDA_PREFILL_CUH

#include "kernels/cuda/attention.cuh"

/* Rows of a tile. */
enum { PREFILL_M = 128 };

/* A tile: up to PREFILL_M packed rows of a piece for one kv head. Packed row i of the piece is
 * query head i % group of the kv head, row i / group: so heads that share keys stand in one tile,
 * and a tile's rows differ little in what they see. */
struct prefill_tile {
    inf_cuda_work work;
    inf_cuda_segment segment;
    int32_t kv_head, group;
    const uint8_t *keys, *values; /* K and V of layer and head in block 0 */
    int32_t m0, n_rows;  /* packed rows m0 .. m0 + n_rows - 1 of the piece; none if n_rows <= 0 */
    uint32_t first, end; /* keys that at least one row sees */
    uint32_t token0;     /* where the first key tile begins: <= first, a multiple of 16 */
    uint32_t all_from, all_upto; /* keys that every row sees */
    int32_t key_tiles;
    float scale; /* times log2 e */
};

/* Tile y, 0 .. heads - 1, of piece `index`: tile y % group of kv head y / group. KEYS: of a key
 * tile. */
template <int KEYS>
static __device__ __forceinline__ prefill_tile prefill_tile_of(const inf_cuda_attn &p,
                                                               int32_t index, int32_t y) {
    prefill_tile x;
    x.work = p.work[index];
    x.segment = p.segments[x.work.segment];
    x.group = p.heads / p.kv.kv_heads;
    x.kv_head = y / x.group;
    x.keys = p.pool + kv_head_offset(p.kv, p.layer, 0, x.kv_head);
    x.values = p.pool + kv_head_offset(p.kv, p.layer, 1, x.kv_head);
    x.m0 = (y % x.group) * PREFILL_M;
    int32_t left = (int32_t)x.work.rows * x.group - x.m0;
    x.n_rows = left < PREFILL_M ? left : PREFILL_M;
    x.scale = p.scale * 1.4426950408889634f;
    x.first = x.end = x.token0 = x.work.token0;
    x.all_from = UINT32_MAX, x.all_upto = 0, x.key_tiles = 0;
    if (x.n_rows <= 0) {
        return x;
    }
    /* What rows see begins and ends later from row to row. If the first or the last sees nothing,
     * no key is seen by all. */
    uint32_t row0 = x.work.row0 + (uint32_t)(x.m0 / x.group);
    uint32_t row1 = x.work.row0 + (uint32_t)((x.m0 + x.n_rows - 1) / x.group);
    key_range head = visible_keys(x.segment, x.work, p.window, row0);
    key_range last = visible_keys(x.segment, x.work, p.window, row1);
    x.all_from = last.from < last.upto ? last.from : UINT32_MAX;
    x.all_upto = head.from < head.upto ? head.upto : 0;
    int64_t at = (int64_t)x.segment.q_pos0 + row0 - x.segment.kv_pos0, first = x.work.token0;
    int64_t end = (int64_t)x.work.token0 + x.work.tokens, last_at = at + (row1 - row0);
    if (p.window > 0 && at - p.window + 1 > first) {
        first = at - p.window + 1;
    }
    if (last_at + 1 < end) {
        end = last_at + 1;
    }
    if (end > first) {
        x.first = (uint32_t)first, x.end = (uint32_t)end;
        x.token0 += (x.first - x.token0) / KEYS * KEYS;
        x.key_tiles = (int32_t)((x.end - x.token0 + KEYS - 1) / KEYS);
    }
    return x;
}

/* Where a token lies, in rows (of head_dim numbers) from token 0 of block 0 for the same layer and
 * head. Only for tokens in blocks that hold a visible key: others are not looked up, and 0. */
static __device__ __forceinline__ uint32_t pool_row(const inf_cuda_attn &p, const prefill_tile &x,
                                                    uint32_t t, uint32_t row_bytes,
                                                    uint32_t tokens) {
    uint32_t block_size = (uint32_t)p.kv.block_size;
    if (t >= x.end || t + tokens <= x.first) {
        return 0;
    }
    uint32_t block = (uint32_t)p.blocks[x.segment.block_off + t / block_size];
    return block * ((uint32_t)(p.kv.block_bytes / row_bytes)) + t % block_size;
}

/* The row of q that packed row i of the tile is, as an index of heads. */
static __device__ __forceinline__ size_t prefill_query(const inf_cuda_attn &p,
                                                       const prefill_tile &x, int i) {
    int32_t packed = x.m0 + i;
    size_t row = (size_t)x.segment.row0 + x.work.row0 + (size_t)(packed / x.group);
    return row * (size_t)p.heads + (size_t)(x.kv_head * x.group + packed % x.group);
}

/* Where the 16-byte word of a row of ROW bytes stands, so that eight rows' words of one column are
 * in different banks. Rows a multiple of 8 apart have a word at the same place: then the distance
 * is ROW times the difference, which the callers use to keep few addresses. */
template <int ROW> static __device__ __forceinline__ int word_at(int row, int word) {
    static_assert(ROW == 64 || ROW % 128 == 0, "");
    return row * ROW + ((ROW == 64 ? word ^ (row >> 1 & 3) : word ^ (row & 7)) << 4);
}

/* The keys that packed row i of the tile sees; none if it is not there. */
static __device__ __forceinline__ key_range prefill_keys(const inf_cuda_attn &p,
                                                         const prefill_tile &x, int i) {
    if (i >= x.n_rows) {
        return {0, 0};
    }
    return visible_keys(x.segment, x.work, p.window,
                        x.work.row0 + (uint32_t)((x.m0 + i) / x.group));
}

/* Where packed row i of the tile goes; of one that is not there only the dtype is told. */
static __device__ __forceinline__ out_place prefill_out(const inf_cuda_attn &p,
                                                        const prefill_tile &x, int i) {
    int32_t packed = x.m0 + i;
    if (i >= x.n_rows) {
        return {NULL, NULL, x.work.part == INF_CUDA_WHOLE ? p.o_dtype : (int32_t)INF_DTYPE_F32, 0};
    }
    return place_of(p, x.segment, x.work, (uint32_t)(packed / x.group),
                    x.kv_head * x.group + packed % x.group);
}

static __device__ __forceinline__ uint32_t pack2(float lo, float hi, bf16) {
    return pack_bf16x2(lo, hi);
}
static __device__ __forceinline__ uint32_t pack2(float lo, float hi, f16) {
    return pack_f16x2(lo, hi);
}

/* Scores of one row, which a quad of lanes holds together, to weights 2^((s - m) scale), m the new
 * maximum; returns what the row's sums so far must be multiplied by. N columns of the thread are
 * s[n][at], s[n][at + 1]. */
template <int N>
static __device__ __forceinline__ float weigh_row(float s[N][4], int at, float &m, float &l,
                                                  float scale) {
    float most = fmaxf(s[0][at], s[0][at + 1]);
#pragma unroll
    for (int n = 1; n < N; n++) {
        most = fmaxf(most, fmaxf(s[n][at], s[n][at + 1]));
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    most = fmaxf(most, m);
    float top = most == -INFINITY ? 0.0f : most; /* no key seen yet: all weights are 0 */
    float base = top * scale, shrink = exp2_fast(m * scale - base), sum = 0.0f;
    m = most;
#pragma unroll
    for (int n = 0; n < N; n++) {
        s[n][at] = exp2_fast(s[n][at] * scale - base);
        s[n][at + 1] = exp2_fast(s[n][at + 1] * scale - base);
        sum += s[n][at] + s[n][at + 1];
    }
    l = l * shrink + sum; /* this thread's share of the sum */
    return shrink;
}

/* A row's lse from its maximum of q.k and its sum; scale is times log2 e. */
static __device__ __forceinline__ float lse_of(float m, float l, float scale) {
    const float ln2 = 0.6931471805599453f;
    return l != 0.0f ? m * scale * ln2 + logf(l) : -INFINITY;
}

/* Lane q of a quad has word q of each of four groups of four words; afterwards it has all words of
 * group q. All lanes of the warp call. */
static __device__ __forceinline__ void cross_quad(uint32_t w[4]) {
    const bool high = (threadIdx.x & 2) != 0, odd = (threadIdx.x & 1) != 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
        w[i] = high ? got : w[i];
        w[i + 2] = high ? w[i + 2] : got;
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? got : w[i];
        w[i + 1] = odd ? w[i + 1] : got;
    }
}

/* A row of o that a quad of lanes holds together, divided by its sum, and its lse, if the row is
 * there; the dtype is the same for all lanes, which all call. N column groups of 8: the thread's
 * are o[n][at], o[n][at + 1], at 8 n + 2 (lane % 4). 16-bit numbers are written 16 bytes at a time,
 * so that a quad fills two sectors of memory and not a quarter of eight. */
template <int N>
static __device__ __forceinline__ void write_row(const float o[N][4], int at, float m, float l,
                                                 float scale, bool there, const out_place &out) {
    static_assert(N % 4 == 0, "");
    int lane = (int)(threadIdx.x % 32);
    float inverse = l != 0.0f ? 1.0f / l : 0.0f;
    size_t base = out.at * (size_t)(N * 8);
#pragma unroll
    for (int n = 0; n < N; n += 4) {
        if (out.dtype == INF_DTYPE_F32) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (there) {
                    *(float2 *)((float *)out.o + base + (n + i) * 8 + 2 * (lane % 4)) =
                        make_float2(o[n + i][at] * inverse, o[n + i][at + 1] * inverse);
                }
            }
            continue;
        }
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float a = o[n + i][at] * inverse, b = o[n + i][at + 1] * inverse;
            w[i] = out.dtype == INF_DTYPE_BF16 ? pack_bf16x2(a, b) : pack_f16x2(a, b);
        }
        cross_quad(w);
        if (there) {
            *(uint4 *)((uint16_t *)out.o + base + (n + lane % 4) * 8) =
                make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
    if (there && lane % 4 == 0 && out.lse != NULL) {
        out.lse[out.at] = lse_of(m, l, scale);
    }
}

#endif
