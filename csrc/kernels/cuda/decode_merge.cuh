/* The merge of a row's parts by the last of its pieces to end, so that no kernel has to follow that
 * does it.
 *
 * Every piece writes its part, makes it visible, and counts itself in for its first row and kv
 * head. Who finds that all are in is the last, sets the count back to zero for the next launch, and
 * merges as combine.cu does: o = sum o_i e^(lse_i - m) / sum e^(lse_i - m), m = max lse_i. Parts
 * are read past L1, which does not see other SMs' writes.
 *
 * Everybody else has gone by then, so what counts is how many reads follow upon each other. A warp
 * takes a (row, head) and up to 32 parts at a time: a lane fetches the index and lse of one, then
 * lanes take four dims each and the warp walks the parts, whose reads do not depend on each other.
 */
#ifndef INF_CUDA_DECODE_MERGE_CUH
#define INF_CUDA_DECODE_MERGE_CUH

#include "kernels/cuda/decode_piece.cuh"

/* What a lane has of the parts so far: four dims of every SPLIT-th part. */
struct merge_state {
    float top, sum; /* of all lanes */
    float o[4];
};

/* Up to 32 parts: list[0 .. n - 1]. Lanes of equal lane % (dim / 4) have the same dims. */
template <class C>
static __device__ __forceinline__ void merge_parts(merge_state &m, const inf_cuda_attn &p,
                                                   const uint32_t *list, int n, int head) {
    constexpr int lanes = C::dim / 4, split = 32 / lanes;
    int lane = (int)(threadIdx.x % 32);
    uint32_t part = 0;
    float lse = -INFINITY;
    if (lane < n) {
        part = list[lane];
        lse = __ldcg(p.part_lse + (size_t)part * (size_t)p.heads + (size_t)head);
    }
    float top = fmaxf(m.top, warp_max(lse)), base = top == -INFINITY ? 0.0f : top;
    const float log2e = 1.4426950408889634f;
    float shrink = exp2_fast((m.top - base) * log2e), weight = exp2_fast((lse - base) * log2e);
    m.top = top;
    m.sum = m.sum * shrink + warp_sum(weight);
    for (int k = 0; k < 4; k++) {
        m.o[k] *= shrink;
    }
#pragma unroll 8
    for (int i = 0; i < n; i += split) {
        int from = i + lane / lanes; /* one beyond n: the weight is 0, the part any of these */
        float w = __shfl_sync(0xffffffffu, weight, from);
        uint32_t row = __shfl_sync(0xffffffffu, part, from < n ? from : n - 1);
        size_t at = (size_t)row * (size_t)p.heads + (size_t)head;
        float4 v = __ldcg((const float4 *)(p.part_o + at * C::dim + (size_t)(lane % lanes * 4)));
        m.o[0] += w * v.x, m.o[1] += w * v.y;
        m.o[2] += w * v.z, m.o[3] += w * v.w;
    }
}

/* A row of q and o. One warp. */
template <class C>
static __device__ __forceinline__ void merge_row(const inf_cuda_attn &p, size_t row, int head) {
    constexpr int lanes = C::dim / 4;
    int lane = (int)(threadIdx.x % 32);
    uint32_t first = p.off[row], end = p.off[row + 1];
    merge_state m = {-INFINITY, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
    for (uint32_t i = first; i < end; i += 32) {
        merge_parts<C>(m, p, p.list + i, (int)(end - i < 32 ? end - i : 32), head);
    }
    float inverse = m.sum != 0.0f ? 1.0f / m.sum : 0.0f;
    for (int k = 0; k < 4; k++) {
        if (lanes < 32) {
            m.o[k] += __shfl_xor_sync(0xffffffffu, m.o[k], 16);
        }
        m.o[k] *= inverse;
    }
    out_place out = row_place(p, row, head);
    if (lane < lanes) {
        store4(out.o, out.dtype, out.at * C::dim + (size_t)(lane * 4), m.o);
    }
    if (lane == 0 && out.lse != NULL) {
        out.lse[out.at] = m.sum != 0.0f ? m.top + logf(m.sum) : -INFINITY;
    }
}

/* All threads of the block call, after they have written their part of the piece. */
template <class C>
static __device__ __forceinline__ void merge_if_last(const inf_cuda_attn &p,
                                                     const decode_piece &x) {
    if (p.done == NULL || x.work.part == INF_CUDA_WHOLE) {
        return;
    }
    size_t row = (size_t)x.segment.row0 + x.work.row0;
    int last = 0;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *count = p.done + row * (size_t)p.kv.kv_heads + (size_t)x.kv_head;
        last = atomicAdd(count, 1u) + 1u == p.off[row + 1] - p.off[row];
        if (last) {
            *count = 0;
        }
    }
    if (!__syncthreads_or(last)) {
        return;
    }
    __threadfence();
    for (int i = (int)(threadIdx.x / 32); i < x.n_rows; i += C::warps) {
        merge_row<C>(p, row + (size_t)(i / x.group), x.kv_head * x.group + i % x.group);
    }
}

#endif
