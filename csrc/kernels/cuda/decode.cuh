/* One warp's part of decode attention: its ring of key tiles in shared memory, and what it makes of
 * a tile. attention_decode.cu says how it all fits together. */
#ifndef INF_CUDA_DECODE_CUH
#define INF_CUDA_DECODE_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/boxes.cuh"

/* How a tile of keys comes into shared memory: by cp.async, by bulk copies, or by tensor map. */
enum decode_way { BY_ASYNC, BY_BULK, BY_BOXES };

/* How the kernel is cut. T, of K and V: bf16, f16 or e4m3 (decode_e4m3.cuh). KEYS: in a tile, a
 * multiple of 16. STAGES: tiles in a warp's ring. CAP: scores are capped (inf_cuda_attn.softcap),
 * which costs others nothing so.
 *
 * A tile in shared memory is K, then V. ldmatrix reads 8x8 matrices, whose eight rows have to lie
 * in different banks, and the order of a tile's keys is free: what column i of the n-th column
 * group of the scores is depends on the way.
 *
 * Chunks (BY_ASYNC, BY_BULK): key t is row t % CHUNK_ROWS of chunk t / CHUNK_ROWS; a chunk is
 * contiguous as in the pool, and the eight chunks are 16 bytes more apart than they are long. The
 * eight rows are rows of equal place in their chunks: column i of group n is key i * CHUNK_ROWS +
 * n.
 *
 * Boxes: atoms of 8 keys by 128 bytes with a swizzle (boxes.cuh), the atoms of the same keys one
 * after the other. The eight rows are those of an atom: column i of group n is key 8 n + i. */
template <class T, int DIM, int KEYS, int STAGES, int WARPS, decode_way WAY, bool CAP = false>
struct decode_cut {
    typedef T number;
    static constexpr bool capped = CAP;
    static constexpr int dim = DIM, keys = KEYS, stages = STAGES, warps = WARPS;
    static constexpr int row = DIM * (int)sizeof(T); /* bytes */
    static constexpr bool boxes = WAY == BY_BOXES;
    static constexpr bool bulk = WAY != BY_ASYNC;  /* tiles land by themselves */
    static constexpr int groups = KEYS / 8;        /* column groups of the scores */
    static constexpr int chunk_rows = KEYS / 8;    /* eight chunks */
    static constexpr int chunk = chunk_rows * row; /* bytes */
    static constexpr int eight = 8 * row;          /* bytes of a box */
    static constexpr int column_pitch = boxes ? 128 : chunk + 16;
    static constexpr int group_pitch = boxes ? eight : row;
    static constexpr int half = boxes ? groups * eight : 8 * (chunk + 16); /* K or V of a tile */
    static constexpr int tile = 2 * half;
    static constexpr int ring = STAGES * tile;
    static constexpr int barriers = bulk ? WARPS * STAGES * 8 : 0;
    static constexpr int shared = WARPS * ring + barriers;
    static constexpr int resident = shared > 112 * 1024 ? 1 : shared > 72 * 1024 ? 2 : 3;
    static_assert(chunk % 128 == 0, "chunks would not spread over the banks");
    static_assert(!boxes || row % 128 == 0, "rows would not fill atoms");
    static_assert(DIM % 32 == 0 && KEYS % 16 == 0 && KEYS <= 64 && STAGES >= 2, "");
    static constexpr int merge_row = DIM + 8; /* floats; rows in different banks */
    static_assert((INF_CUDA_DECODE_ROWS * merge_row + 2 * INF_CUDA_DECODE_ROWS) * 4 <= ring,
                  "a warp's results take its ring's place");

    /* The key, counted from the tile's first, that column i of group n is. */
    static __device__ __forceinline__ uint32_t key_of(int n, int i) {
        return (uint32_t)(boxes ? 8 * n + i : i * chunk_rows + n);
    }
    /* Where 16-byte word `word`, 0 .. 7, of column i of group 0 lies in K or V. */
    static __device__ __forceinline__ int place(int i, int word) {
        return i * column_pitch + (boxes ? word ^ i : word) * 16;
    }
    /* So many words further on from there; those that the sum sets, `word` has not. */
    static __device__ __forceinline__ int further(int place, int words) {
        return boxes ? (place ^ words % 8 * 16) + words / 8 * 1024 : place + words * 16;
    }
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

/* One kv head's K and V of one layer. */
struct head_place {
    const uint8_t *pool;
    const tensor_map *map; /* of the pool, for boxes of one eight */
    uint64_t k, to_v;      /* bytes: K of block 0 from the pool's begin; from K to V */
};

/* Tile j by cp.async, 512 bytes at a time: keys that are not read become zeros. */
template <class C>
static __device__ __forceinline__ void copy_tile_async(const key_walk<C> &walk, uint32_t t0, int j,
                                                       const head_place &head, uint8_t *stage) {
    constexpr int row_lanes = C::row / 16, rows = 32 / row_lanes; /* rows per copy */
    int lane = (int)(threadIdx.x % 32), lane_row = lane / row_lanes;
    uint8_t *to = stage + C::place(lane_row / C::chunk_rows, lane % row_lanes) +
                  (lane_row % C::chunk_rows) * C::row;
    bool whole = walk.whole(t0);
#pragma unroll
    for (int u = 0; u < walk.units; u++) {
        const uint8_t *from = head.pool + head.k + walk.unit(j, u) + lane * 16;
#pragma unroll
        for (int i = 0; i < 8 / rows; i++) {
            int t = u * 8 + i * rows;
            int at = (t / C::chunk_rows) * C::column_pitch + (t % C::chunk_rows) * C::row;
            bool valid = whole || walk.has(t0 + (uint32_t)(t + lane_row));
            cp_async_16(to + at, from + i * 512, valid);
            cp_async_16(to + at + C::half, from + i * 512 + head.to_v, valid);
        }
    }
}

#if INF_HAS_BULK
/* Tile j by bulk copies of a chunk each: lanes 0 .. 7 K's, 8 .. 15 V's. A chunk none of whose keys
 * is read is left as it is. */
template <class C>
static __device__ __forceinline__ void copy_tile_bulk(const key_walk<C> &walk, uint32_t t0, int j,
                                                      const head_place &head, uint8_t *stage,
                                                      uint64_t *bar) {
    int lane = (int)(threadIdx.x % 32), key = (lane % 8) * C::chunk_rows;
    const uint8_t *from = head.pool + head.k + walk.unit(j, key / 8) + (key % 8) * C::row;
    uint32_t t = t0 + (uint32_t)key;
    bool wanted = lane < 16 && t < walk.end && t + C::chunk_rows > walk.first;
    uint32_t copies = (uint32_t)__popc(__ballot_sync(0xffffffffu, wanted));
    if (lane == 0) {
        mbar_expect(bar, copies * C::chunk);
    }
    __syncwarp();
    if (wanted) {
        bulk_copy(stage + (lane % 8) * C::column_pitch + (lane / 8) * C::half,
                  from + (lane / 8 != 0 ? head.to_v : 0), C::chunk, bar);
    }
}

/* Tile j by boxes of an eight each: the first lanes K's, the next ones V's. An eight none of whose
 * keys is read is left as it is. */
template <class C>
static __device__ __forceinline__ void copy_tile_boxes(const key_walk<C> &walk, uint32_t t0, int j,
                                                       const head_place &head, uint8_t *stage,
                                                       uint64_t *bar) {
    int lane = (int)(threadIdx.x % 32), u = lane % C::groups;
    uint64_t from = head.k + (lane < C::groups ? 0 : head.to_v) + walk.unit(j, u);
    uint32_t t = t0 + (uint32_t)u * 8;
    bool wanted = lane < 2 * C::groups && t < walk.end && t + 8 > walk.first;
    uint32_t copies = (uint32_t)__popc(__ballot_sync(0xffffffffu, wanted));
    if (lane == 0) {
        mbar_expect(bar, copies * C::eight);
    }
    __syncwarp();
    if (wanted) {
        copy_box(stage + lane * C::eight, head.map, (int32_t)(from / C::eight), bar);
    }
}
#endif

/* Rows of V that are not read become zeros: their weights are 0, but 0 times what lay there need
 * not be. */
template <class C>
static __device__ __forceinline__ void clear_unread_values(const key_walk<C> &walk, uint32_t t0,
                                                           uint8_t *stage) {
    constexpr int row_lanes = C::row / 16, columns = 32 / row_lanes;
    int lane = (int)(threadIdx.x % 32), word = lane % row_lanes;
    for (int at = lane / row_lanes; at < C::keys; at += columns) {
        int n = at / 8, i = at % 8;
        if (!walk.has(t0 + C::key_of(n, i))) {
            uint8_t *to = stage + C::half + n * C::group_pitch;
            *(uint4 *)(to + C::further(C::place(i, word % 8), word / 8 * 8)) =
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
    int at = C::place(lane % 8, lane / 8);
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < C::dim / 32; d++) {
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
            uint32_t k[4]; /* 32 dims of the eight keys */
            ldmatrix_x4(k, stage + C::further(at, 4 * d) + n * C::group_pitch);
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
            uint32_t t = t0 + C::key_of(n, column + i % 2);
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
    const uint8_t *v_at = stage + C::half + (lane / 8 % 2) * C::group_pitch;
    int at = C::place(lane % 8, lane / 16);
#pragma unroll
    for (int n = 0; n < C::groups; n += 2) {
        /* The scores' layout is that of the left operand: no exchange. */
        uint32_t w[4] = {pack2(s[n][0], s[n][1], T()), pack2(s[n][2], s[n][3], T()),
                         pack2(s[n + 1][0], s[n + 1][1], T()),
                         pack2(s[n + 1][2], s[n + 1][3], T())};
#pragma unroll
        for (int d = 0; d < C::dim / 8; d += 2) {
            uint32_t v[4]; /* 16 keys of 16 dims */
            ldmatrix_x4_trans(v, v_at + C::further(at, d) + n * C::group_pitch);
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
