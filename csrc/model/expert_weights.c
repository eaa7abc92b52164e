/* Taking the tensors of experts, in any order.
 *
 * An expert's gate and up are one matrix, gathered as those of an MLP are (weights.c), and so are
 * the router and the shared expert's gate of one row, which is one more output of the router.
 * Nobody's choice should depend on how matrices are rounded, so the router stays in F32. */
#include <stdlib.h>

#include "model/weights_impl.h"

int inf_expert_shape(const inf_device_config *c, int32_t role, int64_t *rows, int64_t *cols) {
    int shared = c->shared_intermediate > 0;
    if (c->experts == 0) {
        return 0;
    }
    switch (role) {
    case INF_ROLE_ROUTER:
        *rows = c->experts, *cols = c->hidden;
        return 1;
    case INF_ROLE_EXPERT_GATE:
    case INF_ROLE_EXPERT_UP:
        *rows = c->expert_intermediate, *cols = c->hidden;
        return 1;
    case INF_ROLE_EXPERT_DOWN:
        *rows = c->hidden, *cols = c->expert_intermediate;
        return 1;
    case INF_ROLE_SHARED_GATE:
    case INF_ROLE_SHARED_UP:
        *rows = c->shared_intermediate, *cols = c->hidden;
        return shared;
    case INF_ROLE_SHARED_DOWN:
        *rows = c->hidden, *cols = c->shared_intermediate;
        return shared;
    case INF_ROLE_SHARED_ROUTER:
        *rows = 1, *cols = c->hidden;
        return shared;
    default:
        return 0;
    }
}

static uint8_t expert_bit(int32_t role) { return (uint8_t)(1u << (role - INF_ROLE_EXPERT_GATE)); }

int inf_expert_came(const inf_layer *l, int32_t role, int32_t expert) {
    return l->experts != NULL && (l->experts->came[expert] & expert_bit(role)) != 0;
}

static inf_expert_weights *open_experts(int32_t n) {
    inf_expert_weights *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return NULL;
    }
    e->gate_up = calloc((size_t)n, sizeof *e->gate_up);
    e->down = calloc((size_t)n, sizeof *e->down);
    e->stage = calloc((size_t)n, sizeof *e->stage);
    e->came = calloc((size_t)n, sizeof *e->came);
    if (e->gate_up == NULL || e->down == NULL || e->stage == NULL || e->came == NULL) {
        free(e->gate_up);
        free(e->down);
        free(e->stage);
        free(e->came);
        free(e);
        return NULL;
    }
    return e;
}

void inf_drop_experts(const inf_weights *w, inf_expert_weights *e) {
    if (e == NULL) {
        return;
    }
    void (*drop)(inf_backend *, void *) = w->backend->ops->free;
    void *matrices[] = {e->router, e->gate_up_list, e->down_list, e->shared_gate_up,
                        e->shared_down};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        drop(w->backend, matrices[i]);
    }
    for (int32_t i = 0; i < w->config.experts; i++) {
        drop(w->backend, e->gate_up[i]);
        drop(w->backend, e->down[i]);
        free(e->stage[i]);
    }
    free(e->gate_up);
    free(e->down);
    free(e->stage);
    free(e->came);
    free(e->router_stage);
    free(e->shared_stage);
    free(e);
}

/* A tensor of one expert; the role counts as loaded for the layer when all experts have it. */
static int take_one(const inf_weights *w, inf_layer *l, int32_t role, int32_t expert,
                    const incoming *in) {
    const inf_device_config *c = &w->config;
    inf_expert_weights *e = l->experts;
    int32_t dtype = inf_matrix_dtype(c), inner = c->expert_intermediate;
    int status;
    if (role == INF_ROLE_EXPERT_DOWN) {
        status = inf_take_matrix(w, &e->down[expert], dtype, INF_CUT_COLUMNS, in);
    } else {
        uint8_t both = expert_bit(INF_ROLE_EXPERT_GATE) | expert_bit(INF_ROLE_EXPERT_UP);
        int last = ((e->came[expert] | expert_bit(role)) & both) == both;
        gathered g = {&e->stage[expert], &e->gate_up[expert], 2 * (int64_t)inner, c->dtype, dtype,
                      INF_CUT_ROWS};
        status = inf_take_piece(w, &g, role == INF_ROLE_EXPERT_GATE ? 0 : inner, last, in);
    }
    if (status != INF_OK) {
        return status;
    }
    e->came[expert] |= expert_bit(role);
    int all = 1;
    for (int32_t i = 0; all && i < c->experts; i++) {
        all = (e->came[i] & expert_bit(role)) != 0;
    }
    l->loaded |= all ? layer_bit(role) : 0;
    return INF_OK;
}

int inf_take_expert(const inf_weights *w, inf_layer *l, int32_t role, int32_t expert,
                    const incoming *in) {
    const inf_device_config *c = &w->config;
    if (l->experts == NULL && (l->experts = open_experts(c->experts)) == NULL) {
        return INF_ENOMEM;
    }
    inf_expert_weights *e = l->experts;
    int shared = c->shared_intermediate > 0,
        of_router = role == INF_ROLE_ROUTER || role == INF_ROLE_SHARED_ROUTER;
    int32_t few = inf_dtype_group(in->dtype) != 0 ? in->dtype : INF_DTYPE_F32;
    if (!of_router && e->dtype != 0 && e->dtype != few) {
        return INF_EINVAL; /* products of all experts are one */
    }
    e->dtype = of_router ? e->dtype : few;
    uint32_t have = l->loaded | layer_bit(role);
    uint32_t router = layer_bit(INF_ROLE_ROUTER) | (shared ? layer_bit(INF_ROLE_SHARED_ROUTER) : 0);
    uint32_t gate_up = layer_bit(INF_ROLE_SHARED_GATE) | layer_bit(INF_ROLE_SHARED_UP);
    gathered routers = {&e->router_stage, &e->router,    c->experts + shared,
                        INF_DTYPE_F32,    INF_DTYPE_F32, INF_CUT_NONE};
    gathered gates = {&e->shared_stage, &e->shared_gate_up,  2 * (int64_t)c->shared_intermediate,
                      c->dtype,         inf_matrix_dtype(c), INF_CUT_ROWS};
    switch (role) {
    case INF_ROLE_ROUTER:
    case INF_ROLE_SHARED_ROUTER:
        return inf_take_piece(w, &routers, role == INF_ROLE_ROUTER ? 0 : c->experts,
                              (have & router) == router, in);
    case INF_ROLE_SHARED_GATE:
    case INF_ROLE_SHARED_UP:
        return inf_take_piece(w, &gates, role == INF_ROLE_SHARED_GATE ? 0 : c->shared_intermediate,
                              (have & gate_up) == gate_up, in);
    case INF_ROLE_SHARED_DOWN:
        return inf_take_matrix(w, &e->shared_down, inf_matrix_dtype(c), INF_CUT_COLUMNS, in);
    default:
        return take_one(w, l, role, expert, in);
    }
}

int inf_complete_experts(const inf_weights *w, inf_expert_weights *e) {
    const inf_backend_ops *ops = w->backend->ops;
    e->gate_up_list = ops->list(w->backend, e->gate_up, w->config.experts);
    e->down_list = ops->list(w->backend, e->down, w->config.experts);
    return e->gate_up_list != NULL && e->down_list != NULL ? INF_OK : INF_ENOMEM;
}
