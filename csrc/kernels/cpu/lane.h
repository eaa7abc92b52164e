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
    float *inv_freq;  /* [ropes, rotary_dim / 2] */
    float scale;
    int32_t q_dim, kv_dim, qkv_dim;

    uint32_t *position;     /* [max_rows] of each token */
    float *cos, *sin;       /* [ropes, max_rows, rotary_dim / 2] */
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
    struct cpu_experts *experts; /* of a step's lane of a model with experts */
};

/* As in inf_backend_ops. */
int inf_cpu_lane_open(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err);
void inf_cpu_lane_close(inf_lane *l);
void inf_cpu_experts(inf_lane *l, const inf_experts *p);
int inf_cpu_answer(inf_lane *l, const inf_attn *args, int32_t n, inf_err *err);

/* ---- experts.c ---- */

/* What a layer's experts need beyond x and y, for a step of at most max_rows rows. R is the rows
 * times the experts of each. */
typedef struct cpu_experts {
    int32_t max_rows;
    float *logits;   /* [max_rows, experts (+ 1)] */
    float *weight;   /* [R] of each row's experts, the likeliest first */
    int32_t *chosen; /* [R] likewise: which they are */
    int32_t *place;  /* [R] likewise: the rows below that are theirs */
    int32_t *first;  /* [experts + 1] where an expert's rows begin below; R at the end */
    float *rows;     /* [R, hidden] inputs, grouped by expert, and then outputs */
    float *gate_up;  /* [R, 2 * expert_intermediate] */
    float *act;      /* [R, expert_intermediate] */
    float *shared_gate_up, *shared_act, *shared_out; /* the shared expert's, of each row */
    inf_gemm *gemms;                                 /* [experts + 1] */
    const inf_device_config *dims;
    const float *x; /* during an operation */
    float *y;
} cpu_experts;

/* 0: no memory. */
int inf_cpu_experts_open(inf_lane *l);
void inf_cpu_experts_close(cpu_experts *e);

/* From logits [rows, ld] to chosen and weight, [rows, top_k]: the top_k likeliest of n experts, of
 * equal ones the first, and their share of softmax, or with normalise of that of the chosen. */
void inf_cpu_route(const float *logits, int32_t ld, int32_t rows, int32_t n, int32_t top_k,
                   int normalise, int32_t *chosen, float *weight);

/* A counting sort: first [n + 1] from chosen [count], and place [count], in the order of chosen
 * among those of one expert. */
void inf_cpu_group(const int32_t *chosen, int32_t count, int32_t n, int32_t *first, int32_t *place);

#endif
