/* A lane of the CPU backend: what its step and its answers share. */
#ifndef INF_CPU_LANE_H
#define INF_CPU_LANE_H

#include "kernels/cpu/cpu.h"

struct inf_lane {
    cpu_backend *backend;
    const inf_ops *ops;
    inf_pool *threads;
    inf_device_config dims;
    inf_kv_shape kv;
    uint8_t *pool;
    int32_t *windows; /* [layers] */
    float *inv_freq;  /* [head_dim / 2] */
    float scale;
    int32_t q_dim, kv_dim, qkv_dim;

    uint32_t *position;     /* [max_rows] of each token */
    float *cos, *sin;       /* [max_rows, head_dim / 2] */
    inf_attn *attn;         /* [max_segments] */
    float *o2, *lse2;       /* answer: [max_rows, heads, head_dim], [max_rows, heads] */
    float **to_o, **to_lse; /* answer: [max_segments], where attn's partials belong */
    int32_t max_rows;
    float *lse;                             /* attend: [max_rows, heads] */
    float *o;                               /* attend's output, for merge */
    const inf_step_buffers *whole, *halves; /* as begin took them */
    const inf_step_buffers *step;           /* what operations are on: whole, or one of halves */
    int64_t row0;                           /* its first row in whole */
    const void *table;                      /* embed's, during it */
    float *x;
};

/* As in inf_backend_ops. */
int inf_cpu_lane_open(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err);
void inf_cpu_lane_close(inf_lane *l);
int inf_cpu_answer(inf_lane *l, const inf_attn *args, int32_t n, inf_err *err);

#endif
