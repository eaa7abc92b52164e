/* The merge of a row's parts by the last of its pieces to end, so that no kernel has to follow that
 * does it.
 *
 * Every piece writes its part, makes it visible, and counts itself in for its first row and kv
 * head. Who finds that all are in is the last, sets the count back to zero for the next launch, and
 * merges as combine.cu does: o = sum o_i e^(lse_i - m) / sum e^(lse_i - m), m = max lse_i. Parts
 * are read past L1, which does not see other SMs' writes.
 *
 * Everybody else has gone by then, so what counts is how many reads follow upon each other. Which
 * parts there are is the plan's, and is read when the piece begins (decode_piece.cuh); so in the
 * end a warp, which takes a (row, head) and up to 32 parts at a time, asks for their lse and their
 * first numbers at once: a lane fetches the lse of one part, then lanes take four dims each and the
 * warp walks the parts, some ahead of the sums.
 */
#ifndef INF_CUDA_DECODE_MERGE_CUH
#define INF_CUDA_DECODE_MERGE_CUH

#include "kernels/cuda/decode_piece.cuh"

/* What a lane has of the parts so far: four dims of every SPLIT-th part. */
struct merge_state {
    float top, sum; /* of all lanes */
    float o[4];
};

/* Up to 32 parts, a lane's being `part`. Lanes of equal lane % (dim / 4) have the same dims. */
template <class C>
static __device__ __forceinline__ void merge_parts(merge_state &m, const inf_cuda_attn &p,
                                                   uint32_t part, int n, int head) {
    constexpr int lanes = C::dim / 4, split = 32 / lanes, ahead = 16, round = ahead * split;
    int lane = (int)(threadIdx.x % 32);
    float lse = -INFINITY;
    if (lane < n) {
        lse = __ldcg(p.part_lse + (size_t)part * (size_t)p.heads + (size_t)head);
    }
    auto values = [&](int i) {
        int from = i + lane / lanes; /* one beyond n: the weight is 0, the part any of these */
        uint32_t row = __shfl_sync(0xffffffffu, part, from < n ? from : n - 1);
        size_t at = (size_t)row * (size_t)p.heads + (size_t)head;
        return __ldcg((const float4 *)(p.part_o + at * C::dim + (size_t)(lane % lanes * 4)));
    };
    float4 v[ahead] = {}; /* what is left out keeps no registers from the piece then */
#pragma unroll
    for (int k = 0; k < ahead; k++) {
        if (k * split < n) {
            v[k] = values(k * split);
        }
    }
    float top = fmaxf(m.top, warp_max(lse)), base = top == -INFINITY ? 0.0f : top;
    const float log2e = 1.4426950408889634f;
    float shrink = exp2_fast((m.top - base) * log2e), weight = exp2_fast((lse - base) * log2e);
    m.top = top;
    m.sum = m.sum * shrink + warp_sum(weight);
    for (int k = 0; k < 4; k++) {
        m.o[k] *= shrink;
    }
#pragma unroll 1
    for (int first = 0; first < n; first += round) {
#pragma unroll
        for (int k = 0; k < ahead; k++) {
            int i = first + k * split;
            if (i >= n) {
                break;
            }
            float w = __shfl_sync(0xffffffffu, weight, i + lane / lanes);
            m.o[0] += w * v[k].x, m.o[1] += w * v[k].y;
            m.o[2] += w * v[k].z, m.o[3] += w * v[k].w;
            if (i + round < n) {
                v[k] = values(i + round);
            }
        }
    }
}

/* Row i of the piece, whose first is `row` of q and o. One warp. */
template <class C>
static __device__ __forceinline__ void merge_row(const inf_cuda_attn &p, const part_list &parts,
                                                 size_t row, uint32_t i, int head) {
    constexpr int lanes = C::dim / 4;
    int lane = (int)(threadIdx.x % 32);
    out_place out = row_place(p, row + i, head);
    merge_state m = {-INFINITY, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll 1
    for (uint32_t at = 0; at < parts.n; at += 32) {
        int n = (int)(parts.n - at < 32 ? parts.n - at : 32);
        uint32_t part = parts.mine;
        if (at > 0 && lane < n) {
            part = p.list[parts.first + at + (uint32_t)lane];
        }
        merge_parts<C>(m, p, part + i, n, head);
    }
    float inverse = m.sum != 0.0f ? 1.0f / m.sum : 0.0f;
    for (int k = 0; k < 4; k++) {
        if (lanes < 32) {
            m.o[k] += __shfl_xor_sync(0xffffffffu, m.o[k], 16);
        }
        m.o[k] *= inverse;
    }
    if (lane < lanes) {
        store4(out.o, out.dtype, out.at * C::dim + (size_t)(lane * 4), m.o);
    }
    if (lane == 0 && out.lse != NULL) {
        out.lse[out.at] = m.sum != 0.0f ? m.top + logf(m.sum) : -INFINITY;
    }
}

/* All threads of the block call, after they have written their part of the piece. */
template <class C>
static __device__ __forceinline__ void merge_if_last(const inf_cuda_attn &p, const decode_piece &x,
                                                     const part_list &parts) {
    if (parts.n == 0) {
        return;
    }
    size_t row = (size_t)x.segment.row0 + x.work.row0;
    int last = 0;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *count = p.done + row * (size_t)p.kv.kv_heads + (size_t)x.kv_head;
        last = atomicAdd(count, 1u) + 1u == parts.n;
        if (last) {
            *count = 0;
        }
    }
    if (!__syncthreads_or(last)) {
        return;
    }
    __threadfence();
    for (int i = (int)(threadIdx.x / 32); i < x.n_rows; i += C::warps) {
        merge_row<C>(p, parts, row, (uint32_t)(i / x.group), x.kv_head * x.group + i % x.group);
    }
}

#endif
