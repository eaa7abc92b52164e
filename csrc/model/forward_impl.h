/* The inside of a forward pass: what forward.c and layers.c share. */
#ifndef INF_MODEL_FORWARD_IMPL_H
#define INF_MODEL_FORWARD_IMPL_H

#include "model/forward.h"
#include "model/halves.h"

/* Rows of logits computed at once: memory is so many times vocab floats however many rows a step
 * asks. */
enum { MOST_LOGIT_ROWS = 128 };

struct inf_forward {
    inf_forward_config c;
    const inf_backend_ops *ops;
    inf_lane *lane;
    inf_device_config dims;
    int32_t q_dim, qkv_dim, inner; /* a rank's share of heads and intermediate */
    /* device memory, of each rank; T = max_tokens */
    float *x;      /* [T, hidden] residual stream */
    void *h;       /* [T, hidden] normed input, or a block's output before it is added to x */
    void *qkv;     /* [T, qkv_dim] */
    void *q;       /* [T, q_dim]: the rank's heads */
    void *o;       /* [T, q_dim] */
    void *gu;      /* [T, 2 * inner] gate | up */
    void *act;     /* [T, inner] */
    void *rows;    /* [logit_rows, hidden] */
    float *logits; /* [logit_rows, vocab] */
    uint32_t logit_rows;
    /* host memory, where sampling is done on the CPU */
    float *host_logits;           /* [logit_rows, vocab]; may be logits */
    inf_sample_scratch *samplers; /* [threads] */
    int32_t row_status[MOST_LOGIT_ROWS];
    int holds;                    /* the last row that was sampled is of its request's text */
    const inf_step_buffers *step; /* during inf_forward_step */
    uint32_t first_row;           /* of the chunk of logits in work */
    inf_halves halves;
    const inf_step_buffers *part; /* that operations are on: the step, or a half of it */
    int32_t n_rows;               /* its rows */
    int waves;                    /* some request of the step is of a wave (dist/waves.c) */
    int32_t asked[INF_HALVES];    /* creditors of its layer under way, by half */
    int32_t unposted;             /* the half whose messages wait for their queries, or INF_WHOLE */
};

/* From the tokens' embeddings to the last layer's output, in x. halved: begin was given halves. */
void inf_forward_layers(inf_forward *f, int halved);

#endif
