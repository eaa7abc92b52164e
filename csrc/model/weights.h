/* The weights of a model as the forward pass wants them: matrices packed for inf_ops.gemm, Q, K and
 * V as one matrix and gate and up as another, norms and biases in f32. */
#ifndef INF_MODEL_WEIGHTS_H
#define INF_MODEL_WEIGHTS_H

#include "infinite/device.h"
#include "kernels/kernels.h"

typedef struct inf_layer {
    float *attn_norm, *mlp_norm; /* [hidden] */
    float *q_norm, *k_norm;      /* [head_dim], NULL without INF_MODEL_QK_NORM */
    float *qkv_bias;             /* [(heads + 2 kv_heads) * head_dim], NULL without bias */
    void *qkv;                   /* packed [(heads + 2 kv_heads) * head_dim, hidden] */
    void *o;                     /* packed [hidden, heads * head_dim] */
    void *gate_up;               /* packed [2 * intermediate, hidden], gate first */
    void *down;                  /* packed [hidden, intermediate] */
    uint8_t *qkv_stage;          /* row-major while Q, K and V arrive, then NULL */
    uint8_t *gate_up_stage;
    uint32_t loaded; /* bit (role - INF_ROLE_ATTN_NORM) */
} inf_layer;

typedef struct inf_weights {
    inf_device_config config;
    const inf_ops *ops;
    uint8_t *embed;    /* [vocab, hidden] row-major in config.dtype */
    void *lm_head;     /* packed [vocab, hidden] */
    float *final_norm; /* [hidden] */
    inf_layer *layers;
    uint32_t loaded; /* bit (role) of the tensors outside the layers */
} inf_weights;

int inf_weights_open(const inf_device_config *config, const inf_ops *ops, inf_weights **out,
                     inf_err *err);

/* As inf_device_load. */
int inf_weights_load(inf_weights *weights, int32_t role, int32_t layer, int32_t dtype, int64_t rows,
                     int64_t cols, const void *data, uint64_t bytes, inf_err *err);

/* INF_OK when every tensor came, else INF_EINVAL and the first that did not. */
int inf_weights_complete(const inf_weights *weights, inf_err *err);

void inf_weights_close(inf_weights *weights);

/* Bytes of one number, 0 for an unknown dtype. */
uint64_t inf_dtype_bytes(int32_t dtype);

/* dst[n] = src[n] in another dtype; dst is F32 or BF16 (round to nearest even). src need not be
 * aligned. */
void inf_convert(void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, uint64_t n);

#endif
