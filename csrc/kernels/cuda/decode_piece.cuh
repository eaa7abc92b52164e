/* A thread block's part of decode attention: one piece for one kv head. attention_decode.cu says
 * how it all fits together. */
#ifndef INF_CUDA_DECODE_PIECE_CUH
#define INF_CUDA_DECODE_PIECE_CUH

#include "kernels/cuda/decode_e4m3.cuh"

/* What a piece is for all threads of the block. */
struct decode_piece {
    inf_cuda_work work;
    inf_cuda_segment segment;
    int32_t kv_head, group;
    int32_t n_rows;              /* of the 16 */
    uint32_t all_from, all_upto; /* keys that every row sees */
    float scale;                 /* times log2 e */
};

/* The parts of the piece's first row; of row i they are i further on, since all rows have the same
 * pieces, each of which has a part for every row (plan.h). Read when the piece begins, for what it
 * does if it is the last of them to end. */
struct part_list {
    uint32_t first, n; /* in the list; n 0: nobody merges */
    uint32_t mine;     /* this lane's of the first 32 */
};

/* A warp's ring: the next tile goes to and comes from `slot`; parity is that of its barrier's
 * running phase. */
struct decode_ring {
    uint8_t *stages;
    uint64_t *bars;
    int slot;
    uint32_t parity;
};

/* Row i of the 16, its head in the segment's row. */
static __device__ __forceinline__ size_t query_index(const inf_cuda_attn &p, const decode_piece &x,
                                                     int i) {
    size_t row = (size_t)x.segment.row0 + x.work.row0 + (size_t)(i / x.group);
    return row * (size_t)p.heads + (size_t)(x.kv_head * x.group + i % x.group);
}

template <class C>
static __device__ __forceinline__ void begin_rows(const inf_cuda_attn &p, const decode_piece &x,
                                                  decode_rows<C> &rows) {
    int lane = (int)(threadIdx.x % 32);
    rows.upper = x.n_rows > 8;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int i = lane / 4 + 8 * h;
        rows.m[h] = -INFINITY, rows.l[h] = 0.0f;
        rows.from[h] = 0, rows.upto[h] = 0; /* rows that are not there see nothing */
        const uint8_t *q = (const uint8_t *)p.q;
        if (i < x.n_rows) {
            key_range keys =
                visible_keys(x.segment, x.work, p.window, x.work.row0 + (uint32_t)(i / x.group));
            rows.from[h] = keys.from, rows.upto[h] = keys.upto;
            q += query_index(p, x, i) * (C::dim * 2);
        }
        load_query(rows, h, q, i < x.n_rows, p.act, typename C::number());
    }
#pragma unroll
    for (int d = 0; d < C::dim / 8; d++) {
        rows.o[d][0] = rows.o[d][1] = rows.o[d][2] = rows.o[d][3] = 0.0f;
    }
}

template <class C>
static __device__ __forceinline__ key_walk<C> begin_walk(const inf_cuda_attn &p,
                                                         const decode_piece &x) {
    key_walk<C> walk;
    const inf_cuda_segment &s = x.segment;
    const inf_cuda_work &w = x.work;
    walk.blocks = p.blocks + s.block_off;
    walk.block_size = (uint32_t)p.kv.block_size, walk.block_bytes = p.kv.block_bytes;
    /* Windows begin and end later from row to row: the first row's begin, the last row's end. */
    int64_t at = (int64_t)s.q_pos0 + w.row0 - s.kv_pos0, first = w.token0;
    int64_t end = (int64_t)w.token0 + w.tokens;
    if (p.window > 0 && at - p.window + 1 > first) {
        first = at - p.window + 1;
    }
    if (at + w.rows < end) {
        end = at + w.rows;
    }
    walk.token0 = w.token0;
    walk.first = end > first ? (uint32_t)first : w.token0;
    walk.end = end > first ? (uint32_t)end : w.token0;
    return walk;
}

/* Asks for tile j of the warp's n, if there is one, into ring place `slot`. */
template <class C>
static __device__ __forceinline__ void ask(key_walk<C> &walk, const decode_ring &ring, int warp,
                                           int j, int n, const head_place &head, int slot) {
    if (j % walk.batch == 0) {
        walk.take_looked_up();
        walk.look_up(warp, j + walk.batch);
    }
    uint8_t *stage = ring.stages + slot * C::tile;
    if (!C::bulk) {
        if (j < n) {
            copy_tile_async(walk, walk.tile_token(warp, j), j, head, stage);
        }
        cp_async_commit();
    }
#if INF_HAS_BULK
    if (C::bulk && j < n) {
        uint32_t t0 = walk.tile_token(warp, j);
        if constexpr (C::boxes) {
            copy_tile_boxes(walk, t0, j, head, stage, ring.bars + slot);
        } else {
            copy_tile_bulk(walk, t0, j, head, stage, ring.bars + slot);
        }
    }
#endif
}

/* Whether tokens below `upto` have keys of the segment's own rows among them. */
static __device__ __forceinline__ bool has_own(const inf_cuda_segment &s, uint32_t upto) {
    return (int64_t)upto > (int64_t)s.q_pos0 - s.kv_pos0;
}

static __device__ __forceinline__ part_list find_parts(const inf_cuda_attn &p,
                                                       const decode_piece &x) {
    part_list parts = {0, 0, 0};
    if (p.done != NULL && x.work.part != INF_CUDA_WHOLE) {
        const uint32_t *off = p.off + x.segment.row0 + x.work.row0;
        parts.first = off[0], parts.n = off[1] - off[0];
    }
    return parts;
}

/* The warp's share of a piece. map: of the pool, for cuts with boxes. waited: for the kernel in
 * front; it has when this returns. */
template <class C>
static __device__ __forceinline__ void
attend_piece(const inf_cuda_attn &p, const tensor_map *map, const decode_piece &x,
             decode_ring &ring, decode_rows<C> &rows, bool &waited, part_list &parts) {
    constexpr int ahead = C::stages - 1;
    int warp = (int)(threadIdx.x / 32);
    key_walk<C> walk = begin_walk<C>(p, x);
    head_place head = {p.pool, map, kv_head_offset(p.kv, p.layer, 0, x.kv_head),
                       (uint64_t)p.kv.kv_heads * (uint64_t)p.kv.block_size * C::row};
    int tiles = (int)((walk.end - walk.token0 + C::keys - 1) / C::keys);
    int n = (tiles - warp + C::warps - 1) / C::warps; /* tiles warp, warp + warps, .. */
    walk.look_up(warp, 0);
    parts = find_parts(p, x); /* beside the block table */
    uint32_t asked = walk.tile_token(warp, ahead - 1) + C::keys;
    if (!waited && has_own(x.segment, asked < walk.end ? asked : walk.end)) {
        after_predecessor();
        waited = true;
    }
#pragma unroll
    for (int j = 0; j < ahead; j++) {
        int slot = ring.slot + j;
        ask(walk, ring, warp, j, n, head, slot < C::stages ? slot : slot - C::stages);
    }
    if (threadIdx.x % 32 < parts.n) {
        parts.mine = p.list[parts.first + threadIdx.x % 32];
    }
    if (!waited) {
        after_predecessor();
        waited = true;
    }
    begin_rows(p, x, rows);
    const score_cap cap = C::capped ? score_cap_of(p) : score_cap{0.0f, 0.0f};
    for (int j = 0; j < n; j++) {
        uint8_t *stage = ring.stages + ring.slot * C::tile;
        if (!C::bulk) {
            cp_async_wait<C::stages - 2>();
        }
#if INF_HAS_BULK
        if (C::bulk) {
            mbar_wait(ring.bars + ring.slot, ring.parity);
        }
#endif
        __syncwarp(); /* the tile is there for all lanes, and all have done with the one before */
        ask(walk, ring, warp, j + ahead, n, head, ring.slot > 0 ? ring.slot - 1 : C::stages - 1);
        uint32_t t0 = walk.tile_token(warp, j);
#if INF_HAS_BULK
        if (C::bulk && !walk.whole(t0)) {
            clear_unread_values(walk, t0, stage);
            bulk_fence();
            __syncwarp();
        }
#endif
        attend_tile(rows, stage, t0, t0 < x.all_from || t0 + C::keys > x.all_upto, x.scale, cap);
        if (++ring.slot == C::stages) {
            ring.slot = 0;
            ring.parity ^= 1;
        }
    }
    __syncwarp();
}

/* A warp's results into its ring's place: o, then m, then l. */
template <class C>
static __device__ __forceinline__ void put_results(decode_rows<C> &rows, int n_rows, float *to) {
    int lane = (int)(threadIdx.x % 32);
    float *m = to + INF_CUDA_DECODE_ROWS * C::merge_row, *l = m + INF_CUDA_DECODE_ROWS;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int i = lane / 4 + 8 * h;
        float sum = rows.l[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (i < n_rows) {
            if (lane % 4 == 0) {
                m[i] = rows.m[h], l[i] = sum;
            }
            put_dims(rows, h, to + i * C::merge_row, typename C::number());
        }
    }
}

static __device__ __forceinline__ void store4(void *p, int32_t dtype, size_t i, const float x[4]) {
    if (dtype == INF_DTYPE_F32) {
        *(float4 *)((float *)p + i) = make_float4(x[0], x[1], x[2], x[3]);
    } else if (dtype == INF_DTYPE_BF16) {
        *(uint2 *)((bf16 *)p + i) = make_uint2(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]));
    } else {
        *(uint2 *)((f16 *)p + i) = make_uint2(pack_f16x2(x[0], x[1]), pack_f16x2(x[2], x[3]));
    }
}

/* Merges the warps' results and writes the piece's. */
template <class C>
static __device__ __forceinline__ void write_piece(const inf_cuda_attn &p, const decode_piece &x,
                                                   const float *results) {
    constexpr int quads = C::dim / 4;
    for (int at = (int)threadIdx.x; at < x.n_rows * quads; at += C::warps * 32) {
        int i = at / quads, d = at % quads * 4;
        float top = -INFINITY, sum = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < C::warps; w++) {
            const float *of = results + w * (C::ring / 4);
            top = fmaxf(top, of[INF_CUDA_DECODE_ROWS * C::merge_row + i]);
        }
        float base = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int w = 0; w < C::warps; w++) {
            const float *of = results + w * (C::ring / 4);
            const float *m = of + INF_CUDA_DECODE_ROWS * C::merge_row;
            float weight = exp2_fast((m[i] - base) * x.scale);
            float4 v = *(const float4 *)(of + i * C::merge_row + d);
            sum += weight * m[INF_CUDA_DECODE_ROWS + i];
            o[0] += weight * v.x, o[1] += weight * v.y;
            o[2] += weight * v.z, o[3] += weight * v.w;
        }
        float inverse = sum != 0.0f ? 1.0f / sum : 0.0f;
        for (int k = 0; k < 4; k++) {
            o[k] *= inverse;
        }
        out_place out = place_of(p, x.segment, x.work, (uint32_t)(i / x.group),
                                 x.kv_head * x.group + i % x.group);
        store4(out.o, out.dtype, out.at * C::dim + (size_t)d, o);
        if (d == 0 && out.lse != NULL) {
            const float ln2 = 0.6931471805599453f;
            out.lse[out.at] = sum != 0.0f ? top * x.scale * ln2 + logf(sum) : -INFINITY;
        }
    }
}

static __device__ __forceinline__ decode_piece piece_of(const inf_cuda_attn &p,
                                                        const inf_cuda_work &work) {
    decode_piece x;
    x.work = work;
    x.segment = p.segments[x.work.segment];
    x.kv_head = (int32_t)blockIdx.x;
    x.group = p.heads / p.kv.kv_heads;
    x.n_rows = (int32_t)x.work.rows * x.group;
    x.scale = p.scale * 1.4426950408889634f;
    /* From row to row the keys begin and end later. If the first or the last sees none, no tile is
     * seen by all. */
    key_range head = visible_keys(x.segment, x.work, p.window, x.work.row0);
    key_range last = visible_keys(x.segment, x.work, p.window, x.work.row0 + x.work.rows - 1);
    x.all_from = last.from < last.upto ? last.from : UINT32_MAX;
    x.all_upto = head.from < head.upto ? head.upto : 0;
    return x;
}

#endif
