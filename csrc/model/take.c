/* One tensor, or a piece of one, on its way in: into a vector, a matrix, or the stage of one. */
#include "model/weights_impl.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/pages.h"

int inf_take_vector(float **dst, int64_t total, int64_t at, int32_t ranks, const incoming *in) {
    if (*dst == NULL) {
        *dst = inf_pages_alloc((uint64_t)total * sizeof(float));
        if (*dst == NULL) {
            return INF_ENOMEM;
        }
    }
    int64_t n = in->cols / ranks;
    for (int32_t r = 0; r < ranks; r++) {
        const uint8_t *from =
            (const uint8_t *)in->data + (uint64_t)(r * n) * inf_dtype_bytes(in->dtype);
        inf_convert(*dst + r * (total / ranks) + at / ranks, INF_DTYPE_F32, from, in->dtype,
                    (uint64_t)n);
    }
    return INF_OK;
}

int inf_take_matrix(const inf_weights *w, void **dst, int32_t dtype, int32_t cut,
                    const incoming *in) {
    int32_t n = (int32_t)in->rows, k = (int32_t)in->cols;
    const void *src = in->data;
    void *copy = NULL;
    uint64_t elem = inf_dtype_bytes(in->dtype); /* 0: bytes */
    dtype = elem == 0 ? in->dtype : dtype;
    if (elem != 0 &&
        (uintptr_t)src % elem != 0) { /* files promise no alignment, the kernels want it */
        copy = inf_pages_alloc((uint64_t)n * (uint64_t)k * elem);
        if (copy == NULL) {
            return INF_ENOMEM;
        }
        memcpy(copy, src, (uint64_t)n * (uint64_t)k * elem);
        src = copy;
    }
    *dst = w->backend->ops->matrix(w->backend, dtype, src, in->dtype, n, k, cut);
    free(copy);
    return *dst != NULL ? INF_OK : INF_ENOMEM;
}
/* In front of what is gathered: the dtype of its first piece, which all have. */
typedef struct stage_head {
    _Alignas(64) int32_t dtype;
} stage_head;

int inf_take_piece(const inf_weights *w, const gathered *g, int64_t at, int last,
                   const incoming *in) {
    int32_t dtype = inf_dtype_group(in->dtype) != 0 ? in->dtype : g->dtype;
    uint64_t row = inf_row_bytes(dtype, in->cols);
    if (*g->stage == NULL) {
        *g->stage = inf_pages_alloc(sizeof(stage_head) + (uint64_t)g->total * row);
        if (*g->stage == NULL) {
            return INF_ENOMEM;
        }
        ((stage_head *)(void *)*g->stage)->dtype = dtype;
    }
    if (((stage_head *)(void *)*g->stage)->dtype != dtype) {
        return INF_EINVAL;
    }
    uint8_t *numbers = *g->stage + sizeof(stage_head);
    int64_t ranks = g->cut == INF_CUT_NONE ? 1 : w->backend->ranks, n = in->rows / ranks;
    for (int64_t r = 0; r < ranks; r++) {
        const uint8_t *from =
            (const uint8_t *)in->data + (uint64_t)(r * n) * inf_row_bytes(in->dtype, in->cols);
        uint8_t *to = numbers + (uint64_t)(r * (g->total / ranks) + at / ranks) * row;
        if (dtype == in->dtype) {
            memcpy(to, from, (uint64_t)n * row);
        } else {
            inf_convert(to, dtype, from, in->dtype, (uint64_t)n * (uint64_t)in->cols);
        }
    }
    if (!last) {
        return INF_OK;
    }
    incoming whole = {numbers, dtype, g->total, in->cols};
    int status = inf_take_matrix(w, g->matrix, g->becomes, g->cut, &whole);
    free(*g->stage);
    *g->stage = NULL;
    return status;
}
