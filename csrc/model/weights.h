/* The weights of a model as the forward pass wants them, in the backend's memory: matrices for
 * product, Q, K and V as one and gate and up as another, norms in f32, biases in the format of
 * activations. Matrices and vectors have the shapes below whatever ranks the backend has: it cuts
 * qkv, its bias and gate_up by rows, o and down by columns, and the head by shares of the
 * vocabulary. */
#ifndef INF_MODEL_WEIGHTS_H
#define INF_MODEL_WEIGHTS_H

#include "infinite/device.h"
#include "kernels/backend.h"
#include "kernels/convert.h"

typedef struct inf_layer {
    float *attn_norm, *mlp_norm; /* [hidden] */
    float *q_norm, *k_norm;      /* [head_dim], NULL without INF_MODEL_QK_NORM */
    void *qkv_bias; /* [(heads + 2 kv_heads) * head_dim], NULL without bias; of act once complete */
    void *qkv;      /* [(heads + 2 kv_heads) * head_dim, hidden] */
    void *o;        /* [hidden, heads * head_dim] */
    void *gate_up;  /* [2 * intermediate, hidden], gate first */
    void *down;     /* [hidden, intermediate] */
    uint8_t *qkv_stage; /* row-major while Q, K and V arrive, then NULL */
    uint8_t *gate_up_stage;
    uint32_t loaded; /* bit (role - INF_ROLE_ATTN_NORM) */
} inf_layer;

typedef struct inf_weights {
    inf_device_config config;
    inf_backend *backend;
    uint8_t *embed;    /* [vocab, hidden] row-major in config.dtype */
    void *lm_head;     /* [vocab, hidden]; may be embed */
    float *final_norm; /* [hidden] */
    inf_layer *layers;
    uint32_t loaded; /* bit (role) of the tensors outside the layers */
    int complete;    /* vectors and embed are the device's */
} inf_weights;

int inf_weights_open(const inf_device_config *config, inf_backend *backend, inf_weights **out,
                     inf_err *err);

/* As inf_device_load. */
int inf_weights_load(inf_weights *weights, int32_t role, int32_t layer, int32_t dtype, int64_t rows,
                     int64_t cols, const void *data, uint64_t bytes, inf_err *err);

/* Brings what is still in host memory to the device, once every tensor came. INF_EINVAL and the
 * first that did not come; INF_ENOMEM. */
int inf_weights_complete(inf_weights *weights, inf_err *err);

void inf_weights_close(inf_weights *weights);

#endif
