/* The weights of a model as the forward pass wants them, in the backend's memory: matrices for
 * product, Q, K and V as one and gate and up as another, norms in f32, biases in the format of
 * activations. Matrices and vectors have the shapes below whatever ranks the backend has: it cuts
 * qkv, its bias and gate_up by rows, o and down by columns, also those of experts, and the head by
 * shares of the vocabulary; each rank has the whole router. */
#ifndef INF_MODEL_WEIGHTS_H
#define INF_MODEL_WEIGHTS_H

#include "infinite/device.h"
#include "kernels/backend.h"
#include "kernels/convert.h"

typedef struct inf_layer {
    float *attn_norm, *mlp_norm;           /* [hidden], NULL with INF_MODEL_NO_PRE_NORMS */
    float *attn_post_norm, *mlp_post_norm; /* [hidden], NULL without INF_MODEL_POST_NORMS */
    float *q_norm, *k_norm; /* NULL without INF_MODEL_QK_NORM; [head_dim], or of all heads */
    void *qkv_bias; /* [(heads + 2 kv_heads) * head_dim], NULL without bias; of act once complete */
    void *qkv;      /* [(heads + 2 kv_heads) * head_dim, hidden] */
    void *o;        /* [hidden, heads * head_dim] */
    void *gate_up;  /* [2 * intermediate, hidden], gate first */
    void *down;     /* [hidden, intermediate] */
    uint8_t *qkv_stage; /* row-major while Q, K and V arrive, then NULL */
    uint8_t *gate_up_stage;
    uint32_t loaded; /* bit (role - INF_ROLE_ATTN_NORM); those of experts when all of them came */
    struct inf_expert_weights *experts; /* NULL: the layer has none, but gate_up and down */
} inf_layer;

/* A layer's experts; what stands for [experts] tensors is by expert. */
typedef struct inf_expert_weights {
    void *router;           /* [experts (+ 1), hidden] in F32, as inf_experts has it */
    void **gate_up, **down; /* [experts] matrices, [2 * expert_intermediate, hidden], gate first,
                             * and [hidden, expert_intermediate] */
    void *gate_up_list, *down_list;                /* of the backend's list, once complete */
    void *shared_gate_up, *shared_down;            /* NULL where there is no shared expert */
    uint8_t *router_stage, *shared_stage, **stage; /* while pieces arrive, as above */
    int32_t dtype; /* of few bits, or F32 for any other, that experts came in; 0: none came yet */
    uint8_t *came; /* [experts], bit (role - INF_ROLE_EXPERT_GATE) */
} inf_expert_weights;

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

/* As inf_device_load_expert, with -1 for the tensors that are of no expert. */
int inf_weights_load(inf_weights *weights, int32_t role, int32_t layer, int32_t expert,
                     int32_t dtype, int64_t rows, int64_t cols, const void *data, uint64_t bytes,
                     inf_err *err);

/* Brings what is still in host memory to the device, once every tensor came. INF_EINVAL and the
 * first that did not come; INF_ENOMEM. */
int inf_weights_complete(inf_weights *weights, inf_err *err);

void inf_weights_close(inf_weights *weights);

#endif
