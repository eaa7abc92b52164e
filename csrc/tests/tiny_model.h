/* A small random model for the tests of a device: its weights, a device that has loaded them, and
 * the forward pass once more as plainly as it can be written, in double and without any cache, but
 * that K and V are rounded to e4m3 where the model's config says so. */
#ifndef INF_TESTS_TINY_MODEL_H
#define INF_TESTS_TINY_MODEL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_says.h"
#include "infinite/device.h"
#include "kernels/convert.h"

enum { TINY_LAYERS = 2, TINY_VOCAB = 64, TINY_ROLES = INF_ROLE_LAST + 1, TINY_WINDOW = 7 };
/* Beside the flags of a model: the first layer has experts, and a shared one. */
enum { TINY_EXPERTS = 1 << 30, TINY_SHARED = 1 << 29 };
/* What Gemma has besides its norms: gelu, a scale and a cap of scores, a cap of logits, a factor of
 * the embedding, and rotations of their own where there is a window. And the first quarters of
 * heads rotated. */
enum { TINY_GEMMA = 1 << 28, TINY_PARTLY = 1 << 27 };
enum { TINY_OWN = TINY_EXPERTS | TINY_SHARED | TINY_GEMMA | TINY_PARTLY };
/* The families' whole sets. */
enum {
    TINY_GEMMA_2 = TINY_GEMMA | INF_MODEL_POST_NORMS | INF_MODEL_TIED,
    TINY_GEMMA_3 = TINY_GEMMA_2 | INF_MODEL_QK_NORM,
    TINY_OLMO_2 =
        INF_MODEL_POST_NORMS | INF_MODEL_NO_PRE_NORMS | INF_MODEL_QK_NORM | INF_MODEL_QK_NORM_ALL
};

typedef struct tiny_model {
    inf_device_config config;
    float inv_freq[64];
    int32_t windows[TINY_LAYERS];
    float *tensors[TINY_LAYERS][TINY_ROLES]; /* outside the layers: [0][role]; NULL: the model has
                                              * none; of experts all, one behind the other */
    int64_t rows[TINY_ROLES], cols[TINY_ROLES];
    uint64_t rng;
} tiny_model;

static inline double tiny_uniform(tiny_model *m) {
    m->rng = m->rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(m->rng >> 11) * 0x1p-53 * 2 - 1;
}

static inline float *tiny_numbers(tiny_model *m, int64_t n, int vector, double wide) {
    float *t = malloc((size_t)n * sizeof(float));
    CHECK(t != NULL, "no memory");
    for (int64_t i = 0; i < n; i++) {
        double u = tiny_uniform(m);
        t[i] = (float)(vector ? 1 + 0.3 * u : u * wide);
    }
    return t;
}

static inline void tiny_shape(tiny_model *m, int32_t role, int64_t rows, int64_t cols) {
    m->rows[role] = rows;
    m->cols[role] = cols;
    int layers = role < INF_ROLE_ATTN_NORM ? 1 : m->config.layers;
    for (int l = 0; l < layers; l++) {
        m->tensors[l][role] = tiny_numbers(m, rows * cols, rows == 1, 2.0 / sqrt((double)cols));
    }
}

/* Experts in the place of the first layer's MLP. The choice among them must not be close, or who
 * rounds otherwise makes another: their logits are far from each other. */
static inline void tiny_experts(tiny_model *m, int shared, int normalise) {
    inf_device_config *c = &m->config;
    int64_t h = c->hidden, inner = c->expert_intermediate = c->intermediate / 2;
    c->experts = 6;
    c->experts_per_token = 3;
    c->shared_intermediate = shared ? c->intermediate : 0;
    c->model_flags |= normalise ? INF_MODEL_NORM_TOPK : 0;
    const struct {
        int32_t role;
        int64_t rows, cols;
    } roles[] = {{INF_ROLE_EXPERT_GATE, inner, h},
                 {INF_ROLE_EXPERT_UP, inner, h},
                 {INF_ROLE_EXPERT_DOWN, h, inner},
                 {INF_ROLE_ROUTER, c->experts, h},
                 {INF_ROLE_SHARED_GATE, c->shared_intermediate, h},
                 {INF_ROLE_SHARED_UP, c->shared_intermediate, h},
                 {INF_ROLE_SHARED_DOWN, h, c->shared_intermediate},
                 {INF_ROLE_SHARED_ROUTER, 1, h}};
    for (size_t i = 0; i < (shared ? 8 : 4); i++) {
        int64_t n = roles[i].rows * roles[i].cols * (i < 3 ? c->experts : 1);
        double wide = i == 3 ? 12 : 2;
        m->rows[roles[i].role] = roles[i].rows;
        m->cols[roles[i].role] = roles[i].cols;
        m->tensors[0][roles[i].role] = tiny_numbers(m, n, 0, wide / sqrt((double)roles[i].cols));
    }
    for (int32_t role = INF_ROLE_GATE; role <= INF_ROLE_DOWN; role++) {
        free(m->tensors[0][role]);
        m->tensors[0][role] = NULL;
    }
}

/* INFINITE_TEST_GPU and INFINITE_TEST_TP are gpu and tensor_parallel of the config. */
static inline tiny_model tiny_new_with(uint32_t flags, int32_t dtype, int32_t heads,
                                       int32_t kv_heads, int32_t head_dim, int32_t block_size) {
    tiny_model m = {.rng = flags + 1};
    uint32_t more = flags;
    flags &= ~(uint32_t)TINY_OWN;
    const char *gpu = getenv("INFINITE_TEST_GPU"), *ranks = getenv("INFINITE_TEST_TP");
    m.config = (inf_device_config){.layers = TINY_LAYERS,
                                   /* In 16 bits as wide as what GPUs fuse asks for. */
                                   .hidden = dtype == INF_DTYPE_F32 ? 48 : 64,
                                   .intermediate = dtype == INF_DTYPE_F32 ? 80 : 128,
                                   .heads = heads,
                                   .kv_heads = kv_heads,
                                   .head_dim = head_dim,
                                   .vocab = TINY_VOCAB,
                                   .model_flags = flags,
                                   .rms_eps = 1e-5f,
                                   .rope_scale = 1,
                                   .dtype = dtype,
                                   .block_size = block_size,
                                   .num_blocks = 64,
                                   .max_tokens = 64,
                                   .max_seqs = 4,
                                   .max_rows = 64,
                                   .max_step_blocks = 64,
                                   .max_step_spans = 8,
                                   .max_spans = 8,
                                   .threads = 2,
                                   .gpu = gpu != NULL ? atoi(gpu) : 0,
                                   .tensor_parallel = ranks != NULL ? atoi(ranks) : 0};
    m.windows[1] = TINY_WINDOW;
    if ((more & TINY_GEMMA) != 0) {
        m.config.activation = INF_ACT_GELU_TANH;
        m.config.attn_scale = 0.4f;
        m.config.attn_softcap = 1.5f;
        m.config.logit_softcap = 2.5f;
        m.config.embed_scale = 1.75f;
        m.config.rope_scale = 1.1f;
        m.config.ropes = 2;
    }
    m.config.rotary_dim = (more & TINY_PARTLY) != 0 ? head_dim / 4 : 0;
    int half = inf_rotary_dim(&m.config) / 2;
    for (int i = 0; i < 2 * half; i++) {
        double theta = i < half ? 10000 : 100;
        m.inv_freq[i] = (float)pow(theta, -1.0 * (i % half) / half);
    }
    const inf_device_config *c = &m.config;
    int64_t h = c->hidden, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    tiny_shape(&m, INF_ROLE_EMBED, c->vocab, h);
    tiny_shape(&m, INF_ROLE_FINAL_NORM, 1, h);
    if (!(flags & INF_MODEL_TIED)) {
        tiny_shape(&m, INF_ROLE_LM_HEAD, c->vocab, h);
    }
    int pre = (flags & INF_MODEL_NO_PRE_NORMS) == 0, all = (flags & INF_MODEL_QK_NORM_ALL) != 0;
    if (pre) {
        tiny_shape(&m, INF_ROLE_ATTN_NORM, 1, h);
    }
    tiny_shape(&m, INF_ROLE_Q, q, h);
    tiny_shape(&m, INF_ROLE_K, kv, h);
    tiny_shape(&m, INF_ROLE_V, kv, h);
    if (flags & INF_MODEL_QKV_BIAS) {
        tiny_shape(&m, INF_ROLE_Q_BIAS, 1, q);
        tiny_shape(&m, INF_ROLE_K_BIAS, 1, kv);
        tiny_shape(&m, INF_ROLE_V_BIAS, 1, kv);
    }
    if (flags & INF_MODEL_QK_NORM) {
        tiny_shape(&m, INF_ROLE_Q_NORM, 1, all ? q : c->head_dim);
        tiny_shape(&m, INF_ROLE_K_NORM, 1, all ? kv : c->head_dim);
    }
    tiny_shape(&m, INF_ROLE_O, h, q);
    if (pre) {
        tiny_shape(&m, INF_ROLE_MLP_NORM, 1, h);
    }
    tiny_shape(&m, INF_ROLE_GATE, c->intermediate, h);
    tiny_shape(&m, INF_ROLE_UP, c->intermediate, h);
    tiny_shape(&m, INF_ROLE_DOWN, h, c->intermediate);
    if ((flags & INF_MODEL_POST_NORMS) != 0) {
        tiny_shape(&m, INF_ROLE_ATTN_POST_NORM, 1, h);
        tiny_shape(&m, INF_ROLE_MLP_POST_NORM, 1, h);
    }
    if ((more & TINY_EXPERTS) != 0) {
        tiny_experts(&m, (more & TINY_SHARED) != 0, (more & TINY_SHARED) == 0);
    }
    return m;
}

static inline tiny_model tiny_new(uint32_t flags, int32_t dtype) {
    return tiny_new_with(flags, dtype, 4, 2, 16, 4);
}

static inline tiny_model tiny_new_of(uint32_t flags, int32_t dtype, int32_t heads,
                                     int32_t kv_heads) {
    return tiny_new_with(flags, dtype, heads, kv_heads, 16, 4);
}

static inline void tiny_free(tiny_model *m) {
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int r = 0; r < TINY_ROLES; r++) {
            free(m->tensors[l][r]);
        }
    }
}

static inline int tiny_load(const tiny_model *m, inf_device *d, int32_t layer, int32_t role,
                            inf_err *err) {
    int64_t n = m->rows[role] * m->cols[role];
    int status = INF_OK;
    if (role >= INF_ROLE_EXPERT_GATE && role <= INF_ROLE_EXPERT_DOWN) {
        for (int32_t e = m->config.experts - 1; e >= 0 && status == INF_OK; e--) {
            status = inf_device_load_expert(d, role, layer, e, INF_DTYPE_F32, m->rows[role],
                                            m->cols[role], m->tensors[layer][role] + e * n,
                                            (uint64_t)n * sizeof(float), err);
        }
        return status;
    }
    return inf_device_load(d, role, role < INF_ROLE_ATTN_NORM ? -1 : layer, INF_DTYPE_F32,
                           m->rows[role], m->cols[role], m->tensors[layer][role],
                           (uint64_t)n * sizeof(float), err);
}

/* A ready device with all tensors, loaded from the last role to the first: the order is free. */
static inline inf_device *tiny_open(const tiny_model *m) {
    inf_device *d = NULL;
    inf_err err = {0};
    CHECK(inf_device_open(&m->config, m->inv_freq, m->windows, &d, &err) == INF_OK, "%s",
          err.message);
    for (int32_t role = TINY_ROLES - 1; role > 0; role--) {
        for (int32_t l = 0; l < TINY_LAYERS; l++) {
            if (m->tensors[l][role] != NULL) {
                CHECK(tiny_load(m, d, l, role, &err) == INF_OK, "%s", err.message);
            }
        }
    }
    CHECK(inf_device_ready(d, &err) == INF_OK, "%s", err.message);
    return d;
}

/* 0 where the CPU lacks the instruction set, or the device the formats. */
static inline int tiny_is_supported(const tiny_model *m) {
    inf_device *d = NULL;
    inf_err err = {0};
    int status = inf_device_open(&m->config, m->inv_freq, m->windows, &d, &err);
    inf_device_close(d);
    return status != INF_EUNSUPPORTED;
}

static inline void tiny_slot(inf_device *d, uint32_t slot) {
    inf_sampling s = {.top_p = 1, .repetition = 1};
    inf_err err = {0};
    CHECK(inf_device_slot_open(d, slot, &s, NULL, 0, 0, NULL, NULL, 0, &err) == INF_OK, "%s",
          err.message);
}

static inline void ref_matmul(const double *x, const float *w, const float *bias, int64_t n,
                              int64_t k, double *y) {
    for (int64_t i = 0; i < n; i++) {
        y[i] = bias != NULL ? (double)bias[i] : 0;
        for (int64_t j = 0; j < k; j++) {
            y[i] += x[j] * (double)w[i * k + j];
        }
    }
}

static inline void ref_norm(const double *x, const float *w, int64_t n, double eps, double *y) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    double scale = 1 / sqrt(sum / (double)n + eps);
    for (int64_t i = 0; i < n; i++) {
        y[i] = x[i] * scale * (double)w[i];
    }
}

static inline void ref_rope(const tiny_model *m, int layer, double *x, int pos) {
    int half = inf_rotary_dim(&m->config) / 2, own = m->config.ropes > 1 && m->windows[layer] > 0;
    double scale = own ? 1 : (double)m->config.rope_scale;
    for (int i = 0; i < half; i++) {
        double a = pos * (double)m->inv_freq[own * half + i], first = x[i], second = x[i + half];
        x[i] = (first * cos(a) - second * sin(a)) * scale;
        x[i + half] = (second * cos(a) + first * sin(a)) * scale;
    }
}

static inline double ref_softcap(double x, float cap) {
    return cap > 0 ? (double)cap * tanh(x / (double)cap) : x;
}

enum { REF_TOKENS = 64, REF_DIM = 128 };

typedef struct ref_state {
    double x[REF_TOKENS][REF_DIM], q[REF_TOKENS][REF_DIM], k[REF_TOKENS][REF_DIM],
        v[REF_TOKENS][REF_DIM];
} ref_state;

static inline void ref_attend(const tiny_model *m, const ref_state *s, int layer, int t,
                              double *out) {
    const inf_device_config *c = &m->config;
    int first = m->windows[layer] > 0 && t + 1 > m->windows[layer] ? t + 1 - m->windows[layer] : 0;
    for (int h = 0; h < c->heads; h++) {
        int kv = h / (c->heads / c->kv_heads) * c->head_dim;
        double p[REF_TOKENS], sum = 0, *o = out + h * c->head_dim;
        for (int j = first; j <= t; j++) {
            double dot = 0;
            for (int i = 0; i < c->head_dim; i++) {
                dot += s->q[t][h * c->head_dim + i] * s->k[j][kv + i];
            }
            dot *= c->attn_scale > 0 ? (double)c->attn_scale : 1 / sqrt((double)c->head_dim);
            sum += p[j] = exp(ref_softcap(dot, c->attn_softcap));
        }
        for (int i = 0; i < c->head_dim; i++) {
            o[i] = 0;
            for (int j = first; j <= t; j++) {
                o[i] += p[j] / sum * s->v[j][kv + i];
            }
        }
    }
}

/* What a cache in e4m3 gives back. Who computes in f32 may round a number on the brink to the other
 * side. */
static inline void ref_e4m3(double *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float f = (float)x[i];
        uint8_t code;
        inf_convert(&code, INF_DTYPE_E4M3, &f, INF_DTYPE_F32, 1);
        inf_convert(&f, INF_DTYPE_F32, &code, INF_DTYPE_E4M3, 1);
        x[i] = (double)f;
    }
}

static inline double ref_activated(int32_t activation, double x) {
    double u = sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    return activation == INF_ACT_GELU_TANH ? x / 2 * (1 + tanh(u)) : x / (1 + exp(-x));
}

/* down(activation(gate x) * up x) */
static inline void ref_mlp(int32_t activation, const double *x, const float *gate, const float *up,
                           const float *down, int64_t inner, int64_t hidden, double *y) {
    double g[REF_DIM], u[REF_DIM];
    ref_matmul(x, gate, NULL, inner, hidden, g);
    ref_matmul(x, up, NULL, inner, hidden, u);
    for (int64_t i = 0; i < inner; i++) {
        g[i] = ref_activated(activation, g[i]) * u[i];
    }
    ref_matmul(g, down, NULL, hidden, inner, y);
}

static inline void ref_experts(const inf_device_config *c, float *const *w, const double *x,
                               double *y) {
    double p[INF_MAX_EXPERTS], sum = 0, kept = 0, out[REF_DIM];
    int taken[INF_MAX_EXPERTS] = {0}, chosen[INF_MAX_EXPERTS_PER_TOKEN];
    int64_t h = c->hidden, n = c->expert_intermediate * h;
    ref_matmul(x, w[INF_ROLE_ROUTER], NULL, c->experts, h, p);
    for (int e = 0; e < c->experts; e++) {
        sum += p[e] = exp(p[e]);
    }
    for (int i = 0; i < c->experts_per_token; i++) {
        int best = -1;
        for (int e = 0; e < c->experts; e++) {
            best = !taken[e] && (best < 0 || p[e] > p[best]) ? e : best;
        }
        taken[best] = 1;
        kept += p[chosen[i] = best];
    }
    memset(y, 0, (size_t)h * sizeof *y);
    for (int i = 0; i < c->experts_per_token; i++) {
        int e = chosen[i];
        ref_mlp(INF_ACT_SILU, x, w[INF_ROLE_EXPERT_GATE] + e * n, w[INF_ROLE_EXPERT_UP] + e * n,
                w[INF_ROLE_EXPERT_DOWN] + e * n, c->expert_intermediate, h, out);
        for (int k = 0; k < h; k++) {
            y[k] += p[e] / (c->model_flags & INF_MODEL_NORM_TOPK ? kept : sum) * out[k];
        }
    }
    if (c->shared_intermediate > 0) {
        double logit;
        ref_matmul(x, w[INF_ROLE_SHARED_ROUTER], NULL, 1, h, &logit);
        ref_mlp(INF_ACT_SILU, x, w[INF_ROLE_SHARED_GATE], w[INF_ROLE_SHARED_UP],
                w[INF_ROLE_SHARED_DOWN], c->shared_intermediate, h, out);
        for (int k = 0; k < h; k++) {
            y[k] += out[k] / (1 + exp(-logit));
        }
    }
}

/* What a half of a layer reads. */
static inline void ref_input(const tiny_model *m, const double *x, const float *norm, double *h) {
    if (norm != NULL) {
        ref_norm(x, norm, m->config.hidden, (double)m->config.rms_eps, h);
    } else {
        memcpy(h, x, (size_t)m->config.hidden * sizeof *h);
    }
}

/* x += what a half of a layer gives, which is normed where there is a norm behind it. */
static inline void ref_output(const tiny_model *m, double *x, double *y, const float *post) {
    if (post != NULL) {
        ref_norm(y, post, m->config.hidden, (double)m->config.rms_eps, y);
    }
    for (int i = 0; i < m->config.hidden; i++) {
        x[i] += y[i];
    }
}

/* The norms of a token's q and k, over each head or over all, and their rotation. */
static inline void ref_heads(const tiny_model *m, ref_state *s, int layer, int t) {
    const inf_device_config *c = &m->config;
    float *const *w = m->tensors[layer];
    int norm = (c->model_flags & INF_MODEL_QK_NORM) != 0;
    int all = (c->model_flags & INF_MODEL_QK_NORM_ALL) != 0;
    if (all) {
        ref_norm(s->q[t], w[INF_ROLE_Q_NORM], c->heads * c->head_dim, (double)c->rms_eps, s->q[t]);
        ref_norm(s->k[t], w[INF_ROLE_K_NORM], c->kv_heads * c->head_dim, (double)c->rms_eps,
                 s->k[t]);
    }
    for (int i = 0; i < c->heads + c->kv_heads; i++) {
        int is_q = i < c->heads;
        double *head = is_q ? s->q[t] + i * c->head_dim : s->k[t] + (i - c->heads) * c->head_dim;
        if (norm && !all) {
            ref_norm(head, w[is_q ? INF_ROLE_Q_NORM : INF_ROLE_K_NORM], c->head_dim,
                     (double)c->rms_eps, head);
        }
        ref_rope(m, layer, head, t);
    }
}

static inline void ref_layer(const tiny_model *m, ref_state *s, int layer, int n) {
    const inf_device_config *c = &m->config;
    float *const *w = m->tensors[layer];
    int q_dim = c->heads * c->head_dim, kv_dim = c->kv_heads * c->head_dim;
    double h[REF_DIM], o[REF_DIM];
    for (int t = 0; t < n; t++) {
        ref_input(m, s->x[t], w[INF_ROLE_ATTN_NORM], h);
        ref_matmul(h, w[INF_ROLE_Q], w[INF_ROLE_Q_BIAS], q_dim, c->hidden, s->q[t]);
        ref_matmul(h, w[INF_ROLE_K], w[INF_ROLE_K_BIAS], kv_dim, c->hidden, s->k[t]);
        ref_matmul(h, w[INF_ROLE_V], w[INF_ROLE_V_BIAS], kv_dim, c->hidden, s->v[t]);
        ref_heads(m, s, layer, t);
        if (c->kv_dtype == INF_DTYPE_E4M3) {
            ref_e4m3(s->k[t], kv_dim);
            ref_e4m3(s->v[t], kv_dim);
        }
    }
    for (int t = 0; t < n; t++) {
        ref_attend(m, s, layer, t, o);
        ref_matmul(o, w[INF_ROLE_O], NULL, c->hidden, q_dim, h);
        ref_output(m, s->x[t], h, w[INF_ROLE_ATTN_POST_NORM]);
        ref_input(m, s->x[t], w[INF_ROLE_MLP_NORM], h);
        if (w[INF_ROLE_ROUTER] != NULL) {
            ref_experts(c, w, h, o);
        } else {
            ref_mlp(c->activation, h, w[INF_ROLE_GATE], w[INF_ROLE_UP], w[INF_ROLE_DOWN],
                    c->intermediate, c->hidden, o);
        }
        ref_output(m, s->x[t], o, w[INF_ROLE_MLP_POST_NORM]);
    }
}

/* Log probabilities after each of n tokens. */
static inline void tiny_reference(const tiny_model *m, const int32_t *tokens, int n,
                                  double logprobs[][TINY_VOCAB]) {
    static ref_state s;
    const inf_device_config *c = &m->config;
    float *const *w = m->tensors[0];
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < c->hidden; i++) {
            s.x[t][i] = (double)w[INF_ROLE_EMBED][tokens[t] * c->hidden + i];
            s.x[t][i] *= c->embed_scale > 0 ? (double)c->embed_scale : 1;
        }
    }
    for (int l = 0; l < c->layers; l++) {
        ref_layer(m, &s, l, n);
    }
    for (int t = 0; t < n; t++) {
        double h[REF_DIM], sum = 0;
        ref_norm(s.x[t], w[INF_ROLE_FINAL_NORM], c->hidden, (double)c->rms_eps, h);
        const float *head = w[c->model_flags & INF_MODEL_TIED ? INF_ROLE_EMBED : INF_ROLE_LM_HEAD];
        ref_matmul(h, head, NULL, c->vocab, c->hidden, logprobs[t]);
        for (int v = 0; v < c->vocab; v++) {
            logprobs[t][v] = ref_softcap(logprobs[t][v], c->logit_softcap);
            sum += exp(logprobs[t][v]);
        }
        for (int v = 0; v < c->vocab; v++) {
            logprobs[t][v] -= log(sum);
        }
    }
}

#endif
