/* How a step's attention is cut into pieces of work for the GPU. Host code, plain C.
 *
 * Input are the segments of one step (launch.h) and the shape of a layer class: all layers that
 * have the same window share a plan. Output are the two lists of pieces, for the decode and for the
 * prefill kernel, and for inf_cuda_combine the rows of partials that make up each row.
 *
 * A segment's rows are cut into tiles of at most INF_CUDA_PREFILL_ROWS rows. A tile whose rows
 * times query heads per kv head fit INF_CUDA_DECODE_ROWS is decode's, any other prefill's. A tile's
 * keys are those that the causal rule and the window leave to at least one of its rows, from a
 * multiple of 16; they are cut into pieces of nearly equal size, at most the class's chunk (plan.c
 * says how the chunk is chosen). So:
 *
 *  1. Every (row, visible key) lies in exactly one piece. A piece holds no key that none of its
 * rows sees, but for up to 15 in front of a window's first key.
 *  2. Every tile has at least one piece; a tile that sees no key has one with tokens == 0.
 *  3. A piece is INF_CUDA_WHOLE when its tile has no other and no row of it is in another segment.
 *     Every other piece has part rows part .. part + rows - 1 of its own, and these fill
 *     0 .. n_parts - 1 without gap.
 *  4. list[off[r]] .. list[off[r + 1] - 1] are the part rows of row r; a row whose piece is whole,
 *     or that is in no segment, has none. off[rows] == n_parts.
 *  5. Both lists go from big pieces to small ones, so that the last to start are the shortest. */
#ifndef INF_CUDA_PLAN_H
#define INF_CUDA_PLAN_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_cuda_plan_shape {
    int32_t heads, kv_heads;
    int32_t window; /* 0: none */
    int32_t sms;    /* multiprocessors of the GPU */
    /* What the kernels are like; 0 takes what plan.c has for them. */
    int32_t decode_resident;  /* thread blocks of the decode kernel that one SM holds at a time */
    int32_t prefill_resident; /* the same of the prefill kernel */
    /* Tokens per piece at most, a multiple of 64 and of 128; 0: chosen. For tests and tuning: the
     * lists can be longer than inf_cuda_plan_capacity says. */
    int32_t decode_chunk, prefill_chunk;
} inf_cuda_plan_shape;

/* What a step has at most. */
typedef struct inf_cuda_plan_limits {
    int32_t segments;
    int32_t rows;         /* of q */
    int32_t segment_rows; /* summed over the segments */
    int32_t shared_rows;  /* the same over segments that name a row which another one names too */
} inf_cuda_plan_limits;

typedef struct inf_cuda_plan_sizes {
    int32_t decode, prefill; /* pieces */
    int32_t parts;           /* rows of part_o and part_lse, entries of list */
    int32_t rows;            /* off has rows + 1 entries */
} inf_cuda_plan_sizes;

/* The arrays belong to the caller; their sizes come from inf_cuda_plan_capacity. */
typedef struct inf_cuda_plan_lists {
    inf_cuda_work *decode, *prefill;
    uint32_t *off, *list;
    int32_t n_decode, n_prefill; /* written */
    uint32_t n_parts;            /* written */
} inf_cuda_plan_lists;

/* Sizes that no step within the limits exceeds. */
int inf_cuda_plan_capacity(const inf_cuda_plan_shape *shape, const inf_cuda_plan_limits *limits,
                           inf_cuda_plan_sizes *out);

/* INF_EINVAL: a shape that cannot be, or a segment beyond rows. INF_EFULL: more than sizes; nothing
 * was written beyond them. No allocation. */
int inf_cuda_plan(const inf_cuda_plan_shape *shape, const inf_cuda_segment *segments,
                  int32_t n_segments, int32_t rows, const inf_cuda_plan_sizes *sizes,
                  inf_cuda_plan_lists *lists);

#ifdef __cplusplus
}
#endif
#endif
