/* One warp's part of decode attention: its ring of key tiles in shared memory, and what it makes of
 * a tile. attention_decode.cu says how it all fits together. */
#ifndef INF_CUDA_DECODE_CUH
#define INF_CUDA_DECODE_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/bulk.cuh"

/* How the kernel is cut. T, of K and V: bf16, f16 or e4m3 (decode_e4m3.cuh). KEYS: in a tile, a
 * multiple of 16. STAGES: tiles in a warp's ring. BULK: tiles come by bulk copies instead of
 * cp.async. HINT: the cache is told that they are read once (bulk copies), or asked for 256 bytes
 * at a time. CAP: scores are capped (inf_cuda_attn.softcap), which costs others nothing so. PAD:
 * bytes between chunks.
 *
 * A tile in shared memory is K, then V. Key t of it is row t % CHUNK_ROWS of chunk t / CHUNK_ROWS;
 * a chunk is contiguous as in the pool, and the chunks are PAD bytes more apart than they are long.
 * With 16 eight rows of equal place in their eight chunks thus lie in different banks: they make
 * the 8x8 matrices that ldmatrix reads. So column i of the n-th column group of the scores is key
 * i * CHUNK_ROWS + n, an order that K and V share. */
template <class T, int DIM, int KEYS, int STAGES, int WARPS, bool BULK, bool HINT, bool CAP = false,
          int PAD = 16>
struct decode_cut {
    typedef T number;
    static constexpr bool capped = CAP;
    static constexpr int dim = DIM, keys = KEYS, stages = STAGES, warps = WARPS;
    static constexpr bool bulk = BULK, hint = HINT;
    static constexpr int row = DIM * (int)sizeof(T); /* bytes */
    static constexpr int groups = KEYS / 8;          /* column groups of the scores */
    static constexpr int chunk_rows = KEYS / 8;      /* eight chunks */
    static constexpr int chunk = chunk_rows * row;
    static constexpr int pad = PAD, pitch = chunk + PAD;
    static constexpr int half = 8 * pitch; /* K or V of a tile */
    static constexpr int tile = 2 * half;
    static constexpr int ring = STAGES * tile;
    static constexpr int barriers = BULK ? WARPS * STAGES * 8 : 0;
    static constexpr int shared = WARPS * ring + barriers;
    static constexpr int resident = shared > 112 * 1024 ? 1 : shared > 72 * 1024 ? 2 : 3;
    static_assert(chunk % 128 == 0, "chunks would not spread over the banks");
    static_assert(DIM % 32 == 0 && KEYS % 16 == 0 && KEYS <= 64 && STAGES >= 2, "");
    static constexpr int merge_row = DIM + 8; /* floats; rows in different banks */
    static_assert((INF_CUDA_DECODE_ROWS * merge_row + 2 * INF_CUDA_DECODE_ROWS) * 4 <= ring,
                  "a warp's results take its ring's place");
};

/* ---- the way through the block table ---- */

/* The keys of a piece in units of 8, the most that surely lie in one block: UNITS units per tile. A
 * lane looks up one unit of the next 32 that this warp will need and keeps where it is, a batch
 * ahead of the copies, so that no copy waits for the block table. Tile j of a warp begins at token
 * token0 + (j * warps + warp) * keys. */
template <class C> struct key_walk {
    static constexpr int units = C::keys / 8, batch = 32 / units; /* tiles per batch */
    const int32_t *blocks;
    uint32_t block_size;
    uint64_t block_bytes;
    uint32_t token0, first, end; /* keys first .. end - 1 are read; token0 <= first */
    uint32_t next_block, next_row;
    uint64_t
        offset; /* of this lane's unit of the batch, from the layer's K of this head in block 0 */

    __device__ __forceinline__ uint32_t tile_token(int warp, int j) const {
        return token0 + (uint32_t)(j * C::warps + warp) * C::keys;
    }
    /* Looks up the batch that begins with tile j. */
    __device__ __forceinline__ void look_up(int warp, int j) {
        int lane = (int)(threadIdx.x % 32);
        uint32_t t = tile_token(warp, j + lane / units) + (uint32_t)(lane % units) * 8;
        next_block = 0, next_row = 0;
        if (t < end && t + 8 > first) {
            next_block = (uint32_t)blocks[t / block_size];
            next_row = t % block_size;
        }
    }
    __device__ __forceinline__ void take_looked_up() {
        offset = (uint64_t)next_block * block_bytes + (uint64_t)next_row * C::row;
    }
    /* Where unit u of tile j lies. */
    __device__ __forceinline__ uint64_t unit(int j, int u) const {
        int from = (j % batch) * units + u;
        uint32_t lo = __shfl_sync(0xffffffffu, (uint32_t)offset, from);
        uint32_t hi = __shfl_sync(0xffffffffu, (uint32_t)(offset >> 32), from);
        return (uint64_t)hi << 32 | lo;
    }
    __device__ __forceinline__ bool whole(uint32_t t) const {
        return t >= first && t + C::keys <= end;
    }
    __device__ __forceinline__ bool has(uint32_t t) const { return t >= first && t < end; }
};

/* ---- copies ---- */

/* Tile j by cp.async, 512 bytes at a time: keys that are not read become zeros. */
template <class C>
static __device__ __forceinline__ void copy_tile_async(const key_walk<C> &walk, uint32_t t0, int j,
                                                       const uint8_t *head, size_t to_v,
                                                       uint8_t *stage) {
    constexpr int row_lanes = C::row / 16, rows = 32 / row_lanes; /* rows per copy */
    int lane = (int)(threadIdx.x % 32), lane_row = lane / row_lanes;
    uint8_t *to = stage + (lane_row / C::chunk_rows) * C::pitch +
                  (lane_row % C::chunk_rows) * C::row + (lane % row_lanes) * 16;
    bool whole = walk.whole(t0);
#pragma unroll
    for (int u = 0; u < walk.units; u++) {
        const uint8_t *from = head + walk.unit(j, u) + lane * 16;
#pragma unroll
        for (int i = 0; i < 8 / rows; i++) {
            int t = u * 8 + i * rows;
            int at = (t / C::chunk_rows) * C::pitch + (t % C::chunk_rows) * C::row;
            bool valid = whole || walk.has(t0 + (uint32_t)(t + lane_row));
            if (C::hint) {
                cp_async_16_of_256(to + at, from + i * 512, valid);
                cp_async_16_of_256(to + at + C::half, from + i * 512 + to_v, valid);
                continue;
            }
            cp_async_16(to + at, from + i * 512, valid);
            cp_async_16(to + at + C::half, from + i * 512 + to_v, valid);
        }
    }
}

#if INF_HAS_BULK
/* Tile j by bulk copies of a chunk each: lanes 0 .. 7 K's, 8 .. 15 V's. A chunk none of whose keys
 * is read is left as it is. */
template <class C>
static __device__ __forceinline__ void copy_tile_bulk(const key_walk<C> &walk, uint32_t t0, int j,
                                                      const uint8_t *head, size_t to_v,
                                                      uint8_t *stage, uint64_t *bar) {
    int lane = (int)(threadIdx.x % 32), key = (lane % 8) * C::chunk_rows;
    const uint8_t *from = head + walk.unit(j, key / 8) + (key % 8) * C::row;
    uint32_t t = t0 + (uint32_t)key;
    bool wanted = lane < 16 && t < walk.end && t + C::chunk_rows > walk.first;
    uint32_t copies = (uint32_t)__popc(__ballot_sync(0xffffffffu, wanted));
    if (lane == 0) {
        mbar_expect(bar, copies * C::chunk);
    }
    __syncwarp();
    uint8_t *to = stage + (lane % 8) * C::pitch + (lane / 8) * C::half;
    from += lane / 8 != 0 ? to_v : 0;
    if (wanted && C::hint) {
        bulk_copy_once(to, from, C::chunk, bar);
    } else if (wanted) {
        bulk_copy(to, from, C::chunk, bar);
    }
}
#endif

/* Rows of V that are not read become zeros: their weights are 0, but 0 times what lay there need
 * not be. */
template <class C>
static __device__ __forceinline__ void clear_unread_values(const key_walk<C> &walk, uint32_t t0,
                                                           uint8_t *stage) {
    constexpr int row_lanes = C::row / 16, rows = 32 / row_lanes;
    int lane = (int)(threadIdx.x % 32);
    for (int t = lane / row_lanes; t < C::keys; t += rows) {
        if (!walk.has(t0 + (uint32_t)t)) {
            *(uint4 *)(stage + C::half + (t / C::chunk_rows) * C::pitch +
                       (t % C::chunk_rows) * C::row + (lane % row_lanes) * 16) =
                make_uint4(0, 0, 0, 0);
        }
    }
}

/* ---- arithmetic ---- */

static __device__ __forceinline__ uint32_t pack2(float lo, float hi, bf16) {
    return pack_bf16x2(lo, hi);
}
static __device__ __forceinline__ uint32_t pack2(float lo, float hi, f16) {
    return pack_f16x2(lo, hi);
}
static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t *b,
                                           bf16) {
    mma_bf16(d, a, b);
}
static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t *b,
                                           f16) {
    mma_f16(d, a, b);
}

/* What a warp knows of the 16 query rows; a thread holds rows g = lane / 4 and g + 8. */
template <class C> struct decode_rows {
    uint32_t q[C::dim / 16][4];
    float o[C::dim / 8][4];    /* not yet divided */
    float m[2], l[2];          /* maximum of q.k; this thread's share of the sum */
    uint32_t from[2], upto[2]; /* keys that the row sees */
    bool upper;                /* whether rows 8 .. 15 are there, the same in all lanes */
};

/* Row lane / 4 + 8 h of the left operand, from a query of act or, if it is not there, zeros. */
template <class C, class T>
static __device__ __forceinline__ void load_query(decode_rows<C> &rows, int h, const void *q,
                                                  bool there, int32_t, T) {
    const uint32_t *from = (const uint32_t *)q + threadIdx.x % 4;
#pragma unroll
    for (int d = 0; d < C::dim / 16; d++) {
        rows.q[d][h] = there ? from[d * 8] : 0;
        rows.q[d][h + 2] = there ? from[d * 8 + 4] : 0;
    }
}

/* s[n]: q.k of the column group's keys. */
template <class C, class T>
static __device__ __forceinline__ void scores(const decode_rows<C> &rows, const uint8_t *stage,
                                              float s[C::groups][4], T) {
    int lane = (int)(threadIdx.x % 32);
    const uint8_t *at = stage + (lane % 8) * C::pitch + (lane / 8) * 16;
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < C::dim / 32; d++) {
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
            uint32_t k[4]; /* 32 dims of the eight keys */
            ldmatrix_x4(k, at + n * C::row + d * 64);
            mma(s[n], rows.q[2 * d], k, T());
            mma(s[n], rows.q[2 * d + 1], k + 2, T());
        }
    }
}

/* Keys that a row does not see get -inf. t0: token of the tile's first key. */
template <class C>
static __device__ __forceinline__ void mask(const decode_rows<C> &rows, uint32_t t0,
                                            float s[C::groups][4]) {
    int column = 2 * (int)(threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t t = t0 + (uint32_t)((column + i % 2) * C::chunk_rows + n);
            if (t < rows.from[i / 2] || t >= rows.upto[i / 2]) {
                s[n][i] = -INFINITY;
            }
        }
    }
}

/* Scores of one of the two rows to weights 2^((s - m) scale), m the new maximum; returns what the
 * row's sums so far must be multiplied by. */
template <class C>
static __device__ __forceinline__ float weigh(decode_rows<C> &rows, int which, float scale,
                                              float s[C::groups][4]) {
    float most = s[0][2 * which];
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
        most = fmaxf(most, fmaxf(s[n][2 * which], s[n][2 * which + 1]));
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    most = fmaxf(most, rows.m[which]);
    float top = most == -INFINITY ? 0.0f : most; /* no key seen yet: all weights are 0 */
    float base = top * scale, shrink = exp2_fast((rows.m[which] - top) * scale);
    rows.m[which] = most;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
#pragma unroll
        for (int i = 2 * which; i < 2 * which + 2; i++) {
            s[n][i] = exp2_fast(s[n][i] * scale - base);
            sum += s[n][i];
        }
    }
    rows.l[which] = rows.l[which] * shrink + sum;
    return shrink;
}

/* o += weights V */
template <class C, class T>
static __device__ __forceinline__ void add_values(decode_rows<C> &rows, const uint8_t *stage,
                                                  const float s[C::groups][4], T) {
    int lane = (int)(threadIdx.x % 32);
    const uint8_t *at =
        stage + C::half + (lane % 8) * C::pitch + (lane / 8 % 2) * C::row + (lane / 16) * 16;
#pragma unroll
    for (int n = 0; n < C::groups; n += 2) {
        /* The scores' layout is that of the left operand: no exchange. */
        uint32_t w[4] = {pack2(s[n][0], s[n][1], T()), pack2(s[n][2], s[n][3], T()),
                         pack2(s[n + 1][0], s[n + 1][1], T()),
                         pack2(s[n + 1][2], s[n + 1][3], T())};
#pragma unroll
        for (int d = 0; d < C::dim / 8; d += 2) {
            uint32_t v[4]; /* 16 keys of 16 dims */
            ldmatrix_x4_trans(v, at + n * C::row + d * 16);
            mma(rows.o[d], w, v, T());
            mma(rows.o[d + 1], w, v + 2, T());
        }
    }
}

/* Row lane / 4 + 8 h of o, to dim numbers. */
template <class C, class T>
static __device__ __forceinline__ void put_dims(const decode_rows<C> &rows, int h, float *to, T) {
#pragma unroll
    for (int d = 0; d < C::dim / 8; d++) {
        *(float2 *)(to + d * 8 + 2 * (threadIdx.x % 4)) =
            make_float2(rows.o[d][2 * h], rows.o[d][2 * h + 1]);
    }
}

/* A tile that has landed. masked: some row does not see all of it. scale: times log2 e. cap: of a
 * cut whose scores are capped. */
template <class C>
static __device__ __forceinline__ void attend_tile(decode_rows<C> &rows, const uint8_t *stage,
                                                   uint32_t t0, bool masked, float scale,
                                                   const score_cap &cap) {
    float s[C::groups][4];
    scores(rows, stage, s, typename C::number());
    if constexpr (C::capped) {
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = capped_score(s[n][i], cap);
            }
        }
    }
    if (masked) {
        mask(rows, t0, s);
    }
    float shrink0 = weigh(rows, 0, scale, s), shrink1 = 1.0f;
    if (rows.upper) {
        shrink1 = weigh(rows, 1, scale, s);
    } else {
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
            s[n][2] = s[n][3] = 0.0f;
        }
    }
    /* The maximum seldom rises after the first tiles. */
    if (__any_sync(0xffffffffu, shrink0 != 1.0f || shrink1 != 1.0f)) {
#pragma unroll
        for (int d = 0; d < C::dim / 8; d++) {
            rows.o[d][0] *= shrink0, rows.o[d][1] *= shrink0;
            rows.o[d][2] *= shrink1, rows.o[d][3] *= shrink1;
        }
    }
    add_values(rows, stage, s, typename C::number());
}

#endif
