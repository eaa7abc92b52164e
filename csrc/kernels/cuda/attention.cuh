/* What the attention kernels share: which keys of a piece a row sees, and where its result goes. */
#ifndef INF_CUDA_ATTENTION_CUH
#define INF_CUDA_ATTENTION_CUH

#include "kernels/cuda/prelude.cuh"

/* Tokens from .. upto - 1 of a segment; from == upto when there are none. */
struct key_range {
    uint32_t from, upto;
};

/* The keys of a piece that row `row` of the segment sees. */
static __device__ __forceinline__ key_range visible_keys(const inf_cuda_segment &s,
                                                         const inf_cuda_work &w, int32_t window,
                                                         uint32_t row) {
    int64_t at = (int64_t)s.q_pos0 + row - s.kv_pos0; /* the row's own place among the keys */
    int64_t from = w.token0, upto = (int64_t)w.token0 + w.tokens;
    if (window > 0 && at - window + 1 > from) {
        from = at - window + 1;
    }
    if (at + 1 < upto) {
        upto = at + 1;
    }
    if (upto <= from) {
        return {w.token0, w.token0};
    }
    return {(uint32_t)from, (uint32_t)upto};
}

/* Scores q.k, which the kernels for tensor cores scale only in the exponent, to what gives softcap
 * tanh(scale q.k / softcap) when it is scaled: out tanh(q.k / out). Off by 1e-7 of softcap. */
struct score_cap {
    float in, out; /* 2 log2 e / out, softcap / scale */
};

static __device__ __forceinline__ score_cap score_cap_of(const inf_cuda_attn &p) {
    float out = p.softcap / p.scale;
    return {2 * 1.4426950408889634f / out, out};
}

static __device__ __forceinline__ float capped_score(float s, const score_cap &cap) {
    return cap.out - 2 * cap.out / (1.0f + exp2_fast(s * cap.in));
}

/* inf_kv_offset of kernels.h, in device code: where token 0 of a block's (layer, kv, head) begins.
 */
static __device__ __forceinline__ uint64_t kv_head_offset(const inf_kv_shape &s, int32_t layer,
                                                          int32_t kv, int32_t head) {
    return (((uint64_t)layer * 2 + (uint64_t)kv) * (uint64_t)s.kv_heads + (uint64_t)head) *
           (uint64_t)s.block_size * (uint64_t)s.head_dim * (uint64_t)s.elem;
}

static __device__ __forceinline__ float load_as(const void *p, int32_t dtype, size_t i) {
    if (dtype == INF_DTYPE_F32) {
        return load1((const float *)p + i);
    }
    return dtype == INF_DTYPE_BF16 ? load1((const bf16 *)p + i) : load1((const f16 *)p + i);
}

static __device__ __forceinline__ void store_as(void *p, int32_t dtype, size_t i, float x) {
    if (dtype == INF_DTYPE_F32) {
        store1((float *)p + i, x);
    } else if (dtype == INF_DTYPE_BF16) {
        store1((bf16 *)p + i, x);
    } else {
        store1((f16 *)p + i, x);
    }
}

/* Where (row of the piece, head) is written: an index of heads in o or part_o. */
struct out_place {
    void *o;
    float *lse; /* may be NULL */
    int32_t dtype;
    size_t at;
};

static __device__ __forceinline__ out_place row_place(const inf_cuda_attn &p, size_t row,
                                                      int32_t head) {
    if (p.places != NULL) {
        inf_cuda_place place = p.places[row];
        return {place.o, place.lse, INF_DTYPE_F32, (size_t)head};
    }
    return {p.o, p.lse, p.o_dtype, row * (size_t)p.heads + (size_t)head};
}

static __device__ __forceinline__ out_place place_of(const inf_cuda_attn &p,
                                                     const inf_cuda_segment &s,
                                                     const inf_cuda_work &w, uint32_t row,
                                                     int32_t head) {
    if (w.part == INF_CUDA_WHOLE) {
        return row_place(p, (size_t)s.row0 + w.row0 + row, head);
    }
    size_t r = (size_t)w.part + row;
    return {p.part_o, p.part_lse, INF_DTYPE_F32, r * (size_t)p.heads + (size_t)head};
}

static inline int known_dtype(int32_t dtype) {
    return dtype == INF_DTYPE_F32 || dtype == INF_DTYPE_F16 || dtype == INF_DTYPE_BF16;
}

/* Host: whether KV has a format that there is, and its size. */
static inline int kv_format_holds(const inf_kv_shape *kv) {
    return kv->dtype == INF_DTYPE_E4M3
               ? kv->elem == 1
               : known_dtype(kv->dtype) && kv->elem == (kv->dtype == INF_DTYPE_F32 ? 4 : 2);
}

/* Host: what every attention launcher asks of its parameters. */
static inline int attn_shape_holds(const inf_cuda_attn *p) {
    return known_dtype(p->act) && known_dtype(p->o_dtype) && kv_format_holds(&p->kv) &&
           p->heads > 0 && p->kv.kv_heads > 0 && p->heads % p->kv.kv_heads == 0 &&
           p->kv.block_size > 0 && p->kv.head_dim > 0 && p->layer >= 0 && p->layer < p->kv.layers &&
           p->window >= 0 && p->max_work >= 0 && p->softcap >= 0.0f;
}

#endif
