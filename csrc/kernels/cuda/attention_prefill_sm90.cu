/* Prefill attention for Hopper. Maths, packed heads and masks as in attention_prefill.cu; here the
 * products are wgmma's, which read their operands from shared memory by themselves, and the keys
 * come by TMA, so that threads are left with the softmax (as in FlashAttention-3, Shah et al.
 * 2024).
 *
 * The cut. A thread block has two consumer warpgroups with 64 of a tile's 128 packed rows each, and
 * a producer warp. There is one block per SM, and it takes tiles (piece, kv head, 128 packed rows)
 * until none are left: the producer is ahead of the consumers, so the first keys of a tile arrive
 * while the tile before is finished. Tiles go from big to small; every other round of the blocks is
 * dealt in reverse.
 *
 * Key tiles have 128 keys. K and V of a tile have two places each in shared memory, and each place
 * has a barrier that says it is full (the bytes have landed) and one that says it is empty (all
 * eight consumer warps have done with it). A consumer asks for the scores of the next tile before
 * it asks for weights times V of this one, and computes the next weights while the latter product
 * runs. And the two warpgroups take turns: each asks for its products when the other has asked for
 * its own, so that one's softmax runs beside the other's products.
 *
 * Flops and bytes. A block's tile of keys is 512 head_dim bytes from L2 for 128 * 128 * 4 head_dim
 * flops: 128 flops a byte. The heads of a piece, which read the same keys, are neighbours in the
 * order of tiles and so run at about the same time: what one reads from memory the others find in
 * L2.
 *
 * The way of the keys. The pool is, to the tensor map, one matrix of 16-bit numbers with head_dim
 * columns: each token of each block, layer and head is a row. A box of 64 columns and 16 rows is
 * what surely lies in one block; it becomes two atoms of the layout that wgmma reads (hopper.cuh).
 * A tile of 128 keys is 8 boxes for each 64 dims, the halves of a tile 16 KiB apart. K is read
 * K-major (a row is a key, that is one of N). V is read MN-major (a row is a key, that is one of
 * K), so V needs no transposing; its leading offset is the distance of the halves.
 *
 * Boxes without a visible key are not asked for, and what lies in their place is never seen: their
 * scores are masked whatever they are, but rows of V that nobody sees must be zeros, since 0 times
 * what lies there need not be 0. In tiles that have such rows the producer waits for V itself,
 * writes the zeros, and only then says that V is there.
 *
 * Registers. 64 rows of o and of scores are 64 registers each per consumer thread (head_dim 128),
 * the weights 32: the producer gives registers away and the consumers take them. */
#include <stdio.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/prefill.cuh"

struct wgmma_args {
    tensor_map map;
    inf_cuda_attn p;
};

/* Beside the tiles in shared memory. */
struct wgmma_state {
    uint64_t full_k[2], empty_k[2], full_v[2], empty_v[2];
    uint64_t landed; /* V that the producer waits for */
    uint64_t full_x[2], empty_x[2];
    prefill_tile x[2]; /* the tile in work and the next; key_tiles < 0: no more */
};

/* T: bf16 or f16. */
template <class T, int DIM> struct wgmma_cut {
    typedef T number;
    static constexpr int dim = DIM, keys = 128, threads = 384;
    static constexpr int row = DIM * 2, words = row / 16; /* bytes, and 16-byte words, of a row */
    static constexpr int groups = keys / 8;               /* column groups of the scores */
    static constexpr int halves = DIM / 64;
    static constexpr int box = 16 * 128, half = keys * 128, tile = halves * half;
    static constexpr int q_half = 64 * 128, q = halves * q_half; /* of a warpgroup */
    static constexpr int at_k = 2 * q, at_v = at_k + 2 * tile, at_state = at_v + 2 * tile;
    static constexpr int shared = at_state + (int)sizeof(wgmma_state);
};

/* Registers of a thread. A block has what it was launched with, 65536 over its threads, rounded
 * down: who asks for more than others have given away waits for ever. */
enum { LAUNCH_REGISTERS = 65536 / 384 / 8 * 8, PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232 };
static_assert(PRODUCER_REGISTERS + 2 * CONSUMER_REGISTERS <= 3 * LAUNCH_REGISTERS, "");
/* Barriers by number: a turn to ask for products per warpgroup; the threads of a warpgroup. */
enum { BAR_TURN = 1, BAR_GROUP = 3 };

#if INF_HAS_WGMMA

/* ---- the producer ---- */

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
                *(uint4 *)(v + h * C::half + row * 128 + lane % 8 * 16) = make_uint4(0, 0, 0, 0);
            }
        }
    }
}

/* The key tiles of one tile of rows. Lane l asks for box l % 8 of part l / 8: the halves of K, then
 * those of V. `tile` counts key tiles since the start, `landed` waits for V. */
template <class C>
static __device__ __forceinline__ void load_tiles(const wgmma_args &a, const prefill_tile &x,
                                                  uint8_t *shared, wgmma_state &state,
                                                  uint32_t &tile, uint32_t &landed) {
    const inf_cuda_attn &p = a.p;
    int lane = (int)(threadIdx.x % 32), part = lane / 8, half = part % C::halves;
    bool is_v = part >= C::halves, mine = part < 2 * C::halves;
    uint32_t at = (uint32_t)(lane % 8) * 16; /* of the box in the tile */
    uint32_t head_row =
        (uint32_t)(((p.layer * 2 + (is_v ? 1 : 0)) * p.kv.kv_heads + x.kv_head) * p.kv.block_size);
    uint32_t next = pool_row(p, x, x.token0 + at, C::row, 16);
    for (int j = 0; j < x.key_tiles; j++, tile++) {
        uint32_t t0 = x.token0 + (uint32_t)(j * C::keys), stage = tile & 1,
                 empty = (tile >> 1 & 1) ^ 1;
        uint8_t *k = shared + C::at_k + stage * C::tile, *v = shared + C::at_v + stage * C::tile;
        uint8_t *to = (is_v ? v : k) + half * C::half + lane % 8 * C::box;
        int32_t row = (int32_t)(next + head_row);
        bool wanted = t0 + at < x.end && t0 + at + 16 > x.first;
        bool whole = t0 >= x.first && t0 + C::keys <= x.end;
        uint32_t bytes =
            (uint32_t)__popc(__ballot_sync(0xffffffffu, wanted && lane < 8)) * 16 * C::row;
        next = pool_row(p, x, t0 + C::keys + at, C::row, 16);
        barrier_wait(&state.empty_k[stage], empty);
        if (lane == 0) {
            barrier_expect(&state.full_k[stage], bytes);
        }
        __syncwarp();
        if (wanted && mine && !is_v) {
            copy_box(to, &a.map, half * 64, row, &state.full_k[stage]);
        }
        barrier_wait(&state.empty_v[stage], empty);
        uint64_t *bar = whole ? &state.full_v[stage] : &state.landed;
        if (lane == 0) {
            barrier_expect(bar, bytes);
        }
        __syncwarp();
        if (wanted && mine && is_v) {
            copy_box(to, &a.map, half * 64, row, bar);
        }
        if (!whole) {
            barrier_wait(&state.landed, landed);
            landed ^= 1;
            clear_values<C>(x, t0, v);
            async_fence();
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(&state.full_v[stage]);
            }
        }
    }
}

template <class C>
static __device__ __forceinline__ void produce(const wgmma_args &a, uint8_t *shared,
                                               wgmma_state &state) {
    int lane = (int)(threadIdx.x % 32);
    item_walk walk = {0, 0, 0};
    uint32_t tile = 0, landed = 0;
    for (int32_t round = 0;; round++) {
        int slot = round & 1;
        barrier_wait(&state.empty_x[slot], (uint32_t)(round >> 1 & 1) ^ 1);
        if (lane == 0) {
            next_tile(a.p, walk, round, state.x[slot]);
            barrier_arrive(&state.full_x[slot]);
        }
        __syncwarp();
        if (state.x[slot].key_tiles < 0) {
            return;
        }
        load_tiles<C>(a, state.x[slot], shared, state, tile, landed);
    }
}

/* ---- consumers ---- */

/* 64 rows of a warpgroup; a thread holds rows lane / 4 of its warp's 16 and 8 more. */
template <class C> struct wgmma_rows {
    float o[C::dim / 8][4]; /* not yet divided */
    float m[2], l[2];       /* maximum of q.k; this thread's share of the sum */
};

/* The tile's row that this thread's row h is. */
static __device__ __forceinline__ int row_of(int h) {
    return ((int)threadIdx.x - 128) / 32 * 16 + (int)(threadIdx.x % 32) / 4 + 8 * h;
}

/* The warpgroup's 64 rows of q into the swizzled layout; rows that are not there become zeros. */
template <class C>
static __device__ __forceinline__ void copy_queries(const inf_cuda_attn &p, const prefill_tile &x,
                                                    uint8_t *to) {
    int group = (int)threadIdx.x / 128 - 1, thread = (int)threadIdx.x % 128;
    uint4 q[64 * C::words / 128];
#pragma unroll
    for (int i = 0; i < 64 * C::words / 128; i++) {
        int row = (thread + i * 128) / C::words, word = thread % C::words, at = group * 64 + row;
        q[i] = make_uint4(0, 0, 0, 0);
        if (at < x.n_rows) {
            q[i] = *(const uint4 *)((const uint8_t *)p.q + prefill_query(p, x, at) * C::row +
                                    word * 16);
        }
    }
#pragma unroll
    for (int i = 0; i < 64 * C::words / 128; i++) {
        int row = (thread + i * 128) / C::words, word = thread % C::words;
        *(uint4 *)(to + word / 8 * C::q_half + row * 128 + ((word % 8 ^ row % 8) << 4)) = q[i];
    }
}

/* Asks for s = q k. */
template <class C>
static __device__ __forceinline__ void ask_scores(uint32_t q, uint32_t k,
                                                  float (&s)[C::groups][4]) {
    uint64_t a = operand_at(q, 16), b = operand_at(k, 16);
#pragma unroll
    for (int d = 0; d < C::dim / 16; d++) {
        wgmma_ss(s, a + (uint64_t)(d / 4 * (C::q_half >> 4) + d % 4 * 2),
                 b + (uint64_t)(d / 4 * (C::half >> 4) + d % 4 * 2), d > 0, typename C::number());
    }
    wgmma_commit();
}

/* Asks for o += w v. */
template <class C>
static __device__ __forceinline__ void ask_values(uint32_t v, const uint32_t (&w)[C::groups / 2][4],
                                                  float (&o)[C::dim / 8][4]) {
    uint64_t b = operand_at(v, C::half);
#pragma unroll
    for (int n = 0; n < C::groups / 2; n++) {
        wgmma_rs(o, w[n], b + (uint64_t)(n * (16 * 128 >> 4)), typename C::number());
    }
    wgmma_commit();
}

/* Keys that a row does not see get -inf. */
template <class C>
static __device__ __forceinline__ void mask(const inf_cuda_attn &p, const prefill_tile &x,
                                            uint32_t t0, float (&s)[C::groups][4]) {
    int column = 2 * (int)(threadIdx.x % 4);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        key_range seen = prefill_keys(p, x, row_of(h));
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t t = t0 + (uint32_t)(n * 8 + column + i);
                if (t < seen.from || t >= seen.upto) {
                    s[n][2 * h + i] = -INFINITY;
                }
            }
        }
    }
}

template <class C>
static __device__ __forceinline__ void pack(const float (&s)[C::groups][4],
                                            uint32_t (&w)[C::groups / 2][4]) {
    typedef typename C::number T;
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
        w[n / 2][n % 2 * 2] = pack2(s[n][0], s[n][1], T());
        w[n / 2][n % 2 * 2 + 1] = pack2(s[n][2], s[n][3], T());
    }
}

/* This warp has done with a place. */
static __device__ __forceinline__ void release(uint64_t *bar) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(bar);
    }
}

/* Places of key tile number `tile` since the start. */
template <class C> struct wgmma_place {
    uint32_t stage, parity, k, v;
    __device__ __forceinline__ wgmma_place(uint32_t shared, uint32_t tile) {
        stage = tile & 1, parity = tile >> 1 & 1;
        k = shared + C::at_k + stage * C::tile, v = shared + C::at_v + stage * C::tile;
    }
};

/* The warpgroup's share of a tile of rows. `tile` as in load_tiles. */
template <class C>
static __device__ __forceinline__ void attend(const inf_cuda_attn &p, const prefill_tile &x,
                                              uint32_t shared, wgmma_state &state, uint32_t &tile,
                                              wgmma_rows<C> &rows) {
    int group = (int)threadIdx.x / 128 - 1;
    uint32_t q = shared + (uint32_t)(group * C::q), t0 = x.token0;
    int n = x.key_tiles;
    float s[C::groups][4];
    uint32_t w[C::groups / 2][4];
    {
        wgmma_place<C> at(shared, tile);
        barrier_wait(&state.full_k[at.stage], at.parity);
        wgmma_fence();
        ask_scores<C>(q, at.k, s);
        wgmma_wait<0>();
        settle(s);
        release(&state.empty_k[at.stage]);
    }
    if (t0 < x.all_from || t0 + C::keys > x.all_upto) {
        mask<C>(p, x, t0, s);
    }
    weigh_row<C::groups>(s, 0, rows.m[0], rows.l[0], x.scale); /* o is 0 */
    weigh_row<C::groups>(s, 2, rows.m[1], rows.l[1], x.scale);
    pack<C>(s, w);
    for (int j = 1; j < n; j++) {
        wgmma_place<C> before(shared, tile), at(shared, tile + 1);
        tile++, t0 += C::keys;
        barrier_wait(&state.full_k[at.stage], at.parity);
        bar_sync(BAR_TURN + group, 256);
        settle(rows.o);
        settle(w);
        wgmma_fence();
        ask_scores<C>(q, at.k, s);
        barrier_wait(&state.full_v[before.stage], before.parity);
        ask_values<C>(before.v, w, rows.o);
        bar_arrive(BAR_TURN + 1 - group, 256);
        wgmma_wait<1>();
        settle(s);
        release(&state.empty_k[at.stage]);
        if (t0 < x.all_from || t0 + C::keys > x.all_upto) {
            mask<C>(p, x, t0, s);
        }
        float shrink0 = weigh_row<C::groups>(s, 0, rows.m[0], rows.l[0], x.scale);
        float shrink1 = weigh_row<C::groups>(s, 2, rows.m[1], rows.l[1], x.scale);
        wgmma_wait<0>();
        settle(rows.o);
        settle(w);
        release(&state.empty_v[before.stage]);
#pragma unroll
        for (int d = 0; d < C::dim / 8; d++) {
            rows.o[d][0] *= shrink0, rows.o[d][1] *= shrink0;
            rows.o[d][2] *= shrink1, rows.o[d][3] *= shrink1;
        }
        pack<C>(s, w);
    }
    wgmma_place<C> at(shared, tile);
    tile++;
    barrier_wait(&state.full_v[at.stage], at.parity);
    settle(rows.o);
    settle(w);
    wgmma_fence();
    ask_values<C>(at.v, w, rows.o);
    wgmma_wait<0>();
    settle(rows.o);
    release(&state.empty_v[at.stage]);
}

template <class C>
static __device__ __forceinline__ void consume(const inf_cuda_attn &p, uint8_t *shared,
                                               wgmma_state &state) {
    int group = (int)threadIdx.x / 128 - 1;
    uint32_t tile = 0;
    if (group == 1) {
        bar_arrive(BAR_TURN, 256); /* the first turn is group 0's */
    }
    for (int32_t round = 0;; round++) {
        int slot = round & 1;
        barrier_wait(&state.full_x[slot], (uint32_t)(round >> 1 & 1));
        const prefill_tile &x = state.x[slot];
        if (x.key_tiles < 0) {
            break;
        }
        wgmma_rows<C> rows;
        rows.m[0] = rows.m[1] = -INFINITY, rows.l[0] = rows.l[1] = 0.0f;
#pragma unroll
        for (int d = 0; d < C::dim / 8; d++) {
            rows.o[d][0] = rows.o[d][1] = rows.o[d][2] = rows.o[d][3] = 0.0f;
        }
        if (x.key_tiles > 0) {
            bar_sync(BAR_GROUP + group, 128); /* all have done with the q before */
            copy_queries<C>(p, x, shared + group * C::q);
            async_fence();
            bar_sync(BAR_GROUP + group, 128);
            attend(p, x, window_address(shared), state, tile, rows);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = rows.l[h];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            if (row_of(h) < x.n_rows) {
                write_row<C::dim / 8>(rows.o, 2 * h, rows.m[h], l, x.scale,
                                      prefill_out(p, x, row_of(h)));
            }
        }
        release(&state.empty_x[slot]);
    }
    if (group == 0) {
        bar_sync(BAR_TURN, 256); /* takes the turn that group 1 left */
    }
}

#endif

template <class C>
static __global__ void __launch_bounds__(C::threads, 1)
    attn_wgmma_kernel(const __grid_constant__ wgmma_args a) {
#if INF_HAS_WGMMA
    INF_SHARED(shared);
    wgmma_state &state = *(wgmma_state *)(shared + C::at_state);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(&state.full_k[i], 1), barrier_init(&state.full_v[i], 1);
            barrier_init(&state.empty_k[i], 8),
                barrier_init(&state.empty_v[i], 8); /* consumer warps */
            barrier_init(&state.full_x[i], 1), barrier_init(&state.empty_x[i], 8);
        }
        barrier_init(&state.landed, 1);
        barrier_init_fence();
        prefetch_map(&a.map);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x < 32) {
            produce<C>(a, shared, state);
        }
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume<C>(a.p, shared, state);
    }
#endif
}

/* ---- host ---- */

#if defined(INF_EMU)

static int make_map(const inf_cuda_attn *p, tensor_map *map) {
    *map = {p->pool, (uint64_t)p->kv.head_dim, (uint64_t)1 << 31, 16};
    return 0;
}

#elif __CUDACC_VER_MAJOR__ >= 12

/* The pool as a matrix, see above. Its number of rows is not known here and does not matter: no box
 * is asked for beyond it. The encoder is the driver's and found at run time, so that nothing is
 * linked with the driver. */
static int make_map(const inf_cuda_attn *p, tensor_map *map) {
    typedef CUresult (*encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static encoder encode = NULL; /* threads that race here find the same */
    if (encode == NULL) {
        void *found = NULL;
        cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
        cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                             12000, cudaEnableDefault, &status);
#else
        cudaError_t error =
            cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status);
#endif
        if (error != cudaSuccess || status != cudaDriverEntryPointSuccess || found == NULL) {
            (void)cudaGetLastError();
            return cudaErrorNotSupported;
        }
        encode = (encoder)found;
    }
    cuuint64_t size[2] = {(cuuint64_t)p->kv.head_dim, (cuuint64_t)1 << 31};
    cuuint64_t pitch[1] = {(cuuint64_t)p->kv.head_dim * 2};
    cuuint32_t box[2] = {64, 16}, step[2] = {1, 1};
    CUresult result = encode(map,
                             p->act == INF_DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                             2, (void *)p->pool, size, pitch, box, step,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? (int)cudaSuccess : (int)cudaErrorInvalidValue;
}

#else

static int make_map(const inf_cuda_attn *, tensor_map *) { return cudaErrorNotSupported; }

#endif

static int wgmma_takes(const inf_cuda_attn *p) { return p->kv.block_size % 16 == 0; }

template <class C> static int launch_wgmma(const inf_cuda_attn *p, inf_stream stream) {
    wgmma_args args;
    int32_t sms = 132;
#ifndef INF_EMU
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
        (void)cudaGetLastError();
    }
#else
    sms = 3;
#endif
    args.p = *p;
    int error = make_map(p, &args.map);
    error = error != 0 ? error : (int)INF_ALLOW_SHARED(attn_wgmma_kernel<C>, C::shared);
    int64_t most = (int64_t)p->max_work * p->heads;
    dim3 grid((unsigned)(most < sms ? most : sms));
    return error != 0 ? error
                      : (int)INF_LAUNCH(attn_wgmma_kernel<C>, grid, dim3(C::threads), C::shared,
                                        stream, args);
}

template <class C>
static int describe_wgmma(const inf_cuda_attn *p, inf_cuda_prefill_variant *out) {
    snprintf(out->name, sizeof out->name, "wgmma, 128 rows x %d keys", C::keys);
    out->shared = C::shared, out->registers = out->local = 0, out->resident = wgmma_takes(p);
#ifndef INF_EMU
    cudaFuncAttributes a;
    tensor_map map;
    int device = 0, major = 0, error = (int)cudaGetDevice(&device);
    error = error != 0
                ? error
                : (int)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    error = error != 0 ? error : (int)cudaFuncGetAttributes(&a, attn_wgmma_kernel<C>);
    error = error != 0 ? error : (int)INF_ALLOW_SHARED(attn_wgmma_kernel<C>, C::shared);
    error = error != 0 ? error : make_map(p, &map);
    if (error != 0) {
        (void)cudaGetLastError();
        out->resident = 0;
        return 0;
    }
    out->registers = a.numRegs, out->local = (int32_t)a.localSizeBytes;
    /* Code for sm_90 and not sm_90a has an empty body, and so hardly any registers. */
    if (major != 9 || a.numRegs < 100) {
        out->resident = 0;
    }
#endif
    return 0;
}

template <class T>
static int call_wgmma(const inf_cuda_attn *p, inf_stream stream, inf_cuda_prefill_variant *out) {
    if (p->kv.head_dim == 128) {
        return out != NULL ? describe_wgmma<wgmma_cut<T, 128>>(p, out)
                           : launch_wgmma<wgmma_cut<T, 128>>(p, stream);
    }
    return out != NULL ? describe_wgmma<wgmma_cut<T, 64>>(p, out)
                       : launch_wgmma<wgmma_cut<T, 64>>(p, stream);
}

int inf_cuda_prefill_wgmma_of(const inf_cuda_attn *p, inf_cuda_prefill_variant *out) {
    return p->act == INF_DTYPE_BF16 ? call_wgmma<bf16>(p, NULL, out)
                                    : call_wgmma<f16>(p, NULL, out);
}

int inf_cuda_prefill_wgmma_launch(const inf_cuda_attn *p, inf_stream stream) {
    if (!wgmma_takes(p)) {
        return cudaErrorInvalidValue;
    }
    return p->act == INF_DTYPE_BF16 ? call_wgmma<bf16>(p, stream, NULL)
                                    : call_wgmma<f16>(p, stream, NULL);
}
