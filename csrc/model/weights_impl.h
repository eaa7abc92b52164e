/* The inside of loading: what weights.c, take.c and expert_weights.c share. */
#ifndef INF_MODEL_WEIGHTS_IMPL_H
#define INF_MODEL_WEIGHTS_IMPL_H

#include "model/weights.h"

/* A tensor on its way in. */
typedef struct incoming {
    const void *data;
    int32_t dtype;
    int64_t rows, cols;
} incoming;

/* A matrix that comes in pieces: where they are gathered, row-major in dtype, and what is made of
 * it when the last has come. */
typedef struct gathered {
    uint8_t **stage;
    void **matrix;
    int64_t total;   /* rows of them all */
    int32_t dtype;   /* of the stage */
    int32_t becomes; /* of the matrix */
    int32_t cut;     /* ROWS or NONE */
} gathered;

/* One vector, or a part of one that ranks share, into f32 at *dst [total]: of every rank's share of
 * total from index at / ranks on. */
int inf_take_vector(float **dst, int64_t total, int64_t at, int32_t ranks, const incoming *in);

/* A whole matrix into *dst. */
int inf_take_matrix(const inf_weights *w, void **dst, int32_t dtype, int32_t cut,
                    const incoming *in);

/* A piece, of every rank's share of the rows from row at / ranks on. */
int inf_take_piece(const inf_weights *w, const gathered *g, int64_t at, int last,
                   const incoming *in);

/* ---- expert_weights.c ---- */

static inline uint32_t layer_bit(int32_t role) { return 1u << (role - INF_ROLE_ATTN_NORM); }

static inline int is_of_experts(int32_t role) {
    return role >= INF_ROLE_ROUTER && role <= INF_ROLE_SHARED_ROUTER;
}
static inline int is_of_one_expert(int32_t role) {
    return role >= INF_ROLE_EXPERT_GATE && role <= INF_ROLE_EXPERT_DOWN;
}

/* As role_shape in weights.c, for roles of experts. */
int inf_expert_shape(const inf_device_config *c, int32_t role, int64_t *rows, int64_t *cols);

/* Takes a checked tensor of a layer's experts, the expert-th's or expert -1; notes it as loaded. */
int inf_take_expert(const inf_weights *w, inf_layer *l, int32_t role, int32_t expert,
                    const incoming *in);

/* 1: it came before. */
int inf_expert_came(const inf_layer *l, int32_t role, int32_t expert);

/* The lists of a layer's experts, which all came. */
int inf_complete_experts(const inf_weights *w, inf_expert_weights *e);

void inf_drop_experts(const inf_weights *w, inf_expert_weights *e);

#endif
