/* The MLP of a layer with experts (inf_experts): routing, see route.cu, and the products of the
 * chosen experts, see product_grouped.cu. A step's rows are `rows`; each has top_k experts, so
 * there are rows * top_k places, those of one expert behind each other. */
#ifndef INF_CUDA_EXPERTS_H
#define INF_CUDA_EXPERTS_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Places of one expert that are computed together: what a block of the products works on. */
enum { INF_CUDA_ITEM_ROWS = 32 };
typedef struct inf_cuda_item {
    int32_t expert, first, count; /* places first .. first + count - 1 */
} inf_cuda_item;

/* Items that so many places may come to: their number is known on the GPU alone, and grids, which a
 * recording keeps, are for as many. */
static inline int64_t inf_cuda_most_items(int64_t places, int32_t experts) {
    int64_t most = experts + places / INF_CUDA_ITEM_ROWS;
    return places < most ? places : most;
}

typedef struct inf_cuda_route {
    const void *x;       /* [rows, hidden] of act */
    const float *router; /* [experts + shared, hidden]; the last is the shared expert's gate */
    /* Of x, when it was not scaled yet (inf_cuda_small); NULL: it was. */
    const float *x_squares;
    float eps;
    float *logits;        /* [rows, experts + shared] */
    float *scale;         /* [rows]: what x lacks, 1 if nothing */
    int32_t *chosen;      /* [rows, top_k], the likeliest first, of equal ones the first */
    float *weight;        /* [rows, top_k] */
    int32_t *place;       /* [rows, top_k] */
    int32_t *source;      /* [places]: the row of each */
    inf_cuda_item *items; /* [n_items], at most inf_cuda_most_items */
    int32_t *n_items;
    int32_t act, rows, hidden, experts, shared, top_k;
    int32_t normalise;
} inf_cuda_route;
int inf_cuda_route_launch(const inf_cuda_route *p, inf_stream stream);

/* y[place, n] = w_e x[row of place], e the place's expert. gate: w_e is [2 n, k], gate rows first,
 * and y = silu(gate) * up of act; else y is f32. */
typedef struct inf_cuda_grouped {
    const void *x;         /* [*, k] of act */
    const void *const *w;  /* [experts], each [n, k] of act, or [2 n, k] */
    void *y;               /* [places, n] */
    const int32_t *source; /* row of x of a place; NULL: the place itself */
    const float *scale;    /* of a row of x, which sums are multiplied by; NULL: 1 */
    const inf_cuda_item *items;
    const int32_t *n_items;
    int32_t act, places, experts, n, k;
    int32_t gate;
    int32_t most; /* places of an item at most, where that is less than INF_CUDA_ITEM_ROWS */
} inf_cuda_grouped;
int inf_cuda_grouped_launch(const inf_cuda_grouped *p, inf_stream stream);

/* y[row] = sum over the row's experts of weight * out[place], the likeliest first,
 *          + sigmoid(the last of the row's logits) * shared[row] */
typedef struct inf_cuda_gather_experts {
    const float *out;    /* [places, hidden] */
    const void *shared;  /* [rows, hidden] of act, or NULL */
    const float *logits; /* [rows, experts + 1] where there is a shared expert */
    const float *weight;
    const int32_t *place;
    void *y; /* [rows, hidden] of act */
    int32_t act, rows, hidden, experts, top_k;
} inf_cuda_gather_experts;
int inf_cuda_gather_experts_launch(const inf_cuda_gather_experts *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
