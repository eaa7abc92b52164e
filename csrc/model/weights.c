/* Taking tensors in any order.
 *
 * Q, K and V are one matrix for one GEMM instead of three, and so are gate and up. Their pieces are
 * gathered row-major in a stage, which becomes the matrix when its last piece has come; a loader
 * that goes layer by layer therefore holds one stage at a time.
 *
 * Where the backend has several ranks, each gets the rows of Q, K, V, gate and up, and the columns
 * of o and down, that belong to its heads and its part of intermediate (model/weights.h), and a
 * share of the head's rows. A stage and a bias hold the ranks one behind the other: rank 0's Q, K
 * and V, then rank 1's, and so on. */
#include "model/weights_impl.h"

#include <stdlib.h>

#include "runtime/fail.h"
#include "runtime/pages.h"

int inf_weights_open(const inf_device_config *config, inf_backend *backend, inf_weights **out,
                     inf_err *err) {
    inf_weights *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the weights");
    }
    w->config = *config;
    w->backend = backend;
    w->layers = calloc((size_t)config->layers, sizeof(*w->layers));
    if (w->layers == NULL) {
        free(w);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the weights");
    }
    *out = w;
    return INF_OK;
}

/* Vectors and the embedding are host memory until weights_complete. */
static void drop(inf_weights *w, void *memory) {
    if (w->complete) {
        w->backend->ops->free(w->backend, memory);
    } else {
        free(memory);
    }
}

void inf_weights_close(inf_weights *w) {
    if (w == NULL) {
        return;
    }
    for (int32_t i = 0; i < w->config.layers; i++) {
        inf_layer *l = &w->layers[i];
        void *vectors[] = {l->attn_norm, l->mlp_norm, l->attn_post_norm, l->mlp_post_norm,
                           l->q_norm,    l->k_norm,   l->qkv_bias};
        void *matrices[] = {l->qkv, l->o, l->gate_up, l->down};
        for (size_t k = 0; k < sizeof vectors / sizeof *vectors; k++) {
            drop(w, vectors[k]);
        }
        for (size_t k = 0; k < sizeof matrices / sizeof *matrices; k++) {
            w->backend->ops->free(w->backend, matrices[k]);
        }
        free(l->qkv_stage);
        free(l->gate_up_stage);
        inf_drop_experts(w, l->experts);
    }
    if (w->lm_head != w->embed) {
        w->backend->ops->free(w->backend, w->lm_head);
    }
    drop(w, w->embed);
    drop(w, w->final_norm);
    free(w->layers);
    free(w);
}

static int take_matrix(const inf_weights *w, void **dst, int32_t cut, const incoming *in) {
    return inf_take_matrix(w, dst, inf_matrix_dtype(&w->config), cut, in);
}

/* Rows of Q, K and V, or of gate and up. */
static int take_piece(const inf_weights *w, uint8_t **stage, void **dst, int64_t total, int64_t at,
                      int last, const incoming *in) {
    gathered g = {stage, dst, total, w->config.dtype, inf_matrix_dtype(&w->config), INF_CUT_ROWS};
    return inf_take_piece(w, &g, at, last, in);
}

/* Numbers of a layer's norm of q or, with `k`, of k. */
static int64_t qk_norm_size(const inf_device_config *c, int k) {
    int all = (c->model_flags & INF_MODEL_QK_NORM_ALL) != 0;
    return (int64_t)c->head_dim * (all ? k ? c->kv_heads : c->heads : 1);
}

/* The shape a role has in this model; 0 when the model has no such tensor. */
static int role_shape(const inf_device_config *c, int32_t role, int64_t *rows, int64_t *cols) {
    if (is_of_experts(role)) {
        return inf_expert_shape(c, role, rows, cols);
    }
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    int bias = (c->model_flags & INF_MODEL_QKV_BIAS) != 0;
    int norm = (c->model_flags & INF_MODEL_QK_NORM) != 0;
    switch (role) {
    case INF_ROLE_ATTN_NORM:
    case INF_ROLE_MLP_NORM:
        *rows = 1, *cols = c->hidden;
        return (c->model_flags & INF_MODEL_NO_PRE_NORMS) == 0;
    case INF_ROLE_ATTN_POST_NORM:
    case INF_ROLE_MLP_POST_NORM:
        *rows = 1, *cols = c->hidden;
        return (c->model_flags & INF_MODEL_POST_NORMS) != 0;
    case INF_ROLE_LM_HEAD:
        *rows = c->vocab, *cols = c->hidden;
        return (c->model_flags & INF_MODEL_TIED) == 0;
    case INF_ROLE_EMBED:
        *rows = c->vocab, *cols = c->hidden;
        return 1;
    case INF_ROLE_FINAL_NORM:
        *rows = 1, *cols = c->hidden;
        return 1;
    case INF_ROLE_Q:
        *rows = q, *cols = c->hidden;
        return 1;
    case INF_ROLE_K:
    case INF_ROLE_V:
        *rows = kv, *cols = c->hidden;
        return 1;
    case INF_ROLE_Q_BIAS:
        *rows = 1, *cols = q;
        return bias;
    case INF_ROLE_K_BIAS:
    case INF_ROLE_V_BIAS:
        *rows = 1, *cols = kv;
        return bias;
    case INF_ROLE_Q_NORM:
    case INF_ROLE_K_NORM:
        *rows = 1, *cols = qk_norm_size(c, role == INF_ROLE_K_NORM);
        return norm;
    case INF_ROLE_O:
        *rows = c->hidden, *cols = q;
        return 1;
    case INF_ROLE_GATE:
    case INF_ROLE_UP:
        *rows = c->intermediate, *cols = c->hidden;
        return 1;
    case INF_ROLE_DOWN:
        *rows = c->hidden, *cols = c->intermediate;
        return 1;
    default:
        return 0;
    }
}

static int take_outer(inf_weights *w, int32_t role, const incoming *in) {
    switch (role) {
    case INF_ROLE_FINAL_NORM:
        return inf_take_vector(&w->final_norm, in->cols, 0, 1, in);
    case INF_ROLE_LM_HEAD:
        return inf_take_matrix(w, &w->lm_head, inf_head_dtype(&w->config), INF_CUT_SHARES, in);
    default: { /* the lookup table stays row-major; the tied head is a copy of it, if it must be one
                */
        uint64_t n = (uint64_t)in->rows * (uint64_t)in->cols;
        w->embed = inf_pages_alloc(n * inf_dtype_bytes(w->config.dtype));
        if (w->embed == NULL) {
            return INF_ENOMEM;
        }
        inf_convert(w->embed, w->config.dtype, in->data, in->dtype, n);
        return (w->config.model_flags & INF_MODEL_TIED) != 0 && !w->backend->plain_matrix
                   ? inf_take_matrix(w, &w->lm_head, inf_head_dtype(&w->config), INF_CUT_SHARES, in)
                   : INF_OK;
    }
    }
}

static int take_layer(const inf_weights *w, inf_layer *l, int32_t role, const incoming *in) {
    const inf_device_config *c = &w->config;
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    uint32_t have = l->loaded | layer_bit(role);
    uint32_t qkv = layer_bit(INF_ROLE_Q) | layer_bit(INF_ROLE_K) | layer_bit(INF_ROLE_V);
    uint32_t gate_up = layer_bit(INF_ROLE_GATE) | layer_bit(INF_ROLE_UP);
    int64_t at = 0;
    switch (role) {
    case INF_ROLE_ATTN_NORM:
        return inf_take_vector(&l->attn_norm, in->cols, 0, 1, in);
    case INF_ROLE_MLP_NORM:
        return inf_take_vector(&l->mlp_norm, in->cols, 0, 1, in);
    case INF_ROLE_ATTN_POST_NORM:
        return inf_take_vector(&l->attn_post_norm, in->cols, 0, 1, in);
    case INF_ROLE_MLP_POST_NORM:
        return inf_take_vector(&l->mlp_post_norm, in->cols, 0, 1, in);
    case INF_ROLE_Q_NORM:
        return inf_take_vector(&l->q_norm, in->cols, 0, 1, in);
    case INF_ROLE_K_NORM:
        return inf_take_vector(&l->k_norm, in->cols, 0, 1, in);
    case INF_ROLE_Q_BIAS:
    case INF_ROLE_K_BIAS:
    case INF_ROLE_V_BIAS:
        at = role == INF_ROLE_Q_BIAS ? 0 : role == INF_ROLE_K_BIAS ? q : q + kv;
        return inf_take_vector((float **)&l->qkv_bias, q + 2 * kv, at, w->backend->ranks, in);
    case INF_ROLE_Q:
    case INF_ROLE_K:
    case INF_ROLE_V:
        at = role == INF_ROLE_Q ? 0 : role == INF_ROLE_K ? q : q + kv;
        return take_piece(w, &l->qkv_stage, &l->qkv, q + 2 * kv, at, (have & qkv) == qkv, in);
    case INF_ROLE_GATE:
    case INF_ROLE_UP:
        at = role == INF_ROLE_GATE ? 0 : c->intermediate;
        return take_piece(w, &l->gate_up_stage, &l->gate_up, 2 * (int64_t)c->intermediate, at,
                          (have & gate_up) == gate_up, in);
    case INF_ROLE_O:
        return take_matrix(w, &l->o, INF_CUT_COLUMNS, in);
    default:
        return take_matrix(w, &l->down, INF_CUT_COLUMNS, in);
    }
}

/* Whether a layer can have this tensor: it has an MLP or experts, as the first tensor of either
 * says. */
static int check_layer(const inf_layer *l, int32_t role, int32_t layer, int32_t expert,
                       inf_err *err) {
    uint32_t mlp = layer_bit(INF_ROLE_GATE) | layer_bit(INF_ROLE_UP) | layer_bit(INF_ROLE_DOWN);
    if (is_of_experts(role) ? (l->loaded & mlp) != 0
                            : (layer_bit(role) & mlp) != 0 && l->experts != NULL) {
        return inf_fail(err, INF_EINVAL, -1, layer,
                        "role %d: layer %d cannot have both an MLP and experts", role, layer);
    }
    if ((l->loaded & layer_bit(role)) != 0 ||
        (is_of_one_expert(role) && inf_expert_came(l, role, expert))) {
        return inf_fail(err, INF_EINVAL, -1, layer, "role %d was loaded before", role);
    }
    return INF_OK;
}

/* Whether the tensor can be of this layer and expert. */
static int check_place(const inf_weights *w, int32_t role, int32_t layer, int32_t expert,
                       inf_err *err) {
    int outer = role < INF_ROLE_ATTN_NORM;
    if (outer ? layer != -1 : (layer < 0 || layer >= w->config.layers)) {
        return inf_fail(err, INF_EINVAL, -1, layer, "role %d cannot be in layer %d", role, layer);
    }
    if (is_of_one_expert(role) ? (expert < 0 || expert >= w->config.experts) : expert != -1) {
        return inf_fail(err, INF_EINVAL, -1, layer, "role %d cannot be of expert %d", role, expert);
    }
    if (!outer) {
        return check_layer(&w->layers[layer], role, layer, expert, err);
    }
    return (w->loaded & (1u << role)) == 0
               ? INF_OK
               : inf_fail(err, INF_EINVAL, -1, layer, "role %d was loaded before", role);
}

/* Bytes of a row of a tensor of this role; 0: none comes so. I8 and E4M3 are no tensor's, and I4 is
 * that of matrices, on the CPU, and cut between groups. */
static uint64_t row_bytes(const inf_weights *w, int32_t role, int32_t dtype, int64_t cols) {
    int32_t group = inf_dtype_group(dtype);
    int columns = role == INF_ROLE_O || role == INF_ROLE_DOWN || role == INF_ROLE_EXPERT_DOWN ||
                  role == INF_ROLE_SHARED_DOWN;
    int matrix = columns || role == INF_ROLE_LM_HEAD || role == INF_ROLE_GATE ||
                 role == INF_ROLE_UP || (role >= INF_ROLE_Q && role <= INF_ROLE_V) ||
                 (role >= INF_ROLE_EXPERT_GATE && role <= INF_ROLE_SHARED_UP);
    if (dtype == INF_DTYPE_E4M3 ||
        (group != 0 && (!matrix || w->config.gpu > 0 ||
                        cols % (group * (columns ? w->backend->ranks : 1)) != 0))) {
        return 0;
    }
    return inf_row_bytes(dtype, cols);
}

int inf_weights_load(inf_weights *w, int32_t role, int32_t layer, int32_t expert, int32_t dtype,
                     int64_t rows, int64_t cols, const void *data, uint64_t bytes, inf_err *err) {
    int64_t want_rows = 0, want_cols = 0;
    if (!role_shape(&w->config, role, &want_rows, &want_cols)) {
        return inf_fail(err, INF_EINVAL, -1, layer, "this model has no tensor of role %d", role);
    }
    int status = check_place(w, role, layer, expert, err);
    if (status != INF_OK) {
        return status;
    }
    uint64_t row = row_bytes(w, role, dtype, want_cols);
    if (rows != want_rows || cols != want_cols || row == 0) {
        return inf_fail(
            err, INF_EINVAL, -1, layer,
            "role %d must be [%lld, %lld] of F32, F16, BF16 or, a matrix on the CPU whose ranks' "
            "inputs are multiples of a group, I4, not [%lld, %lld] of dtype %d",
            role, (long long)want_rows, (long long)want_cols, (long long)rows, (long long)cols,
            dtype);
    }
    if (data == NULL || bytes != (uint64_t)rows * row) {
        return inf_fail(err, INF_EINVAL, -1, layer, "role %d: %llu bytes do not match its shape",
                        role, (unsigned long long)bytes);
    }
    incoming in = {data, dtype, rows, cols};
    int outer = role < INF_ROLE_ATTN_NORM;
    status = outer                 ? take_outer(w, role, &in)
             : is_of_experts(role) ? inf_take_expert(w, &w->layers[layer], role, expert, &in)
                                   : take_layer(w, &w->layers[layer], role, &in);
    if (status != INF_OK) {
        return inf_fail(err, status, -1, layer,
                        status == INF_EINVAL
                            ? "role %d: the tensors that it is one product with have another dtype"
                            : "cannot allocate memory for role %d",
                        role);
    }
    if (outer) {
        w->loaded |= 1u << role;
    } else if (!is_of_one_expert(role)) {
        w->layers[layer].loaded |= layer_bit(role);
    }
    return INF_OK;
}

static int all_came(const inf_weights *w, inf_err *err) {
    int64_t rows, cols;
    for (int32_t role = INF_ROLE_EMBED; role <= INF_ROLE_LM_HEAD; role++) {
        if (role_shape(&w->config, role, &rows, &cols) && (w->loaded & (1u << role)) == 0) {
            return inf_fail(err, INF_EINVAL, -1, -1, "the tensor of role %d was not loaded", role);
        }
    }
    for (int32_t i = 0; i < w->config.layers; i++) {
        const inf_layer *l = &w->layers[i];
        for (int32_t role = INF_ROLE_ATTN_NORM; role <= INF_ROLE_LAST; role++) {
            int here = l->experts != NULL ? role < INF_ROLE_GATE || role > INF_ROLE_DOWN
                                          : !is_of_experts(role);
            if (here && role_shape(&w->config, role, &rows, &cols) &&
                (l->loaded & layer_bit(role)) == 0) {
                return inf_fail(err, INF_EINVAL, -1, i,
                                "the tensor of role %d in layer %d was not loaded", role, i);
            }
        }
    }
    return INF_OK;
}

/* Hands a vector of n numbers to the device, in another format if need be. After a failure the
 * others are freed, so that nothing stays behind in host memory. */
static void give(inf_weights *w, void **vector, int64_t n, int32_t dtype, int32_t cut,
                 int *status) {
    void *host = *vector;
    *vector = NULL;
    if (host == NULL || *status != INF_OK) {
        free(host);
        return;
    }
    uint64_t bytes = (uint64_t)n * inf_dtype_bytes(dtype);
    if (dtype != INF_DTYPE_F32) {
        void *narrow = inf_pages_alloc(bytes);
        if (narrow != NULL) {
            inf_convert(narrow, dtype, host, INF_DTYPE_F32, (uint64_t)n);
        }
        free(host);
        host = narrow;
    }
    *vector = host != NULL ? w->backend->ops->adopt(w->backend, host, bytes, cut) : NULL;
    *status = *vector != NULL ? INF_OK : INF_ENOMEM;
}

int inf_weights_complete(inf_weights *w, inf_err *err) {
    if (w->complete) { /* a second try, after something else failed */
        return w->embed != NULL ? INF_OK
                                : inf_fail(err, INF_ENOMEM, -1, -1, "the weights were lost");
    }
    int status = all_came(w, err);
    if (status != INF_OK) {
        return status;
    }
    const inf_device_config *c = &w->config;
    int64_t qkv = (int64_t)(c->heads + 2 * c->kv_heads) * c->head_dim;
    give(w, (void **)&w->final_norm, c->hidden, INF_DTYPE_F32, INF_CUT_NONE, &status);
    for (int32_t i = 0; i < c->layers; i++) {
        inf_layer *l = &w->layers[i];
        give(w, (void **)&l->attn_norm, c->hidden, INF_DTYPE_F32, INF_CUT_NONE, &status);
        give(w, (void **)&l->mlp_norm, c->hidden, INF_DTYPE_F32, INF_CUT_NONE, &status);
        give(w, (void **)&l->attn_post_norm, c->hidden, INF_DTYPE_F32, INF_CUT_NONE, &status);
        give(w, (void **)&l->mlp_post_norm, c->hidden, INF_DTYPE_F32, INF_CUT_NONE, &status);
        give(w, (void **)&l->q_norm, qk_norm_size(c, 0), INF_DTYPE_F32, INF_CUT_NONE, &status);
        give(w, (void **)&l->k_norm, qk_norm_size(c, 1), INF_DTYPE_F32, INF_CUT_NONE, &status);
        give(w, &l->qkv_bias, qkv, w->backend->act, INF_CUT_ROWS, &status);
        if (l->experts != NULL && status == INF_OK) {
            status = inf_complete_experts(w, l->experts);
        }
    }
    void *host = w->embed;
    w->embed = NULL;
    if (status == INF_OK) {
        uint64_t bytes = (uint64_t)c->vocab * (uint64_t)c->hidden * inf_dtype_bytes(c->dtype);
        w->embed = w->backend->ops->adopt(w->backend, host, bytes, INF_CUT_NONE);
        status = w->embed != NULL ? INF_OK : INF_ENOMEM;
    } else {
        free(host);
    }
    if ((c->model_flags & INF_MODEL_TIED) != 0 && w->backend->plain_matrix) {
        w->lm_head = w->embed;
    }
    w->complete = 1;
    return status == INF_OK
               ? INF_OK
               : inf_fail(err, status, -1, -1, "the device has no room for the weights");
}
