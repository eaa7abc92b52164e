/* The merge of a row's parts by the last of its pieces to end, so that no kernel has to follow that
 * does it.
 *
 * Every piece writes its part, makes it visible, and counts itself in for its first row and kv
 * head. Who finds that all are in is the last, sets the count back to zero for the next launch, and
 * merges as combine.cu does: o = sum o_i e^(lse_i - m) / sum e^(lse_i - m), m = max lse_i. Parts
 * are read past L1, which does not see other SMs' writes. */
#ifndef INF_CUDA_DECODE_MERGE_CUH
#define INF_CUDA_DECODE_MERGE_CUH

#include "kernels/cuda/decode_piece.cuh"

/* Four numbers of one row and head. */
template <class C>
static __device__ __forceinline__ void merge_quad(const inf_cuda_attn &p, size_t row, int head,
                                                  int d) {
    const uint32_t *parts = p.list + p.off[row];
    int n = (int)(p.off[row + 1] - p.off[row]);
    float top = -INFINITY, sum = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; i++) {
        top = fmaxf(top, __ldcg(p.part_lse + (size_t)parts[i] * (size_t)p.heads + (size_t)head));
    }
    float base = top == -INFINITY ? 0.0f : top;
#pragma unroll 8
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)parts[i] * (size_t)p.heads + (size_t)head;
        float weight = exp2_fast((__ldcg(p.part_lse + at) - base) * 1.4426950408889634f);
        float4 v = __ldcg((const float4 *)(p.part_o + at * C::dim + (size_t)d));
        sum += weight;
        o[0] += weight * v.x, o[1] += weight * v.y;
        o[2] += weight * v.z, o[3] += weight * v.w;
    }
    float inverse = sum != 0.0f ? 1.0f / sum : 0.0f;
    for (int k = 0; k < 4; k++) {
        o[k] *= inverse;
    }
    size_t at = row * (size_t)p.heads + (size_t)head;
    store4(p.o, p.o_dtype, at * C::dim + (size_t)d, o);
    if (d == 0 && p.lse != NULL) {
        p.lse[at] = sum != 0.0f ? top + logf(sum) : -INFINITY;
    }
}

/* All threads of the block call, after they have written their part of the piece. */
template <class C>
static __device__ __forceinline__ void merge_if_last(const inf_cuda_attn &p,
                                                     const decode_piece &x) {
    __shared__ int is_last;
    if (p.done == NULL || x.work.part == INF_CUDA_WHOLE) {
        return;
    }
    size_t row = (size_t)x.segment.row0 + x.work.row0;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *count = p.done + row * (size_t)p.kv.kv_heads + (size_t)x.kv_head;
        is_last = atomicAdd(count, 1u) + 1u == p.off[row + 1] - p.off[row];
        if (is_last) {
            *count = 0;
        }
    }
    __syncthreads();
    if (!is_last) {
        return;
    }
    __threadfence();
    constexpr int quads = C::dim / 4;
    for (int at = (int)threadIdx.x; at < x.n_rows * quads; at += C::warps * 32) {
        int i = at / quads;
        merge_quad<C>(p, row + (size_t)(i / x.group), x.kv_head * x.group + i % x.group,
                      at % quads * 4);
    }
}

#endif
