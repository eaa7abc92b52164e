/* The CUDA kernels' launchers: a parameter struct and a stream each. They check shapes that a
 * kernel relies on, enqueue, and return 0 or a cudaError_t; they neither allocate nor wait. All
 * pointers are device memory unless a comment says host. Shapes are row-major.
 *
 * early: 1 lets the kernel start before the one in front of it in the stream has ended (sm_90); it
 * waits by itself before it touches what that one writes.
 *
 * dtype is INF_DTYPE_F32, _F16 or _BF16; KV's may be _E4M3 too, whatever act is: scale 1,
 * saturated. "act" is the device's format of activations that enter a matrix product; the residual
 * stream and all sums are f32. LSE is base e. */
#ifndef INF_CUDA_LAUNCH_H
#define INF_CUDA_LAUNCH_H

#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef void *inf_stream; /* a cudaStream_t */

/* ---- rows.cu, norms.cu: everything that walks rows once; bound by memory ---- */

/* x[r, :] = scale * table[tokens[r], :] */
typedef struct inf_cuda_embed {
    const int32_t *tokens; /* [rows] */
    const void *table;     /* [vocab, hidden] of dtype */
    float *x;              /* [rows, hidden] */
    int32_t dtype, rows, hidden;
    int32_t early;
    float scale;
} inf_cuda_embed;
int inf_cuda_embed_launch(const inf_cuda_embed *p, inf_stream stream);

/* cos and sin of float(position * inv_freq), times scale; the product is rounded to f32 first, as
 * the CPU's is (model/forward.c), and the functions are taken as if in double. */
typedef struct inf_cuda_rope_table {
    const uint32_t *position; /* [rows] */
    const float *inv_freq;    /* [half] */
    float *cos, *sin;         /* [rows, half] */
    float scale;
    int32_t rows, half;
    int32_t early;
} inf_cuda_rope_table;
int inf_cuda_rope_table_launch(const inf_cuda_rope_table *p, inf_stream stream);

/* x += add (when not NULL), or with post x += add / sqrt(mean(add^2) + eps) * post; y = x /
 * sqrt(mean(x^2) + eps) * weight, or x without a weight (when y is not NULL). Sums in f32, y
 * rounded once. One read and one write of each buffer. */
typedef struct inf_cuda_add_norm {
    float *x;            /* [rows, n], in and out */
    const void *add;     /* [rows, n] of add_dtype; may be y itself */
    const float *weight; /* [n] */
    void *y;             /* [rows, n] of y_dtype */
    const int32_t
        *pick; /* NULL, or [rows]: row r of y is made of row pick[r] of x (add must be NULL) */
    int32_t add_dtype, y_dtype, rows, n;
    float eps;
    int32_t early;
    const float *post; /* [n], or NULL; of an add */
} inf_cuda_add_norm;
int inf_cuda_add_norm_launch(const inf_cuda_add_norm *p, inf_stream stream);

/* After the QKV product: per-head RMS norm of q and k (when the weights are there; formula as
 * above, over head_dim), rotation of pairs (i, i + rotary / 2) of the first `rotary` numbers of q's
 * and k's heads by cos and sin, q packed and k, v appended to the pool. Row r's token stands in
 * block kv_block[r] at index kv_index[r]. With scales the norms are over all heads of q and of k:
 * they have 1 / sqrt(mean + eps) of each, and the weights are [heads * head_dim] and [kv_heads *
 * head_dim]. */
typedef struct inf_cuda_heads {
    const void *qkv;              /* [rows, (heads + 2 kv_heads) * head_dim] of act: q | k | v */
    const float *q_norm, *k_norm; /* [head_dim], or both NULL */
    const float *cos, *sin;       /* [rows, rotary / 2] */
    void *q;                      /* [rows, heads, head_dim] of act */
    uint8_t *pool;
    inf_kv_shape kv;
    const int32_t *kv_block, *kv_index; /* [rows] */
    int32_t act, rows, heads, layer;
    float eps;
    int32_t early;
    int32_t rotary;      /* 0: head_dim */
    const float *scales; /* [rows, 2], or NULL */
} inf_cuda_heads;
int inf_cuda_heads_launch(const inf_cuda_heads *p, inf_stream stream);

/* scales of inf_cuda_heads, from its qkv. */
typedef struct inf_cuda_head_scales {
    const void *qkv; /* [rows, (heads + 2 kv_heads) * head_dim] of act */
    float *scales;   /* [rows, 2]: of q, of k */
    int32_t act, rows, heads, kv_heads, head_dim;
    float eps;
    int32_t early;
} inf_cuda_head_scales;
int inf_cuda_head_scales_launch(const inf_cuda_head_scales *p, inf_stream stream);

/* x = cap tanh(x / cap), n numbers. */
typedef struct inf_cuda_softcap {
    float *x;
    int64_t n;
    float cap;
    int32_t early;
} inf_cuda_softcap;
int inf_cuda_softcap_launch(const inf_cuda_softcap *p, inf_stream stream);

/* y = activation(s gate) * s up, gu = [rows, gate n | up n]. s is 1, or of each row what its x was
 * not scaled by, see inf_cuda_small. */
typedef struct inf_cuda_gate {
    const void *gu; /* [rows, 2 n] of act */
    void *y;        /* [rows, n] of act */
    int32_t act, rows, n;
    int32_t early;
    const float *x_squares; /* [rows, squares], or NULL */
    int32_t squares;        /* sums of 16 each */
    float eps;
    int32_t activation; /* INF_ACT_* */
} inf_cuda_gate;
int inf_cuda_gate_launch(const inf_cuda_gate *p, inf_stream stream);

/* dst[i] = src[i], formats apart. */
typedef struct inf_cuda_cast {
    const void *src;
    void *dst;
    int32_t src_dtype, dst_dtype;
    int64_t n;
    int32_t early;
} inf_cuda_cast;
int inf_cuda_cast_launch(const inf_cuda_cast *p, inf_stream stream);

/* ---- attention: partials over segments of keys ---- */

/* A segment: one run of keys that a run of query rows attends to. Query row r of it (0-based)
 * stands at position q_pos0 + r and sees the keys at positions p with p <= q_pos0 + r and, when
 * window > 0, p > q_pos0 + r - window. Key t of it lies in block blocks[block_off + t /
 * block_size], at index t % block_size, and stands at position kv_pos0 + t. */
typedef struct inf_cuda_segment {
    uint32_t row0, rows; /* of q, o and lse */
    uint32_t q_pos0, kv_pos0;
    uint32_t n_tokens;
    uint32_t block_off;
} inf_cuda_segment;

/* A piece of work: some rows of a segment against some of its keys, for one kv head and all query
 * heads that share it (the grid's y). token0 is a multiple of 16. The result goes to row row0 + i
 * of o and lse if part == INF_CUDA_WHOLE, else to row part + i of part_o and part_lse. A row that
 * sees none of the keys gets the empty partial: o = 0, lse = -inf. */
#define INF_CUDA_WHOLE 0xffffffffu
typedef struct inf_cuda_work {
    uint32_t segment;
    uint32_t row0, rows; /* within the segment */
    uint32_t token0, tokens;
    uint32_t part;
} inf_cuda_work;

/* Where the result of a row of q goes, if not into o and lse: f32 [heads, head_dim] and [heads],
 * perhaps in host memory that the GPU sees. */
typedef struct inf_cuda_place {
    float *o, *lse;
} inf_cuda_place;

typedef struct inf_cuda_attn {
    const void *q; /* [rows, heads, head_dim] of act */
    const uint8_t *pool;
    inf_kv_shape kv;
    const int32_t *blocks;
    const inf_cuda_segment *segments;
    const inf_cuda_work *work;
    const int32_t
        *n_work; /* device memory, so that a captured graph can be replayed with other work */
    void *o;     /* [rows, heads, head_dim] of o_dtype, normalised; in prefill 16-byte aligned */
    float *lse;  /* [rows, heads], or NULL when nobody reads it */
    const inf_cuda_place *places; /* [rows], or NULL; not prefill. o and lse are not written then */
    float *part_o;                /* [parts, heads, head_dim] f32, normalised */
    float *part_lse;              /* [parts, heads] */
    /* Decode merges the parts itself when done is not NULL: [q's rows, kv_heads] zeros, which it
     * leaves as zeros; off and list are inf_cuda_combine's. All rows of a tile have the same
     * pieces, in the same order. */
    uint32_t *done;
    const uint32_t *off, *list;
    int32_t act, o_dtype, heads, layer;
    int32_t window; /* 0: none */
    float scale;
    int32_t rows;     /* of q, 0 if not known: decode is cut for many of them, or for few */
    int32_t max_work; /* the grid is for so many at most, and work has room for them; pieces beyond
                       * are looped over */
    int32_t early;    /* 1: may start before the kernel in front has ended; sm_90; in prefill only
                       * the kernel for it. 2: and when that one began, the plan (off and list, too),
                       * blocks, segments and all keys but the rows' own were there */
    int32_t wgmma;    /* 1: prefill takes the sm_90 kernel where the GPU has it */
    int32_t boxes;    /* 1: keys of decode come by tensor map where the GPU has them */
    float softcap;    /* a score s becomes softcap tanh(s / softcap); 0: it stays. Not wgmma */
} inf_cuda_attn;

/* Any head_dim and format; clarity before speed. The reference on the GPU, and the way for models
 * that the others do not take. */
int inf_cuda_attn_plain_launch(const inf_cuda_attn *p, inf_stream stream);

/* Decode: every piece has rows * (heads / kv_heads) <= INF_CUDA_DECODE_ROWS query rows. bf16 and
 * f16 (act and KV alike, or KV in e4m3), head_dim 64 or 128, block_size a multiple of 16 (or 8). */
enum { INF_CUDA_DECODE_ROWS = 16 };
int inf_cuda_attn_decode_takes(
    const inf_cuda_attn *p); /* host: 1 if the launcher takes this shape */
int inf_cuda_attn_decode_launch(const inf_cuda_attn *p, inf_stream stream);

/* Prefill: pieces of up to INF_CUDA_PREFILL_ROWS rows. Formats and shapes as decode. */
enum { INF_CUDA_PREFILL_ROWS = 128 };
int inf_cuda_attn_prefill_takes(const inf_cuda_attn *p);
int inf_cuda_attn_prefill_launch(const inf_cuda_attn *p, inf_stream stream);

/* Merges partials: row r of o and lse becomes the merge of rows list[off[r]] .. list[off[r + 1] -
 * 1] of part_o and part_lse; an empty list leaves the row as it is. m = max lse_i; o = sum o_i
 * e^(lse_i - m) / sum e^(lse_i - m); lse = m + ln sum. All empty: o = 0, lse = -inf. */
typedef struct inf_cuda_combine {
    void *o;    /* [rows, heads, head_dim] of o_dtype */
    float *lse; /* [rows, heads] or NULL */
    const float *part_o, *part_lse;
    const uint32_t *off, *list; /* [rows + 1], [off[rows]] */
    int32_t o_dtype, rows, heads, head_dim;
    int32_t early;
} inf_cuda_combine;
int inf_cuda_combine_launch(const inf_cuda_combine *p, inf_stream stream);

/* Runs of rows that lie here and there, as in the messages of several peers: run i is rows row0 ..
 * of the launch's own tensors, and as many rows of f32 at `at`, [rows, stride, head_dim], and
 * `lse`, [rows, stride] or NULL, of which the launch's heads come first: the others are those of
 * other ranks. They may be host memory that the GPU sees. `first` counts the rows of the runs
 * before it. */
enum { INF_CUDA_RUNS = 32 };
typedef struct inf_cuda_run {
    float *at, *lse;
    uint32_t row0, first;
    int32_t stride; /* heads, not less than the launch's */
} inf_cuda_run;
typedef struct inf_cuda_runs {
    inf_cuda_run run[INF_CUDA_RUNS];
    int32_t n;
    int32_t rows; /* of all */
} inf_cuda_runs;

/* Adds a run; 0 when there is no room. */
static inline int inf_cuda_runs_add(inf_cuda_runs *r, uint32_t row0, int32_t rows, float *at,
                                    float *lse, int32_t stride) {
    if (r->n == INF_CUDA_RUNS) {
        return 0;
    }
    inf_cuda_run run = {at, lse, row0, (uint32_t)r->rows, stride};
    r->run[r->n++] = run;
    r->rows += rows;
    return 1;
}

/* Rows to the runs, widened: at[i] = src[row0 + i], lse[i] = src_lse[row0 + i]. No run's row is in
 * another. */
typedef struct inf_cuda_give {
    inf_cuda_runs runs;
    const void *src;      /* [*, heads, head_dim] of dtype */
    const float *src_lse; /* [*, heads], for runs with lse */
    int32_t dtype, heads, head_dim;
    int32_t early;
} inf_cuda_give;
int inf_cuda_give_launch(const inf_cuda_give *p, inf_stream stream);

/* Rows from the runs, narrowed: dst[row0 + i] = at[i]. With early, the runs are read before the
 * kernel in front has ended: none writes them. */
typedef struct inf_cuda_fetch {
    inf_cuda_runs runs;
    void *dst; /* [*, heads, head_dim] of dtype */
    /* Besides, if it is not NULL: places[row0 + i] = row i of answer, which has the run's rows. */
    inf_cuda_place *places; /* [*] */
    inf_cuda_place answer[INF_CUDA_RUNS];
    int32_t dtype, heads, head_dim;
    int32_t early;
} inf_cuda_fetch;
int inf_cuda_fetch_launch(const inf_cuda_fetch *p, inf_stream stream);

/* Merges more partials into rows of o and lse: the runs', of which several may have the same row.
 * With early, what of them comes first is read before the kernel in front has ended: none writes
 * it. */
typedef struct inf_cuda_merge {
    inf_cuda_runs runs;
    float *o, *lse; /* [rows, heads, head_dim], [rows, heads]; rows that no run has stay */
    void *out; /* NULL, or [rows, heads, head_dim] of out_dtype: all rows of o as they are after the
                * merge, which o and lse do not get */
    int32_t out_dtype, rows, heads, head_dim;
    int32_t early;
} inf_cuda_merge;
int inf_cuda_merge_launch(const inf_cuda_merge *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
