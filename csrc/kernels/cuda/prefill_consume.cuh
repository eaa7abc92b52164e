/* The consuming half of the kernel in attention_prefill_sm90.cu: two warpgroups, 64 rows of a tile
 * each. */
#ifndef INF_CUDA_PREFILL_CONSUME_CUH
#define INF_CUDA_PREFILL_CONSUME_CUH

#include "kernels/cuda/prefill_load.cuh"

#if INF_HAS_WGMMA

/* 64 rows of a warpgroup; a thread holds rows lane / 4 of its warp's 16 and 8 more. */
template <class C> struct wgmma_rows {
    float o[C::dim / 8][4]; /* not yet divided */
    float m[2], l[2];       /* maximum of q.k; this thread's share of the sum */
};

/* The tile's row that this thread's row h is. */
static __device__ __forceinline__ int row_of(int h) {
    return ((int)threadIdx.x - 128) / 32 * 16 + (int)(threadIdx.x % 32) / 4 + 8 * h;
}

/* Asks for s = q k. */
template <class C>
static __device__ __forceinline__ void ask_scores(uint32_t q, uint32_t k,
                                                  float (&s)[C::groups][4]) {
    uint64_t a = operand_at(q, 16, 1024), b = operand_at(k, 16, C::eight);
#pragma unroll
    for (int d = 0; d < C::dim / 16; d++) {
        wgmma_ss(s, a + (uint64_t)(d / 4 * (C::q_half >> 4) + d % 4 * 2),
                 b + (uint64_t)(d / 4 * (1024 >> 4) + d % 4 * 2), d > 0, typename C::number());
    }
    wgmma_commit();
}

/* Asks for o += w v. */
template <class C>
static __device__ __forceinline__ void ask_values(uint32_t v, const uint32_t (&w)[C::groups / 2][4],
                                                  float (&o)[C::dim / 8][4]) {
    uint64_t b = operand_at(v, 1024, C::eight);
#pragma unroll
    for (int n = 0; n < C::groups / 2; n++) {
        wgmma_rs(o, w[n], b + (uint64_t)(n * (2 * C::eight >> 4)), typename C::number());
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
        mbar_arrive(bar);
    }
}

/* Makes the weights of which x is the sum be computed before the wait that follows, beside the
 * product that is waited for: the compiler would move them behind it. x is not negative, so nothing
 * arrives. */
static __device__ __forceinline__ void compute_before(uint64_t *bar, float x) {
    if (x < 0.0f) {
        mbar_arrive(bar);
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
                                              uint32_t shared, uint32_t q, wgmma_state &state,
                                              uint32_t &tile, wgmma_rows<C> &rows) {
    uint32_t t0 = x.token0;
    int n = x.key_tiles;
    float s[C::groups][4];
    uint32_t w[C::groups / 2][4];
    {
        wgmma_place<C> at(shared, tile);
        mbar_wait(&state.full_k[at.stage], at.parity);
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
        mbar_wait(&state.full_k[at.stage], at.parity);
        settle(rows.o);
        settle(w);
        wgmma_fence();
        ask_scores<C>(q, at.k, s);
        mbar_wait(&state.full_v[before.stage], before.parity);
        ask_values<C>(before.v, w, rows.o);
        wgmma_wait<1>();
        settle(s);
        release(&state.empty_k[at.stage]);
        if (t0 < x.all_from || t0 + C::keys > x.all_upto) {
            mask<C>(p, x, t0, s);
        }
        float shrink0 = weigh_row<C::groups>(s, 0, rows.m[0], rows.l[0], x.scale);
        float shrink1 = weigh_row<C::groups>(s, 2, rows.m[1], rows.l[1], x.scale);
        compute_before(&state.empty_k[at.stage], rows.l[0] + rows.l[1]);
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
    mbar_wait(&state.full_v[at.stage], at.parity);
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
    for (int32_t round = 0;; round++) {
        int slot = round & 1;
        mbar_wait(&state.full_x[slot], (uint32_t)(round >> 1 & 1));
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
        mbar_wait(&state.full_q[slot], (uint32_t)(round >> 1 & 1));
        if (x.key_tiles > 0) {
            uint32_t at = shared_address(shared);
            attend(p, x, at, at + (uint32_t)(slot * C::q + group * C::q_group), state, tile, rows);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = rows.l[h];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            write_row<C::dim / 8>(rows.o, 2 * h, rows.m[h], l, x.scale, row_of(h) < x.n_rows,
                                  prefill_out(p, x, row_of(h)));
        }
        release(&state.empty_x[slot]);
    }
}

#endif
#endif
