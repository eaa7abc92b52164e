/* The producing half of the kernel in attention_prefill_sm90.cu: four warps that hand out tiles and
 * bring keys, values and queries into shared memory. */
#ifndef INF_CUDA_PREFILL_LOAD_CUH
#define INF_CUDA_PREFILL_LOAD_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/pool_map.h"
#include "kernels/cuda/prefill.cuh"

/* Beside the tiles in shared memory. */
struct wgmma_state {
    uint64_t full_k[2], empty_k[2], full_v[2], empty_v[2];
    uint64_t landed; /* V that its warp waits for */
    uint64_t full_x[2], empty_x[2], full_q[2];
    prefill_tile x[2]; /* the tile in work and the next; key_tiles < 0: no more */
};

/* T: bf16 or f16. */
template <class T, int DIM> struct wgmma_cut {
    typedef T number;
    static constexpr int dim = DIM, keys = 128, threads = 384;
    static constexpr int row = DIM * 2, words = row / 16; /* bytes, and 16-byte words, of a row */
    static constexpr int groups = keys / 8;               /* column groups of the scores */
    static constexpr int halves = DIM / 64;
    static constexpr int eight = halves * 1024; /* eight keys: an atom for each 64 dims */
    static constexpr int box = 2 * eight, tile = keys / 8 * eight;
    static constexpr int q_half = 64 * 128, q_group = halves * q_half, q = 2 * q_group;
    static constexpr int at_k = 2 * q, at_v = at_k + 2 * tile, at_state = at_v + 2 * tile;
    static constexpr int shared = at_state + (int)sizeof(wgmma_state);
    static_assert(shared <= 227 * 1024, "");
};

#if INF_HAS_WGMMA

/* ---- the first warp: tiles and K ---- */

/* Where an item of work is: pieces have as many tiles as their rows fill. */
struct item_walk {
    int32_t piece, before; /* items of the pieces in front */
    int32_t tiles;         /* of the piece, per kv head */
};

/* Goes on to the piece with the item; false if there is none. */
static __device__ __forceinline__ bool seek(const inf_cuda_attn &p, item_walk &at, int32_t item) {
    int32_t n_work = *p.n_work, group = p.heads / p.kv.kv_heads;
    for (; at.piece < n_work; at.piece++) {
        at.tiles = ((int32_t)p.work[at.piece].rows * group + PREFILL_M - 1) / PREFILL_M;
        if (item - at.before < at.tiles * p.kv.kv_heads) {
            return true;
        }
        at.before += at.tiles * p.kv.kv_heads;
    }
    return false;
}

static __device__ __forceinline__ void next_tile(const inf_cuda_attn &p, item_walk &at,
                                                 int32_t round, prefill_tile &x) {
    int32_t n = (int32_t)gridDim.x, b = (int32_t)blockIdx.x;
    if (!seek(p, at, round * n + (round % 2 == 0 ? b : n - 1 - b))) {
        x.key_tiles = -1;
        return;
    }
    int32_t i = round * n + (round % 2 == 0 ? b : n - 1 - b) - at.before;
    x = prefill_tile_of<128>(p, at.piece, i / at.tiles * (p.heads / p.kv.kv_heads) + i % at.tiles);
}

/* One head's K or V for a lane, which asks for box `lane` of each key tile. */
struct box_walk {
    uint32_t at;       /* of the box in the tile */
    uint32_t head_row; /* in rows of the pool, from token 0 of a block's layer 0 */
    uint32_t next;     /* row of the next tile's box */
};

static __device__ __forceinline__ box_walk begin_boxes(const inf_cuda_attn &p,
                                                       const prefill_tile &x, int32_t kv,
                                                       uint32_t row_bytes) {
    box_walk w;
    w.at = threadIdx.x % 8 * 16;
    w.head_row = (uint32_t)(((p.layer * 2 + kv) * p.kv.kv_heads + x.kv_head) * p.kv.block_size);
    w.next = pool_row(p, x, x.token0 + w.at, row_bytes, 16);
    return w;
}

/* Asks for the boxes of the tile at t0 that hold a visible key, the block table being read a tile
 * ahead. All lanes call. */
template <class C>
static __device__ __forceinline__ void ask_boxes(const mapped_attn &a, const prefill_tile &x,
                                                 box_walk &w, uint32_t t0, uint8_t *to,
                                                 uint64_t *bar) {
    int lane = (int)(threadIdx.x % 32);
    uint32_t row = w.next + w.head_row;
    bool wanted = lane < 8 && t0 + w.at < x.end && t0 + w.at + 16 > x.first;
    uint32_t boxes = (uint32_t)__popc(__ballot_sync(0xffffffffu, wanted));
    if (lane == 0) {
        mbar_expect(bar, boxes * C::box);
    }
    __syncwarp();
    if (wanted) {
        copy_box(to + lane * C::box, &a.map, (int32_t)(row / 8), bar);
    }
    w.next = pool_row(a.p, x, t0 + C::keys + w.at, C::row, 16);
}

/* `tile` counts key tiles since the start. */
template <class C>
static __device__ __forceinline__ void load_keys(const mapped_attn &a, const prefill_tile &x,
                                                 uint8_t *shared, wgmma_state &state,
                                                 uint32_t &tile) {
    box_walk w = begin_boxes(a.p, x, 0, C::row);
    for (int j = 0; j < x.key_tiles; j++, tile++) {
        uint32_t stage = tile & 1;
        mbar_wait(&state.empty_k[stage], (tile >> 1 & 1) ^ 1);
        ask_boxes<C>(a, x, w, x.token0 + (uint32_t)(j * C::keys),
                     shared + C::at_k + stage * C::tile, &state.full_k[stage]);
    }
}

template <class C>
static __device__ __forceinline__ void deal_and_load_keys(const mapped_attn &a, uint8_t *shared,
                                                          wgmma_state &state) {
    item_walk walk = {0, 0, 0};
    uint32_t tile = 0;
    for (int32_t round = 0;; round++) {
        int slot = round & 1;
        mbar_wait(&state.empty_x[slot], (uint32_t)(round >> 1 & 1) ^ 1);
        if (threadIdx.x == 0) {
            next_tile(a.p, walk, round, state.x[slot]);
            mbar_arrive(&state.full_x[slot]);
        }
        __syncwarp();
        if (state.x[slot].key_tiles < 0) {
            return;
        }
        load_keys<C>(a, state.x[slot], shared, state, tile);
    }
}

/* ---- the second warp: V ---- */

/* Rows of V that nobody sees become zeros. */
template <class C>
static __device__ __forceinline__ void clear_values(const prefill_tile &x, uint32_t t0,
                                                    uint8_t *v) {
    int lane = (int)(threadIdx.x % 32);
    for (int row = lane / 8; row < C::keys; row += 4) {
        uint32_t t = t0 + (uint32_t)row;
        if (t < x.first || t >= x.end) {
#pragma unroll
            for (int h = 0; h < C::halves; h++) {
                *(uint4 *)(v + row / 8 * C::eight + h * 1024 + row % 8 * 128 + lane % 8 * 16) =
                    make_uint4(0, 0, 0, 0);
            }
        }
    }
}

/* `landed` counts the tiles with zeros. */
template <class C>
static __device__ __forceinline__ void load_values(const mapped_attn &a, const prefill_tile &x,
                                                   uint8_t *shared, wgmma_state &state,
                                                   uint32_t &tile, uint32_t &landed) {
    box_walk w = begin_boxes(a.p, x, 1, C::row);
    for (int j = 0; j < x.key_tiles; j++, tile++) {
        uint32_t stage = tile & 1, t0 = x.token0 + (uint32_t)(j * C::keys);
        uint8_t *v = shared + C::at_v + stage * C::tile;
        bool whole = t0 >= x.first && t0 + C::keys <= x.end;
        mbar_wait(&state.empty_v[stage], (tile >> 1 & 1) ^ 1);
        ask_boxes<C>(a, x, w, t0, v, whole ? &state.full_v[stage] : &state.landed);
        if (!whole) {
            mbar_wait(&state.landed, landed++ & 1);
            clear_values<C>(x, t0, v);
            bulk_fence();
            __syncwarp();
            if (threadIdx.x % 32 == 0) {
                mbar_arrive(&state.full_v[stage]);
            }
        }
    }
}

template <class C>
static __device__ __forceinline__ void load_all_values(const mapped_attn &a, uint8_t *shared,
                                                       wgmma_state &state) {
    uint32_t tile = 0, landed = 0;
    for (int32_t round = 0;; round++) {
        int slot = round & 1;
        mbar_wait(&state.full_x[slot], (uint32_t)(round >> 1 & 1));
        if (state.x[slot].key_tiles < 0) {
            return;
        }
        load_values<C>(a, state.x[slot], shared, state, tile, landed);
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            mbar_arrive(&state.empty_x[slot]);
        }
    }
}

/* ---- the other two: q ---- */

/* The tile's rows into the swizzled layout, 64 rows for each consumer; rows that are not there
 * become zeros. They are there before the tile before has ended. */
template <class C>
static __device__ __forceinline__ void load_queries(const inf_cuda_attn &p, uint8_t *shared,
                                                    wgmma_state &state) {
    int thread = (int)threadIdx.x - 64, word = thread % C::words;
    for (int32_t round = 0;; round++) {
        int slot = round & 1;
        mbar_wait(&state.full_x[slot], (uint32_t)(round >> 1 & 1));
        const prefill_tile &x = state.x[slot];
        if (x.key_tiles < 0) {
            return;
        }
        uint8_t *to = shared + slot * C::q + word / 8 * C::q_half;
        for (int i = thread / C::words; i < PREFILL_M && x.key_tiles > 0; i += 64 / C::words) {
            bool there = i < x.n_rows;
            cp_async_16(to + i / 64 * C::q_group + i % 64 * 128 + ((word % 8 ^ i % 8) << 4),
                        (const uint8_t *)p.q + prefill_query(p, x, there ? i : 0) * C::row +
                            word * 16,
                        there);
        }
        cp_async_commit();
        cp_async_wait<0>();
        bulk_fence();
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            mbar_arrive(&state.full_q[slot]);
        }
    }
}

template <class C>
static __device__ __forceinline__ void produce(const mapped_attn &a, uint8_t *shared,
                                               wgmma_state &state) {
    if (threadIdx.x < 32) {
        deal_and_load_keys<C>(a, shared, state);
    } else if (threadIdx.x < 64) {
        load_all_values<C>(a, shared, state);
    } else {
        load_queries<C>(a.p, shared, state);
    }
}

#endif
#endif
